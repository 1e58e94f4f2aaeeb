//! What jobs are made of: records that change by compare-and-swap, blobs, work queues with explicit acknowledgement, and
//! the dead letters of what failed too often.
//!
//! In a cluster all of it lies in NATS JetStream ([`Nats`]): a work-queue stream per queue, a key-value bucket of records,
//! an object store of blobs. The embedded twin keeps the same on disk (`disk.rs`), so that jobs of one machine survive a
//! restart as well. Neither knows what a job *is*, and neither forgets anything by itself: who put it there removes it.
//!
//! Messages of a queue belong to *flows*. Within a flow they keep their order; flows take turns, so that a long one does not
//! hold up a short one.

mod disk;
mod nats;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use self::disk::Disk;
pub use self::nats::Options as Nats;
use crate::bus::Bus;
use crate::health::Health;

/// Events that a slow listener may be behind before it misses some; it looks for itself now and then.
const EVENTS: usize = 1024;

/// Why it could not be done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// NATS, or the disk, cannot be reached or does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// A queue takes no more.
    #[error("{0}")]
    Full(String),
    /// There is no room left to write anything. What is removed makes some.
    #[error("{0}")]
    NoRoom(String),
    /// One value is larger than NATS takes.
    #[error("{0}")]
    TooLarge(String),
    /// It was set up in a way that cannot work.
    #[error("{0}")]
    Setup(String),
}

impl Error {
    fn full(queue: &str, most: impl std::fmt::Display) -> Self {
        Self::Full(format!("the queue of {queue} holds {most} messages, the limit"))
    }
}

/// A [`std::result::Result`] of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A value and how often it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value.
    pub value: Bytes,
    /// To be named when it is changed.
    pub revision: u64,
}

/// What is put into a queue.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Equal ids within the last minutes are one message.
    pub id: String,
    /// What it takes turns with others as; letters, digits, `-` and `_`.
    pub flow: String,
    /// A `traceparent`; empty: none.
    pub trace: String,
    /// What it says.
    pub body: Bytes,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Messages that a queue holds.
    pub queued: u64,
    /// Messages that a queue holds of one flow.
    pub queued_per_flow: u64,
    /// Bytes in all. A quarter of them is for what becomes of what was taken in, see [`Jobs::take_in`].
    pub bytes: u64,
}

impl Bounds {
    /// Whether there is room for so many bytes more from outside.
    fn take_in(&self, used: u64, more: u64) -> Result<()> {
        let most = self.bytes - self.bytes / 4;
        if used.saturating_add(more) <= most {
            return Ok(());
        }
        Err(Error::NoRoom(format!("jobs hold {used} bytes, and {more} more are above the limit of {most}")))
    }
}

/// A message in somebody's hands. Dropped without a word it is delivered again when its time is up.
pub struct Delivery {
    /// The message; its id is not told.
    pub message: Message,
    /// How often it has been delivered, this time included.
    pub deliveries: u64,
    hand: Hand,
}

enum Hand {
    Nats(Box<nats::Hand>),
    Disk(disk::Hand),
}

impl Delivery {
    /// It is done, and gone from the queue.
    ///
    /// # Errors
    /// `Unavailable`: it may be delivered again.
    pub async fn done(self) -> Result<()> {
        match self.hand {
            Hand::Nats(hand) => hand.done().await,
            Hand::Disk(hand) => hand.done().await,
        }
    }

    /// It takes longer; to be said more often than [`Jobs::patience`].
    ///
    /// # Errors
    /// `Unavailable`: it may be delivered to somebody else.
    pub async fn in_progress(&self) -> Result<()> {
        match &self.hand {
            Hand::Nats(hand) => hand.in_progress().await,
            Hand::Disk(_) => Ok(()),
        }
    }

    /// Gives it back as if it had never been delivered, behind others of its flow: nobody has tried it.
    ///
    /// # Errors
    /// `Unavailable`: it is delivered again all the same, and may count as tried.
    pub async fn untried(self) -> Result<()> {
        match self.hand {
            Hand::Nats(hand) => hand.untried(&self.message).await,
            Hand::Disk(hand) => hand.untried().await,
        }
    }

