//! Jobs: many items, each understood when there is time for it, and nothing lost on the way.
//!
//! A job fans out: one message per item and modality goes to that modality's work queue, and when all senses of an item
//! have spoken, one more message joins them. Gateways take messages ([`intake`]) and send them through the same routes as
//! requests, behind all of these. A message is acknowledged after its result is kept, and results are kept by
//! creating a record that must not be there yet: whatever is done twice is visible once.

mod carry;
mod dead;
mod expiry;
pub mod grave;
pub mod intake;
mod keep;
mod pauses;
mod queue;
pub mod record;
mod run;
pub mod submit;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures::{Stream, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use sensorium_cluster::bus::Bus;
use sensorium_cluster::jobs::{Error as StoreError, Jobs as Store, Message};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::record::{Outcome, Record, Snapshot, State};
use crate::error::{Error, Result};

/// One work queue per modality.
pub const QUEUES: [&str; 3] = ["text", "image", "audio"];

/// Subject of hints that a job was cancelled.
const CANCELLED: &str = "cancelled";
/// Hexadecimal digits of a job's id.
const ID: usize = 32;
/// Records that are read at the same time.
const READ_AHEAD: usize = 32;
/// Whoever watches a job looks for itself this often, should a hint be lost…
const LOOK: Duration = Duration::from_secs(2);
/// …and no more often than this.
const SETTLE: Duration = Duration::from_millis(50);

/// What jobs may cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tasks of each modality that one gateway works on at once; they stand behind all requests. 0: it takes none.
    /// Default: 4.
    pub concurrency: usize,
    /// Items of one job at most. Default: 100000.
    pub max_items: u64,
    /// Deliveries of a task before it is laid to the dead letters. Default: 5.
    pub max_deliveries: u64,
    /// Seconds that one attempt at a task may take. Default: 300.
    pub task_seconds: u64,
    /// Seconds that tasks wait for a model that nobody holds; after that they fail. Default: 300.
    pub wait_seconds: u64,
    /// Milliseconds before a failed task is tried again; doubled each time, up to a minute. Default: 500.
    pub backoff_ms: u64,
    /// Bytes of an item that travel within its message; larger ones lie in the object store. At most 262144.
    /// Default: 65536.
    pub inline_bytes: usize,
    /// Bytes that a tenant's jobs may have been submitted with while they are not over, a KiB for each part included;
    /// more are refused. Default: 4294967296.
    pub tenant_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrency: 4,
            max_items: 100_000,
            max_deliveries: 5,
            task_seconds: 300,
            wait_seconds: 300,
            backoff_ms: 500,
            inline_bytes: 64 << 10,
            tenant_bytes: 4 << 30,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let retry_after = Duration::from_secs(1);
        match error {
            StoreError::Unavailable(message) => Self::Unavailable { reason: "JOBS_UNAVAILABLE", message, retry_after },
            StoreError::Full(message) => Self::Exhausted { reason: "JOBS_QUEUE_FULL", message, retry_after },
            StoreError::NoRoom(message) => {
                Self::Exhausted { reason: "JOBS_STORAGE_FULL", message, retry_after: Duration::from_secs(5) }
            }
            StoreError::TooLarge(message) => Self::invalid("items", message),
            StoreError::Setup(message) => Self::FailedPrecondition { reason: "JOBS_SETUP", message },
        }
    }
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The newest first.
    pub jobs: Vec<Snapshot>,
    /// Where the next page begins; empty if this is the last.
    pub next: String,
}

/// A cheap handle to all jobs.
#[derive(Clone)]
pub struct Jobs {
    store: Store,
    options: Arc<Options>,
    bus: Bus,
    /// How long a job is kept after its end.
    retention: Duration,
    /// Bytes of each tenant's uploads at this gateway.
    uploading: Arc<Mutex<HashMap<String, u64>>>,
}

impl Jobs {
    /// Jobs that are kept in `store`, and forgotten after `retention` from their end; what is given up is told on `bus`.
    pub fn new(store: Store, options: Options, retention: Duration, bus: Bus) -> Self {
        Self { store, options: Arc::new(options), bus, retention, uploading: Arc::default() }
    }

