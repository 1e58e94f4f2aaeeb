//! The embedded twin: one file, by redb. What was accepted is on disk before it is said so.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::Notify;

use super::{Dead, Delivery, Error, Message, Record, Result};

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

/// For so long equal ids are one message.
const SAME: u64 = 120;
/// How long a pull waits for a message.
const PULL: Duration = Duration::from_secs(1);
/// How often what has expired is swept out.
const SWEEP: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub(super) struct Disk {
    file: Arc<Database>,
    queues: Arc<Mutex<HashMap<String, Waiting>>>,
    pushed: Arc<Notify>,
}

/// Places of messages that are in nobody's hands.
type Waiting = VecDeque<u64>;

fn failed(error: impl Into<redb::Error>) -> Error {
    Error::Unavailable(format!("the file of jobs: {}", error.into()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Disk {
    pub(super) fn open(path: &Path, retention: Duration) -> Result<Self> {
        let bad = |message: String| Error::Setup(format!("jobs.path: {}: {message}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| bad(error.to_string()))?;
        }
        let file = Database::create(path).map_err(|error| bad(error.to_string()))?;
        let disk = Self { file: Arc::new(file), queues: Arc::default(), pushed: Arc::default() };
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

    pub(super) async fn push(&self, queue: &str, message: Message) -> Result<()> {
        let name = queue.to_owned();
        let pushed = self.change(move |change| {
            let mut ids = change.open_table(IDS)?;
            let since = ids.get(message.id.as_str())?.map(|since| since.value());
            if since.is_some_and(|since| since + SAME > now()) {
                return Ok(None);
            }
            ids.insert(message.id.as_str(), now())?;
            let mut messages = change.open_table(MESSAGES)?;
            let all = (name.as_str(), 0)..=(name.as_str(), u64::MAX);
            let place = messages.range(all)?.next_back().transpose()?.map_or(1, |(place, _)| place.value().1 + 1);
            let Message { id, trace, body } = &message;
            messages.insert((name.as_str(), place), (now(), 0, id.as_str(), trace.as_str(), &body[..]))?;
            Ok(Some(place))
        });
        if let Some(place) = pushed.await? {
            self.wait(queue, place);
        }
        Ok(())
    }

    fn wait(&self, queue: &str, place: u64) {
        self.queues.lock().entry(queue.to_owned()).or_default().push_back(place);
        self.pushed.notify_waiters();
    }

    fn next(&self, queue: &str) -> Option<u64> {
        self.queues.lock().get_mut(queue)?.pop_front()
    }

    pub(super) async fn pull(&self, queue: &str, most: usize) -> Result<BoxStream<'static, Result<Delivery>>> {
        let until = tokio::time::Instant::now() + PULL;
        let mut places = Vec::new();
        loop {
            let pushed = self.pushed.notified();
            while let Some(place) = self.next(queue).filter(|_| places.len() < most) {
                places.push(place);
                if places.len() == most {
                    break;
                }
            }
            if !places.is_empty() || tokio::time::timeout_at(until, pushed).await.is_err() {
                break;
            }
        }
        let mut deliveries = Vec::with_capacity(places.len());
        for place in places {
            deliveries.extend(self.deliver(queue, place).await.transpose());
        }
        Ok(futures::stream::iter(deliveries).boxed())
    }

    async fn deliver(&self, queue: &str, place: u64) -> Result<Option<Delivery>> {
        let name = queue.to_owned();
        let noted = self.change(move |change| {
            let mut messages = change.open_table(MESSAGES)?;
            let found = messages.get((name.as_str(), place))?.map(|found| {
                let (born, deliveries, id, trace, body) = found.value();
                (born, deliveries + 1, id.to_owned(), trace.to_owned(), Bytes::copy_from_slice(body))
            });
            // one that has expired while it waited
            let Some((born, deliveries, id, trace, body)) = found else { return Ok(None) };
            // a message that brings the process down is counted before it does
            messages.insert((name.as_str(), place), (born, deliveries, id.as_str(), trace.as_str(), &body[..]))?;
            Ok(Some((deliveries, Message { id, trace, body })))
        });
        let mut hand = Hand { disk: self.clone(), queue: queue.to_owned(), place, settled: false };
        let Some((deliveries, message)) = noted.await? else {
            hand.settled = true;
            return Ok(None);
        };
        Ok(Some(Delivery { message, deliveries, hand: super::Hand::Disk(hand) }))
    }

    pub(super) async fn waiting(&self, queue: &str) -> Result<u64> {
        let name = queue.to_owned();
        self.read(move |read| {
            let messages = read.open_table(MESSAGES)?;
            Ok(messages.range((name.as_str(), 0)..=(name.as_str(), u64::MAX))?.count() as u64)
        })
        .await
    }

    pub(super) async fn bury(&self, body: Bytes) -> Result<()> {
        self.change(move |change| {
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

pub(super) struct Hand {
    disk: Disk,
    queue: String,
    place: u64,
    settled: bool,
}

impl Hand {
    pub(super) async fn done(mut self) -> Result<()> {
        let (queue, place) = (self.queue.clone(), self.place);
        let remove = move |change: &WriteTransaction| {
            change.open_table(MESSAGES)?.remove((queue.as_str(), place))?;
            Ok(())
        };
        self.disk.change(remove).await?;
        self.settled = true;
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps, reason = "as the other hand has it")]
    pub(super) fn back(self, after: Duration) -> Result<()> {
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            drop(self);
        });
        Ok(())
    }
}

impl Drop for Hand {
    /// Whoever had it has gone without a word.
    fn drop(&mut self) {
        if !self.settled {
            self.disk.wait(&self.queue, self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    async fn pull(disk: &Disk) -> Vec<Delivery> {
        disk.pull("q", 10).await.unwrap().map(Result::unwrap).collect().await
    }

    fn message(id: &str) -> Message {
        Message { id: id.to_owned(), trace: "t".to_owned(), body: Bytes::copy_from_slice(id.as_bytes()) }
    }

    #[tokio::test]
    async fn records_change_only_by_whoever_knows_them() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), DAY).unwrap();
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
        let disk = Disk::open(&path, DAY).unwrap();
        for id in ["1", "2", "2", "3"] {
            disk.push("q", message(id)).await.unwrap();
        }
        let mut taken = pull(&disk).await;
        assert_eq!(taken.len(), 3, "equal ids are one message");
        assert!(Disk::open(&path, DAY).is_err(), "one process at a time");
        taken.remove(0).done().await.unwrap();
        taken.remove(0).back(Duration::ZERO).await.unwrap();
        assert_eq!(pull(&disk).await[0].deliveries, 2);
        drop((taken, disk));
        // the task that gave one back holds the file for a moment
        let disk = loop {
            match Disk::open(&path, DAY) {
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
    async fn what_is_too_old_is_swept_out() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&folder.path().join("jobs"), DAY).unwrap();
        disk.create("a.b", Bytes::new()).await.unwrap();
        disk.put_blob("blob", Bytes::from_static(b"x")).await.unwrap();
        disk.bury(Bytes::from_static(b"dead")).await.unwrap();
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
