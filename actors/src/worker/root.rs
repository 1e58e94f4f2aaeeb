//! The root of a worker's tree: one supervisor per modality.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::Versions;
use super::modality::{self, ModalitySupervisor};
use super::served::Served;
use crate::manifest::Modality;
use crate::replica::actor::Shared;
use crate::supervision::policy::{Intensity, Verdict};
use crate::supervision::tree::State as TreeState;
use crate::supervision::{self, RESTART, RETIRE};

/// What the root is told.
pub enum Message {
    /// Serve this version.
    Start(Arc<Served>),
    /// Serve it no longer.
    Stop(Arc<Served>, ractor::RpcReplyPort<()>),
    /// Start the supervisor of this modality again.
    Restart(Modality),
}

/// What it starts with.
pub struct Arguments {
    /// The worker's name, the root of all its paths.
    pub name: String,
    /// What replicas share.
    pub shared: Arc<Shared>,
    /// What is to be served, for a supervisor that starts again.
    pub versions: Versions,
    /// Set when the tree has given up: the process has to go.
    pub fatal: watch::Sender<Option<String>>,
}

/// See the module.
pub struct Root;

/// What it owns.
pub struct State {
    args: Arguments,
    modalities: HashMap<Modality, ActorRef<modality::Message>>,
    names: HashMap<ActorId, Modality>,
    intensity: Intensity,
}

impl Actor for Root {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        args.shared.tree.starting(&args.name, "worker");
        args.shared.tree.running(&args.name, myself.get_cell());
        let intensity = Intensity::new(5, Duration::from_secs(60));
        let mut state = State { args, modalities: HashMap::new(), names: HashMap::new(), intensity };
        for modality in Modality::ALL {
            state.start(&myself, modality).await?;
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
            Message::Start(served) => {
                if let Some(supervisor) = state.modalities.get(&served.manifest.modality) {
                    // a supervisor that is down finds the version among those it is started with
                    let _ = supervisor.cast(modality::Message::Start(served));
                }
            }
            Message::Stop(served, done) => {
                if let Some(supervisor) = state.modalities.get(&served.manifest.modality) {
                    let _ = supervisor.cast(modality::Message::Stop(served, done));
                }
            }
            Message::Restart(modality) => state.start(&myself, modality).await?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((child, reason)) = supervision::ended(event).filter(|(_, reason)| reason != RETIRE) else {
            return Ok(());
        };
        let Some(modality) = state.names.remove(&child) else { return Ok(()) };
        let path = state.path(modality);
        state.args.shared.tree.failed(&path, TreeState::Restarting, &reason);
        if reason == RESTART {
            return Ok(myself.cast(Message::Restart(modality))?);
        }
        match state.intensity.failed() {
            Verdict::Restart(after) => {
                tracing::error!(path, reason, "modality supervisor failed, restarting");
                myself.send_after(after, move || Message::Restart(modality));
                Ok(())
            }
            Verdict::Escalate => {
                let reason = format!("{path} fails too often: {reason}");
                state.args.fatal.send_replace(Some(reason.clone()));
                Err(reason.into())
            }
        }
    }
}

impl State {
    fn path(&self, modality: Modality) -> String {
        format!("{}/{modality}", self.args.name)
    }

    async fn start(&mut self, myself: &ActorRef<Message>, modality: Modality) -> Result<(), ActorProcessingErr> {
        let versions = self.args.versions.of(modality);
        let args = modality::Arguments { path: self.path(modality), shared: self.args.shared.clone(), versions };
        let (supervisor, _) = Actor::spawn_linked(None, ModalitySupervisor, args, myself.get_cell()).await?;
        self.names.insert(supervisor.get_id(), modality);
        self.modalities.insert(modality, supervisor);
        Ok(())
    }
}
