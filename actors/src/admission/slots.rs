//! The way to the workers of one model, with room for as many requests as the model bears at the moment.
//!
//! Each model has a limit of its own: an embedding takes a millisecond and a generation half a minute, and one
//! latency of both would tell nothing of either. The limit never shrinks below twice what the model's workers work on
//! side by side, so slow models stay busy, and never grows above what the door lets in. Requests that the cache answers
//! do not pass here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::gate::Ask;
use super::limit::{Bounds, Limit, TOLERANCE, Window};
use super::tenants::Tenants;
use super::{Options, SOON, full};
use crate::error::{Error, Result};
use crate::request::Context;

/// A window is at least so long, and holds so many requests…
const WINDOW_MS: u64 = 100;
const ENOUGH: u32 = 16;
/// …or is so long, however few there are.
const LONG_WINDOW_MS: u64 = 2_000;
/// After so long without any request, nothing is known of the model.
const FORGET_MS: u64 = 10_000;
/// Microseconds are summed as logarithms, to so many parts.
const PARTS: f64 = 1e6;
/// From so many tenants on, those that have nothing in work are forgotten.
const MANY: usize = 256;

/// A tenant's requests for the model.
struct Own {
    count: AtomicU32,
    weight: f64,
}

/// See the module.
pub struct Slots {
    model: String,
    born: Instant,
    inside: AtomicU32,
    /// Of these, who came in below their share where there was no room: as many as the limit at most.
    beyond: AtomicU32,
    tenants: DashMap<Arc<str>, Arc<Own>>,
    /// What requests read of the limit below; 0: it has never been moved.
    current: AtomicU32,
    limit: Mutex<Limit>,
    /// The window that is open: milliseconds after `born`, and what it holds.
    opened: AtomicU64,
    answered: AtomicU32,
    logarithms: AtomicU64,
    marked: AtomicU32,
    peak: AtomicU32,
    /// Microseconds of the last window's requests, and of those that do not wait.
    recent: AtomicU64,
    base: AtomicU64,
    gauge: metrics::Gauge,
}

/// A request's place at the workers, given back when dropped. It tells how the request fared.
pub struct Slot {
    slots: Arc<Slots>,
    own: Arc<Own>,
    since: Instant,
    deadline: Option<Instant>,
    /// Nothing if limits do not adapt.
    bounds: Option<Bounds>,
    told: bool,
    beyond: bool,
}

