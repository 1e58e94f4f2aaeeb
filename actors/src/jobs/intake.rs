//! The job intake of a gateway: the supervisor of its queues, and its way out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{Semaphore, watch};

use super::pauses::Pauses;
use super::queue::{self, Queue, Work};
pub use super::queue::{Continue, Ready};
use super::run::{Absences, Bench};
use super::{Jobs, QUEUES, expiry};
use crate::error::{Error, Result};
use crate::supervision::policy::{Intensity, Verdict};
use crate::supervision::tree::{State as TreeState, Tree};
use crate::supervision::{self, RETIRE};
use crate::understand::Understanding;

/// A cheap handle to the intake.
#[derive(Clone)]
pub struct Intake {
    work: Arc<watch::Sender<Work>>,
    permits: Arc<HashMap<&'static str, Arc<Semaphore>>>,
    concurrency: u32,
}

impl Intake {
    /// Starts it. It takes tasks while `ready` says so. `trace` makes a span a part of the trace that a message names.
    ///
    /// # Errors
    /// If its actor cannot start.
    pub async fn start(
        jobs: Jobs,
        understanding: Understanding,
        gateway: &str,
        tree: Tree,
        trace: Continue,
        ready: Ready,
    ) -> Result<Self> {
        tokio::spawn(expiry::forget_what_is_over(jobs.clone(), gateway.to_owned()));
        let concurrency = jobs.options.concurrency;
        let permits = QUEUES.map(|name| (name, Arc::new(Semaphore::new(concurrency))));
        let permits = Arc::new(HashMap::from(permits));
        let (work, seen) = watch::channel(Work::On);
        if concurrency > 0 {
            let bench =
                Arc::new(Bench { jobs, understanding, absences: Absences::default(), pauses: Pauses::default() });
            let (path, permits) = (format!("{gateway}/jobs"), permits.clone());
            let args = Arguments { path, bench, permits, work: seen, tree, trace, ready };
            let started = Actor::spawn(None, Supervisor, args).await;
            started.map_err(|error| Error::Internal(format!("cannot start the job intake: {error}")))?;
        }
        Ok(Self { work: Arc::new(work), permits, concurrency: u32::try_from(concurrency).unwrap_or(u32::MAX) })
    }

    /// Takes no more, gives those in work some time to end, and hands the rest back, for others to take at once.
    pub async fn drain(&self, patience: Duration) {
        self.work.send_replace(Work::Finish);
        let ended = async {
            for permits in self.permits.values() {
                // all permits together are ours once nothing is in work; the semaphore is never closed
                drop(permits.acquire_many(self.concurrency).await);
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            self.work.send_replace(Work::HandBack);
            // a word to NATS takes no longer
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

enum Message {
    Restart(&'static str),
}

struct Supervisor;

struct Arguments {
    path: String,
    bench: Arc<Bench>,
    permits: Arc<HashMap<&'static str, Arc<Semaphore>>>,
    work: watch::Receiver<Work>,
    tree: Tree,
    trace: Continue,
    ready: Ready,
}

struct State {
    args: Arguments,
    names: HashMap<ActorId, &'static str>,
    intensity: Intensity,
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        args.tree.starting(&args.path, "job intake");
        args.tree.running(&args.path, myself.get_cell());
        let mut state = State { args, names: HashMap::new(), intensity: Intensity::new(20, Duration::from_secs(60)) };
        for name in QUEUES {
            state.start(&myself, name).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        Message::Restart(name): Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.start(&myself, name).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((child, reason)) = supervision::ended(event) else { return Ok(()) };
        let Some(name) = state.names.remove(&child) else { return Ok(()) };
        if reason == RETIRE {
            return Ok(());
        }
        state.args.tree.failed(&format!("{}/{name}", state.args.path), TreeState::Restarting, &reason);
        match state.intensity.judge(&reason) {
            Verdict::Restart(after) => {
                myself.send_after(after, move || Message::Restart(name));
                Ok(())
            }
            Verdict::Escalate => Err(format!("the queue of {name} fails too often: {reason}").into()),
        }
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<Message>, name: &'static str) -> Result<(), ActorProcessingErr> {
        let path = format!("{}/{name}", self.args.path);
        let depth = self.args.tree.starting(&path, "queue");
        let Some(permits) = self.args.permits.get(name).cloned() else { return Ok(()) };
        let (bench, work, trace) = (self.args.bench.clone(), self.args.work.clone(), self.args.trace.clone());
        let args = queue::Arguments { name, bench, permits, work, depth, trace, ready: self.args.ready.clone() };
        let (queue, _) = Actor::spawn_linked(None, Queue, args, myself.get_cell()).await?;
        self.args.tree.running(&path, queue.get_cell());
        self.names.insert(queue.get_id(), name);
        Ok(())
    }
}
