//! What requests for one model hold on to: the table that its route has published, its retry budget and its latencies.
//! It outlives restarts of the route's actor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use metrics::{Histogram, histogram};
use parking_lot::Mutex;
use ractor::ActorRef;
use sensorium_cluster::membership::Held;
use tokio::time::Instant;
use tower::retry::budget::{Budget, TpsBudget};

use super::actor::{CONSECUTIVE_FAILURES, Message};
use super::candidate::Candidate;
use super::hedge::Latencies;
use super::table::Table;
use crate::admission::Slots;
use crate::error::{Error, Result};
use crate::shapes::{self, Claimed};

/// Retries may add this share to the requests of the last ten seconds…
const RETRY_SHARE: f32 = 0.1;
/// …and so many per second in any case, so that a quiet service can retry at all.
const RETRIES_PER_SECOND: u32 = 10;
const RETRY_WINDOW: Duration = Duration::from_secs(10);
/// For so long a version whose workers are lost is unavailable rather than unknown.
const LOST: Duration = Duration::from_secs(3600);

/// See the module.
pub struct Route {
    /// The model.
    pub model: String,
    table: ArcSwap<Table>,
    actor: ArcSwapOption<ActorRef<Message>>,
    /// Calls in work, for the tree.
    depth: ArcSwap<AtomicU64>,
    budget: TpsBudget,
    /// Of requests that were answered.
    pub latencies: Latencies,
    /// How many may be in work.
    pub slots: Arc<Slots>,
    calls: Histogram,
    /// Versions whose workers are lost, and since when.
    lost: Mutex<BTreeMap<u64, Instant>>,
    /// Since when nobody holds the model.
    unheld: Mutex<Option<Instant>>,
}

impl Route {
    /// A route that knows nobody yet.
    pub fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            table: ArcSwap::default(),
            actor: ArcSwapOption::empty(),
            depth: ArcSwap::default(),
            budget: TpsBudget::new(RETRY_WINDOW, RETRIES_PER_SECOND, RETRY_SHARE),
            latencies: Latencies::default(),
            slots: Arc::new(Slots::new(model)),
            calls: histogram!("sensorium_call_duration_seconds", "model" => model.to_owned()),
            lost: Mutex::default(),
            unheld: Mutex::new(Some(Instant::now())),
        }
    }

    /// The table as it is.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Reads of the version that answers, as its best holder has it: the one that is asked for, or the newest of those that
    /// are held best.
    ///
    /// # Errors
    /// `NotFound` if nobody holds it, `Unavailable` if nobody holds the model any more, or those are lost that held the
    /// version.
    pub fn resolve<T>(&self, asked: Option<u64>, read: impl FnOnce(&Held) -> T) -> Result<T> {
        let table = self.table.load();
        self.read(&table, asked.or_else(|| table.versions().newest()), read)
    }

    /// The same for a request that is about to be made. While workers hold different versions, as in a roll, each version
    /// gets its part of the requests that name none.
    ///
    /// # Errors
    /// As `resolve`.
    pub fn choose<T>(&self, asked: Option<u64>, read: impl FnOnce(&Held) -> T) -> Result<T> {
        let table = self.table.load();
        self.read(&table, asked.or_else(|| table.versions().choose(&mut rand::rng())), read)
    }

    fn read<T>(&self, table: &Table, version: Option<u64>, read: impl FnOnce(&Held) -> T) -> Result<T> {
        let unavailable =
            |message| Error::Unavailable { reason: "NO_WORKER", message, retry_after: Duration::from_secs(1) };
        let Some(version) = version.filter(|_| table.versions().newest().is_some()) else {
            return Err(unavailable(format!("no worker holds {}", self.model)));
        };
        table.held(version).map(read).ok_or_else(|| {
            if self.lost.lock().contains_key(&version) {
                return unavailable(format!("no worker holds {} version {version}", self.model));
            }
            let known: Vec<String> = table.versions().iter().map(|version| version.to_string()).collect();
            Error::NotFound {
                what: format!("model '{}' version {version}", self.model),
                known: format!("loaded are {}", crate::error::names(&known)),
            }
        })
    }

    /// Judges inputs by what the version that answers says that it takes.
    ///
    /// # Errors
    /// `InvalidArgument` for an input that is too large or of another shape; else as [`Route::resolve`].
    pub fn must_accept<'a>(&self, asked: Option<u64>, inputs: impl Iterator<Item = Claimed<'a>>) -> Result<()> {
        self.resolve(asked, |held| held.accepts.as_ref().map_or(Ok(()), |accepts| shapes::check(accepts, inputs)))?
    }

    /// Whether workers that held it are lost.
    pub fn was_held(&self) -> bool {
        !self.lost.lock().is_empty()
    }

    /// For how long nobody has held it.
    pub fn unheld_for(&self) -> Option<Duration> {
        self.unheld.lock().map(|since| since.elapsed())
    }

    /// Versions that were in the last table and are not in this one: those that somebody has unloaded are no more, and
    /// those whose workers are lost may come back.
    fn note_versions(&self, before: &Table, after: &Table) {
        let mut lost = self.lost.lock();
        lost.retain(|version, since| since.elapsed() < LOST && after.held(*version).is_none());
        for version in before.candidates().iter().flat_map(|holder| &holder.held).map(|held| held.version) {
            let unloaded = before.candidates().iter().filter(|holder| holder.holds(version).is_some()).any(|holder| {
                let same = |now: &&Arc<Candidate>| {
                    now.client.name() == holder.client.name() && now.incarnation == holder.incarnation
                };
                after.candidates().iter().any(|now| same(&now))
            });
            if after.held(version).is_none() && !unloaded {
                lost.insert(version, Instant::now());
            }
        }
        let mut unheld = self.unheld.lock();
        *unheld = if after.candidates().is_empty() { unheld.or_else(|| Some(Instant::now())) } else { None };
    }

    /// The actor has a new table.
    pub(super) fn publish(&self, table: Table) {
        self.note_versions(&self.table.load(), &table);
        self.table.store(Arc::new(table));
    }

    /// The actor has started; `depth` is where the tree looks for the calls in work.
    pub(super) fn attach(&self, actor: ActorRef<Message>, depth: Arc<AtomicU64>) {
        self.actor.store(Some(Arc::new(actor)));
        self.depth.store(depth);
    }

    /// Tells the actor.
    pub(super) fn tell(&self, message: Message) {
        if let Some(actor) = self.actor.load_full() {
            // one that is being started again asks for its workers itself
            let _ = actor.cast(message);
        }
    }

    /// The actor, for its supervisor.
    pub(super) fn actor(&self) -> Option<Arc<ActorRef<Message>>> {
        self.actor.load_full()
    }

    /// A first try, which pays into the budget of retries.
    pub fn deposit(&self) {
        self.budget.deposit();
    }

    /// Whether a retry, or a hedge, can be afforded.
    pub fn withdraw(&self) -> bool {
        self.budget.withdraw()
    }
}