impl Slots {
    /// Of a model that nothing is known of.
    pub fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            born: Instant::now(),
            inside: AtomicU32::new(0),
            beyond: AtomicU32::new(0),
            tenants: DashMap::new(),
            current: AtomicU32::new(0),
            limit: Mutex::default(),
            opened: AtomicU64::new(0),
            answered: AtomicU32::new(0),
            logarithms: AtomicU64::new(0),
            marked: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            recent: AtomicU64::new(0),
            base: AtomicU64::new(0),
            gauge: metrics::gauge!("sensorium_admission_limit", "model" => model.to_owned()),
        }
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        options: &Options,
        tenants: &Tenants,
        capacity: u32,
        context: &Context,
    ) -> Result<Slot> {
        let ceiling = options.max_inflight;
        let floor = options.min_inflight.max(capacity.saturating_mul(2)).min(ceiling);
        let bounds = Bounds { floor, ceiling, patience: options.patience.as_secs_f64() };
        let since = Instant::now();
        let total = self.inside.fetch_add(1, Relaxed);
        let own = self.own(&context.tenant, tenants);
        let mine = own.count.fetch_add(1, Relaxed);
        let bounds = options.adaptive.then_some(bounds);
        // refused from here on, it gives its place back by being dropped
        let mut slot =
            Slot { slots: self.clone(), own, since, deadline: context.deadline, bounds, told: true, beyond: false };
        if total == 0 {
            self.forget(ceiling, since);
        }
        let limit = match self.current.load(Relaxed) {
            0 => {
                self.publish(ceiling);
                ceiling
            }
            // a cluster that has grown since is used at once
            current => current.max(floor),
        };
        let beyond = limit.saturating_sub(self.beyond.load(Relaxed));
        let ask = Ask { total, own: mine, limit, kept: 0, beyond, priority: context.priority };
        match ask.judge(|| self.share(&slot.own)) {
            Ok(beyond) => slot.beyond = beyond,
            Err(why) => {
                let what = format!("at {}", self.model);
                let soon = Duration::from_micros(self.recent.load(Relaxed));
                let after = soon.clamp(SOON / 2, Duration::from_secs(2));
                return Err(full(why, &what, limit, context, after));
            }
        }
        self.beyond.fetch_add(slot.beyond.into(), Relaxed);
        self.peak.fetch_max(total + 1, Relaxed);
        slot.told = false;
        Ok(slot)
    }

    fn own(&self, tenant: &Arc<str>, tenants: &Tenants) -> Arc<Own> {
        if let Some(own) = self.tenants.get(tenant) {
            return own.clone();
        }
        if self.tenants.len() >= MANY {
            self.tenants.retain(|_, own| own.count.load(Relaxed) > 0);
        }
        let own = || Arc::new(Own { count: AtomicU32::new(0), weight: tenants.of(tenant).weight() });
        self.tenants.entry(tenant.clone()).or_insert_with(own).clone()
    }

    /// What a tenant is due beside those that have requests in work.
    fn share(&self, own: &Own) -> f64 {
        let here = self.tenants.iter().filter(|other| other.count.load(Relaxed) > 0).map(|other| other.weight);
        (own.weight / here.sum::<f64>().max(own.weight)).min(1.0)
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    /// What was learnt long ago is not held against the first request.
    fn forget(&self, ceiling: u32, now: Instant) {
        if self.milliseconds(now).saturating_sub(self.opened.load(Relaxed)) > FORGET_MS
            && let Some(mut limit) = self.limit.try_lock()
        {
            limit.current = f64::from(ceiling);
            self.clear(self.milliseconds(now));
            self.publish(ceiling);
        }
    }

    fn publish(&self, limit: u32) {
        self.current.store(limit, Relaxed);
        self.gauge.set(f64::from(limit));
    }

    /// Begins a window; gives what the one before held.
    fn clear(&self, now: u64) -> Window {
        self.opened.store(now, Relaxed);
        let answered = self.answered.swap(0, Relaxed);
        #[allow(clippy::cast_precision_loss)]
        let logarithm = self.logarithms.swap(0, Relaxed) as f64 / PARTS / f64::from(answered.max(1));
        let marked = self.marked.swap(0, Relaxed);
        // those that are still inside are the least of the next one's peak
        let peak = self.peak.swap(self.inside.load(Relaxed), Relaxed);
        Window { answered, seconds: logarithm.exp() / 1e6, marked, peak }
    }

    /// Closes the window if it is full; whoever sees it first does, and nobody waits for that.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn close(&self, bounds: &Bounds, at: Instant) {
        let now = self.milliseconds(at);
        let is_due = || {
            let age = now.saturating_sub(self.opened.load(Relaxed));
            let count = self.answered.load(Relaxed) + self.marked.load(Relaxed);
            age >= LONG_WINDOW_MS || (age >= WINDOW_MS && count >= ENOUGH)
        };
        if !is_due() {
            return;
        }
        let Some(mut limit) = self.limit.try_lock().filter(|_| is_due()) else { return };
        let window = self.clear(now);
        let before = limit.current;
        limit.step(&window, bounds);
        if limit.current < before {
            let (seconds, base) = (window.seconds, limit.base);
            let (limit, marked, model) = (limit.current, window.marked, &self.model);
            tracing::debug!(model, limit, seconds, base, marked, "limit shrinks");
        }
        if window.answered > 0 {
            self.recent.store((window.seconds * 1e6) as u64, Relaxed);
        }
        self.base.store((limit.base * 1e6) as u64, Relaxed);
        self.publish(limit.current as u32);
    }
}

impl Slot {
    /// Notes how the request ended.
    pub fn ended<T>(&mut self, answer: &Result<T>) {
        match answer {
            Ok(_) => self.answered(),
            Err(Error::Exhausted { .. }) => self.mark(Instant::now()),
            Err(Error::DeadlineExceeded { .. }) => self.missed(Instant::now()),
            // says nothing of the load
            Err(_) => self.told = true,
        }
    }

    /// Notes that how the request ends says nothing of the load: its worker is silent.
    pub fn disregard(&mut self) {
        self.told = true;
    }

