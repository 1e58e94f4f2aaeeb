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
    /// Credits of a replica that does nothing.
    pub capacity: usize,
    /// Whether a credit is one row rather than one batch.
    pub per_row: bool,
}

impl Offer {
    /// Whether the replica does nothing at the moment.
    fn is_idle(&self) -> bool {
        !self.per_row || self.credits == self.capacity
    }
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
        loop {
            // who failed in company goes alone: to a replica that does nothing else, and gets nothing else beside it
            let alone = self.queue.next_is_alone();
            let free = |offer: &Offer| offer.credits > 0 && (!alone || offer.is_idle());
            let Some(at) = self.offers.iter().position(free) else { break };
            let room = if self.offers[at].per_row { self.offers[at].credits } else { usize::MAX };
            match self.queue.next(Instant::now(), room) {
                Next::Empty => break,
                Next::Wait(due) => {
                    wake_at = Some(wake_at.map_or(due, |at| at.min(due)));
                    break;
                }
                Next::Batch(batch) => {
                    let mut offer = self.offers.remove(at);
                    let spent = match offer.per_row {
                        true if alone => offer.credits,
                        true => batch.len(),
                        false => 1,
                    };
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

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;
    use tokio::sync::mpsc;

    use super::*;
    use crate::batching::entry::{Generation, Work};
    use crate::replica::sampler::Sampling;

    fn sequence(alone: bool) -> (Meta, Entry) {
        let sampling = Sampling { max_tokens: 1, temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, stop: Vec::new() };
        let (sink, pieces) = mpsc::unbounded_channel();
        std::mem::forget(pieces); // somebody waits
        let generation = Generation { prompt: vec![1], generated: Vec::new(), sent: 0, told: 0, sampling, sink };
        let meta = Meta {
            rows: 1,
            length: 0,
            kind: 0,
            priority: 2,
            enqueued: Instant::now(),
            deadline: None,
            timeout: None,
            alone,
        };
        (meta, Entry { work: Work::Generate(generation), attempts: u32::from(alone), span: None })
    }

    #[tokio::test]
    async fn a_sequence_that_failed_in_company_gets_a_replica_for_itself() {
        let manifest = Arc::new(Manifest::generator(""));
        let metrics = Arc::new(VersionMetrics::new(&manifest, 1));
        let args = Arguments { manifest, depth: Arc::default(), metrics };
        let (batcher, _) = Actor::spawn(None, Batcher, args).await.unwrap();
        let (intake, batches) = bounded(8);
        let offer = |credits| {
            Message::Offer(Offer { replica: 1, intake: intake.clone(), credits, capacity: credits, per_row: true })
        };
        let settle = async || tokio::time::sleep(Duration::from_millis(20)).await;

        batcher.cast(offer(3)).unwrap();
        let (meta, entry) = sequence(false);
        batcher.cast(Message::Submit(meta, entry)).unwrap();
        settle().await;
        assert_eq!(batches.try_recv().unwrap().len(), 1);

        batcher.cast(Message::Return(vec![sequence(true), sequence(true)])).unwrap();
        settle().await;
        assert!(batches.is_empty(), "another sequence still runs");
        batcher.cast(offer(1)).unwrap();
        settle().await;
        assert_eq!(batches.try_recv().unwrap().len(), 1);
        assert!(batches.is_empty(), "the second waits until the first has ended");
        batcher.cast(offer(3)).unwrap();
        settle().await;
        assert_eq!(batches.try_recv().unwrap().len(), 1);
    }
}
