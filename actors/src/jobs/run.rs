//! One task: a sense speaks, or an item's senses are joined.

mod bury;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Jobs;
use super::keep::{readable, until_kept};
use super::pauses::Pauses;
use super::record::{self, Content, Outcome, Record, Step, Task, Work};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::Context;
use crate::understand::budget::Chosen;
use crate::understand::report::{Branch, Report, State};
use crate::understand::{Event, Understanding};

/// Behind all requests.
const PRIORITY: u32 = u32::MAX;
/// A task that finds no room is not tried again sooner…
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// …and one that finds nobody to do it is tried this often.
const WAIT: Duration = Duration::from_millis(500);

/// What a task needs to be done.
pub(super) struct Bench {
    pub(super) jobs: Jobs,
    pub(super) understanding: Understanding,
    pub(super) absences: Absences,
    pub(super) pauses: Pauses,
}

/// Since when there is nobody for a kind of task, as this gateway has seen. All tasks of the kind wait for the same time:
/// one after the other they would take for ever where a model is not held at all.
#[derive(Default)]
pub(super) struct Absences(Mutex<BTreeMap<&'static str, Instant>>);

impl Absences {
    /// How long nobody has been there.
    fn lasts(&self, kind: &'static str) -> Duration {
        self.0.lock().entry(kind).or_insert_with(Instant::now).elapsed()
    }

    /// Somebody was.
    fn end(&self, kind: &'static str) {
        self.0.lock().remove(kind);
    }
}

/// Whether it did what it could, though there may have been nothing to say.
pub(super) fn has_spoken(branch: &Branch) -> bool {
    !matches!(branch.state, State::Failed | State::Late)
}

/// Whether everything that was asked of an item was done.
pub(super) fn is_whole(outcome: &Outcome) -> bool {
    outcome.error.is_empty() && outcome.report.as_ref().is_some_and(|report| report.branches.iter().all(has_spoken))
}

/// Whether the tenant has to wait, while others need not: its task does not wait in a place that others could have.
pub(super) fn is_of_the_tenant(error: &Error) -> bool {
    matches!(error, Error::Exhausted { reason: "QUOTA" | "FAIR_SHARE", .. })
}

/// Whether a failure would come again wherever and whenever the task is tried.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidArgument { .. }
            | Error::FailedPrecondition { .. }
            | Error::PermissionDenied(_)
            | Error::Unauthenticated(_)
            | Error::Unimplemented(_)
    )
}

/// Whether nobody holds the model at the moment, or nobody who can be reached: the task has not been tried.
fn is_absent(error: &Error) -> bool {
    match error {
        Error::NotFound { .. } => true,
        Error::Unavailable { reason, .. } => matches!(*reason, "NO_WORKER" | "LOADING" | "UNREACHABLE"),
        _ => false,
    }
}

impl Bench {
    /// Does a task: what it was for is kept when this returns, or wanted no more. Overload is waited out, and so is, for a
    /// while, that nobody holds its model: a task has time. What follows from it is a part of the same `trace`.
    ///
    /// # Errors
    /// It may succeed another time.
    pub(super) async fn run(&self, task: &Task, trace: &str, span: tracing::Span) -> Result<()> {
        let Some((record, work)) = self.wanted(task).await? else { return Ok(()) };
        let context = Self::context(&record, &work, span);
        match &task.step {
            Step::Sense(modality, content) => {
                if self.jobs.kept(&task.part(*modality)).await?.is_none() {
                    let branch = self.sense(&work, *modality, content, &context).await?;
                    self.say(task, &branch).await?;
                }
                self.join_if_complete(&work, task, trace, &context).await
            }
            Step::Join => self.join(&work, task, &context).await,
        }
    }

    /// Keeps what a sense said of an item.
    async fn say(&self, task: &Task, branch: &Branch) -> Result<()> {
        let value = readable(branch, &format!("what {} said", branch.model.name))?;
        self.jobs.keep(&task.part(branch.modality), value, task.said(branch.modality)).await.map(drop)
    }

    /// The job of a task, and what is to be done; nothing if that has expired, was cancelled or outrun, or is done.
    async fn wanted(&self, task: &Task) -> Result<Option<(Record, Work)>> {
        let store = &self.jobs.store;
        let (job, work, outcome) = (&task.job, task.work(), task.outcome());
        let (job, work, outcome) = tokio::try_join!(store.get(job), store.get(&work), store.get(&outcome))?;
        let (Some(job), Some(work), None) = (job, work, outcome) else { return Ok(None) };
        let record: Record = record::from_json(&job.value)?;
        let outrun = !record.run.is_empty() && record.run != task.run;
        if record.cancelled || outrun || record.broken.contains(&task.run) {
            return Ok(None);
        }
        // it may never be accepted: it is worked on for as long as somebody uploads it
        if record.total.is_none() && self.jobs.has_broken_off(&record, &task.run).await? {
            return Ok(None);
        }
        Ok(Some((record, record::from_json(&work.value)?)))
    }

