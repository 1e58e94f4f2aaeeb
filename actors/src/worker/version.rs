//! The supervisor of one model version: its batcher and its replicas.
//!
//! A replica that cannot be loaded, while others can, leaves the version to them and is tried again at growing pauses. Only
//! when none can be loaded does the version fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::served::Served;
use crate::batching::batcher::{self, Batcher};
use crate::replica::actor::{self as replica, LoadFailed, Replica, Shared};
use crate::supervision::policy::{Intensity, Verdict};
use crate::supervision::tree::State as TreeState;
use crate::supervision::{RESTART, RETIRE};

/// The first pause of a replica that cannot be loaded; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What the supervisor tells itself.
pub enum Message {
    /// Start the replica of this number again.
    Start(usize),
}

/// What it starts with.
pub struct Arguments {
    /// The version.
    pub served: Arc<Served>,
    /// What replicas share.
    pub shared: Arc<Shared>,
}

/// See the module.
pub struct Version;

/// What it owns.
pub struct State {
    served: Arc<Served>,
    shared: Arc<Shared>,
    batcher: ActorRef<batcher::Message>,
    replicas: HashMap<ActorId, usize>,
    intensity: Intensity,
    /// How long replicas that could not be loaded wait, by their number.
    pauses: HashMap<usize, Duration>,
}

impl Actor for Version {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        let Arguments { served, shared } = args;
        let path = format!("{}/batcher", served.path);
        let depth = shared.tree.starting(&path, "batcher");
        let batcher_args =
            batcher::Arguments { manifest: served.manifest.clone(), depth, metrics: served.metrics.clone() };
        let (batcher, _) = Actor::spawn_linked(None, Batcher, batcher_args, myself.get_cell()).await?;
        shared.tree.running(&path, batcher.get_cell());
        served.set_batcher(Some(batcher.clone()));
        let replicas = &served.manifest.replicas;
        let intensity = Intensity::new(replicas.max_restarts, Duration::from_millis(replicas.restart_window_ms));
        let count = replicas.count;
        // what its predecessor could not load is tried anew
        for number in 0..count {
            served.note_replica(number, None);
        }
        let (replicas, pauses) = (HashMap::new(), HashMap::new());
        let mut state = State { served, shared, batcher, replicas, intensity, pauses };
        for number in 0..count {
            state.start(&myself, number).await?;
        }
        Ok(state)
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.served.set_batcher(None);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        Message::Start(number): Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.start(&myself, number).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(child, error) => {
                let fatal = error.is::<LoadFailed>();
                state.ended(&myself, &child, &error.to_string(), fatal)
            }
            SupervisionEvent::ActorTerminated(child, _, reason) => match reason.as_deref() {
                Some(RETIRE) => Ok(()),
                Some(RESTART) => state.restart(&myself, &child),
                reason => state.ended(&myself, &child, reason.unwrap_or("stopped"), false),
            },
            _ => Ok(()),
        }
    }
}

impl State {
    fn path(&self, number: usize) -> String {
        format!("{}/replica-{number}", self.served.path)
    }

    async fn start(&mut self, myself: &ActorRef<Message>, number: usize) -> Result<(), ActorProcessingErr> {
        let path = self.path(number);
        self.shared.tree.starting(&path, "replica");
        let args = replica::Arguments {
            path: path.clone(),
            number,
            served: self.served.clone(),
            batcher: self.batcher.clone(),
            shared: self.shared.clone(),
        };
        let (replica, _) = Actor::spawn_linked(None, Replica, args, myself.get_cell()).await?;
        self.shared.tree.spawned(&path, replica.get_cell());
        self.replicas.insert(replica.get_id(), number);
        Ok(())
    }

    /// An operator asked for it: no failure is counted.
    fn restart(&mut self, myself: &ActorRef<Message>, child: &ActorCell) -> Result<(), ActorProcessingErr> {
        let Some(number) = self.replicas.remove(&child.get_id()) else {
            return Err(RESTART.into()); // the batcher: its replicas offer to it, so all start again
        };
        self.shared.tree.failed(&self.path(number), TreeState::Restarting, "restarted by an operator");
        Ok(myself.cast(Message::Start(number))?)
    }

    fn ended(
        &mut self,
        myself: &ActorRef<Message>,
        child: &ActorCell,
        reason: &str,
        fatal: bool,
    ) -> Result<(), ActorProcessingErr> {
        let Some(number) = self.replicas.remove(&child.get_id()) else {
            return Err(format!("batcher failed: {reason}").into());
        };
        let path = self.path(number);
        self.shared.tree.failed(&path, TreeState::Restarting, reason);
        if fatal {
            return self.unloadable(myself, number, reason);
        }
        match self.intensity.failed() {
            Verdict::Restart(after) => {
                let path = self.shared.tree.shown(&path);
                tracing::warn!(path, reason, after_ms = after.as_millis(), "replica failed, restarting");
                myself.send_after(after, move || Message::Start(number));
                Ok(())
            }
            Verdict::Escalate => Err(format!("replica-{number} fails too often: {reason}").into()),
        }
    }

    /// The version goes on with the replicas that it has, if it has any.
    fn unloadable(
        &mut self,
        myself: &ActorRef<Message>,
        number: usize,
        reason: &str,
    ) -> Result<(), ActorProcessingErr> {
        let (down, again) = self.served.note_replica(number, Some(reason.to_owned()));
        if down >= self.served.manifest.replicas.count {
            return Err(LoadFailed::from(reason).into());
        }
        let pause = self.pauses.entry(number).or_insert(FIRST_PAUSE);
        *pause = if again { (*pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        let (after, path) = (*pause, self.shared.tree.shown(&self.path(number)));
        tracing::warn!(path, reason, after_ms = after.as_millis(), "replica cannot be loaded, the others go on");
        myself.send_after(after, move || Message::Start(number));
        Ok(())
    }
}
