//! The supervisor of all model versions of one modality.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use super::served::Served;
use super::version::{self, Version};
use crate::replica::actor::{LoadFailed, Shared};
use crate::supervision::policy::{Intensity, Verdict};
use crate::supervision::tree::State as TreeState;
use crate::supervision::{RESTART, RETIRE};

/// Restarts of a version within ten minutes, before it is quarantined.
const MAX_RESTARTS: u32 = 3;
const WINDOW: Duration = Duration::from_secs(600);

/// What it is told.
pub enum Message {
    /// Serve this version.
    Start(Arc<Served>),
    /// Serve it no longer; answers when its actors have been told.
    Stop(Arc<Served>, RpcReplyPort<()>),
}

/// What it starts with.
pub struct Arguments {
    /// Its place in the tree.
    pub path: String,
    /// What replicas share.
    pub shared: Arc<Shared>,
    /// Versions that its predecessor served.
    pub versions: Vec<Arc<Served>>,
}

/// See the module.
pub struct ModalitySupervisor;

/// What it owns.
pub struct State {
    path: String,
    shared: Arc<Shared>,
    children: HashMap<ActorId, Child>,
    /// By path, so that a restarted version keeps its history.
    intensities: HashMap<String, Intensity>,
}

struct Child {
    served: Arc<Served>,
    cell: ActorCell,
}

impl Actor for ModalitySupervisor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        args.shared.tree.starting(&args.path, "supervisor");
        args.shared.tree.running(&args.path, myself.get_cell());
        let mut state =
            State { path: args.path, shared: args.shared, children: HashMap::new(), intensities: HashMap::new() };
        for served in args.versions {
            state.start(&myself, served).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Start(served) => state.start(&myself, served).await,
            Message::Stop(served, done) => {
                state.stop(&served).await;
                Ok(done.send(())?)
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(child, error) => {
                let wanted = error.to_string() == RESTART;
                state.ended(&myself, &child, &error.to_string(), error.is::<LoadFailed>(), wanted).await
            }
            SupervisionEvent::ActorTerminated(child, _, reason) => match reason.as_deref() {
                Some(RETIRE) => Ok(()),
                reason => {
                    let reason = reason.unwrap_or("stopped");
                    state.ended(&myself, &child, reason, false, reason == RESTART).await
                }
            },
            _ => Ok(()),
        }
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<Message>, served: Arc<Served>) -> Result<(), ActorProcessingErr> {
        let path = served.path.clone();
        self.shared.tree.starting(&path, "version");
        let args = version::Arguments { served: served.clone(), shared: self.shared.clone() };
        let (version, _) = Actor::spawn_linked(None, Version, args, myself.get_cell()).await?;
        self.shared.tree.running(&path, version.get_cell());
        self.children.insert(version.get_id(), Child { served, cell: version.get_cell() });
        Ok(())
    }

    async fn stop(&mut self, served: &Arc<Served>) {
        let found = self.children.iter().find(|(_, child)| Arc::ptr_eq(&child.served, served)).map(|(id, _)| *id);
        if let Some(child) = found.and_then(|id| self.children.remove(&id)) {
            // its state is dropped before this returns, and with it the engine's memory is on its way out
            if let Err(error) = child.cell.stop_and_wait(Some(RETIRE.to_owned()), None).await {
                tracing::debug!(path = served.path, %error, "version had already stopped");
            }
        }
        self.intensities.remove(&served.path);
        self.shared.tree.remove(&served.path);
    }

    async fn ended(
        &mut self,
        myself: &ActorRef<Message>,
        child: &ActorCell,
        reason: &str,
        fatal: bool,
        wanted: bool,
    ) -> Result<(), ActorProcessingErr> {
        let Some(Child { served, .. }) = self.children.remove(&child.get_id()) else { return Ok(()) };
        served.set_batcher(None);
        if wanted {
            self.shared.tree.failed(&served.path, TreeState::Restarting, "restarted by an operator");
            return self.start(myself, served).await;
        }
        let intensity =
            self.intensities.entry(served.path.clone()).or_insert_with(|| Intensity::new(MAX_RESTARTS, WINDOW));
        let verdict = if fatal { Verdict::Escalate } else { intensity.failed() };
        match verdict {
            Verdict::Restart(after) => {
                tracing::warn!(path = self.shared.tree.shown(&served.path), reason, "version failed, restarting");
                self.shared.tree.failed(&served.path, TreeState::Restarting, reason);
                myself.send_after(after, move || Message::Start(served));
            }
            // the failure is the version's own: taking the whole modality down would only spread it
            Verdict::Escalate => {
                self.shared.tree.failed(&served.path, TreeState::Quarantined, reason);
                // one that is tried again was told of and counted the first time
                if !served.is_trial() {
                    tracing::error!(path = self.shared.tree.shown(&served.path), reason, "version quarantined");
                    let model = served.manifest.name.clone();
                    metrics::counter!("sensorium_quarantines_total", "model" => model).increment(1);
                }
                served.quarantine(reason, fatal);
            }
        }
        tracing::debug!(path = self.path, "supervision event handled");
        Ok(())
    }
}
