//! The batcher: single owner of one model version's queue.
//!
//! Replicas offer credits ("I can take so many"); the batcher answers with batches. While all are busy, rows gather, so
//! the next batch forms while the previous one runs. Nothing here ever waits or blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::entry::Entry;
use super::queue::{Meta, Next, Queue};
use crate::error::Error;
use crate::manifest::Manifest;
use crate::metrics::VersionMetrics;

/// A batch as it goes to a device thread.
pub type Batch = Vec<(Meta, Entry)>;

/// What the batcher is told. Nearly every message is a row, so a box would cost more than the size of the others.
#[allow(clippy::large_enum_variant)]
pub enum Message {
    /// A row has come.
    Submit(Meta, Entry),
    /// A replica can take more.
    Offer(Offer),
    /// This replica takes no more: it finishes what it has.
    Withdraw(u64),
    /// A replica failed with these in its hands; they have been accepted before and go first.
    Return(Batch),
    /// Look again: a delay or a timeout has passed.
    Tick,
}

/// A replica's offer.
pub struct Offer {
    /// Which replica; unique among all that ever lived.
    pub replica: u64,
    /// Where batches go. Its capacity is never below the credits offered.
    pub intake: Sender<Batch>,
    /// Batches (of a model that answers in one call) or sequences (of a decoder) that it can take.
    pub credits: usize,
    /// Whether a credit is one row rather than one batch.
    pub per_row: bool,
}

/// What the batcher starts with.
pub struct Arguments {
    /// The model.
    pub manifest: Arc<Manifest>,
    /// Queue depth for the tree.
    pub depth: Arc<AtomicU64>,
    /// Figures.
    pub metrics: Arc<VersionMetrics>,
}

/// See the module.
pub struct Batcher;

/// What the batcher owns.
pub struct State {
    manifest: Arc<Manifest>,
    queue: Queue<Entry>,
    offers: Vec<Offer>,
    depth: Arc<AtomicU64>,
    metrics: Arc<VersionMetrics>,
    wake_at: Option<Instant>,
}

impl Actor for Batcher {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        Ok(State {
            queue: Queue::new(args.manifest.batching.clone()),
            manifest: args.manifest,
            offers: Vec::new(),
            depth: args.depth,
            metrics: args.metrics,
            wake_at: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Submit(meta, entry) => state.submit(meta, entry),
            Message::Offer(offer) => state.offer(offer),
            Message::Withdraw(replica) => state.offers.retain(|offer| offer.replica != replica),
            Message::Return(batch) => {
                for (meta, entry) in batch.into_iter().rev() {
                    state.queue.push_front(meta, entry);
                }
            }
            Message::Tick => {
                state.wake_at = None;
                state.sweep();
            }
        }
        state.dispatch(&myself);
        let rows = state.queue.rows() as u64;
        state.depth.store(rows, Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss)]
        state.metrics.queue_depth.set(rows as f64);
        Ok(())
    }
}

impl State {
    fn submit(&mut self, meta: Meta, entry: Entry) {
        let mut refused = self.queue.push(meta, entry).err();
        if let Some(entry) = refused.take() {
            self.sweep(); // what nobody waits for makes room
            refused = self.queue.push(meta, entry).err();
        }
        if let Some(entry) = refused {
            let limit = self.manifest.batching.max_queue_size;
            self.metrics.refused.increment(1);
            entry.refuse(Error::Exhausted {
                reason: "QUEUE_FULL",
                message: format!("the queue of {} is full: {limit} rows wait", self.manifest.name),
                retry_after: Duration::from_millis(100),
            });
        }
    }

    fn offer(&mut self, offer: Offer) {
        match self.offers.iter_mut().find(|known| known.replica == offer.replica) {
            Some(known) => known.credits += offer.credits,
            None => self.offers.push(offer),
        }
    }

    fn sweep(&mut self) {
        let swept = self.queue.sweep(Instant::now(), Entry::abandoned);
        self.metrics.abandoned.increment(swept.abandoned as u64);
        for (_, entry) in swept.expired {
            self.metrics.expired.increment(1);
            entry.refuse(Error::DeadlineExceeded { stage: format!("waiting in the queue of {}", self.manifest.name) });
        }
    }

    fn dispatch(&mut self, myself: &ActorRef<Message>) {
        if self.offers.iter().any(|offer| offer.credits > 0) && self.queue.rows() > 0 {
            self.sweep();
        }
        let mut wake_at = self.queue.next_timeout();
        // round robin among replicas: the one served goes to the end
        while let Some(at) = self.offers.iter().position(|offer| offer.credits > 0) {
            let room = if self.offers[at].per_row { self.offers[at].credits } else { usize::MAX };
            match self.queue.next(Instant::now(), room) {
                Next::Empty => break,
                Next::Wait(due) => {
                    wake_at = Some(wake_at.map_or(due, |at| at.min(due)));
                    break;
                }
                Next::Batch(batch) => {
                    let mut offer = self.offers.remove(at);
                    let spent = if offer.per_row { batch.len() } else { 1 };
                    match offer.intake.try_send(batch) {
                        Ok(()) => {
                            offer.credits -= spent;
                            self.offers.push(offer);
                        }
                        // the replica is gone, and its offer with it
                        Err(TrySendError::Disconnected(batch) | TrySendError::Full(batch)) => {
                            for (meta, entry) in batch.into_iter().rev() {
                                self.queue.push_front(meta, entry);
                            }
                        }
                    }
                }
            }
        }
        self.wake(myself, wake_at);
    }

    fn wake(&mut self, myself: &ActorRef<Message>, at: Option<Instant>) {
        let Some(at) = at else { return };
        if self.wake_at.is_some_and(|planned| planned <= at) {
            return;
        }
        self.wake_at = Some(at);
        myself.send_after(at.saturating_duration_since(Instant::now()), || Message::Tick);
    }
}
