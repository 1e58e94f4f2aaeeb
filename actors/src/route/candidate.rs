//! One worker that holds the model, and what its calls have told of it. Numbers only, changed by the requests
//! themselves: nobody has to be asked before a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sensorium_cluster::membership::{Held, Registration};
use tokio::time::Instant;

use super::client::Client;

/// Weight of the newest latency in the moving average.
const WEIGHT: f64 = 0.1;
/// How long a measured latency is believed where it decides whether a request is begun at all.
const FRESH: Duration = Duration::from_secs(10);
/// An idle worker's latency counts half as much after each of these in `load`: who was slow once is tried again.
const HALF_LIFE: Duration = Duration::from_secs(5);
/// A worker that says nothing for so many rounds, and a moment, is not taken for one that is at work.
const TALKING: f64 = 3.0;
const HARDLY: Duration = Duration::from_millis(50);
/// A latency below this is not told apart from others.
const FLOOR_SECONDS: f64 = 1e-5;

/// A worker of a model.
pub struct Candidate {
    /// Calls it.
    pub client: Arc<dyn Client>,
    /// Which start of the worker this is.
    pub incarnation: String,
    /// Where it stands.
    pub zone: String,
    /// Requests that it works on side by side.
    pub capacity: u32,
    /// It said that it takes no more.
    pub draining: bool,
    /// Versions of the model that it holds.
    pub held: Vec<Held>,
    /// What its calls have told; the same over all tables that it is in.
    pub seen: Arc<Seen>,
}

/// What the calls of a worker have told of it.
pub struct Seen {
    born: Instant,
    in_flight: AtomicU64,
    /// Bits of an `f64`: seconds of a request, a moving average.
    latency: AtomicU64,
    /// Bits of an `f64`: seconds of a round of the worker, a moving average without the rounds that were waited for.
    round: AtomicU64,
    /// Bits of an `f64`: the same per unit of size.
    pace: AtomicU64,
    failures: AtomicU32,
    /// Milliseconds after `born`; 0: not.
    ejected_until: AtomicU64,
    overloaded_until: AtomicU64,
    answered_at: AtomicU64,
    refused_at: AtomicU64,
    /// When it last said anything.
    heard_at: AtomicU64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            in_flight: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            round: AtomicU64::new(0),
            pace: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            overloaded_until: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            refused_at: AtomicU64::new(0),
            heard_at: AtomicU64::new(0),
        }
    }
}

impl Candidate {
    /// A worker as it has registered. `seen` is what an earlier table knew of the same start of it.
    pub fn new(registration: &Registration, model: &str, client: Arc<dyn Client>, seen: Option<Arc<Seen>>) -> Self {
        Self {
            client,
            incarnation: registration.incarnation.clone(),
            zone: registration.zone.clone(),
            capacity: registration.capacity.max(1),
            draining: registration.draining,
            held: registration.models.iter().filter(|held| held.name == model).cloned().collect(),
            seen: seen.unwrap_or_default(),
        }
    }

    /// The version as it is held here.
    pub fn holds(&self, version: u64) -> Option<&Held> {
        self.held.iter().find(|held| held.version == version)
    }

    /// Whether it takes new requests: it has not said otherwise, is not ejected and can be reached.
    pub fn is_healthy(&self) -> bool {
        self.takes_more() && !self.seen.is_ejected() && self.client.is_reachable()
    }

    /// Whether it takes new requests, as far as it has said.
    pub fn takes_more(&self) -> bool {
        !self.draining && !self.seen.has_refused()
    }

    /// Seconds that a new call can expect: least load times latency (peak EWMA).
    #[allow(clippy::cast_precision_loss)]
    pub fn load(&self) -> f64 {
        (self.seen.in_flight() + 1) as f64 / f64::from(self.capacity) * self.seen.faded_seconds().max(FLOOR_SECONDS)
    }

    /// Seconds that a request of `size` units can expect to take here: those before it, and itself.
    pub fn expected_seconds(&self, size: f64) -> f64 {
        let own = (self.seen.pace_seconds() * size).max(FLOOR_SECONDS);
        self.rounds() * self.seen.round_seconds().max(FLOOR_SECONDS) + own
    }

    /// How often it has to work on as many requests as it can side by side, for those that it has.
    #[allow(clippy::cast_precision_loss)]
    pub fn rounds(&self) -> f64 {
        self.seen.in_flight() as f64 / f64::from(self.capacity)
    }
}

impl Seen {
    /// Calls in work.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Moving average of a request's time; 0 before the first.
    pub fn latency_seconds(&self) -> f64 {
        f64::from_bits(self.latency.load(Relaxed))
    }

