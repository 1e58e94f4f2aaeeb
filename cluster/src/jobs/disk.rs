//! The embedded twin: one file, by redb. What was accepted is on disk before it is said so.

mod queue;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::Notify;

pub(super) use self::queue::Hand;
use self::queue::Waiting;
use super::{Dead, Error, Record, Result};

/// Key to revision, seconds since 1970, value.
const RECORDS: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("records");
/// Name to seconds since 1970, value.
const BLOBS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("blobs");
/// Queue and place to seconds since 1970, deliveries, id, trace, body.
const MESSAGES: TableDefinition<'_, (&str, u64), Kept<'_>> = TableDefinition::new("messages");
type Kept<'a> = (u64, u64, &'a str, &'a str, &'a [u8]);
/// Ids of messages, to when they were pushed.
const IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("ids");
/// Place to seconds since 1970, body.
const DEAD: TableDefinition<'_, u64, (u64, &[u8])> = TableDefinition::new("dead");
/// Queue to the place of its last message: a place is never another message's.
const PLACES: TableDefinition<'_, &str, u64> = TableDefinition::new("places");

/// For so long equal ids are one message.
const SAME: u64 = 120;
/// How often what has expired is swept out.
const SWEEP: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub(super) struct Disk {
    file: Arc<Database>,
    queues: Arc<Mutex<HashMap<String, Waiting>>>,
    pushed: Arc<Notify>,
    max_queued: u64,
}

fn failed(error: impl Into<redb::Error>) -> Error {
    Error::Unavailable(format!("the file of jobs: {}", error.into()))
}

/// What an operator is told, who may have started the server twice.
fn cannot_open(error: &DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
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
    pub(super) fn open(path: &Path, retention: Duration, max_queued: u64) -> Result<Self> {
        let bad = |message: String| Error::Setup(format!("jobs.path: {}: {message}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| bad(error.to_string()))?;
        }
        let file = Database::create(path).map_err(|error| bad(cannot_open(&error)))?;
        let disk = Self { file: Arc::new(file), queues: Arc::default(), pushed: Arc::default(), max_queued };
        // what was in somebody's hands when the process ended is in nobody's now
        let read = || -> std::result::Result<(), redb::Error> {
            let change = disk.file.begin_write()?;
            change.open_table(RECORDS)?;
            change.open_table(BLOBS)?;
            change.open_table(IDS)?;
            change.open_table(DEAD)?;
            for entry in change.open_table(MESSAGES)?.iter()? {
                let (place, _) = entry?;
                let (queue, place) = place.value();
                disk.queues.lock().entry(queue.to_owned()).or_default().push_back(place);
            }
            Ok(change.commit()?)
        };
        read().map_err(|error| bad(error.to_string()))?;
        let sweeping = Arc::downgrade(&disk.file);
        tokio::spawn(async move {
            while let Some(file) = sweeping.upgrade() {
                let swept =
                    tokio::task::spawn_blocking(move || sweep(&file, now().saturating_sub(retention.as_secs())));
                if let Ok(Err(error)) = swept.await {
                    tracing::warn!(%error, "cannot sweep expired jobs out");
                }
                tokio::time::sleep(SWEEP).await;
            }
        });
        Ok(disk)
    }

    /// One change, on disk when it returns.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> std::result::Result<T, redb::Error> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || {
            let transaction = file.begin_write()?;
            let done = change(&transaction)?;
            transaction.commit()?;
            Ok(done)
        });
        done.await.map_err(|error| Error::Unavailable(error.to_string()))?.map_err(|error: redb::Error| failed(error))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> std::result::Result<T, redb::Error> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || read(&file.begin_read()?));
        done.await.map_err(|error| Error::Unavailable(error.to_string()))?.map_err(failed)
    }

    pub(super) async fn create(&self, key: &str, value: Bytes) -> Result<bool> {
        let key = key.to_owned();
        self.change(move |change| {
            let mut records = change.open_table(RECORDS)?;
            if records.get(key.as_str())?.is_some() {
                return Ok(false);
            }
            records.insert(key.as_str(), (1, now(), &value[..]))?;
            Ok(true)
        })
        .await
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Record>> {
        let key = key.to_owned();
        self.read(move |read| {
            let found = read.open_table(RECORDS)?.get(key.as_str())?;
            Ok(found.map(|found| {
                let (revision, _, value) = found.value();
                Record { value: Bytes::copy_from_slice(value), revision }
            }))
        })
        .await
    }

    pub(super) async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<bool> {
        let key = key.to_owned();
        self.change(move |change| {
            let mut records = change.open_table(RECORDS)?;
            let known = records.get(key.as_str())?.map(|known| known.value().0);
            if known != Some(revision) {
                return Ok(false);
            }
            records.insert(key.as_str(), (revision + 1, now(), &value[..]))?;
            Ok(true)
        })
        .await
    }

    pub(super) async fn remove(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.change(move |change| {
            change.open_table(RECORDS)?.remove(key.as_str())?;
            Ok(())
        })
        .await
    }

    pub(super) async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        // '/' comes right after '.': all that begin with the prefix and a dot lie between the two
        let (from, to) = (format!("{prefix}."), format!("{prefix}/"));
        self.read(move |read| {
            let records = read.open_table(RECORDS)?;
            let keys = records.range(from.as_str()..to.as_str())?.map(|entry| Ok(entry?.0.value().to_owned()));
            keys.collect::<std::result::Result<_, redb::Error>>()
        })
        .await
    }

    pub(super) async fn put_blob(&self, name: &str, value: Bytes) -> Result<()> {
        let name = name.to_owned();
        self.change(move |change| {
            change.open_table(BLOBS)?.insert(name.as_str(), (now(), &value[..]))?;
            Ok(())
        })
        .await
    }

    pub(super) async fn blob(&self, name: &str) -> Result<Option<Bytes>> {
        let name = name.to_owned();
        self.read(move |read| {
            let found = read.open_table(BLOBS)?.get(name.as_str())?;
            Ok(found.map(|found| Bytes::copy_from_slice(found.value().1)))
        })
        .await
    }

    pub(super) async fn remove_blob(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.change(move |change| {
            change.open_table(BLOBS)?.remove(name.as_str())?;
            Ok(())
        })
        .await
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
            Ok(())
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
            found.collect::<std::result::Result<_, redb::Error>>()
        })
        .await
    }

    pub(super) async fn unbury(&self, sequence: u64) -> Result<bool> {
        self.change(move |change| Ok(change.open_table(DEAD)?.remove(sequence)?.is_some())).await
    }
}

