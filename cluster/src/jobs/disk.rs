//! The embedded twin: one file, by redb. What was accepted is on disk before it is said so.

mod file;
mod queue;
mod records;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Error as Fault, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use self::file::{File, account};
pub(super) use self::queue::Hand;
use self::queue::Waiting;
use super::{Bounds, Dead, Error, Result};
use crate::health::Health;

/// Key to revision, seconds since 1970, value.
const RECORDS: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("records");
/// Name to seconds since 1970, value.
const BLOBS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("blobs");
/// Queue and place to seconds since 1970, deliveries, id, trace, body.
const MESSAGES: TableDefinition<'_, (&str, u64), Kept<'_>> = TableDefinition::new("messages");
type Kept<'a> = (u64, u64, &'a str, &'a str, &'a [u8]);
/// Queue and place to the flow of the message; those of earlier builds have none.
const FLOWS: TableDefinition<'_, (&str, u64), &str> = TableDefinition::new("flows");
/// Ids of messages, to when they were pushed.
const IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("ids");
/// Place to seconds since 1970, body.
const DEAD: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("dead");
/// Queue to the place of its last message: a place is never another message's.
const PLACES: TableDefinition<'_, &str, u64> = TableDefinition::new("places");
/// Bytes of all values.
const USED: TableDefinition<'_, &str, u64> = TableDefinition::new("used");

/// For so long equal ids are one message.
const SAME: u64 = 120;
/// How often a file in trouble is tried.
const TRY: Duration = Duration::from_secs(1);
/// How often ids that are too old to matter are swept out.
const SWEEP: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub(super) struct Disk {
    file: Arc<File>,
    queues: Arc<Mutex<HashMap<String, Waiting>>>,
    pushed: Arc<Notify>,
    writer: Arc<Semaphore>,
    bounds: Bounds,
}

/// What an operator is told, who may have started the server twice.
fn cannot_open(error: &Fault) -> String {
    match error {
        Fault::DatabaseAlreadyOpen => {
            "another process holds it, such as a second `sensorium serve`: end that one, or name another file"
                .to_owned()
        }
        other => other.to_string(),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Disk {
    pub(super) fn open(path: &Path, bounds: Bounds) -> Result<Self> {
        let bad = |message: String| Error::Setup(format!("jobs.path: {}: {message}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| bad(error.to_string()))?;
        }
        let file = File::open(path).map_err(|error| bad(cannot_open(&error)))?;
        let disk =
            Self { file, queues: Arc::default(), pushed: Arc::default(), writer: Arc::new(Semaphore::new(1)), bounds };
        // what was in somebody's hands when the process ended is in nobody's now
        load(&disk.file, &disk.queues)?;
        let (watched, queues, pushed) = (Arc::downgrade(&disk.file), disk.queues.clone(), disk.pushed.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TRY).await;
                let Some(file) = watched.upgrade() else { return };
                if !file.is_in_trouble() {
                    continue;
                }
                let queues = queues.clone();
                let tried = tokio::task::spawn_blocking(move || {
                    file.probe();
                    // a change that failed may have come to the disk all the same
                    if file.is_in_trouble() { Ok(()) } else { load(&file, &queues) }
                });
                if let Ok(Err(error)) = tried.await {
                    tracing::warn!(%error, "cannot read what waits in the file of jobs");
                }
                pushed.notify_waiters();
            }
        });
        let sweeping = Arc::downgrade(&disk.file);
        tokio::spawn(async move {
            while let Some(file) = sweeping.upgrade() {
                let swept = tokio::task::spawn_blocking(move || sweep(&file, now()));
                if let Ok(Err(error)) = swept.await {
                    tracing::warn!(%error, "cannot sweep old ids of messages out");
                }
                tokio::time::sleep(SWEEP).await;
            }
        });
        Ok(disk)
    }

    pub(super) fn health(&self) -> Health {
        self.file.health()
    }

    pub(super) fn trouble(&self) -> String {
        self.file.trouble()
    }

    #[allow(clippy::unused_async, reason = "as the other store has it")]
    pub(super) async fn take_in(&self, bytes: u64) -> Result<()> {
        let trouble = self.trouble();
        if !trouble.is_empty() {
            return Err(Error::NoRoom(trouble));
        }
        self.bounds.take_in(self.file.used(), bytes)
    }

    /// One change, on disk when it returns.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> std::result::Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let _turn = self.turn().await;
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || file.change(change));
        done.await.map_err(|error| Error::Unavailable(error.to_string()))?
    }

    /// The file has one writer: who waits for it waits here, not with a thread and its memory.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.writer.acquire().await.ok()
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> std::result::Result<T, Fault> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || file.read(read));
        done.await.map_err(|error| Error::Unavailable(error.to_string()))?
    }

    pub(super) async fn bury(&self, id: &str, body: Bytes) -> Result<()> {
        let id = id.to_owned();
        self.change(move |change| {
            let mut ids = change.open_table(IDS)?;
            if is_known(&ids, &id)? {
                return Ok(());
            }
            ids.insert(id.as_str(), now())?;
            let mut dead = change.open_table(DEAD)?;
            let place = dead.last()?.map_or(1, |(place, _)| place.value() + 1);
            dead.insert(place, (now(), &body[..]))?;
            account(change, body.len(), 0)
        })
        .await
    }

    pub(super) async fn dead(&self, from: u64, most: usize) -> Result<Vec<Dead>> {
        self.read(move |read| {
            let dead = read.open_table(DEAD)?;
            let found = dead.range(from..)?.take(most).map(|entry| {
                let (place, value) = entry?;
                Ok(Dead { sequence: place.value(), body: Bytes::copy_from_slice(value.value().1) })
            });
            found.collect::<std::result::Result<_, Fault>>()
        })
        .await
    }

    pub(super) async fn unbury(&self, sequence: u64) -> Result<bool> {
        self.change(move |change| {
            let gone = change.open_table(DEAD)?.remove(sequence)?.map(|gone| gone.value().1.len());
            account(change, 0, gone.unwrap_or(0))?;
            Ok(gone.is_some())
        })
        .await
    }
}

