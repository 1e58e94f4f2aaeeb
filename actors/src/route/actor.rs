//! The route of one model: the owner of its table of workers, and of who is ejected from it.
//!
//! It plans ahead: it publishes the table, and a request's own task picks from it, makes the call, and tells the route
//! only of workers that fail again and again. Payloads never pass through here, and neither does a request that goes
//! well: between two gRPC hops an actor's mailbox would be one wait too many.
//!
//! Ejection is Envoy's outlier detection with its defaults: after 5 failures in a row, for 30 s times the number of
//! ejections, at most a tenth of the workers but at least one; looked at every 10 s.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use sensorium_cluster::bus::Bus;
use sensorium_cluster::membership::Registration;
use serde_json::json;

use super::candidate::Candidate;
use super::client::Client;
use super::handle::Route;
use super::table::Table;

/// Failures in a row after which a worker is ejected.
pub const CONSECUTIVE_FAILURES: u32 = 5;
/// How often ejections are looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Of the first ejection; the second lasts twice as long.
const EJECTION: Duration = Duration::from_secs(30);
/// The longest.
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Share of the workers that may be ejected at once; one always may.
const MAX_EJECTED: f64 = 0.1;

/// What a route is told.
pub enum Message {
    /// These hold the model now; an answer when the table says so.
    Workers(Vec<(Registration, Arc<dyn Client>)>, RpcReplyPort<()>),
    /// A worker has failed so often in a row that it should be ejected.
    Failing(String),
    /// Look at the ejections.
    Look,
}

/// See the module.
pub struct RouteActor;

/// What a route starts with.
pub struct Arguments {
    /// What requests hold on to.
    pub route: Arc<Route>,
    /// Calls in work, for the tree.
    pub depth: Arc<AtomicU64>,
    /// Who holds the model.
    pub workers: Vec<(Registration, Arc<dyn Client>)>,
    /// Where ejections are told.
    pub bus: Bus,
}

/// What a route owns.
pub struct State {
    route: Arc<Route>,
    bus: Bus,
    /// How often a worker was ejected of late.
    ejections: HashMap<String, u32>,
}

impl Actor for RouteActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        let mut state = State { route: args.route, bus: args.bus, ejections: HashMap::new() };
        state.replace(args.workers);
        state.route.attach(myself.clone(), args.depth);
        myself.send_interval(INTERVAL, || Message::Look);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Workers(workers, done) => {
                state.replace(workers);
                // who asked may have gone
                let _ = done.send(());
            }
            Message::Failing(worker) => state.failing(&worker),
            Message::Look => state.look(),
        }
        Ok(())
    }
}