    /// Where they are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    async fn record(&self, tenant: &str, id: &str) -> Result<(Record, u64)> {
        // anything else is no part of a key
        let known = if id.len() == ID && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.store.get(&record::key(tenant, id)).await?
        } else {
            None
        };
        let record = known.ok_or_else(|| Error::NotFound {
            what: format!("job '{id}'"),
            known: "it was never submitted, or has expired".to_owned(),
        })?;
        Ok((record::from_json(&record.value)?, record.revision))
    }

    async fn look(&self, (record, revision): (Record, u64)) -> Result<Snapshot> {
        if record.total.is_none() || record.finished.is_some() {
            let Record { done, failed, .. } = record;
            return Ok(Snapshot { record, done, failed });
        }
        let count =
            async |kind: &str| self.store.keys(&format!("{kind}.{}", record.run)).await.map(|keys| keys.len() as u64);
        // failures are kept before their items: who sees all items sees all failures
        let done = count("item").await?;
        let failed = count("fail").await?.min(done);
        let mut snapshot = Snapshot { record, done, failed };
        if snapshot.state().is_over() {
            let now = record::now();
            snapshot.record = Record { finished: Some(now), done, failed, ..snapshot.record };
            let value = record::to_json(&snapshot.record)?;
            if self.store.update(&record::key(&snapshot.record.tenant, &snapshot.record.id), value, revision).await? {
                let took = Duration::from_millis(now.saturating_sub(snapshot.record.submitted));
                metrics::histogram!("sensorium_job_duration_seconds").record(took);
                self.close(&snapshot.record).await?;
            } else {
                // somebody else has seen it first
                let (tenant, id) = (snapshot.record.tenant.clone(), snapshot.record.id.clone());
                snapshot.record = self.record(&tenant, &id).await?.0;
                if snapshot.record.finished.is_some() {
                    Record { done: snapshot.done, failed: snapshot.failed, .. } = snapshot.record;
                }
            }
        }
        Ok(snapshot)
    }

    /// What a job was submitted with no longer counts against its tenant.
    async fn close(&self, record: &Record) -> Result<()> {
        Ok(self.store.remove_below(&format!("{}.{}", record::open(&record.tenant), record.id)).await?)
    }

    /// A job as it is.
    ///
    /// # Errors
    /// `NotFound` if the tenant has no such job.
    pub async fn get(&self, tenant: &str, id: &str) -> Result<Snapshot> {
        self.look(self.record(tenant, id).await?).await
    }

    /// What came of the items `from..from + most`, as far as they are done.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn outcomes(&self, job: &Snapshot, from: u64, most: u64) -> Result<Vec<Outcome>> {
        let until = job.total().min(from.saturating_add(most));
        let read =
            futures::stream::iter(from..until).map(|item| self.outcome(format!("item.{}.{item}", job.record.run)));
        let outcomes: Vec<Option<Outcome>> = read.buffered(READ_AHEAD).try_collect().await?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    async fn outcome(&self, key: String) -> Result<Option<Outcome>> {
        self.kept(&key).await?.map(|value| record::from_json(&value)).transpose()
    }

    /// The job whenever it has changed, until it is over.
    pub fn watch(&self, tenant: Arc<str>, id: String) -> impl Stream<Item = Result<Snapshot>> + Send + use<> {
        let this = self.clone();
        try_stream! {
            let mut hints = this.store.listen(&id);
            let mut told: Option<Snapshot> = None;
            loop {
                let looking = Instant::now();
                let snapshot = this.get(&tenant, &id).await?;
                // counting the items of a large job costs something
                let settle = SETTLE.max(looking.elapsed() * 10);
                let over = snapshot.state().is_over();
                if told.as_ref() != Some(&snapshot) {
                    yield snapshot.clone();
                    told = Some(snapshot);
                }
                if over {
                    break;
                }
                // a hint that was missed is as good as one that was heard
                let _ = tokio::time::timeout(LOOK, hints.recv()).await;
                tokio::time::sleep(settle).await;
                hints = hints.resubscribe();
            }
        }
    }

    /// Wants no more of a job. What is in work is given up, what is done stays.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn cancel(&self, tenant: &str, id: &str) -> Result<Snapshot> {
        loop {
            let (mut record, revision) = self.record(tenant, id).await?;
            let snapshot = self.look((record.clone(), revision)).await?;
            if snapshot.state().is_over() {
                return Ok(snapshot);
            }
            record.cancelled = true;
            if self.store.update(&record::key(tenant, id), record::to_json(&record)?, revision).await? {
                self.store.tell(CANCELLED, id);
                self.store.tell(id, "");
                return self.get(tenant, id).await;
            }
        }
    }

    /// A tenant's jobs, the newest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, tenant: &str, state: Option<State>, most: usize, from: &str) -> Result<Page> {
        let keys = self.store.keys(&record::tenant_key(tenant)).await?;
        let read = futures::stream::iter(keys).map(async |key| {
            let Some(kept) = self.store.get(&key).await? else { return Ok(None) };
            Ok::<_, Error>(Some((record::from_json::<Record>(&kept.value)?, kept.revision)))
        });
        let mut records: Vec<(Record, u64)> =
            read.buffer_unordered(READ_AHEAD).try_filter_map(async |record| Ok(record)).try_collect().await?;
        // what was not submitted to its end is no job
        records.retain(|(record, _)| record.total.is_some());
        let place = |record: &Record| format!("{:016x}.{}", u64::MAX - record.submitted, record.id);
        records.sort_by_cached_key(|(record, _)| place(record));
        let mut page = Page::default();
        for record in records.into_iter().filter(|(record, _)| *place(record) > *from) {
            let snapshot = self.look(record).await?;
            if state.is_some_and(|state| state != snapshot.state()) {
                continue;
            }
            if page.jobs.len() == most {
                page.next = page.jobs.last().map(|last| place(&last.record)).unwrap_or_default();
                break;
            }
            page.jobs.push(snapshot);
        }
        Ok(page)
    }

    async fn push(&self, task: &record::Task, trace: &str) -> Result<()> {
        let message =
            Message { id: task.message_id(), flow: task.flow(), trace: trace.to_owned(), body: task.encode()? };
        Ok(self.store.push(task.queue(), message).await?)
    }
}
