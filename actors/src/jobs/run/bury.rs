//! What becomes of a task that is given up.

use serde_json::json;

use super::super::grave::{Letter, Unreadable};
use super::super::keep::until_kept;
use super::super::record::{self, Step, Task, UNREADABLE, Work};
use super::Bench;
use crate::error::{Error, Result};
use crate::request::Context;
use crate::understand::report::{Branch, Report, State};

/// Bytes of an error that is kept.
const MAX_ERROR: usize = 4096;

impl Bench {
    /// Lays a task to the dead letters; its item has failed, and the job goes on without it. Done twice it is one letter,
    /// and a task of which the result is there, or wanted no more, needs none. What cannot even be read is buried as it
    /// is: it would be in the way for ever.
    pub(in super::super) async fn bury(&self, task: Task, trace: &str, deliveries: u64, error: &str) -> Result<()> {
        let wanted = match self.wanted(&task).await {
            Err(Error::FailedPrecondition { reason: UNREADABLE, .. }) => None,
            wanted => match wanted? {
                None => return Ok(()),
                wanted => wanted,
            },
        };
        let store = &self.jobs.store;
        let reason = format!("given up after {deliveries} deliveries: {error}");
        let Some((record, work)) = wanted else {
            self.lay(&task, String::new(), deliveries, error).await?;
            return self.conclude(&task, None, reason).await;
        };
        let context = Self::context(&record, &work, tracing::Span::current());
        if let Step::Sense(modality, _) = task.step
            && store.get(&task.part(modality)).await?.is_some()
        {
            return self.join_if_complete(&work, &task, trace, &context).await;
        }
        self.lay(&task, record.tenant, deliveries, error).await?;
        match task.step {
            Step::Sense(modality, _) => {
                let branch = Branch::silent(modality, self.understanding.model(modality), State::Failed, reason);
                self.say(&task, &branch).await?;
                self.join_if_complete(&work, &task, trace, &context).await
            }
            Step::Join => {
                let report = self.without_answer(&task, &work, &reason, &context).await;
                self.conclude(&task, report, reason).await
            }
        }
    }

    /// Writes the letter, and says so.
    async fn lay(&self, task: &Task, tenant: String, deliveries: u64, error: &str) -> Result<()> {
        let error = &error[..error.floor_char_boundary(MAX_ERROR)];
        tracing::error!(job = task.id, item = task.item, queue = task.queue(), deliveries, error, "task given up");
        metrics::counter!("sensorium_jobs_dead_total", "modality" => task.queue()).increment(1);
        let letter = Letter { tenant, task: task.clone(), error: error.to_owned(), deliveries, buried: record::now() };
        let (id, letter) = (format!("dead.{}", task.message_id()), record::encode(&letter)?);
        until_kept!(self.jobs.store.bury(&id, letter.clone()).await.map_err(Error::from))?;
        let Task { id, item, .. } = task;
        let queue = task.queue();
        let details = json!({ "job": id, "item": item, "modality": queue, "deliveries": deliveries, "error": error });
        self.jobs.bus.publish("task.dead", details);
        Ok(())
    }

    /// Lays a message to the dead letters that nobody could read.
    pub(in super::super) async fn bury_unreadable(&self, message: Unreadable) -> Result<()> {
        let Unreadable { queue, error, deliveries, body, .. } = &message;
        tracing::error!(queue, deliveries, error, "a message that nobody could read is given up");
        metrics::counter!("sensorium_jobs_dead_total", "modality" => queue.clone()).increment(1);
        // of two that say the same, and of one that was replayed, each has its letter
        let (id, letter) =
            (format!("dead.{}.{:x}", blake3::hash(body).to_hex(), rand::random::<u64>()), message.encode()?);
        until_kept!(self.jobs.store.bury(&id, letter.clone()).await.map_err(Error::from))?;
        let details = json!({ "modality": queue, "deliveries": deliveries, "error": error });
        self.jobs.bus.publish("task.dead", details);
        Ok(())
    }

    /// What the senses of an item said, without the answer that could not be written.
    async fn without_answer(&self, task: &Task, work: &Work, reason: &str, context: &Context) -> Option<Report> {
        let mute = Work { no_answer: true, ..work.clone() };
        match self.report(&mute, task, context).await {
            Ok(mut report) => {
                (report.degraded, report.answer.reason) = (true, reason.to_owned());
                Some(report)
            }
            Err(error) => {
                tracing::warn!(job = task.id, item = task.item, %error, "what the senses said is lost");
                None
            }
        }
    }
}
