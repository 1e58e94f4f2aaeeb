//! The route of one model: it knows who holds it, how busy and how quick each of them is, and plans.
//!
//! It only plans. The request's task makes the call and reports the outcome; payloads never pass through here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;

use super::client::Client;
use crate::error::{Error, Result};

/// Weight of the newest latency in the moving average.
const EWMA_WEIGHT: f64 = 0.1;

/// What a route is told.
pub enum Message {
    /// Who is to take the next request? The answer counts as a call in work until it is dropped.
    Plan(RpcReplyPort<Result<Call>>),
    /// A call has ended.
    Ended {
        /// Which worker.
        worker: String,
        /// How long it took.
        took: Duration,
        /// Whether the worker did its part. A caller's mistake is not the worker's failure.
        healthy: bool,
    },
    /// These hold the model now.
    Workers(Vec<Arc<dyn Client>>),
}

/// A planned call. Reports its outcome when dropped, so a cancelled one is not forgotten.
pub struct Call {
    client: Arc<dyn Client>,
    route: ActorRef<Message>,
    started: Instant,
    healthy: bool,
}

impl Call {
    /// Whom to call.
    pub fn client(&self) -> &Arc<dyn Client> {
        &self.client
    }

    /// The call failed; whether that speaks against the worker is decided here.
    pub fn failed(&mut self, error: &Error) {
        self.healthy = !matches!(error, Error::Internal(_) | Error::Unavailable { .. });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let worker = self.client.name().to_owned();
        let ended = Message::Ended { worker, took: self.started.elapsed(), healthy: self.healthy };
        // a route that was started again counts from nothing
        let _ = self.route.cast(ended);
    }
}

/// See the module.
pub struct Route;

/// What a route starts with.
pub struct Arguments {
    /// The model.
    pub model: String,
    /// Calls in work, for the tree.
    pub depth: Arc<AtomicU64>,
    /// Who holds the model.
    pub workers: Vec<Arc<dyn Client>>,
}

/// What a route owns.
pub struct State {
    model: String,
    depth: Arc<AtomicU64>,
    workers: Vec<Candidate>,
}

struct Candidate {
    client: Arc<dyn Client>,
    in_flight: u64,
    /// Moving average; 0 until the first call has ended.
    latency_seconds: f64,
}

impl Candidate {
    fn new(client: Arc<dyn Client>) -> Self {
        Self { client, in_flight: 0, latency_seconds: 0.0 }
    }

    /// Seconds that a new call can expect.
    #[allow(clippy::cast_precision_loss)]
    fn load(&self) -> f64 {
        (self.in_flight + 1) as f64 * self.latency_seconds.max(1e-6)
    }
}

impl Actor for Route {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        let workers = args.workers.into_iter().map(Candidate::new).collect();
        Ok(State { model: args.model, depth: args.depth, workers })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Plan(reply) => {
                // a caller that has gone drops the call, and its drop is the report
                let _ = reply.send(state.plan(myself));
            }
            Message::Ended { worker, took, healthy } => state.ended(&worker, took, healthy),
            Message::Workers(workers) => state.replace(workers),
        }
        Ok(())
    }
}

impl State {
    fn plan(&mut self, myself: ActorRef<Message>) -> Result<Call> {
        let least = self.workers.iter_mut().min_by(|a, b| a.load().total_cmp(&b.load()));
        let Some(candidate) = least else {
            return Err(Error::Unavailable {
                reason: "NO_WORKER",
                message: format!("no worker holds {}", self.model),
                retry_after: Duration::from_secs(1),
            });
        };
        candidate.in_flight += 1;
        self.depth.fetch_add(1, Ordering::Relaxed);
        Ok(Call { client: candidate.client.clone(), route: myself, started: Instant::now(), healthy: true })
    }

    fn ended(&mut self, worker: &str, took: Duration, healthy: bool) {
        if let Some(candidate) = self.workers.iter_mut().find(|candidate| candidate.client.name() == worker) {
            candidate.in_flight = candidate.in_flight.saturating_sub(1);
            let took = took.as_secs_f64();
            if healthy {
                candidate.latency_seconds += EWMA_WEIGHT * (took - candidate.latency_seconds);
            }
        }
        self.depth.store(self.workers.iter().map(|candidate| candidate.in_flight).sum(), Ordering::Relaxed);
    }

    fn replace(&mut self, workers: Vec<Arc<dyn Client>>) {
        let mut known = std::mem::take(&mut self.workers);
        for client in workers {
            let at = known.iter().position(|candidate| candidate.client.name() == client.name());
            self.workers.push(at.map_or_else(|| Candidate::new(client), |at| known.swap_remove(at)));
        }
    }
}