    /// Gives it back, to be delivered again after a while.
    ///
    /// # Errors
    /// `Unavailable`: it is delivered again all the same, when its time is up.
    pub async fn back(self, after: Duration) -> Result<()> {
        match self.hand {
            Hand::Nats(hand) => hand.back(after).await,
            Hand::Disk(hand) => hand.back(after),
        }
    }
}

/// A message that failed too often.
#[derive(Clone, Debug)]
pub struct Dead {
    /// Its place among the dead.
    pub sequence: u64,
    /// What was buried.
    pub body: Bytes,
}

enum Store {
    Nats(Box<nats::Nats>),
    Disk(Disk),
}

/// The same of whichever store there is.
macro_rules! either {
    ($jobs:expr, $store:ident => $ask:expr) => {
        match &*$jobs.store {
            Store::Nats($store) => $ask,
            Store::Disk($store) => $ask,
        }
    };
}

/// A cheap handle.
#[derive(Clone)]
pub struct Jobs {
    store: Arc<Store>,
    /// By subject: who listens in this process.
    events: Arc<Mutex<HashMap<String, broadcast::Sender<String>>>>,
}

impl Jobs {
    /// In NATS. Returns at once: it may be started before NATS.
    ///
    /// # Errors
    /// `Setup` if files or URLs are not what they must be.
    pub async fn nats(options: Nats, queues: &'static [&'static str]) -> Result<Self> {
        let jobs = Self::of(Store::Nats(Box::new(nats::Nats::start(options, queues).await?)));
        if let Store::Nats(nats) = &*jobs.store {
            nats.relay(Arc::downgrade(&jobs.events));
        }
        Ok(jobs)
    }

    /// In a file of this machine, for this process alone.
    ///
    /// # Errors
    /// `Setup` if the file cannot be used, such as when another process does.
    pub fn disk(path: &std::path::Path, bounds: Bounds) -> Result<Self> {
        Ok(Self::of(Store::Disk(Disk::open(path, bounds)?)))
    }

    fn of(store: Store) -> Self {
        Self { store: Arc::new(store), events: Arc::default() }
    }

    /// Writes a record that is not there; false if it is.
    ///
    /// # Errors
    /// `Unavailable`, as for all that follow.
    pub async fn create(&self, key: &str, value: Bytes) -> Result<bool> {
        either!(self, store => store.create(key, value).await)
    }

    /// A record.
    pub async fn get(&self, key: &str) -> Result<Option<Record>> {
        either!(self, store => store.get(key).await)
    }

    /// Changes a record that is still at `revision`; false if it is not.
    pub async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<bool> {
        either!(self, store => store.update(key, value, revision).await)
    }

    /// Removes a record without a trace.
    pub async fn remove(&self, key: &str) -> Result<()> {
        either!(self, store => store.remove(key).await)
    }

    /// Removes all records below `prefix.`.
    pub async fn remove_below(&self, prefix: &str) -> Result<()> {
        either!(self, store => store.remove_below(prefix).await)
    }

    /// Keys below `prefix.`, in no order.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        either!(self, store => store.keys(prefix).await)
    }

    /// Keeps a blob under a name, over what was there.
    pub async fn put_blob(&self, name: &str, value: Bytes) -> Result<()> {
        either!(self, store => store.put_blob(name, value).await)
    }

    /// A blob.
    pub async fn blob(&self, name: &str) -> Result<Option<Bytes>> {
        either!(self, store => store.blob(name).await)
    }

    /// Removes a blob, if it is there.
    pub async fn remove_blob(&self, name: &str) -> Result<()> {
        either!(self, store => store.remove_blob(name).await)
    }

    /// Names of all blobs, in no order.
    pub async fn blobs(&self) -> Result<Vec<String>> {
        either!(self, store => store.blobs().await)
    }

    /// Whether there is room for so many bytes from outside. They are refused earlier than what becomes of them: results
    /// must have somewhere to go, or nothing that waits would ever end.
    ///
    /// # Errors
    /// `NoRoom` if there is not.
    pub async fn take_in(&self, bytes: u64) -> Result<()> {
        either!(self, store => store.take_in(bytes).await)
    }

    /// Bytes that one message or record may have.
    pub fn largest(&self) -> usize {
        match &*self.store {
            Store::Nats(nats) => nats.largest(),
            Store::Disk(_) => usize::MAX,
        }
    }

    /// Puts a message into a queue; returns when it is safe there.
    ///
    /// # Errors
    /// `Full` if the queue takes no more.
    pub async fn push(&self, queue: &str, message: Message) -> Result<()> {
        either!(self, store => store.push(queue, message).await)
    }

    /// Waits a second or so for messages, `most` at most. What the stream still holds when it is dropped is delivered
    /// again when its time is up, so it is to be read to its end. Flows that are in `held` are left alone.
    pub async fn pull(
        &self,
        queue: &str,
        most: usize,
        held: &HashSet<String>,
    ) -> Result<BoxStream<'static, Result<Delivery>>> {
        match &*self.store {
            Store::Nats(nats) => nats.pull(queue, most, held, self.listen(&nats::hint(queue))).await,
            Store::Disk(disk) => disk.pull(queue, most, held).await,
        }
    }

    /// How long a message may be in somebody's hands before a word is heard of it.
    pub fn patience(&self) -> Duration {
        match &*self.store {
            Store::Nats(nats) => nats.patience(),
            Store::Disk(_) => Duration::from_secs(30),
        }
    }

    /// Messages that wait in a queue or are in somebody's hands.
    pub async fn waiting(&self, queue: &str) -> Result<u64> {
        either!(self, store => store.waiting(queue).await)
    }

    /// Lays a message to the dead letters; equal ids within the last minutes are one.
    pub async fn bury(&self, id: &str, body: Bytes) -> Result<()> {
        either!(self, store => store.bury(id, body).await)
    }

    /// The dead letters from a place on, `most` at most.
    pub async fn dead(&self, from: u64, most: usize) -> Result<Vec<Dead>> {
        either!(self, store => store.dead(from, most).await)
    }

    /// Takes a dead letter away; false if it is not there any more.
    pub async fn unbury(&self, sequence: u64) -> Result<bool> {
        either!(self, store => store.unbury(sequence).await)
    }

    /// Tells all processes that something has happened. It is a hint: it may be lost.
    pub fn tell(&self, subject: &str, text: &str) {
        match &*self.store {
            // it comes back to this process as well
            Store::Nats(nats) => nats.tell(subject, text),
            Store::Disk(_) => relay(&self.events, subject, text),
        }
    }

    /// Passes the events of a bus on to NATS, as JSON under `<prefix>.events.<subject>`.
    pub fn announce(&self, bus: &Bus) {
        if let Store::Nats(nats) = &*self.store {
            nats.announce(bus.subscribe());
        }
    }

    /// Hints of a subject, from now on.
    pub fn listen(&self, subject: &str) -> broadcast::Receiver<String> {
        let mut events = self.events.lock();
        // subjects that nobody listens to any more
        events.retain(|_, sender| sender.receiver_count() > 0);
        events.entry(subject.to_owned()).or_insert_with(|| broadcast::Sender::new(EVENTS)).subscribe()
    }

    /// How NATS fares, or the file.
    pub fn health(&self) -> Health {
        either!(self, store => store.health())
    }

    /// Why nothing can be written; empty while it can.
    pub fn trouble(&self) -> String {
        either!(self, store => store.trouble())
    }

    /// Resolves when the store has been reached for the first time, or is out of reach: after two seconds.
    pub async fn settled(&self) {
        match &*self.store {
            Store::Nats(nats) => nats.settled().await,
            Store::Disk(_) => {}
        }
    }
}

fn relay(events: &Mutex<HashMap<String, broadcast::Sender<String>>>, subject: &str, text: &str) {
    if let Some(sender) = events.lock().get(subject) {
        // nobody listening is the usual case
        let _ = sender.send(text.to_owned());
    }
}
