//! How a request is tried: on whom, again or not, and with a hedge.
//!
//! A retry is made only where it is safe: nothing was executed, or the model's requests may be executed twice. It goes
//! to another worker if there is one, after a pause that grows and jitters, inside the deadline and the route's budget
//! of retries.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::future::{Either, select};
use sensorium_cluster::membership::Policy;
use tokio::time::Instant;

use super::handle::{Call, Route};
use super::table::Wish;
use crate::admission::{self, Admission, Slot};
use crate::error::{Error, Result};
use crate::request::{Context, Reply, ReplyStream, Request};

/// Tries of one request at most, whatever the budget.
const MAX_TRIES: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The tries of one request.
pub struct Attempts {
    route: Arc<Route>,
    zone: Arc<str>,
    /// The version that answers.
    pub version: u64,
    /// How requests for it are routed.
    pub policy: Policy,
    tried: Vec<String>,
    tries: usize,
    pauses: ExponentialBackoff,
    budget: Option<f64>,
    size: f64,
    slot: Slot,
}

/// What a failure allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Nothing: it would fail again, or do twice what must be done once.
    Never,
    /// Another worker, if there is one.
    Elsewhere,
    /// Another worker, or the same after a pause.
    Anywhere,
}

fn again(error: &Error, policy: &Policy) -> Again {
    match error {
        Error::Exhausted { .. } => Again::Elsewhere,
        Error::Unavailable { reason, .. } => match *reason {
            "DRAINING" | "LOADING" | "UNLOADING" | "UPSTREAM_MISSING" => Again::Elsewhere,
            // never reached the worker, or was lost before it was executed
            "UNREACHABLE" | "RESTARTING" => Again::Anywhere,
            "WORKER_LOST" if policy.idempotent => Again::Anywhere,
            _ => Again::Never,
        },
        // held back by an older view of the cluster: somebody else may have it
        Error::NotFound { .. } => Again::Elsewhere,
        _ => Again::Never,
    }
}

impl Attempts {
    /// The tries of `request`.
    ///
    /// # Errors
    /// `NotFound` if nobody holds the version, `Unavailable` if nobody holds the model any more, `Exhausted` if it has
    /// enough to do.
    pub fn new(
        route: Arc<Route>,
        zone: Arc<str>,
        admission: &Admission,
        request: &Request,
        context: &Context,
    ) -> Result<Self> {
        let (version, policy) = route.resolve(request.version, |held| (held.version, held.policy.clone()))?;
        let slot = admission.slot(&route.slots, route.table().capacity(), context)?;
        let pauses = ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
        Ok(Self {
            route,
            zone,
            version,
            policy,
            tried: Vec::new(),
            tries: 0,
            pauses: pauses.with_jitter().without_max_times().build(),
            budget: context.budget.map(|budget| budget.as_secs_f64()),
            size: request.size(),
            slot,
        })
    }

    /// A call to a worker that has not been tried.
    fn pick(&self) -> Result<Call> {
        self.pick_beside(&self.tried, self.budget)
    }

    fn pick_beside(&self, tried: &[String], budget: Option<f64>) -> Result<Call> {
        let wish = Wish { version: self.version, zone: &self.zone, tried, budget, size: self.size };
        let candidate = self.route.table().pick(&self.route.model, &wish, &mut rand::rng())?;
        Ok(Call::start(&self.route, candidate, self.size))
    }

    /// Tries until there is an answer, or a failure that is final. What cannot be expected in time is not begun.
    pub async fn infer(&mut self, request: &Request, context: &Context) -> Result<Reply> {
        self.must_be_meetable(request, context)?;
        let answer = self.try_infer(request, context).await;
        self.slot.ended(&answer);
        answer
    }

    fn must_be_meetable(&self, request: &Request, context: &Context) -> Result<()> {
        let Some(deadline) = context.deadline else { return Ok(()) };
        if request.parameters.0.contains_key("max_tokens") {
            return Ok(()); // how long it takes is up to the request, and others tell nothing of it
        }
        let Some(expected) = self.route.table().certain_seconds(self.version, self.size) else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if expected <= left.as_secs_f64() {
            return Ok(());
        }
        Err(admission::unmeetable(&self.route.model, expected, left))
    }