    /// On whose behalf a task is done; every attempt has its own deadline.
    fn context(record: &Record, work: &Work, span: tracing::Span) -> Context {
        Context {
            priority: PRIORITY,
            span: Some(span),
            tenant: record.tenant.as_str().into(),
            models: work.models.clone().map(Into::into),
            patient: true,
            ..Context::default()
        }
    }

    async fn sense(&self, work: &Work, modality: Modality, content: &Content, context: &Context) -> Result<Branch> {
        // a task has time, and waits for the model that was asked for
        let model = self.understanding.model(modality).to_owned();
        let chosen = Chosen { model: model.clone(), ..Chosen::default() };
        let content = match content {
            Content::Inline(content) => content.clone(),
            Content::Blob(name) => match self.jobs.store.blob(name).await? {
                Some(content) => content,
                None => return Ok(Branch::silent(modality, &model, State::Failed, "what it was given has expired")),
            },
        };
        let started = Instant::now();
        let sensed = match work.input(modality, content) {
            Ok(input) => {
                let (chosen, input) = (&chosen, &input);
                let attempt =
                    |context| async move { self.understanding.sense(modality, chosen, input, &context).await };
                self.patiently(modality.as_str(), context, attempt).await
            }
            Err(error) => Err(error),
        };
        match sensed {
            Ok(mut branch) => {
                branch.seconds = started.elapsed().as_secs_f64();
                Ok(branch)
            }
            Err(error) if is_final(&error) => Ok(Branch::silent(modality, &model, State::Failed, error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Tries again for as long as there is no room, and for some time if there is nobody for this kind of task.
    async fn patiently<T, F>(&self, kind: &'static str, context: &Context, attempt: impl Fn(Context) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let wait = Duration::from_secs(self.jobs.options.wait_seconds);
        loop {
            let deadline = Some(Instant::now() + Duration::from_secs(self.jobs.options.task_seconds));
            let context = Context { deadline, ..context.clone() };
            let error = {
                match self.understanding.enter(&context) {
                    Err(error) => error,
                    Ok(permit) => match attempt(context).await {
                        Err(error) => {
                            // the tenant's rate is for what it gets something for
                            if !is_final(&error) {
                                permit.came_to_nothing();
                            }
                            error
                        }
                        done => {
                            self.absences.end(kind);
                            return done;
                        }
                    },
                }
            };
            match error {
                error if is_of_the_tenant(&error) => return Err(error),
                Error::Exhausted { retry_after, .. } => tokio::time::sleep(retry_after.max(SHORTEST_WAIT)).await,
                error if !is_absent(&error) => return Err(error),
                error if self.absences.lasts(kind) >= wait => return Err(error),
                _ => tokio::time::sleep(WAIT).await,
            }
        }
    }

    /// Whoever has brought the last part sends for the join; two at once send the same message. If its queue is full, it
    /// is done at once: it would wait for the very place that this task holds.
    async fn join_if_complete(&self, work: &Work, task: &Task, trace: &str, context: &Context) -> Result<()> {
        let parts = self.jobs.store.keys(&task.parts()).await?;
        if parts.len() < task.modalities.len() {
            return Ok(());
        }
        let join = Task { step: Step::Join, ..task.clone() };
        match self.jobs.push(&join, trace).await {
            Err(Error::Exhausted { .. }) => self.join(work, &join, context).await,
            Err(Error::Unavailable { reason: "JOBS_UNAVAILABLE", .. }) => {
                until_kept!(self.jobs.push(&join, trace).await)
            }
            pushed => pushed,
        }
    }

    async fn join(&self, work: &Work, task: &Task, context: &Context) -> Result<()> {
        let report = self.report(work, task, context).await?;
        self.conclude(task, Some(report), String::new()).await
    }

    /// What the senses said of an item. What cannot be read any more is a sense that has failed: the others have spoken.
    async fn parts(&self, task: &Task) -> Result<Vec<Branch>> {
        let parts = task.modalities.iter().map(|&modality| async move {
            let kept = self.jobs.kept(&task.part(modality)).await?;
            let kept = kept.ok_or_else(|| Error::lost("a part of the item"))?;
            Ok(record::from_json::<Branch>(&kept).unwrap_or_else(|error| {
                Branch::silent(modality, self.understanding.model(modality), State::Failed, error.to_string())
            }))
        });
        try_join_all(parts).await
    }

    /// What the parts of an item say together.
    async fn report(&self, work: &Work, task: &Task, context: &Context) -> Result<Report> {
        let branches = self.parts(task).await?;
        let input = work.question_of(&branches);
        let timings = branches.iter().map(|branch| crate::understand::report::Timing {
            stage: branch.modality.to_string(),
            seconds: branch.seconds,
        });
        let timings: Vec<_> = timings.collect();
        let (input, branches, timings) = (&input, &branches, &timings);
        let conclude = |context: Context| async move {
            let before = (Instant::now(), timings.clone());
            let mut events = std::pin::pin!(self.understanding.conclude(input, branches.clone(), &context, before));
            let mut told = Err(Error::Internal("understanding ended without a report".to_owned()));
            while let Some(event) = events.next().await {
                if let Event::Done(report) = event {
                    told = Ok(*report);
                }
            }
            match told {
                // nobody to write it now is no reason to do without
                Ok(Report { answer, .. }) if answer.error.as_ref().is_some_and(|error| !is_final(error)) => {
                    Err(answer.error.unwrap_or(Error::Cancelled))
                }
                told => told,
            }
        };
        if input.no_answer {
            // nobody is asked anything, so there is nothing to wait for
            return conclude(context.clone()).await;
        }
        self.patiently("join", context, conclude).await
    }

    /// Keeps what came of an item, once.
    async fn conclude(&self, task: &Task, report: Option<Report>, error: String) -> Result<()> {
        let silent = report.as_ref().map(|report| {
            let failed: Vec<_> = report.branches.iter().filter(|branch| !has_spoken(branch)).collect();
            let all = failed.len() == report.branches.len();
            all.then(|| {
                failed.iter().map(|branch| format!("{}: {}", branch.modality, branch.reason)).collect::<Vec<_>>()
            })
        });
        let error = silent.flatten().map_or(error, |reasons| reasons.join("; "));
        let mut outcome = Outcome { index: task.item, name: task.name.clone(), report, error };
        let value = match readable(&outcome, "what came of it") {
            Ok(value) => value,
            Err(error) => {
                (outcome.report, outcome.error) = (None, error.to_string());
                record::to_json(&outcome)?
            }
        };
        if !outcome.error.is_empty() {
            until_kept!(self.jobs.store.create(&task.failure(), Bytes::new()).await.map_err(Error::from))?;
        }
        let blob = format!("{}.outcome.{}", task.outcome(), task.attempt);
        let first = self.jobs.keep(&task.outcome(), value, blob).await?;
        // of two that did the same, the first one's word counts
        let outcome = if first { Some(outcome) } else { self.jobs.outcome(task.outcome()).await? };
        if !first && outcome.as_ref().is_some_and(|outcome| outcome.error.is_empty()) {
            self.jobs.store.remove(&task.failure()).await?;
        }
        match outcome {
            // an item of which a part has failed may be replayed, and needs what it was given
            Some(outcome) if is_whole(&outcome) => self.forget(task).await,
            _ => {}
        }
        self.jobs.store.tell(&task.id, "");
        Ok(())
    }

    async fn forget(&self, task: &Task) {
        for &modality in &task.modalities {
            self.jobs.forget_kept(&task.part(modality)).await;
            // expires anyhow
            let _ = self.jobs.store.remove_blob(&record::content(task, modality)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_fail_again_is_final() {
        assert!(is_final(&Error::invalid("image", "no image")));
        assert!(is_final(&Error::FailedPrecondition { reason: "QUARANTINED", message: String::new() }));
        assert!(!is_final(&Error::lost("a replica")));
        assert!(!is_final(&Error::DeadlineExceeded { stage: String::new() }));
        // a model that nobody holds at the moment
        assert!(!is_final(&Error::NotFound { what: String::new(), known: String::new() }));
    }

    #[tokio::test(start_paused = true)]
    async fn an_absence_lasts_until_somebody_was_there() {
        let absences = Absences::default();
        assert_eq!(absences.lasts("image"), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!((absences.lasts("image").as_secs(), absences.lasts("audio").as_secs()), (7, 0));
        absences.end("image");
        assert_eq!(absences.lasts("image"), Duration::ZERO);
    }

    #[test]
    fn only_what_was_not_tried_is_waited_for() {
        let unavailable = |reason| Error::Unavailable { reason, message: String::new(), retry_after: Duration::ZERO };
        assert!(is_absent(&unavailable("NO_WORKER")));
        assert!(is_absent(&Error::NotFound { what: String::new(), known: String::new() }));
        // it may have been the task that brought the worker, or the replica, down
        assert!(!is_absent(&unavailable("WORKER_LOST")));
        assert!(!is_absent(&Error::lost("a replica")));
    }
}
