//! A second worker beside the first, where the first is late.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::time::Instant;

use super::super::candidate::Candidate;
use super::super::handle::Call;
use super::{Again, Attempts, again};
use crate::error::{Error, Result};
use crate::request::{Context, Reply, ReplyStream, Request};

/// A call that takes so many times what is far longer is late, even though its worker answers others.
const HOPELESS: u32 = 4;

/// How long a worker may take to say that it is there; a deadline that is near leaves it a part of what is left.
const ANSWERS: Duration = Duration::from_millis(100);
const PART_OF_THE_DEADLINE: u32 = 4;

/// How a call is late.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    /// Later than most, as its model wants to know.
    Usual,
    /// Far later than any.
    Far,
}

/// A stream and its call, or why there is none.
type Opened = std::result::Result<(Call, ReplyStream), (Call, Error)>;

impl Attempts {
    /// One call, and a second one beside it if the first is late.
    pub(super) async fn infer_hedged(&mut self, call: &Call, request: &Request, context: &Context) -> Result<Reply> {
        let mut first = std::pin::pin!(note(call, call.candidate.client.infer(request, context)));
        if !self.may_be_late(call) {
            return first.await;
        }
        let hedge = match select(first.as_mut(), std::pin::pin!(self.until_late(call, request, context))).await {
            Either::Left((answer, _)) => return answer,
            Either::Right((late, _)) => late,
        };
        let Some(hedge) = self.hedge(call, hedge) else { return first.await };
        let second = std::pin::pin!(note(&hedge, hedge.candidate.client.infer(request, context)));
        // the loser is dropped, and with it cancelled; one that fails leaves it to the other
        let last = match select(first, second).await {
            Either::Left((Err(error), second)) if again(&error, &self.policy) != Again::Never => second.await,
            Either::Right((Err(_), first)) => return first.await,
            Either::Left((answer, _)) => return answer,
            Either::Right((answer, _)) => {
                self.is_silent = false;
                return answer;
            }
        };
        if last.is_err() {
            self.tried.push(hedge.candidate.client.name().to_owned());
        }
        last
    }

    /// The same of a stream, until it is open.
    pub(super) async fn open_hedged(&mut self, call: Call, request: &Request, context: &Context) -> Opened {
        let request = Request { version: request.version.or(Some(self.version)), ..request.clone() };
        let mut first = Box::pin(open(call.candidate.clone(), request.clone(), context.clone()));
        if !self.may_be_late(&call) {
            let opened = first.await;
            return concluded(call, opened);
        }
        let opened = match select(first.as_mut(), std::pin::pin!(self.until_late(&call, &request, context))).await {
            Either::Left((opened, _)) => Ok(opened),
            Either::Right((late, _)) => Err(late),
        };
        let late = match opened {
            Ok(opened) => return concluded(call, opened),
            Err(late) => late,
        };
        let Some(hedge) = self.hedge(&call, late) else {
            let opened = first.await;
            return concluded(call, opened);
        };
        let second = Box::pin(open(hedge.candidate.clone(), request, context.clone()));
        match select(first, second).await {
            Either::Left((Err(error), second)) if again(&error, &self.policy) != Again::Never => {
                call.failed(&error);
                self.tried.push(call.candidate.client.name().to_owned());
                let opened = second.await;
                concluded(hedge, opened)
            }
            Either::Left((opened, _)) => concluded(call, opened),
            Either::Right((Err(error), first)) => {
                hedge.failed(&error);
                self.tried.push(hedge.candidate.client.name().to_owned());
                let opened = first.await;
                concluded(call, opened)
            }
            Either::Right((opened, _)) => {
                self.is_silent = false;
                concluded(hedge, opened)
            }
        }
    }

    /// Whether a second worker may ever be asked: a watch on each call costs as much as a small call itself.
    fn may_be_late(&self, call: &Call) -> bool {
        call.candidate.client.may_fall_silent() || self.policy.hedge_percentile > 0.0
    }

