//! The way in: items come one by one, and the job is accepted when all are safe.
//!
//! An upload says every now and then that it goes on (`live.<run>`). Its tasks are worked on meanwhile; those of one that
//! has broken off are let go, and it cannot be accepted after that.

use std::sync::Arc;
use std::time::Duration;

use blake3::Hasher;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::Jobs;
use super::keep::readable;
use super::record::{self, Content, Item, Record, Snapshot, Step, Task, Work};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::Context;
use crate::understand;

/// Tasks that are sent before the first of them is known to be safe.
const AHEAD: usize = 32;
/// Bytes of an idempotency key or a label at most.
const MAX_NAME: usize = 256;
/// Bytes of a question, and of the strings that end an answer, at most: they travel with every record of the job.
const MAX_WORDS: usize = 64 << 10;
/// Bytes that each part takes besides its content.
const OVERHEAD: u64 = 1024;
/// When to come again where a tenant has no room: when some of its jobs are over.
const FULL: Duration = Duration::from_secs(10);
/// Broken submissions of one job that are remembered.
const MAX_BROKEN: usize = 256;
/// How often an upload says that it goes on…
const BEAT: Duration = Duration::from_secs(10);
/// …and how long after its last word it has broken off, in milliseconds.
const BROKEN_OFF: u64 = 60_000;

/// What is submitted, before its items.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Equal keys of a tenant are one job; empty: this is a job of its own.
    pub key: String,
    /// For people.
    pub label: String,
    /// What is to be done with each item.
    pub work: Work,
    /// A `traceparent`, for those who work on it; empty: none.
    pub trace: String,
}

/// A job on its way in.
pub struct Submission {
    jobs: Jobs,
    record: Record,
    work: Work,
    run: String,
    trace: String,
    /// Accepted before: the items are compared, not sent.
    accepted: bool,
    hasher: Hasher,
    items: u64,
    sending: FuturesUnordered<BoxFuture<'static, Result<()>>>,
    upload: Upload,
}

/// An upload that goes on until this is dropped.
struct Upload {
    jobs: Jobs,
    tenant: String,
    run: String,
    beating: Option<AbortHandle>,
    /// Bytes of it.
    bytes: u64,
    /// Bytes of the tenant's jobs that were not over when it began.
    before: u64,
    record: Record,
    /// Blobs of it.
    blobs: Arc<Mutex<Vec<String>>>,
}

impl Upload {
    fn new(jobs: &Jobs, record: &Record, run: &str, before: u64, accepted: bool) -> Self {
        let (beating, of) = (jobs.clone(), run.to_owned());
        let beating = (!accepted).then(|| {
            let beats = async move {
                loop {
                    tokio::time::sleep(BEAT).await;
                    beating.note_live(&of, record::now()).await;
                }
            };
            tokio::spawn(beats).abort_handle()
        });
        let (jobs, tenant, run, record) = (jobs.clone(), record.tenant.clone(), run.to_owned(), record.clone());
        Self { jobs, tenant, run, beating, bytes: 0, before, record, blobs: Arc::default() }
    }

    /// So many bytes more; what all of the tenant are to hold then.
    fn add(&mut self, bytes: u64) -> u64 {
        self.bytes += bytes;
        let mut uploading = self.jobs.uploading.lock();
        let all = uploading.entry(self.tenant.clone()).or_default();
        *all += bytes;
        self.before + *all
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut uploading = self.jobs.uploading.lock();
        if let Some(all) = uploading.get_mut(&self.tenant) {
            *all = all.saturating_sub(self.bytes);
            if *all == 0 {
                uploading.remove(&self.tenant);
            }
        }
        drop(uploading);
        if let Some(beating) = &self.beating {
            beating.abort();
            let (jobs, run, record) = (self.jobs.clone(), self.run.clone(), self.record.clone());
            let blobs = std::mem::take(&mut *self.blobs.lock());
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    if let Err(error) = jobs.end_upload(&record, &run, blobs).await {
                        tracing::debug!(run, %error, "what is there of an upload is left to expire");
                    }
                });
            }
        }
    }
}

/// What may be asked for each item, as far as anybody can say before it is asked.
fn check(work: &Work) -> Result<()> {
    understand::check(&work.emphasis, &work.sampling)?;
    if work.question.len() > MAX_WORDS {
        return Err(Error::invalid("question", format!("{} bytes, the limit is {MAX_WORDS}", work.question.len())));
    }
    let size = record::to_json(&work.sampling)?.len();
    if size > MAX_WORDS {
        return Err(Error::invalid("sampling.stop", format!("{size} bytes, the limit is {MAX_WORDS}")));
    }
    // whatever else there may be: what cannot be read again is refused here rather than failed by everybody who meets it
    readable(work, "the job").map(drop).map_err(|error| Error::invalid("header", error))
}

impl Jobs {
    /// Says when an upload was last heard of; 0: it is over.
    async fn note_live(&self, run: &str, when: u64) {
        let (key, value) = (record::live(run), Bytes::from(when.to_string()));
        let noted = async {
            match self.store.get(&key).await? {
                None => self.store.create(&key, value).await,
                Some(before) => self.store.update(&key, value, before.revision).await,
            }
        };
        if let Err(error) = noted.await {
            tracing::debug!(run, %error, "an upload could not say that it goes on");
        }
    }

