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

/// How long a worker may take to say that it is there.
const ANSWERS: Duration = Duration::from_millis(100);

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

    /// Returns when a second worker is to be asked.
    async fn until_late(&self, call: &Call, request: &Request, context: &Context) -> Late {
        let usual = async {
            match self.hedge_after() {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let silent = async {
            if request.parameters.0.contains_key("max_tokens") {
                // how long it takes is up to the request, and others tell nothing of it
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
                    return self.until_gone(call).await;
                }
                tokio::time::sleep((far - silent).min(far * HOPELESS - elapsed)).await;
            }
        };
        match select(std::pin::pin!(usual), std::pin::pin!(silent)).await {
            Either::Left(_) => Late::Usual,
            Either::Right(_) => Late::Far,
        }
    }

    /// Returns when the worker of a late call has not said that it is there. One that is there works on the request, or
    /// hangs over it: then others would hang as well.
    async fn until_gone(&self, call: &Call) {
        let client = &call.candidate.client;
        if !client.suspect() {
            return;
        }
        tokio::time::sleep(ANSWERS).await;
        if client.is_reachable() {
            return std::future::pending().await;
        }
        let (worker, model, seconds) = (client.name(), &self.route.model, call.elapsed().as_secs_f64());
        tracing::warn!(worker, model, seconds, "worker says nothing, others are asked until it does");
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