/// Whether a message of this id has come within the last minutes.
fn is_known(ids: &impl ReadableTable<&'static str, u64>, id: &str) -> std::result::Result<bool, redb::StorageError> {
    Ok(ids.get(id)?.is_some_and(|since| since.value() + SAME > now()))
}

/// Finds messages that wait in the file and that nobody knows of.
fn load(file: &File, queues: &Mutex<HashMap<String, Waiting>>) -> Result<()> {
    file.read(|read| {
        let flows = read.open_table(FLOWS)?;
        let mut queues = queues.lock();
        for entry in read.open_table(MESSAGES)?.iter()? {
            let (place, _) = entry?;
            let flow = flows.get(place.value())?.map(|flow| flow.value().to_owned()).unwrap_or_default();
            let (queue, place) = place.value();
            let waiting = queues.entry(queue.to_owned()).or_default();
            if waiting.came(&flow, place) {
                waiting.put(&flow, place);
            }
        }
        Ok(())
    })
}

/// Forgets ids that are too old to be anybody's again.
fn sweep(file: &File, now: u64) -> Result<()> {
    file.change(|change| Ok(change.open_table(IDS)?.retain(|_, born| born + SAME > now)?))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use futures::{FutureExt, StreamExt};

    use super::super::{Delivery, Message};
    use super::*;

    pub(super) const MANY: Bounds = Bounds { queued: 1000, queued_per_flow: 1000, bytes: 4 << 20 };

    async fn pull(disk: &Disk) -> Vec<Delivery> {
        disk.pull("q", 10, &HashSet::new()).await.unwrap().map(Result::unwrap).collect().await
    }

    fn message(id: &str) -> Message {
        Message {
            id: id.to_owned(),
            flow: "f".to_owned(),
            trace: "t".to_owned(),
            body: Bytes::copy_from_slice(id.as_bytes()),
        }
    }

    #[tokio::test]
    async fn what_was_in_somebodys_hands_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs");
        let disk = Disk::open(&path, MANY).unwrap();
        for id in ["1", "2", "2", "3"] {
            disk.push("q", message(id)).await.unwrap();
        }
        let mut taken = pull(&disk).await;
        assert_eq!(taken.len(), 3, "equal ids are one message");
        assert!(Disk::open(&path, MANY).is_err(), "one process at a time");
        taken.remove(0).done().await.unwrap();
        taken.remove(0).back(Duration::ZERO).await.unwrap();
        assert_eq!(pull(&disk).await[0].deliveries, 2);
        drop((taken, disk));
        // the task that gave one back holds the file for a moment
        let disk = loop {
            match Disk::open(&path, MANY) {
                Ok(disk) => break disk,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let again = pull(&disk).await;
        let told: Vec<_> =
            again.iter().map(|one| (one.message.id.as_str(), one.message.trace.as_str(), one.deliveries)).collect();
        assert_eq!(told, [("2", "t", 3), ("3", "t", 2)]);
        assert_eq!(disk.waiting("q").await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_until_something_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), Bounds { queued: 3, ..MANY }).unwrap();
        for id in ["1", "2", "3", "3"] {
            disk.push("q", message(id)).await.unwrap();
        }
        let full = async |id: &str| matches!(disk.push("q", message(id)).await, Err(Error::Full(_)));
        assert!(full("4").await);
        disk.push("other", message("5")).await.unwrap();
        let mut taken = pull(&disk).await;
        assert!(full("4").await, "what is in somebody's hands is held, too");
        taken.remove(1).done().await.unwrap();
        assert!(!full("4").await, "there is a gap, and room");
        assert!(full("6").await);
        assert_eq!(disk.waiting("q").await.unwrap(), 3);
    }

    #[tokio::test]
    async fn flows_take_turns_and_have_bounds_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { queued: 10, queued_per_flow: 4, ..MANY };
        let disk = Disk::open(&folder.path().join("jobs"), bounds).unwrap();
        let push = async |flow: &str, id: &str| {
            disk.push("q", Message { flow: flow.to_owned(), ..message(id) }).await.map_err(|error| error.to_string())
        };
        for id in ["a1", "a2", "a3", "a4"] {
            push("a", id).await.unwrap();
        }
        assert!(push("a", "a5").await.unwrap_err().contains("4 messages"));
        push("b", "b1").await.unwrap();
        push("c", "c1").await.unwrap();
        let held = HashSet::from(["c".to_owned()]);
        let taken: Vec<Delivery> = disk.pull("q", 10, &held).await.unwrap().map(Result::unwrap).collect().await;
        let ids: Vec<_> = taken.iter().map(|taken| taken.message.id.as_str()).collect();
        assert_eq!(ids, ["a1", "b1", "a2", "a3", "a4"], "in turn, and not those that are held");
        for taken in taken {
            taken.untried().await.unwrap();
        }
        let again = pull(&disk).await;
        assert_eq!(again.len(), 6);
        assert!(again.iter().all(|one| one.deliveries == 1), "what nobody tried does not count");
    }

    #[tokio::test]
    async fn a_push_that_is_given_up_is_there_or_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), MANY).unwrap();
        for id in 0..50 {
            let push = disk.push("q", message(&id.to_string()));
            // polled once, and dropped while the change goes on
            assert!(push.now_or_never().is_none());
        }
        let mut taken = 0;
        while taken < 50 {
            for delivery in pull(&disk).await {
                delivery.done().await.unwrap();
                taken += 1;
            }
        }
        assert_eq!(disk.waiting("q").await.unwrap(), 0);
    }

    #[tokio::test]
    async fn bytes_are_counted_and_bound_what_comes_from_outside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs");
        let disk = Disk::open(&path, MANY).unwrap();
        disk.create("a.b", Bytes::from_static(b"12345")).await.unwrap();
        disk.create("a.c.d", Bytes::from_static(b"12345")).await.unwrap();
        let revision = disk.get("a.b").await.unwrap().unwrap().revision;
        disk.update("a.b", Bytes::from_static(b"1"), revision).await.unwrap();
        disk.put_blob("x", vec![0; 1 << 20].into()).await.unwrap();
        disk.put_blob("x", vec![0; 2 << 20].into()).await.unwrap();
        disk.bury("1", Bytes::from_static(b"dead")).await.unwrap();
        disk.push("q", message("1234")).await.unwrap();
        assert_eq!(disk.file.used(), (2 << 20) + 1 + 5 + 4 + 4);
        assert!(disk.take_in(1 << 19).await.is_ok());
        assert!(matches!(disk.take_in(1 << 20).await, Err(Error::NoRoom(_))));
        // results go on being kept
        disk.create("r", vec![0; 2 << 20].into()).await.unwrap();
        assert_eq!(disk.blobs().await.unwrap(), ["x"]);
        disk.remove_blob("x").await.unwrap();
        disk.remove("r").await.unwrap();
        disk.remove_below("a").await.unwrap();
        assert!(disk.unbury(1).await.unwrap());
        for delivery in pull(&disk).await {
            delivery.done().await.unwrap();
        }
        assert_eq!((disk.file.used(), disk.keys("a").await.unwrap().len()), (0, 0));
    }

    #[tokio::test]
    async fn only_ids_are_ever_swept_out() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), MANY).unwrap();
        disk.create("a.b", Bytes::new()).await.unwrap();
        disk.put_blob("blob", Bytes::from_static(b"x")).await.unwrap();
        for _ in 0..2 {
            disk.bury("1", Bytes::from_static(b"dead")).await.unwrap();
        }
        disk.push("q", message("2")).await.unwrap();
        sweep(&disk.file, now() + 1_000_000).unwrap();
        assert!(disk.get("a.b").await.unwrap().is_some());
        assert_eq!(disk.blob("blob").await.unwrap().unwrap(), "x");
        assert_eq!(disk.dead(0, 10).await.unwrap()[0].body, "dead");
        assert_eq!(pull(&disk).await.len(), 1);
    }
}