    /// Returns when a second worker is to be asked.
    async fn until_late(&self, call: &Call, request: &Request, context: &Context) -> Late {
        let usual = async {
            match self.hedge_after() {
                Some(after) => Box::pin(tokio::time::sleep(after)).await,
                None => std::future::pending().await,
            }
        };
        let silent = async {
            // with max_tokens, how long it takes is up to the request, and others tell nothing of it
            if !call.candidate.client.may_fall_silent() || request.parameters.0.contains_key("max_tokens") {
                return std::future::pending().await;
            }
            let left = context.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let Some(far) = self.route.latencies.far_longer(self.size, left) else {
                return std::future::pending().await;
            };
            loop {
                // a worker that answers others is there: the request may be one that takes long
                let (silent, elapsed) = (call.silent_for(), call.elapsed());
                if silent >= far || elapsed >= far * HOPELESS {
                    return self.until_gone(call, context).await;
                }
                Box::pin(tokio::time::sleep((far - silent).min(far * HOPELESS - elapsed))).await;
            }
        };
        match select(std::pin::pin!(usual), std::pin::pin!(silent)).await {
            Either::Left(_) => Late::Usual,
            Either::Right(_) => Late::Far,
        }
    }

    /// Returns when the worker of a late call has not said that it is there. One that is there works on the request, or
    /// hangs over it: then others would hang as well.
    async fn until_gone(&self, call: &Call, context: &Context) {
        let client = &call.candidate.client;
        // of calls that are late together one brings news, and all of them wait for the answer
        let is_news = client.suspect();
        let left = context.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let answers = left.map_or(ANSWERS, |left| ANSWERS.min(left / PART_OF_THE_DEADLINE));
        Box::pin(tokio::time::sleep(answers)).await;
        if client.is_reachable() || client.silent_for() < answers {
            return std::future::pending().await;
        }
        if is_news {
            let (worker, model, seconds) = (client.name(), &self.route.model, call.elapsed().as_secs_f64());
            tracing::warn!(worker, model, seconds, "worker says nothing, others are asked until it does");
        }
    }

    /// The second call, if the model bears one and the budget affords it.
    fn hedge(&mut self, call: &Call, late: Late) -> Option<Call> {
        if late == Late::Far {
            self.is_silent = true;
        }
        if !self.policy.idempotent {
            return None;
        }
        let hedge = self.pick_beside(&[call.candidate.client.name().to_owned()], None).ok()?;
        if !self.route.withdraw() {
            return None;
        }
        metrics::counter!("sensorium_hedges_total", "model" => self.route.model.clone()).increment(1);
        Some(hedge)
    }

    fn hedge_after(&self) -> Option<Duration> {
        let wanted = self.policy.hedge_percentile > 0.0 && self.policy.idempotent;
        if wanted { self.route.latencies.percentile(self.policy.hedge_percentile) } else { None }
    }
}

async fn open(candidate: Arc<Candidate>, request: Request, context: Context) -> Result<ReplyStream> {
    candidate.client.stream(request, context).await
}