    /// An upload is over. If it was not accepted, nothing of it stays: who is refused and tries again must not fill the
    /// store. Its messages are let go when it is their turn.
    async fn end_upload(&self, record: &Record, run: &str, blobs: Vec<String>) -> Result<()> {
        self.note_live(run, 0).await;
        if self.has_broken_off(record, run).await? {
            for blob in blobs {
                self.store.remove_blob(&blob).await?;
            }
            for kind in ["part", "item", "fail"] {
                self.store.remove_below(&format!("{kind}.{run}")).await?;
            }
            self.store.remove(&record::work(run)).await?;
        }
        Ok(self.store.remove(&record::live(run)).await?)
    }

    /// Whether a submission that is not accepted is uploaded by nobody any more. From then on it is known to be: it will
    /// not be accepted.
    pub(super) async fn has_broken_off(&self, record: &Record, run: &str) -> Result<bool> {
        // an earlier build says nothing of its uploads
        let Some(live) = self.store.get(&record::live(run)).await? else { return Ok(false) };
        let last: u64 = std::str::from_utf8(&live.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        if record::now().saturating_sub(last) < BROKEN_OFF {
            return Ok(false);
        }
        loop {
            let (mut now, revision) = match self.record(&record.tenant, &record.id).await {
                Err(Error::NotFound { .. }) => return Ok(true),
                found => found?,
            };
            // accepted at the last moment, this one or another
            if now.total.is_some() {
                return Ok(now.run != run);
            }
            if now.broken.len() >= MAX_BROKEN {
                now.broken.remove(0);
            }
            now.broken.push(run.to_owned());
            if self.store.update(&record::key(&now.tenant, &now.id), record::to_json(&now)?, revision).await? {
                tracing::debug!(job = now.id, run, "a submission that broke off is let go");
                return Ok(true);
            }
        }
    }

    /// Bytes that a tenant's jobs were submitted with that are not over.
    async fn bytes_of(&self, tenant: &str) -> Result<u64> {
        let keys = self.store.keys(&record::open(tenant)).await?;
        Ok(keys.iter().filter_map(|key| key.rsplit('.').next()?.parse::<u64>().ok()).sum())
    }

    /// Begins a job.
    ///
    /// # Errors
    /// `InvalidArgument` for a key or a label that is too long, `Unavailable`.
    pub async fn begin(&self, header: Header, context: &Context) -> Result<Submission> {
        for (field, value) in [("idempotency_key", &header.key), ("label", &header.label)] {
            if value.len() > MAX_NAME {
                return Err(Error::invalid(field, format!("{} bytes, the limit is {MAX_NAME}", value.len())));
            }
        }
        check(&header.work)?;
        let id = if header.key.is_empty() {
            format!("{:032x}", rand::random::<u128>())
        } else {
            let mut hasher = Hasher::new();
            hasher.update(context.tenant.as_bytes()).update(&[0]).update(header.key.as_bytes());
            hasher.finalize().to_hex()[..32].to_owned()
        };
        let mut work = header.work;
        work.models = context.models.as_ref().map(|models| models.to_vec());
        let mut hasher = Hasher::new();
        hasher.update(&record::to_json(&work)?);
        let mut record = Record {
            id,
            label: header.label,
            tenant: context.tenant.to_string(),
            submitted: record::now(),
            total: None,
            run: String::new(),
            fingerprint: String::new(),
            cancelled: false,
            finished: None,
            done: 0,
            failed: 0,
            bytes: 0,
            broken: Vec::new(),
        };
        let run = format!("{}-{:016x}", record.id, rand::random::<u64>());
        let key = record::key(&record.tenant, &record.id);
        if !self.store.create(&key, record::to_json(&record)?).await? {
            record = self.record(&record.tenant, &record.id).await?.0;
        }
        let accepted = record.total.is_some();
        let mut before = 0;
        if !accepted {
            before = self.bytes_of(&record.tenant).await?;
            self.store.create(&record::live(&run), record::now().to_string().into()).await?;
            self.store.create(&record::work(&run), record::to_json(&work)?).await?;
        }
        let upload = Upload::new(self, &record, &run, before, accepted);
        let (jobs, trace) = (self.clone(), header.trace);
        let sending = FuturesUnordered::new();
        Ok(Submission { jobs, record, work, run, trace, accepted, hasher, items: 0, sending, upload })
    }
}

impl Submission {
    /// The next item.
    ///
    /// # Errors
    /// `InvalidArgument` if it holds nothing that is to be computed, or is one too many. `Exhausted` if there is no room
    /// for it, in the store or for this tenant.
    pub async fn add(&mut self, item: Item) -> Result<()> {
        let (index, most) = (self.items, self.jobs.options.max_items);
        let invalid = |field: &str, message: String| Error::invalid(format!("items[{index}]{field}"), message);
        if index >= most {
            return Err(invalid("", format!("one too many, the limit is {most}")));
        }
        if item.name.len() > MAX_NAME {
            return Err(invalid(".name", format!("{} bytes, the limit is {MAX_NAME}", item.name.len())));
        }
        let contents = item.contents();
        if contents.is_empty() {
            return Err(invalid(".parts", "empty, expected text, image or audio".to_owned()));
        }
        let wanted: Vec<_> = contents.into_iter().filter(|(modality, _)| !self.work.mutes(*modality)).collect();
        if wanted.is_empty() {
            return Err(invalid(".parts", "all of them are muted".to_owned()));
        }
        self.items += 1;
        self.note(item.name.as_bytes());
        for (modality, content) in &wanted {
            self.note(modality.as_str().as_bytes());
            self.note(content);
        }
        if self.accepted {
            return Ok(());
        }
        let bytes = wanted.iter().map(|(_, content)| content.len() as u64 + OVERHEAD).sum();
        let (all, most) = (self.upload.add(bytes), self.jobs.options.tenant_bytes);
        if self.upload.bytes > most {
            return Err(invalid("", format!("{} bytes with those before, the limit is {most}", self.upload.bytes)));
        }
        if all > most {
            let message = format!("the tenant's jobs hold {all} bytes with this one, the limit is {most}");
            return Err(Error::Exhausted { reason: "JOBS_TENANT_BYTES", message, retry_after: FULL });
        }
        self.jobs.store.take_in(bytes).await?;
        let modalities: Arc<[Modality]> = wanted.iter().map(|(modality, _)| *modality).collect();
        for (modality, content) in wanted {
            while self.sending.len() >= AHEAD {
                self.sending.next().await.transpose()?;
            }
            let task = Task {
                job: record::key(&self.record.tenant, &self.record.id),
                id: self.record.id.clone(),
                run: self.run.clone(),
                item: index,
                name: item.name.clone(),
                attempt: 0,
                modalities: modalities.to_vec(),
                step: Step::Sense(modality, Content::Inline(content)),
            };
            let blobs = self.upload.blobs.clone();
            self.sending.push(Box::pin(send(self.jobs.clone(), task, self.trace.clone(), blobs)));
        }
        Ok(())
    }