/// A call in work. Counts as such until it is dropped, so a cancelled one is not forgotten.
pub struct Call {
    /// Whom it calls.
    pub candidate: Arc<Candidate>,
    route: Arc<Route>,
    depth: Arc<AtomicU64>,
    started: Instant,
    size: f64,
    /// Rounds of the worker that were before it.
    ahead: f64,
}

impl Call {
    /// A call of `size` units starts.
    pub fn start(route: &Arc<Route>, candidate: Arc<Candidate>, size: f64) -> Self {
        let ahead = candidate.rounds();
        candidate.seen.started();
        let depth = route.depth.load_full();
        depth.fetch_add(1, Relaxed);
        Self { candidate, route: route.clone(), depth, started: Instant::now(), size, ahead }
    }

    /// For how long nothing has been heard of the worker, by this call or by others that came later.
    pub fn silent_for(&self) -> Duration {
        self.candidate.seen.silent_for(self.started.elapsed()).min(self.candidate.client.silent_for())
    }

    /// How long it has been in work.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// It was answered.
    pub fn answered(&self) {
        let took = self.started.elapsed();
        self.candidate.seen.answered(took, self.size, self.ahead);
        self.route.latencies.record(took, self.size);
        self.route.calls.record(took);
    }

    /// It failed; whether that speaks against the worker is decided here. A caller's mistake does not, and neither does
    /// a deadline that was too short.
    pub fn failed(&self, error: &Error) {
        let seen = &self.candidate.seen;
        let unheard = matches!(
            error,
            Error::Unavailable { reason: "UNREACHABLE" | "WORKER_LOST", .. } | Error::DeadlineExceeded { .. }
        );
        if !unheard {
            seen.heard();
        }
        match error {
            Error::Exhausted { retry_after, .. } => seen.overloaded(*retry_after),
            Error::Unavailable { reason: "DRAINING", .. } => seen.refuses(),
            Error::Unavailable { .. } | Error::Internal(_) if seen.failed() >= CONSECUTIVE_FAILURES => {
                self.route.tell(Message::Failing(self.candidate.client.name().to_owned()));
            }
            _ => {}
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.candidate.seen.ended();
        // the tree counts from nothing after a restart of the route's actor
        let _ = self.depth.fetch_update(Relaxed, Relaxed, |depth| depth.checked_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenth_of_the_requests_may_be_tried_again() {
        let route = Route::new("m");
        let afford = || (0..100_000).take_while(|_| route.withdraw()).count();
        let quiet = afford();
        let least = RETRIES_PER_SECOND as usize * RETRY_WINDOW.as_secs() as usize;
        assert!((least..=least + 1).contains(&quiet), "{quiet}: a quiet service can retry at all");
        (0..5000).for_each(|_| route.deposit());
        let busy = afford();
        assert!((480..=520).contains(&busy), "{busy} of 5000");
        assert!(!route.withdraw(), "no more than that");
    }
}