/// What came of the call that opened a stream.
fn concluded(call: Call, opened: Result<ReplyStream>) -> Opened {
    match opened {
        Ok(stream) => {
            call.candidate.seen.heard();
            Ok((call, stream))
        }
        Err(error) => {
            call.failed(&error);
            Err((call, error))
        }
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
    use std::sync::atomic::Ordering::Relaxed;

    use sensorium_cluster::membership::{Held, Policy, Registration};

    use super::super::super::client::tests::Slow;
    use super::super::super::handle::Route;
    use super::super::super::table::Table;
    use super::super::tests::unavailable;
    use super::*;
    use crate::admission::{Admission, Options};

    fn publish(route: &Route, policy: &Policy, first: &Arc<Slow>, second: &Arc<Slow>) {
        let policy = policy.clone();
        let held = Held { name: "m".into(), version: 1, state: "READY".into(), policy, ..Held::default() };
        let registration = Registration { models: vec![held], ..Registration::default() };
        let candidate = |client: &Arc<Slow>| Arc::new(Candidate::new(&registration, "m", client.clone(), None));
        let all = vec![candidate(first), candidate(second)];
        all[1].seen.started();
        route.publish(Table::new(all));
    }

    /// One hedged request of a model whose requests take 10 ms. The first worker is the less loaded one.
    async fn hedged(policy: &Policy, first: &Arc<Slow>, second: &Arc<Slow>) -> Result<Reply> {
        let route = Arc::new(Route::new("m"));
        let policy = Policy { hedge_percentile: 90.0, ..policy.clone() };
        (0..50).for_each(|_| route.latencies.record(Duration::from_millis(10), 1.0));
        publish(&route, &policy, first, second);
        let (request, context) = (Request::of_bytes("m", "text", ""), Context::default());
        let admission = Admission::new(Options::bound(8));
        let mut attempts = Attempts::new(route, "".into(), &admission, &request, &context)?;
        attempts.infer(&request, &context).await
    }

    fn told(worker: &Slow) -> (usize, usize) {
        (worker.begun.load(Relaxed), worker.ended.load(Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_answer_wins_and_the_other_call_is_cancelled() {
        let (quick, idle) = (Slow::new("quick", 9, None), Slow::new("idle", 5, None));
        hedged(&Policy::default(), &quick, &idle).await.unwrap();
        assert_eq!((told(&quick), told(&idle)), ((1, 1), (0, 0)), "there was no need of a hedge");
        let (slow, hedge) = (Slow::new("slow", 1000, None), Slow::new("hedge", 5, None));
        let begun = Instant::now();
        hedged(&Policy::default(), &slow, &hedge).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(30), "{:?}", begun.elapsed());
        assert_eq!((told(&slow), told(&hedge)), ((1, 0), (1, 1)));
        let (late, later) = (Slow::new("late", 100, None), Slow::new("later", 1000, None));
        hedged(&Policy::default(), &late, &later).await.unwrap();
        assert_eq!((told(&late), told(&later)), ((1, 1), (1, 0)));
    }

    /// A request of a model that takes 10 ms and wants no hedges, with so many milliseconds to go.
    async fn asked(policy: &Policy, first: &Arc<Slow>, second: &Arc<Slow>, deadline: u64) -> Result<Reply> {
        let route = Arc::new(Route::new("m"));
        (0..50).for_each(|_| route.latencies.record(Duration::from_millis(10), 1.0));
        publish(&route, policy, first, second);
        let deadline = Some(Instant::now() + Duration::from_millis(deadline));
        let (request, context) = (Request::of_bytes("m", "text", ""), Context { deadline, ..Context::default() });
        let admission = Admission::new(Options::bound(8));
        let mut attempts = Attempts::new(route, "".into(), &admission, &request, &context)?;
        context.bound("waiting", attempts.infer(&request, &context)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_says_nothing_is_not_waited_for() {
        let once = Policy { idempotent: false, ..Policy::default() };
        // a frozen worker, by default, within half a second
        let (frozen, other) = (Slow::new("frozen", 60_000, None), Slow::new("other", 10, None));
        asked(&Policy::default(), &frozen, &other, 500).await.unwrap();
        assert_eq!((told(&frozen), told(&other)), ((1, 0), (1, 1)));
        // also where the deadline leaves little more than two requests take
        let (frozen, other) = (Slow::new("frozen", 60_000, None), Slow::new("other", 10, None));
        asked(&Policy::default(), &frozen, &other, 80).await.unwrap();
        // one that takes a little longer is waited for
        let (slow, other) = (Slow::new("slow", 60, None), Slow::new("other", 10, None));
        asked(&Policy::default(), &slow, &other, 500).await.unwrap();
        assert_eq!((told(&slow), told(&other)), ((1, 1), (0, 0)));
        // and so is one that does what must be done once
        let (frozen, other) = (Slow::new("frozen", 60_000, None), Slow::new("other", 10, None));
        assert_eq!(asked(&once, &frozen, &other, 500).await.unwrap_err().code(), "deadline_exceeded");
        assert_eq!(told(&other), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_at_a_worker_that_is_there_is_not_handed_on() {
        let (hung, other) = (Slow::there("hung", 60_000), Slow::new("other", 10, None));
        // the first of calls that are late together suspects the worker, and the others come while it is asked
        for _ in 0..3 {
            let late = asked(&Policy::default(), &hung, &other, 2000).await;
            assert_eq!(late.unwrap_err().code(), "deadline_exceeded");
        }
        assert_eq!((told(&hung), told(&other)), ((3, 0), (0, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_of_retries_pays_for_hedges_and_a_worker_that_answers_others_is_there() {
        let (request, context) = (Request::of_bytes("m", "text", ""), Context::default());
        let admission = Admission::new(Options::bound(8));
        let route = |slow: &Arc<Slow>, other: &Arc<Slow>| {
            let route = Arc::new(Route::new("m"));
            (0..50).for_each(|_| route.latencies.record(Duration::from_millis(10), 1.0));
            publish(&route, &Policy::default(), slow, other);
            route
        };
        let attempts = |route: Arc<Route>| Attempts::new(route, "".into(), &admission, &request, &context).unwrap();
        let workers = || (Slow::new("slow", 250, None), Slow::new("other", 10, None));

        // the same worker goes on answering others: this request takes long
        let (slow, other) = workers();
        let answering = route(&slow, &other);
        let seen = answering.table().candidates()[0].seen.clone();
        let answers = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                seen.heard();
            }
        };
        let mut one = attempts(answering);
        tokio::select! {
            answer = one.infer(&request, &context) => drop(answer.unwrap()),
            () = answers => {}
        }
        assert_eq!((told(&slow), told(&other)), ((1, 1), (0, 0)));

        let (slow, other) = workers();
        let poor = route(&slow, &other);
        while poor.withdraw() {}
        attempts(poor).infer(&request, &context).await.unwrap();
        assert_eq!((told(&slow), told(&other)), ((1, 1), (0, 0)), "there was nothing to pay it from");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_no_longer_holds_the_model_does_not_make_it_unknown() {
        let unknown = || Error::NotFound { what: "model 'm'".into(), known: String::new() };
        let (first, second) = (Slow::new("first", 1, Some(unknown)), Slow::new("second", 1, Some(unknown)));
        let error = hedged(&Policy::default(), &first, &second).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { reason: "NO_WORKER", .. }), "{error:?}");
        assert_eq!((told(&first), told(&second)), ((1, 1), (1, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_leaves_the_answer_to_the_other_call() {
        let lost = || unavailable("WORKER_LOST");
        let (first, hedge) = (Slow::new("first", 50, Some(lost)), Slow::new("hedge", 100, None));
        hedged(&Policy::default(), &first, &hedge).await.unwrap();
        assert_eq!((told(&first), told(&hedge)), ((1, 1), (1, 1)), "the hedge goes on");
        let (first, hedge) = (Slow::new("first", 100, None), Slow::new("hedge", 50, Some(lost)));
        hedged(&Policy::default(), &first, &hedge).await.unwrap();
        assert_eq!((told(&first), told(&hedge)), ((1, 1), (1, 1)), "the first goes on");
        let poison = || Error::invalid("text", "bad");
        let (first, hedge) = (Slow::new("first", 50, Some(poison)), Slow::new("hedge", 1000, None));
        assert_eq!(hedged(&Policy::default(), &first, &hedge).await.unwrap_err().code(), "invalid_argument");
        assert_eq!(told(&hedge), (1, 0), "it would fail there, too");
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_be_done_once_is_neither_hedged_nor_tried_again() {
        let once = Policy { idempotent: false, ..Policy::default() };
        let (slow, idle) = (Slow::new("slow", 1000, Some(|| unavailable("WORKER_LOST"))), Slow::new("idle", 5, None));
        assert_eq!(hedged(&once, &slow, &idle).await.unwrap_err().code(), "unavailable");
        assert_eq!((told(&slow), told(&idle)), ((1, 1), (0, 0)));
        let (slow, idle) = (Slow::new("slow", 20, Some(|| unavailable("UNREACHABLE"))), Slow::new("idle", 5, None));
        hedged(&once, &slow, &idle).await.unwrap();
        assert_eq!(told(&idle), (1, 1), "what never reached a worker was not done");
    }
}