    /// Notes that the request was answered, or that its first part was; the first time counts.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn answered(&mut self) {
        let Some(bounds) = self.bounds.filter(|_| !self.told) else { return };
        self.told = true;
        let now = Instant::now();
        let microseconds = now.saturating_duration_since(self.since).as_secs_f64() * 1e6;
        self.slots.logarithms.fetch_add((microseconds.max(1.0).ln() * PARTS) as u64, Relaxed);
        self.slots.answered.fetch_add(1, Relaxed);
        self.slots.close(&bounds, now);
    }

    fn mark(&mut self, now: Instant) {
        let Some(bounds) = self.bounds.filter(|_| !self.told) else { return };
        self.told = true;
        self.slots.marked.fetch_add(1, Relaxed);
        self.slots.close(&bounds, now);
    }

    /// A deadline that the model could not have met on a quiet day speaks against the caller.
    fn missed(&mut self, now: Instant) {
        let base = Duration::from_micros(self.slots.base.load(Relaxed));
        if !base.is_zero() && now.saturating_duration_since(self.since) > base.mul_f64(TOLERANCE) {
            self.mark(now);
        }
        self.told = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // who waits no longer than its deadline drops the request without a word
        if !self.told && self.deadline.is_some() {
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                self.missed(now);
            }
        }
        self.slots.beyond.fetch_sub(self.beyond.into(), Relaxed);
        self.own.count.fetch_sub(1, Relaxed);
        self.slots.inside.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;

    /// A model that works on four requests side by side, and its callers.
    struct Model {
        slots: Arc<Slots>,
        tenants: Tenants,
        options: Options,
        lanes: Semaphore,
        service: AtomicU64,
    }

    impl Model {
        fn new() -> Arc<Self> {
            let options = Options { min_inflight: 2, patience: Duration::ZERO, ..Options::bound(1000) };
            let (slots, tenants) = (Arc::new(Slots::new("m")), Tenants::new(BTreeMap::new()));
            Arc::new(Self { slots, tenants, options, lanes: Semaphore::new(4), service: AtomicU64::new(10) })
        }

        fn enter(&self, context: &Context) -> Result<Slot> {
            self.slots.enter(&self.options, &self.tenants, 4, context)
        }

        fn limit(&self) -> u32 {
            self.slots.current.load(Relaxed)
        }

        /// One request.
        async fn ask(&self, context: &Context) -> Result<()> {
            let mut slot = self.enter(context)?;
            let answer = context.bound("waiting", async {
                let _lane = self.lanes.acquire().await.unwrap();
                tokio::time::sleep(Duration::from_millis(self.service.load(Relaxed))).await;
                Ok(())
            });
            let answer = answer.await;
            slot.ended(&answer);
            answer
        }

        /// So many callers for so many seconds, each with a deadline or none; gives how many were answered and refused.
        async fn load(
            self: &Arc<Self>,
            tenant: &str,
            callers: usize,
            seconds: u64,
            deadline: Option<u64>,
        ) -> (u32, u32) {
            let until = Instant::now() + Duration::from_secs(seconds);
            let mut all = JoinSet::new();
            for _ in 0..callers {
                let (model, tenant): (_, Arc<str>) = (self.clone(), tenant.into());
                all.spawn(async move {
                    let (mut answered, mut refused) = (0, 0);
                    while Instant::now() < until {
                        let deadline = deadline.map(|after| Instant::now() + Duration::from_millis(after));
                        match model.ask(&Context { tenant: tenant.clone(), deadline, ..Context::default() }).await {
                            Ok(()) => answered += 1,
                            Err(Error::Exhausted { .. }) => {
                                refused += 1;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            Err(_) => {}
                        }
                    }
                    (answered, refused)
                });
            }
            all.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_finds_what_the_model_bears_and_recovers() {
        let model = Model::new();
        assert_eq!(model.load("", 2, 5, None).await.1, 0);
        assert_eq!(model.limit(), 1000);
        let (answered, refused) = model.load("", 200, 20, None).await;
        assert!(model.limit() < 40, "{}", model.limit());
        // 400 a second is what it can do
        assert!(answered > 7000 && refused > 1000, "{answered} answered, {refused} refused");
        model.load("", 4, 60, None).await;
        assert!(model.limit() > 900, "{}", model.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_models_stay_busy() {
        let model = Model::new();
        model.service.store(30_000, Relaxed);
        let (answered, refused) = model.load("", 8, 300, None).await;
        assert_eq!(refused, 0);
        assert!(answered >= 40, "{answered}");
    }

    #[tokio::test(start_paused = true)]
    async fn missed_deadlines_bring_it_down_unless_they_could_never_be_met() {
        let model = Model::new();
        model.load("", 2, 5, None).await;
        model.load("", 2, 20, Some(9)).await;
        assert_eq!(model.limit(), 1000, "nobody can do it in 9 ms");
        model.load("", 200, 5, Some(100)).await;
        assert!(model.limit() < 100, "{}", model.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_of_workers_bring_it_down_and_silence_is_forgotten() {
        let model = Model::new();
        for _ in 0..10 {
            let mut all: Vec<Slot> =
                (0..100).map(|_| model.enter(&Context::default())).filter_map(Result::ok).collect();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let full = Error::Exhausted { reason: "QUEUE_FULL", message: String::new(), retry_after: SOON };
            all.iter_mut().for_each(|slot| slot.ended::<()>(&Err(full.clone())));
        }
        assert_eq!(model.limit(), 8, "twice what works side by side");
        tokio::time::sleep(Duration::from_secs(11)).await;
        model.ask(&Context::default()).await.unwrap();
        assert_eq!(model.limit(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_greedy_tenant_leaves_room_for_another() {
        let model = Model::new();
        model.load("greedy", 2, 5, None).await;
        let (greedy, small) = tokio::join!(model.load("greedy", 200, 20, None), model.load("small", 1, 20, None));
        assert!(greedy.1 > 1000, "{greedy:?}");
        assert_eq!(small.1, 0, "{small:?}");
        assert!(small.0 > 100, "{small:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_limit_stays() {
        let mut model = Model::new();
        Arc::get_mut(&mut model).unwrap().options.adaptive = false;
        model.load("", 2, 5, None).await;
        model.load("", 200, 5, Some(50)).await;
        assert_eq!(model.limit(), 1000);
    }
}
