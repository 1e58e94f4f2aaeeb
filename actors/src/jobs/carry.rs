//! Carries one delivery to its end, whatever that is: done, handed back, to be tried again, or buried.

use std::sync::Arc;
use std::time::Duration;

use sensorium_cluster::jobs::Delivery;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tracing::Instrument;

use super::QUEUES;
use super::grave::Unreadable;
use super::keep::{self, is_of_the_store};
use super::queue::{Continue, Work};
use super::record::{self, Task, UNREADABLE};
use super::run::{Bench, is_of_the_tenant};
use crate::error::{Error, Result};

/// A task is tried again after this at the latest.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Whoever drains has no time now, and may be gone in a moment.
const PAUSE: Duration = Duration::from_millis(500);

/// What becomes of a delivery.
enum End {
    /// Its result is kept, or wanted no more.
    Done,
    /// It was not tried, and costs it nothing.
    Untried,
    /// It is tried again, and this try counts.
    Again,
}

fn count(outcome: &'static str) {
    metrics::counter!("sensorium_job_tasks_total", "outcome" => outcome).increment(1);
}

/// Carries it; its place is free when this returns.
pub(super) async fn carry(
    queue: &'static str,
    bench: Arc<Bench>,
    delivery: Delivery,
    _permit: OwnedSemaphorePermit,
    mut work: watch::Receiver<Work>,
    go_on: Continue,
) {
    let flow = delivery.message.flow.clone();
    let end = {
        let beat = async {
            let mut beats = tokio::time::interval(bench.jobs.store().patience() / 3);
            beats.tick().await;
            loop {
                beats.tick().await;
                // one that is not heard is followed by others
                let _ = delivery.in_progress().await;
            }
        };
        let handed_back = async {
            // a sender that is gone is a gateway that ends
            let _ = work.wait_for(|work| *work == Work::HandBack).await;
        };
        tokio::select! {
            end = attempt(queue, &bench, &delivery, &go_on) => end,
            () = handed_back => {
                count("handed_back");
                End::Untried
            }
            () = beat => End::Again,
        }
    };
    bench.pauses.ended(queue, &flow);
    let doublings = u32::try_from(delivery.deliveries.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let backoff = Duration::from_millis(bench.jobs.options.backoff_ms.saturating_mul(1 << doublings));
    let settled = match end {
        End::Done => delivery.done().await,
        End::Untried => delivery.untried().await,
        End::Again => delivery.back(backoff.min(LONGEST_BACKOFF)).await,
    };
    if let Err(error) = settled {
        // it is delivered again, finds its result kept, and is done
        tracing::debug!(%error, "a task could not be settled");
    }
}

/// Does the task of a delivery, and finds out what that comes to.
async fn attempt(queue: &'static str, bench: &Bench, delivery: &Delivery, go_on: &Continue) -> End {
    let (message, deliveries) = (&delivery.message, delivery.deliveries);
    let max = bench.jobs.options.max_deliveries;
    let task = match Task::decode(&message.body) {
        Ok(task) => task,
        // of a newer build, perhaps: those who understand it have the other deliveries
        Err(error) if deliveries < max => {
            tracing::debug!(queue, %error, "a message that cannot be read, left to others");
            count("unreadable");
            return End::Again;
        }
        Err(error) => {
            count("dead");
            let unreadable = Unreadable {
                queue: queue.to_owned(),
                flow: message.flow.clone(),
                trace: message.trace.clone(),
                body: message.body.clone(),
                error: error.to_string(),
                deliveries,
                buried: record::now(),
            };
            return buried(bench.bury_unreadable(unreadable).await);
        }
    };
    if deliveries > max {
        // whoever had it before never came back with a word
        count("dead");
        return buried(bench.bury(task, &message.trace, deliveries - 1, "whoever worked on it was lost").await);
    }
    let span = tracing::info_span!("task", job = task.id, item = task.item, queue);
    go_on(&span, &message.trace);
    let mut cancelled = bench.jobs.store().listen(super::CANCELLED);
    let wanted_no_more = async {
        loop {
            match cancelled.recv().await {
                Ok(id) if id == task.id => return,
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(_) => std::future::pending().await,
            }
        }
    };
    let started = Instant::now();
    let done = tokio::select! {
        done = persist(bench, &task, &message.trace, &span) => done,
        () = wanted_no_more => Ok(()),
    };
    metrics::histogram!("sensorium_job_task_duration_seconds", "modality" => queue).record(started.elapsed());
    let flow = &message.flow;
    match done {
        Ok(()) => {
            count("done");
            bench.pauses.succeeded(queue, flow);
            End::Done
        }
        // it goes on elsewhere
        Err(Error::Unavailable { reason: "DRAINING", .. }) => {
            count("handed_back");
            tokio::time::sleep(PAUSE).await;
            End::Untried
        }
        Err(Error::Exhausted { retry_after, .. }) if matches!(&done, Err(error) if is_of_the_tenant(error)) => {
            count("deferred");
            bench.pauses.hold(&QUEUES, flow, retry_after);
            End::Untried
        }
        Err(error) if deliveries >= max => {
            count("dead");
            bench.pauses.failed(queue, flow);
            buried(bench.bury(task, &message.trace, deliveries, &error.to_string()).await)
        }
        Err(Error::FailedPrecondition { reason: UNREADABLE, message }) => {
            count("unreadable");
            tracing::debug!(job = task.id, item = task.item, queue, error = message, "left to those who can read it");
            End::Again
        }
        Err(error) => {
            count("again");
            bench.pauses.failed(queue, flow);
            tracing::warn!(job = task.id, item = task.item, queue, %error, "task failed, to be tried again");
            End::Again
        }
    }
}

/// Does a task; a store that takes nothing at the moment is no failure of it, and is waited for.
async fn persist(bench: &Bench, task: &Task, trace: &str, span: &tracing::Span) -> Result<()> {
    loop {
        match bench.run(task, trace, span.clone()).instrument(span.clone()).await {
            Err(error) if is_of_the_store(&error) => keep::pause(&error).await,
            done => return done,
        }
    }
}

fn buried(buried: Result<()>) -> End {
    match buried {
        Ok(()) => End::Done,
        Err(error) => {
            tracing::debug!(%error, "a task could not be buried, to be tried again");
            End::Again
        }
    }
}