    /// The moving average, faded for as long as the worker has been idle. Without that, one that was slow for a while
    /// would hardly be asked again, and nobody would learn that it no longer is.
    fn faded_seconds(&self) -> f64 {
        let answered = self.answered_at.load(Relaxed);
        if answered == 0 || self.in_flight() > 0 {
            return self.latency_seconds();
        }
        let idle = Duration::from_millis(millis(self.born.elapsed()).saturating_sub(answered));
        self.latency_seconds() * (-idle.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
    }

    /// Moving average of the time of a round; 0 before the first.
    pub fn round_seconds(&self) -> f64 {
        f64::from_bits(self.round.load(Relaxed))
    }

    /// Moving average of the time of a round per unit of size; 0 before the first.
    pub fn pace_seconds(&self) -> f64 {
        f64::from_bits(self.pace.load(Relaxed))
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// A worker that is new is taken to be as quick as the others, so that it is not flooded.
    pub fn assume(&self, latency: f64, round: f64, pace: f64) {
        if self.latency.load(Relaxed) == 0 {
            self.latency.store(latency.to_bits(), Relaxed);
            self.round.store(round.to_bits(), Relaxed);
            self.pace.store(pace.to_bits(), Relaxed);
        }
    }

    /// A call starts.
    pub fn started(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A call has ended, however.
    pub fn ended(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A call of `size` units was answered, before which the worker had so many rounds of others.
    pub fn answered(&self, took: Duration, size: f64, ahead: f64) {
        let seconds = took.as_secs_f64();
        let round = seconds / (1.0 + ahead);
        average(&self.latency, seconds);
        average(&self.round, round);
        average(&self.pace, round / size.max(1.0));
        self.failures.store(0, Relaxed);
        let now = self.after(Duration::ZERO);
        self.heard_at.store(now, Relaxed);
        self.answered_at.store(now, Relaxed);
        // it takes requests again: it has started anew, and the register could not say so
        if self.has_refused() && now.saturating_sub(millis(took)) > self.refused_at.load(Relaxed) {
            self.refused_at.store(0, Relaxed);
        }
    }

    /// It has said something, whatever it was.
    pub fn heard(&self) {
        self.heard_at.store(self.after(Duration::ZERO), Relaxed);
    }

    /// For how long a call that began so long ago has heard nothing of it, and neither has any other.
    pub fn silent_for(&self, since: Duration) -> Duration {
        let heard = Duration::from_millis(self.heard_at.load(Relaxed));
        since.min(self.born.elapsed().saturating_sub(heard))
    }

    /// Whether it has said anything within the time of a few rounds.
    pub fn is_talking(&self) -> bool {
        let rounds = Duration::try_from_secs_f64(self.round_seconds() * TALKING).unwrap_or(Duration::MAX);
        self.silent_for(Duration::MAX) <= rounds.saturating_add(HARDLY)
    }

    /// Whether its latency was measured of late. What was slow once is tried again.
    pub fn is_measured(&self) -> bool {
        let at = self.answered_at.load(Relaxed);
        at > 0 && millis(self.born.elapsed()).saturating_sub(at) < millis(FRESH)
    }

    /// A call failed, and the worker is to blame. How often in a row it is now.
    pub fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Relaxed) + 1
    }

    /// It takes no more until it has started anew.
    pub fn refuses(&self) {
        self.refused_at.store(self.after(Duration::ZERO), Relaxed);
    }

    /// Whether it has said that it takes no more.
    fn has_refused(&self) -> bool {
        self.refused_at.load(Relaxed) > 0
    }

    /// It is full; ask others for a while.
    pub fn overloaded(&self, period: Duration) {
        self.overloaded_until.store(self.after(period), Relaxed);
    }

    /// How long it is taken to be full.
    pub fn overloaded_for(&self) -> Option<Duration> {
        self.left(&self.overloaded_until)
    }

    /// Nobody calls it for a while.
    pub fn eject(&self, period: Duration) {
        self.ejected_until.store(self.after(period), Relaxed);
        self.failures.store(0, Relaxed);
    }

    /// Whether it is ejected.
    pub fn is_ejected(&self) -> bool {
        self.left(&self.ejected_until).is_some()
    }

    fn after(&self, period: Duration) -> u64 {
        millis(self.born.elapsed() + period).max(1)
    }

    fn left(&self, until: &AtomicU64) -> Option<Duration> {
        let until = until.load(Relaxed);
        if until == 0 {
            return None; // the usual case costs no clock
        }
        until.checked_sub(millis(self.born.elapsed())).filter(|&left| left > 0).map(Duration::from_millis)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn average(cell: &AtomicU64, value: f64) {
    // two at once may lose one of their updates: an average bears that
    let old = f64::from_bits(cell.load(Relaxed));
    let new = if old == 0.0 { value } else { old + WEIGHT * (value - old) };
    cell.store(new.to_bits(), Relaxed);
}
