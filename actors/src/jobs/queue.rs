//! Takes the tasks of one work queue, a few at a time, for as long as the gateway serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::StreamExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::carry::carry;
use super::run::Bench;

/// A pause after a failure to reach the queue, or before it is looked whether the gateway is ready.
const PAUSE: Duration = Duration::from_millis(500);
/// A queue that cannot be reached for longer is worth a word, unless its store has said so already.
const WORTH_SAYING: Duration = Duration::from_secs(5);
/// How often the depth of the queue is looked at.
const DEPTH: Duration = Duration::from_secs(2);
/// Makes a span a part of the trace that a message names.
pub type Continue = Arc<dyn Fn(&tracing::Span, &str) + Send + Sync>;

/// Whether this gateway can do anything for those who ask.
pub type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// What it is told.
pub(super) enum Message {
    /// Take what there is.
    Pull,
}

/// Whether tasks are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// They are.
    On,
    /// No new ones are taken.
    Finish,
    /// Those in work are handed back.
    HandBack,
}

/// See the module.
pub(super) struct Queue;

/// What it starts with.
pub(super) struct Arguments {
    pub(super) name: &'static str,
    pub(super) bench: Arc<Bench>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) work: watch::Receiver<Work>,
    /// Tasks that wait, for the tree.
    pub(super) depth: Arc<AtomicU64>,
    pub(super) trace: Continue,
    pub(super) ready: Ready,
}

/// What it owns.
pub(super) struct State {
    args: Arguments,
    looked: Option<Instant>,
    failing: Option<Failing>,
}

/// The queue cannot be reached.
struct Failing {
    since: Instant,
    told: bool,
}

impl Actor for Queue {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        myself.cast(Message::Pull)?;
        Ok(State { args, looked: None, failing: None })
    }

    async fn handle(&self, myself: ActorRef<Message>, _: Message, state: &mut State) -> Result<(), ActorProcessingErr> {
        if *state.args.work.borrow() != Work::On {
            return Ok(());
        }
        state.look().await;
        if (state.args.ready)() {
            state.pull().await;
        } else {
            // who can do nothing would only fail what others could do
            tokio::time::sleep(PAUSE).await;
        }
        myself.cast(Message::Pull)?;
        Ok(())
    }
}

impl State {
    async fn pull(&mut self) {
        // room for one is waited for, more is taken as it is
        let mut waiting = std::pin::pin!(self.args.permits.clone().acquire_owned());
        let first = loop {
            match tokio::time::timeout(DEPTH, &mut waiting).await {
                Ok(Ok(first)) => break first,
                Ok(Err(_)) => return,
                Err(_) => self.look().await,
            }
        };
        let Arguments { name, bench, permits, work, trace, ready, .. } = &self.args;
        if *work.borrow() != Work::On || !ready() {
            return;
        }
        let mut room = vec![first];
        while let Ok(more) = permits.clone().try_acquire_owned() {
            room.push(more);
        }
        let (held, most) = bench.pauses.held(name, room.len());
        let pulled = bench.jobs.store().pull(name, most, &held).await;
        let mut deliveries = match pulled {
            Ok(deliveries) => deliveries,
            Err(error) => {
                let failing = self.failing.get_or_insert_with(|| Failing { since: Instant::now(), told: false });
                // while NATS is down that has been said, once for all queues
                let is_up = bench.jobs.store().health().unwell_for() == Duration::ZERO;
                if is_up && failing.since.elapsed() > WORTH_SAYING && !std::mem::replace(&mut failing.told, true) {
                    tracing::warn!(queue = name, %error, "cannot take tasks, trying on");
                }
                tokio::time::sleep(PAUSE).await;
                return;
            }
        };
        self.failing = None;
        while let Some(delivery) = deliveries.next().await {
            match delivery {
                Ok(delivery) => {
                    let Some(permit) = room.pop() else { continue };
                    bench.pauses.taken(name, &delivery.message.flow);
                    tokio::spawn(carry(name, bench.clone(), delivery, permit, work.clone(), trace.clone()));
                }
                Err(error) => {
                    tracing::debug!(queue = name, %error, "tasks were cut off");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    #[allow(clippy::cast_precision_loss)]
    async fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < DEPTH) {
            return;
        }
        self.looked = Some(Instant::now());
        if let Ok(waiting) = self.args.bench.jobs.store().waiting(self.args.name).await {
            self.args.depth.store(waiting, Relaxed);
            metrics::gauge!("sensorium_job_queue_depth", "modality" => self.args.name).set(waiting as f64);
        }
    }
}