impl State {
    fn replace(&mut self, workers: Vec<(Registration, Arc<dyn Client>)>) {
        let before = self.route.table();
        let candidates = workers.into_iter().map(|(registration, client)| {
            let known = before
                .candidates()
                .iter()
                .find(|known| known.client.name() == client.name() && known.incarnation == registration.incarnation);
            let seen = known.map(|known| known.seen.clone());
            Arc::new(Candidate::new(&registration, &self.route.model, client, seen))
        });
        self.route.publish(Table::new(candidates.collect()));
        let table = self.route.table();
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("sensorium_route_workers", "model" => self.route.model.clone())
            .set(table.candidates().len() as f64);
        self.ejections.retain(|worker, _| table.candidates().iter().any(|known| known.client.name() == worker));
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn failing(&mut self, worker: &str) {
        let table = self.route.table();
        let Some(candidate) = table.candidates().iter().find(|known| known.client.name() == worker) else { return };
        // told of by several requests at once, or recovered meanwhile
        if candidate.seen.is_ejected() || candidate.seen.failures() < CONSECUTIVE_FAILURES {
            return;
        }
        let ejected = table.candidates().iter().filter(|known| known.seen.is_ejected()).count();
        let allowed = ((table.candidates().len() as f64 * MAX_EJECTED) as usize).max(1);
        if ejected >= allowed {
            tracing::warn!(model = self.route.model, worker, ejected, "fails, but enough are ejected already");
            return;
        }
        let count = self.ejections.entry(worker.to_owned()).or_insert(0);
        *count += 1;
        let period = EJECTION.saturating_mul(*count).min(MAX_EJECTION);
        candidate.seen.eject(period);
        // who it was, the log and the event say: a label for each worker that ever was would be kept for good
        metrics::counter!("sensorium_ejections_total", "model" => self.route.model.clone()).increment(1);
        let seconds = period.as_secs();
        tracing::warn!(model = self.route.model, worker, seconds, "worker ejected");
        self.bus.publish("worker.ejected", json!({ "worker": worker, "model": self.route.model, "seconds": seconds }));
        self.gauge(&table);
    }

    fn look(&mut self) {
        let table = self.route.table();
        self.gauge(&table);
        // who has behaved for an interval is forgiven one ejection
        self.ejections.retain(|worker, count| {
            let Some(candidate) = table.candidates().iter().find(|known| known.client.name() == worker) else {
                return false;
            };
            if !candidate.seen.is_ejected() && candidate.seen.failures() == 0 {
                *count -= 1;
            }
            *count > 0
        });
    }

    #[allow(clippy::cast_precision_loss)]
    fn gauge(&self, table: &Table) {
        let ejected = table.candidates().iter().filter(|known| known.seen.is_ejected()).count();
        metrics::gauge!("sensorium_ejected_workers", "model" => self.route.model.clone()).set(ejected as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::client::tests::Nobody;

    /// A route with so many workers, `worker-0` and so on.
    fn state(workers: usize) -> State {
        let mut state = State { route: Arc::new(Route::new("m")), bus: Bus::new("here"), ejections: HashMap::new() };
        let workers = (0..workers).map(|worker| {
            let client: Arc<dyn Client> = Arc::new(Nobody(format!("worker-{worker}")));
            (Registration { node: format!("worker-{worker}"), capacity: 1, ..Registration::default() }, client)
        });
        state.replace(workers.collect());
        state
    }

    /// A worker fails so often in a row, and the route is told of it.
    fn fails(state: &mut State, worker: usize, times: u32) {
        let candidate = state.route.table().candidates()[worker].clone();
        for _ in 0..times {
            candidate.seen.failed();
        }
        state.failing(candidate.client.name());
    }

    fn ejected(state: &State) -> Vec<usize> {
        let table = state.route.table();
        (0..table.candidates().len()).filter(|&worker| table.candidates()[worker].seen.is_ejected()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_eject_for_longer_each_time() {
        let mut state = state(3);
        let mut events = state.bus.subscribe();
        fails(&mut state, 0, 4);
        assert!(ejected(&state).is_empty(), "four are not enough");
        let seen = state.route.table().candidates()[0].seen.clone();
        seen.answered(Duration::from_millis(1), 1.0, 0.0);
        fails(&mut state, 0, 4);
        assert!(ejected(&state).is_empty(), "an answer between them makes two rows of four");
        for seconds in [30, 60, 90] {
            fails(&mut state, 0, 5);
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert_eq!(ejected(&state), [0], "within {seconds} s");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(ejected(&state).is_empty(), "after {seconds} s");
        }
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push((event.subject, event.details["worker"].clone(), event.details["seconds"].clone()));
        }
        assert_eq!(told, [30, 60, 90].map(|seconds| ("worker.ejected", json!("worker-0"), json!(seconds))));
        // each interval in which it behaves takes one away
        (0..3).for_each(|_| state.look());
        fails(&mut state, 0, 5);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(ejected(&state).is_empty(), "as if it were the first time");
        for _ in 0..20 {
            fails(&mut state, 0, 5);
            tokio::time::advance(MAX_EJECTION).await;
            assert!(ejected(&state).is_empty(), "never longer than {MAX_EJECTION:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenth_is_ejected_at_most_but_always_one() {
        for (workers, most) in [(1, 1), (2, 1), (19, 1), (20, 2), (35, 3)] {
            let mut state = state(workers);
            (0..workers).for_each(|worker| fails(&mut state, worker, 5));
            assert_eq!(ejected(&state).len(), most, "of {workers}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_started_anew_is_not_blamed_for_the_one_before() {
        let mut state = state(2);
        fails(&mut state, 0, 5);
        let again = |incarnation: &str| {
            let client: Arc<dyn Client> = Arc::new(Nobody("worker-0".into()));
            let incarnation = incarnation.to_owned();
            vec![(
                Registration { node: "worker-0".into(), capacity: 1, incarnation, ..Registration::default() },
                client,
            )]
        };
        state.replace(again(""));
        assert_eq!(ejected(&state), [0], "the register has only said something else of it");
        state.replace(again("another"));
        assert!(ejected(&state).is_empty());
    }
}