    async fn try_infer(&mut self, request: &Request, context: &Context) -> Result<Reply> {
        self.route.deposit();
        let mut call = self.pick()?;
        loop {
            let answer = self.hedged(&call, request, context).await;
            match answer {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    call = self.next(&call, error).await?;
                }
            }
        }
    }

    /// Tries until a stream is open. A part of a stream is worth something: it is begun whatever is expected.
    pub async fn open(&mut self, request: &Request, context: &Context) -> Result<(Call, ReplyStream)> {
        self.route.deposit();
        let opened = match self.pick() {
            Ok(call) => self.open_with(call, request, context).await,
            Err(error) => Err(error),
        };
        if opened.is_err() {
            self.slot.ended(&opened);
        }
        opened
    }

    /// Notes that a part of a stream has come.
    pub fn progressed(&mut self) {
        self.slot.answered();
    }

    /// The same, with a call that has been picked.
    pub async fn open_with(
        &mut self,
        mut call: Call,
        request: &Request,
        context: &Context,
    ) -> Result<(Call, ReplyStream)> {
        loop {
            match call.candidate.client.stream(request.clone(), context.clone()).await {
                Ok(stream) => return Ok((call, stream)),
                Err(error) => {
                    call.failed(&error);
                    call = self.next(&call, error).await?;
                }
            }
        }
    }

    /// The call after one that failed, or the failure if that is final.
    pub async fn next(&mut self, failed: &Call, error: Error) -> Result<Call> {
        self.tries += 1;
        let again = again(&error, &self.policy);
        if again == Again::Never || self.tries >= MAX_TRIES {
            return Err(error);
        }
        self.tried.push(failed.candidate.client.name().to_owned());
        let elsewhere = self.pick();
        if again == Again::Elsewhere && elsewhere.is_err() {
            // the pool's word weighs more than one worker's
            return Err(match elsewhere {
                Err(pool @ Error::Exhausted { .. }) => pool,
                _ => error,
            });
        }
        if !self.route.withdraw() {
            metrics::counter!("sensorium_retry_budget_exhausted_total", "model" => self.route.model.clone())
                .increment(1);
            return Err(error);
        }
        metrics::counter!("sensorium_retries_total", "model" => self.route.model.clone(), "reason" => error.code())
            .increment(1);
        let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        match elsewhere {
            // the first of others is asked at once
            Ok(call) if self.tries == 1 => Ok(call),
            Ok(call) => {
                tokio::time::sleep(pause).await;
                Ok(call)
            }
            Err(_) => {
                tokio::time::sleep(pause).await;
                self.tried.clear();
                self.pick().map_err(|_| error)
            }
        }
    }

    /// One call, and a second one beside it if the first takes longer than most do.
    async fn hedged(&self, call: &Call, request: &Request, context: &Context) -> Result<Reply> {
        let first = note(call, call.candidate.client.infer(request, context));
        let Some(after) = self.hedge_after() else { return first.await };
        let second = async {
            tokio::time::sleep(after).await;
            let hedge = self.pick_beside(&[call.candidate.client.name().to_owned()], None).ok();
            let Some(hedge) = hedge.filter(|_| self.route.withdraw()) else {
                return std::future::pending().await;
            };
            metrics::counter!("sensorium_hedges_total", "model" => self.route.model.clone()).increment(1);
            note(&hedge, hedge.candidate.client.infer(request, context)).await
        };
        // the loser is dropped, and with it cancelled
        match select(std::pin::pin!(first), std::pin::pin!(second)).await {
            Either::Left((answer @ Ok(_), _)) | Either::Right((answer @ Ok(_), _)) => answer,
            Either::Left((error, _)) => error,
            Either::Right((Err(_), first)) => first.await,
        }
    }

    fn hedge_after(&self) -> Option<Duration> {
        let wanted = self.policy.hedge_percentile > 0.0 && self.policy.idempotent;
        if wanted { self.route.latencies.percentile(self.policy.hedge_percentile) } else { None }
    }
}

async fn note(call: &Call, answer: impl Future<Output = Result<Reply>>) -> Result<Reply> {
    let answer = answer.await;
    match &answer {
        Ok(_) => call.answered(),
        Err(error) => call.failed(error),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(reason: &'static str) -> Error {
        Error::Unavailable { reason, message: String::new(), retry_after: Duration::ZERO }
    }

    #[test]
    fn only_what_is_safe_is_tried_again() {
        let safe = Policy::default();
        let once = Policy { idempotent: false, ..Policy::default() };
        assert_eq!(again(&unavailable("WORKER_LOST"), &safe), Again::Anywhere);
        assert_eq!(again(&unavailable("WORKER_LOST"), &once), Again::Never);
        assert_eq!(again(&unavailable("UNREACHABLE"), &once), Again::Anywhere);
        assert_eq!(again(&unavailable("DRAINING"), &once), Again::Elsewhere);
        let full = Error::Exhausted { reason: "QUEUE_FULL", message: String::new(), retry_after: Duration::ZERO };
        assert_eq!(again(&full, &once), Again::Elsewhere);
        assert_eq!(again(&Error::Internal("poison".into()), &safe), Again::Never);
        assert_eq!(again(&Error::invalid("x", "y"), &safe), Again::Never);
        assert_eq!(again(&Error::DeadlineExceeded { stage: String::new() }, &safe), Again::Never);
    }
}
