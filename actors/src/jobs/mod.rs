//! Jobs: many items, each understood when there is time for it, and nothing lost on the way.
//!
//! A job fans out: one message per item and modality goes to that modality's work queue, and when all senses of an item
//! have spoken, one more message joins them. Gateways take messages ([`intake`]) and send them through the same routes as
//! requests, behind all of these. A message is acknowledged after its result is kept, and results are kept by
//! creating a record that must not be there yet: whatever is done twice is visible once.

pub mod intake;
mod queue;
pub mod record;
mod run;
pub mod submit;

use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use futures::future::try_join_all;
use futures::{Stream, StreamExt, TryStreamExt};
use sensorium_cluster::bus::Bus;
use sensorium_cluster::jobs::{Error as StoreError, Jobs as Store, Message};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::record::{Content, Letter, Outcome, Record, Snapshot, State};
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
    /// Bytes of an item that travel within its message; larger ones lie in the object store. Default: 65536.
    pub inline_bytes: usize,
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
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let retry_after = Duration::from_secs(1);
        match error {
            StoreError::Unavailable(message) => Self::Unavailable { reason: "JOBS_UNAVAILABLE", message, retry_after },
            StoreError::Full(message) => Self::Exhausted { reason: "JOBS_QUEUE_FULL", message, retry_after },
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
}

impl Jobs {
    /// Jobs that are kept in `store`; what is given up is told on `bus`.
    pub fn new(store: Store, options: Options, bus: Bus) -> Self {
        Self { store, options: Arc::new(options), bus }
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
        let Some(kept) = self.store.get(&key).await? else { return Ok(None) };
        let value = match record::decode(&kept.value)? {
            Content::Inline(value) => Some(value),
            Content::Blob(name) => self.store.blob(&name).await?,
        };
        value.map(|value| record::from_json(&value)).transpose()
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

    /// The dead letters from a place on, each with its place.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn dead(&self, from: u64, most: usize) -> Result<Vec<(u64, Letter)>> {
        let dead = self.store.dead(from, most).await?;
        let read = dead.into_iter().filter_map(|dead| match record::decode(&dead.body) {
            Ok(letter) => Some((dead.sequence, letter)),
            Err(error) => {
                tracing::error!(sequence = dead.sequence, %error, "a dead letter of another build is left out");
                None
            }
        });
        Ok(read.collect())
    }

    /// Tries a dead letter once more, from where its item failed. The letter is taken away last: replayed by two at once,
    /// or once more after it broke off, it is done twice and seen once.
    ///
    /// # Errors
    /// `NotFound` if there is none at this place; or its job, or what it was given, has expired. `FailedPrecondition` if
    /// its job was cancelled.
    pub async fn replay(&self, sequence: u64) -> Result<Letter> {
        let found = self.dead(sequence, 1).await?.into_iter().find(|(place, _)| *place == sequence);
        let Some((_, letter)) = found else {
            let what = format!("dead letter {sequence}");
            return Err(Error::NotFound { what, known: "it was replayed, or has expired".to_owned() });
        };
        let task = record::Task { attempt: rand::random_range(1..u32::MAX), ..letter.task.clone() };
        self.given(&letter, &task).await?;
        // an earlier replay has done it
        let outcome = self.outcome(task.outcome()).await?;
        if outcome.and_then(|outcome| outcome.report).is_some_and(|report| report.branches.iter().all(run::has_spoken))
        {
            self.store.unbury(sequence).await?;
            return Ok(letter);
        }
        let reopen = async || {
            let (record, revision) = self.record(&letter.tenant, &task.id).await?;
            let record = Record { finished: None, done: 0, failed: 0, ..record };
            Ok::<_, Error>(
                self.store
                    .update(&record::key(&record.tenant, &record.id), record::to_json(&record)?, revision)
                    .await?,
            )
        };
        let mut forgotten = vec![task.outcome(), task.failure()];
        if let record::Step::Sense(modality, _) = task.step {
            forgotten.push(task.part(modality));
        }
        try_join_all(forgotten.iter().map(|key| self.store.remove(key))).await?;
        // after them: whoever counted them before cannot write down what they were
        while !reopen().await? {}
        self.push(&task, "").await?;
        self.store.unbury(sequence).await?;
        self.store.tell(&task.id, "");
        Ok(letter)
    }

    /// Whether all that a dead letter needs is still there.
    async fn given(&self, letter: &Letter, task: &record::Task) -> Result<()> {
        if self.record(&letter.tenant, &task.id).await?.0.cancelled {
            let message = format!("job '{}' was cancelled, expected one that still wants its items", task.id);
            return Err(Error::FailedPrecondition { reason: "JOB_CANCELLED", message });
        }
        let expired = |what: &str| Error::NotFound {
            what: format!("{what} of item {} of job '{}'", task.item, task.id),
            known: "it has expired".to_owned(),
        };
        self.store.get(&task.work()).await?.ok_or_else(|| expired("what was asked"))?;
        match &task.step {
            record::Step::Sense(_, Content::Blob(name)) => {
                self.store.blob(name).await?.ok_or_else(|| expired("the content"))?;
            }
            record::Step::Sense(..) => {}
            record::Step::Join => {
                let parts = self.store.keys(&task.parts()).await?;
                if parts.len() < task.modalities.len() {
                    return Err(expired("a part"));
                }
            }
        }
        Ok(())
    }

    async fn push(&self, task: &record::Task, trace: &str) -> Result<()> {
        let message = Message { id: task.message_id(), trace: trace.to_owned(), body: task.encode()? };
        Ok(self.store.push(task.queue(), message).await?)
    }
}