    fn note(&mut self, part: &[u8]) {
        self.hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }

    /// All items are in: the job is accepted when this returns, and will be done.
    ///
    /// # Errors
    /// `InvalidArgument` without items, `FailedPrecondition` if its idempotency key stands for another job already.
    pub async fn finish(mut self) -> Result<Snapshot> {
        if self.items == 0 {
            return Err(Error::invalid("items", "empty, expected at least one"));
        }
        while let Some(sent) = self.sending.next().await {
            sent?;
        }
        let fingerprint = self.hasher.finalize().to_hex().to_string();
        loop {
            let (mut record, revision) = self.jobs.record(&self.record.tenant, &self.record.id).await?;
            if record.total.is_some() {
                // the same once more, or by somebody else at the same time
                if record.fingerprint != fingerprint {
                    return Err(Error::FailedPrecondition {
                        reason: "IDEMPOTENCY_KEY_REUSED",
                        message: format!("job {} with this idempotency key has other items", record.id),
                    });
                }
                return self.jobs.look((record, revision)).await;
            }
            if record.broken.contains(&self.run) {
                return Err(Error::Unavailable {
                    reason: "JOBS_BROKEN_OFF",
                    message: "nothing was heard of the upload for so long that it was let go".to_owned(),
                    retry_after: Duration::from_secs(1),
                });
            }
            record.total = Some(self.items);
            record.bytes = self.upload.bytes;
            record.run.clone_from(&self.run);
            record.fingerprint.clone_from(&fingerprint);
            let key = record::key(&record.tenant, &record.id);
            if self.jobs.store.update(&key, record::to_json(&record)?, revision).await? {
                metrics::counter!("sensorium_jobs_submitted_total").increment(1);
                tracing::info!(job = record.id, items = self.items, "job accepted");
                let open = format!("{}.{}.{}", record::open(&record.tenant), record.id, record.bytes);
                // without it the job counts for nothing, which is no reason to refuse it now
                if let Err(error) = self.jobs.store.create(&open, Bytes::new()).await {
                    tracing::warn!(job = record.id, %error, "the size of a job could not be noted");
                }
                self.jobs.store.tell(&record.id, "");
                return self.jobs.get(&record.tenant, &record.id).await;
            }
        }
    }
}

/// Sends a task; what is large goes ahead of it.
async fn send(jobs: Jobs, mut task: Task, trace: String, blobs: Arc<Mutex<Vec<String>>>) -> Result<()> {
    if let Step::Sense(modality, Content::Inline(content)) = &task.step
        && content.len() > jobs.inline()
    {
        let (modality, name) = (*modality, record::content(&task, *modality));
        blobs.lock().push(name.clone());
        jobs.store.put_blob(&name, Bytes::clone(content)).await?;
        task.step = Step::Sense(modality, Content::Blob(name));
    }
    jobs.push(&task, &trace).await
}
