//! The way in: items come one by one, and the job is accepted when all are safe.

use std::sync::Arc;

use blake3::Hasher;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::Jobs;
use super::record::{self, Content, Item, Record, Snapshot, Step, Task, Work};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::Context;

/// Tasks that are sent before the first of them is known to be safe.
const AHEAD: usize = 32;
/// Bytes of an idempotency key or a label at most.
const MAX_NAME: usize = 256;

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
}

impl Jobs {
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
        for (modality, emphasis) in &header.work.emphasis {
            if !(emphasis.weight.is_finite() && emphasis.weight >= 0.0) {
                let field = format!("emphasis.{modality}.weight");
                return Err(Error::invalid(field, format!("{}, expected 0 or more", emphasis.weight)));
            }
        }
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
        };
        let run = format!("{}-{:016x}", record.id, rand::random::<u64>());
        let key = record::key(&record.tenant, &record.id);
        if !self.store.create(&key, record::to_json(&record)?).await? {
            record = self.record(&record.tenant, &record.id).await?.0;
        }
        let accepted = record.total.is_some();
        if !accepted {
            self.store.create(&record::work(&run), record::to_json(&work)?).await?;
        }
        let (jobs, trace) = (self.clone(), header.trace);
        let sending = FuturesUnordered::new();
        Ok(Submission { jobs, record, work, run, trace, accepted, hasher, items: 0, sending })
    }
}

impl Submission {
    /// The next item.
    ///
    /// # Errors
    /// `InvalidArgument` if it holds nothing that is to be computed, or is one too many.
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
            self.sending.push(Box::pin(send(self.jobs.clone(), task, self.trace.clone())));
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
            record.total = Some(self.items);
            record.run.clone_from(&self.run);
            record.fingerprint.clone_from(&fingerprint);
            let key = record::key(&record.tenant, &record.id);
            if self.jobs.store.update(&key, record::to_json(&record)?, revision).await? {
                metrics::counter!("sensorium_jobs_submitted_total").increment(1);
                tracing::info!(job = record.id, items = self.items, "job accepted");
                self.jobs.store.tell(&record.id, "");
                return self.jobs.get(&record.tenant, &record.id).await;
            }
        }
    }
}

/// Sends a task; what is large goes ahead of it.
async fn send(jobs: Jobs, mut task: Task, trace: String) -> Result<()> {
    if let Step::Sense(modality, Content::Inline(content)) = &task.step
        && content.len() > jobs.options.inline_bytes
    {
        let (modality, name) = (*modality, record::content(&task, *modality));
        jobs.store.put_blob(&name, Bytes::clone(content)).await?;
        task.step = Step::Sense(modality, Content::Blob(name));
    }
    jobs.push(&task, &trace).await
}
