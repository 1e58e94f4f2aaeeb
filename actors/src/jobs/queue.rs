//! Takes the tasks of one work queue, a few at a time, for as long as the gateway serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::StreamExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use sensorium_cluster::jobs::{Delivery, Message as Anew};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tracing::Instrument;

use super::Jobs;
use super::record::Task;
use super::run::Bench;
use crate::error::Error;

/// A pause after a failure to reach the queue.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the depth of the queue is looked at.
const DEPTH: Duration = Duration::from_secs(2);
/// A task is tried again after this at the latest.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// Makes a span a part of the trace that a message names.
pub type Continue = Arc<dyn Fn(&tracing::Span, &str) + Send + Sync>;

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
}

/// What it owns.
pub(super) struct State {
    args: Arguments,
    looked: Option<Instant>,
    failing: bool,
}

impl Actor for Queue {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        myself.cast(Message::Pull)?;
        Ok(State { args, looked: None, failing: false })
    }

    async fn handle(&self, myself: ActorRef<Message>, _: Message, state: &mut State) -> Result<(), ActorProcessingErr> {
        if *state.args.work.borrow() != Work::On {
            return Ok(());
        }
        state.look().await;
        state.pull().await;
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
        let Arguments { name, bench, permits, work, trace, .. } = &self.args;
        if *work.borrow() != Work::On {
            return;
        }
        let mut room = vec![first];
        while let Ok(more) = permits.clone().try_acquire_owned() {
            room.push(more);
        }
        let pulled = bench.jobs.store().pull(name, room.len()).await;
        let mut deliveries = match pulled {
            Ok(deliveries) => deliveries,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(queue = name, %error, "cannot take tasks, trying on");
                }
                tokio::time::sleep(PAUSE).await;
                return;
            }
        };
        self.failing = false;
        while let Some(delivery) = deliveries.next().await {
            match delivery {
                Ok(delivery) => {
                    let Some(permit) = room.pop() else { continue };
                    tokio::spawn(carry(bench.clone(), delivery, permit, work.clone(), trace.clone()));
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

/// Carries one task to its end, whatever that is.
async fn carry(
    bench: Arc<Bench>,
    delivery: Delivery,
    _permit: OwnedSemaphorePermit,
    mut work: watch::Receiver<Work>,
    go_on: Continue,
) {
    let count = |outcome| metrics::counter!("sensorium_job_tasks_total", "outcome" => outcome).increment(1);
    let task = match Task::decode(&delivery.message.body) {
        Ok(task) => task,
        Err(error) => {
            // of a newer build, perhaps: it is left to those who understand it, and expires if nobody does
            tracing::error!(%error, "a task that cannot be read");
            count("unreadable");
            let _ = delivery.back(LONGEST_BACKOFF).await;
            return;
        }
    };
    let options = &bench.jobs.options;
    let (max, trace) = (options.max_deliveries, &delivery.message.trace);
    if delivery.deliveries > max {
        // whoever had it before never came back with a word
        count("dead");
        let buried = bench.bury(task, trace, delivery.deliveries - 1, "whoever worked on it was lost").await;
        settle(delivery, buried.is_ok(), options.backoff_ms).await;
        return;
    }
    let span = tracing::info_span!("task", job = task.id, item = task.item, queue = task.queue());
    go_on(&span, trace);
    let mut cancelled = bench.jobs.store().listen(super::CANCELLED);
    let wanted_no_more = async {
        loop {
            match cancelled.recv().await {
                Ok(id) if id == task.id => return,
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(_) => std::future::pending().await,
            }
        }
    };
    let beat = async {
        let mut beats = tokio::time::interval(bench.jobs.store().patience() / 3);
        beats.tick().await;
        loop {
            beats.tick().await;
            // one that is not heard is followed by others
            let _ = delivery.in_progress().await;
        }
    };
    let handed_back = async {
        // a sender that is gone is a gateway that ends
        let _ = work.wait_for(|work| *work == Work::HandBack).await;
    };
    let started = Instant::now();
    let end = tokio::select! {
        end = bench.run(&task, trace, span.clone()).instrument(span.clone()) => end,
        () = wanted_no_more => Ok(()),
        () = handed_back => {
            count("handed_back");
            hand_on(&bench.jobs, delivery, &task).await;
            return;
        }
        () = beat => Ok(()),
    };
    metrics::histogram!("sensorium_job_task_duration_seconds", "modality" => task.queue()).record(started.elapsed());
    match end {
        Ok(()) => {
            count("done");
            settle(delivery, true, options.backoff_ms).await;
        }
        // it goes on elsewhere
        Err(Error::Unavailable { reason: "DRAINING", .. }) => {
            count("handed_back");
            tokio::time::sleep(PAUSE).await;
            hand_on(&bench.jobs, delivery, &task).await;
        }
        Err(error) if delivery.deliveries >= max => {
            count("dead");
            let buried = bench.bury(task, trace, delivery.deliveries, &error.to_string()).await;
            settle(delivery, buried.is_ok(), options.backoff_ms).await;
        }
        Err(error) => {
            count("again");
            tracing::warn!(job = task.id, item = task.item, queue = task.queue(), %error, "task failed, to be tried again");
            settle(delivery, false, options.backoff_ms).await;
        }
    }
}

/// Puts a task back that has not failed: as a message of its own, since deliveries are counted against it.
async fn hand_on(jobs: &Jobs, delivery: Delivery, task: &Task) {
    let id = format!("{}.{:x}", task.message_id(), rand::random::<u64>());
    let anew = Anew { id, ..delivery.message.clone() };
    let handed = match jobs.store().push(task.queue(), anew).await {
        // should this not be heard, the task is there twice, and its result once
        Ok(()) => delivery.done().await,
        Err(_) => delivery.back(Duration::ZERO).await,
    };
    if let Err(error) = handed {
        tracing::debug!(%error, "a task could not be handed on");
    }
}

/// Gives a delivery up for good, or back for another try.
async fn settle(delivery: Delivery, is_done: bool, backoff_ms: u64) {
    let doublings = u32::try_from(delivery.deliveries.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let settled = match is_done {
        true => delivery.done().await,
        false => delivery.back(Duration::from_millis(backoff_ms << doublings).min(LONGEST_BACKOFF)).await,
    };
    if let Err(error) = settled {
        // it is delivered again, finds its result kept, and is done
        tracing::debug!(%error, "a task could not be settled");
    }
}
