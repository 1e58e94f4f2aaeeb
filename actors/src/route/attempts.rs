//! How a request is tried: on whom, again or not, and with a hedge.
//!
//! A retry is made only where it is safe: nothing was executed, or the model's requests may be executed twice. It goes
//! to another worker if there is one, after a pause that grows and jitters, inside the deadline and the route's budget
//! of retries.

mod hedging;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
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
    namespace: Option<Arc<str>>,
    /// No version was asked for, and nothing has come from one.
    is_free: bool,
    /// Its worker has said nothing for far longer than its model ever takes.
    is_silent: bool,
    slot: Slot,
}

impl Drop for Attempts {
    fn drop(&mut self) {
        // a deadline that passes over a silent worker is no overload
        if self.is_silent {
            self.slot.disregard();
        }
    }
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
        let (version, policy) = route.choose(request.version, |held| (held.version, held.policy.clone()))?;
        let slot = admission.slot(&route.slots, route.table().capacity(), context);
        let slot = slot.map_err(|full| if route.table().is_silent(version) { unheard(&route.model) } else { full })?;
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
            namespace: request.namespace.clone(),
            is_free: request.version.is_none() && request.namespace.is_none(),
            is_silent: false,
            slot,
        })
    }

    /// A call to a worker that has not been tried. A request that asks for no version is answered by another one where
    /// nobody is left for the one that was chosen, as at the end of a roll.
    fn pick(&mut self) -> Result<Call> {
        let picked = self.pick_beside(&self.tried, self.budget);
        let picked = match picked {
            Err(Error::Unavailable { .. }) if self.is_free => self.pick_another_version().map_or(picked, Ok),
            picked => picked,
        };
        self.is_silent &= picked.is_err();
        picked
    }

    fn pick_another_version(&mut self) -> Option<Call> {
        let (table, chosen) = (self.route.table(), self.version);
        for version in table.versions().others(chosen) {
            self.version = version;
            if let Ok(call) = self.pick_beside(&self.tried, self.budget) {
                if let Some(held) = table.held(version) {
                    self.policy = held.policy.clone();
                }
                return Some(call);
            }
        }
        self.version = chosen;
        None
    }

    fn pick_beside(&self, tried: &[String], budget: Option<f64>) -> Result<Call> {
        let namespace = self.namespace.as_deref();
        let wish = Wish { version: self.version, zone: &self.zone, tried, budget, size: self.size, namespace };
        let candidate = self.route.table().pick(&self.route.model, &wish, &mut rand::rng())?;
        Ok(Call::start(&self.route, candidate, self.size))
    }

    /// Tries until there is an answer, or a failure that is final. What cannot be expected in time is not begun.
    pub async fn infer(&mut self, request: &Request, context: &Context) -> Result<Reply> {
        self.must_be_meetable(request, context)?;
        let answer = self.try_infer(request, context).await;
        if self.is_silent && matches!(answer, Err(Error::DeadlineExceeded { .. })) {
            self.slot.disregard();
        }
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
            let answer = self.infer_hedged(&call, request, context).await;
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
        self.is_free = false;
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
            match self.open_hedged(call, request, context).await {
                Ok(opened) => return Ok(opened),
                Err((failed, error)) => call = self.next(&failed, error).await?,
            }
        }
    }

    /// The call after one that failed, or the failure if that is final.
    pub async fn next(&mut self, failed: &Call, error: Error) -> Result<Call> {
        self.tries += 1;
        let again = again(&error, &self.policy);
        let error = self.as_seen_from_here(error, failed);
        if again == Again::Never || self.tries >= MAX_TRIES {
            return Err(error);
        }
        self.tried.push(failed.candidate.client.name().to_owned());
        let elsewhere = self.pick();
        if let Err(other_files @ Error::NotFound { .. }) = elsewhere {
            return Err(other_files);
        }
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
                Box::pin(tokio::time::sleep(pause)).await;
                Ok(call)
            }
            Err(_) => {
                Box::pin(tokio::time::sleep(pause)).await;
                self.tried.clear();
                self.pick().map_err(|_| error)
            }
        }
    }

    /// A worker that the register says holds the model may say that it does not: it has started anew, or unloads it just
    /// now. That does not make the model unknown.
    fn as_seen_from_here(&self, error: Error, by: &Call) -> Error {
        match error {
            Error::NotFound { .. } if self.namespace.is_none() => Error::Unavailable {
                reason: "NO_WORKER",
                message: format!("{} does not hold {} at the moment", by.candidate.client.name(), self.route.model),
                retry_after: Duration::from_secs(1),
            },
            error => error,
        }
    }
}

/// All who hold the model are silent.
fn unheard(model: &str) -> Error {
    Error::Unavailable {
        reason: "NO_WORKER",
        message: format!("no worker that holds {model} can be reached"),
        retry_after: Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use sensorium_cluster::membership::{Held, Registration};

    use super::*;
    use crate::admission::Options;
    use crate::route::candidate::Candidate;
    use crate::route::client::tests::Slow;
    use crate::route::table::Table;

    pub(super) fn unavailable(reason: &'static str) -> Error {
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

    #[tokio::test(start_paused = true)]
    async fn where_nobody_is_left_for_one_version_another_one_answers() {
        let draining = || unavailable("DRAINING");
        let (first, second) = (Slow::new("first", 1, Some(draining)), Slow::new("second", 1, None));
        let held = |version| Held { name: "m".into(), version, state: "READY".into(), ..Held::default() };
        let candidate = |client: &Arc<Slow>, version| {
            let registration = Registration { models: vec![held(version)], ..Registration::default() };
            Arc::new(Candidate::new(&registration, "m", client.clone(), None))
        };
        let admission = Admission::new(Options::bound(8));
        for asked in [None, Some(2)] {
            for _ in 0..20 {
                let route = Arc::new(Route::new("m"));
                route.publish(Table::new(vec![candidate(&first, 2), candidate(&second, 1)]));
                let request = Request { version: asked, ..Request::of_bytes("m", "text", "") };
                let context = Context::default();
                let mut attempts = Attempts::new(route, "".into(), &admission, &request, &context).unwrap();
                let answer = attempts.infer(&request, &context).await;
                assert_eq!(answer.is_ok(), asked.is_none(), "who asks for a version gets that one or none");
            }
        }
    }
}