/// Whether a message of this id has come within the last minutes.
fn is_known(ids: &impl ReadableTable<&'static str, u64>, id: &str) -> std::result::Result<bool, redb::StorageError> {
    Ok(ids.get(id)?.is_some_and(|since| since.value() + SAME > now()))
}

/// Removes what is older than `before`.
fn sweep(file: &Database, before: u64) -> std::result::Result<(), redb::Error> {
    let change = file.begin_write()?;
    change.open_table(RECORDS)?.retain(|_, (_, born, _)| born >= before)?;
    change.open_table(BLOBS)?.retain(|_, (born, _)| born >= before)?;
    change.open_table(MESSAGES)?.retain(|_, (born, ..)| born >= before)?;
    change.open_table(IDS)?.retain(|_, born| born + SAME > now())?;
    change.open_table(DEAD)?.retain(|_, (born, _)| born >= before)?;
    Ok(change.commit()?)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::super::{Delivery, Message};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const MANY: u64 = 1000;

    async fn pull(disk: &Disk) -> Vec<Delivery> {
        disk.pull("q", 10).await.unwrap().map(Result::unwrap).collect().await
    }

    fn message(id: &str) -> Message {
        Message { id: id.to_owned(), trace: "t".to_owned(), body: Bytes::copy_from_slice(id.as_bytes()) }
    }

    #[tokio::test]
    async fn records_change_only_by_whoever_knows_them() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), DAY, MANY).unwrap();
        assert!(disk.create("a.b", Bytes::from_static(b"1")).await.unwrap());
        assert!(!disk.create("a.b", Bytes::from_static(b"2")).await.unwrap());
        let record = disk.get("a.b").await.unwrap().unwrap();
        assert_eq!(record.value, "1");
        assert!(disk.update("a.b", Bytes::from_static(b"3"), record.revision).await.unwrap());
        assert!(!disk.update("a.b", Bytes::from_static(b"4"), record.revision).await.unwrap());
        for key in ["a.c", "ab.c", "a"] {
            disk.create(key, Bytes::new()).await.unwrap();
        }
        assert_eq!(disk.keys("a").await.unwrap(), ["a.b", "a.c"]);
        disk.remove("a.b").await.unwrap();
        assert!(disk.create("a.b", Bytes::new()).await.unwrap());
    }

    #[tokio::test]
    async fn what_was_in_somebodys_hands_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs");
        let disk = Disk::open(&path, DAY, MANY).unwrap();
        for id in ["1", "2", "2", "3"] {
            disk.push("q", message(id)).await.unwrap();
        }
        let mut taken = pull(&disk).await;
        assert_eq!(taken.len(), 3, "equal ids are one message");
        assert!(Disk::open(&path, DAY, MANY).is_err(), "one process at a time");
        taken.remove(0).done().await.unwrap();
        taken.remove(0).back(Duration::ZERO).await.unwrap();
        assert_eq!(pull(&disk).await[0].deliveries, 2);
        drop((taken, disk));
        // the task that gave one back holds the file for a moment
        let disk = loop {
            match Disk::open(&path, DAY, MANY) {
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
        let disk = Disk::open(&folder.path().join("jobs"), DAY, 3).unwrap();
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
    async fn what_is_too_old_is_swept_out() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), DAY, MANY).unwrap();
        disk.create("a.b", Bytes::new()).await.unwrap();
        disk.put_blob("blob", Bytes::from_static(b"x")).await.unwrap();
        for _ in 0..2 {
            disk.bury("1", Bytes::from_static(b"dead")).await.unwrap();
        }
        disk.push("q", message("1")).await.unwrap();
        sweep(&disk.file, now()).unwrap();
        assert_eq!(disk.blob("blob").await.unwrap().unwrap(), "x");
        assert_eq!(disk.dead(0, 10).await.unwrap()[0].body, "dead");
        sweep(&disk.file, now() + 1).unwrap();
        assert!(disk.get("a.b").await.unwrap().is_none());
        assert!(disk.blob("blob").await.unwrap().is_none());
        assert!(disk.dead(0, 10).await.unwrap().is_empty());
        assert!(pull(&disk).await.is_empty());
    }
}
