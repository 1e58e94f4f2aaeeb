//! The door: who comes in, and who is told to come again. Nobody waits here: a queue at the door would only hide the
//! overload.
//!
//! Two gates stand one behind the other. At the door itself ([`Admission::enter`]) a request is one of at most
//! `max_inflight`, and the quotas of its tenant hold. On its way to the workers of a model ([`Admission::slot`]) it is
//! one of as many as that model bears at the moment (`slots.rs`). Both refuse low priorities first, and then tenants
//! that have more than their share (`gate.rs`).

mod gate;
mod limit;
mod slots;
mod tenants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use self::gate::{Ask, Full};
pub use self::slots::{Slot, Slots};
pub use self::tenants::Quota;
use self::tenants::{Tenant, Tenants};
use crate::error::{Error, Result};
use crate::request::Context;

/// Of what the door lets in, the part that is kept for tenants below their share, as soon as there are several.
const KEPT: u32 = 8;
/// When to come again, where nothing tells better.
const SOON: Duration = Duration::from_millis(100);

/// How much is let in.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests inside at most.
    pub max_inflight: u32,
    /// Of each model, the least that its limit shrinks to; see `slots.rs`.
    pub min_inflight: u32,
    /// Whether the limits of models adapt.
    pub adaptive: bool,
    /// What waiting may add to the time that a model takes by itself, before its limit shrinks.
    pub patience: Duration,
    /// By tenant; `default` is of those that are not named, `anonymous` of requests without one.
    pub tenants: BTreeMap<String, Quota>,
}

impl Options {
    /// At most `max_inflight` requests, whosever they are.
    pub fn bound(max_inflight: u32) -> Self {
        let patience = Duration::from_secs(10);
        Self { max_inflight, min_inflight: 16, adaptive: true, patience, tenants: BTreeMap::new() }
    }
}

/// Hands out permits; a cheap handle.
#[derive(Clone)]
pub struct Admission {
    door: Arc<Door>,
}

struct Door {
    options: Options,
    tenants: Tenants,
    inside: AtomicU32,
    /// Those that a drain waits for and that have no place.
    lingering: AtomicU32,
    draining: AtomicBool,
    /// Draining has begun.
    began: Notify,
    empty: Notify,
    in_flight: metrics::Gauge,
}

/// The right to be inside, given back when dropped.
pub struct Permit {
    door: Arc<Door>,
    tenant: Option<Arc<Tenant>>,
}

impl Permit {
    /// Gives back, besides the place, what the request took of its tenant's rate: nothing came of it.
    pub fn came_to_nothing(self) {
        if let Some(tenant) = &self.tenant {
            tenant.give_back();
        }
    }
}

/// Something that a drain waits for and that takes no place; over when dropped.
pub struct Lingering {
    door: Arc<Door>,
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.door.lingering.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.door.empty.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.door.in_flight.decrement(1);
        if let Some(tenant) = &self.tenant {
            tenant.left();
        }
        if self.door.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.door.empty.notify_waiters();
        }
    }
}

/// A refusal that is counted.
fn refused(label: &'static str, reason: &'static str, message: String, retry_after: Duration) -> Error {
    metrics::counter!("sensorium_admission_refused_total", "reason" => label).increment(1);
    Error::Exhausted { reason, message, retry_after }
}

/// Nobody can be expected to answer in time: in `expected` seconds, where `left` are left.
pub fn unmeetable(model: &str, expected: f64, left: Duration) -> Error {
    let expected = Duration::try_from_secs_f64(expected).unwrap_or(Duration::MAX);
    let (expected_ms, left_ms) = (expected.as_millis(), left.as_millis());
    let message = format!("{model} is expected to take {expected_ms} ms of the {left_ms} ms that are left");
    let after = expected.saturating_sub(left).clamp(Duration::from_millis(10), Duration::from_secs(60));
    refused("deadline", "DEADLINE_UNMEETABLE", message, after)
}

/// The refusal of a gate in front of `what`.
fn full(full: Full, what: &str, limit: u32, context: &Context, retry_after: Duration) -> Error {
    match full {
        Full::All => {
            let message = format!("{limit} requests are in work {what}, the limit");
            refused("concurrency", "CONCURRENCY_LIMIT", message, retry_after)
        }
        Full::Share => {
            let tenant = tenants::called(&context.tenant);
            let message = format!("tenant '{tenant}' has more than its share of the {limit} requests in work {what}");
            refused("fair_share", "FAIR_SHARE", message, retry_after)
        }
        Full::Priority => {
            let priority = context.priority;
            let message = format!("what is left of {limit} requests in work {what} is kept from priority {priority}");
            refused("priority", "LOW_PRIORITY", message, retry_after)
        }
    }
}

impl Admission {
    /// A door with these limits.
    pub fn new(options: Options) -> Self {
        let tenants = Tenants::new(options.tenants.clone());
        let in_flight = metrics::gauge!("sensorium_inflight_requests");
        let (inside, lingering, draining) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
        let (began, empty) = (Notify::new(), Notify::new());
        Self { door: Arc::new(Door { options, tenants, inside, lingering, draining, began, empty, in_flight }) }
    }

    /// Quotas are of the whole cluster: each of this many gateways gives its part.
    pub fn share_among(&self, gateways: usize) {
        self.door.tenants.share_among(gateways);
    }

    /// Lets a request in, or says when to come again.
    ///
    /// # Errors
    /// `Unavailable` while draining; `Exhausted` with the reason `CONCURRENCY_LIMIT`, `LOW_PRIORITY`, `FAIR_SHARE` or
    /// `QUOTA`.
    pub fn enter(&self, context: &Context) -> Result<Permit> {
        let door = &self.door;
        self.must_not_drain()?;
        let tenant = door.tenants.of(&context.tenant);
        let total = door.inside.fetch_add(1, Ordering::AcqRel);
        let own = tenant.entered();
        door.in_flight.increment(1);
        // refused from here on, it leaves again by being dropped
        let permit = Permit { door: door.clone(), tenant: Some(tenant.clone()) };
        let limit = door.options.max_inflight;
        let beyond = limit.saturating_sub(total);
        let ask = Ask { total, own, limit, kept: limit / KEPT, beyond, priority: context.priority };
        ask.judge(|| door.tenants.share(&tenant)).map_err(|why| full(why, "at this gateway", limit, context, SOON))?;
        door.tenants.within_quota(&tenant, own, &context.tenant)?;
        Ok(permit)
    }

    /// The same for who knows no tenants and no priorities, such as a worker, whose callers have seen to them.
    ///
    /// # Errors
    /// `Unavailable` while draining, `Exhausted` when full.
    pub fn pass(&self) -> Result<Permit> {
        self.must_not_drain()?;
        let (total, limit) = (self.door.inside.fetch_add(1, Ordering::AcqRel), self.door.options.max_inflight);
        self.door.in_flight.increment(1);
        let permit = Permit { door: self.door.clone(), tenant: None };
        if total >= limit {
            return Err(full(Full::All, "here", limit, &Context::default(), SOON));
        }
        Ok(permit)
    }

    /// Has a drain wait for what is uploaded slowly, or not at all for a while: it takes no place from others meanwhile.
    ///
    /// # Errors
    /// `Unavailable` while draining.
    pub fn linger(&self) -> Result<Lingering> {
        self.must_not_drain()?;
        self.door.lingering.fetch_add(1, Ordering::AcqRel);
        Ok(Lingering { door: self.door.clone() })
    }

    /// Lets a request that is inside on to the workers of a model, which work on `capacity` requests side by side.
    ///
    /// # Errors
    /// `Exhausted` with the reason `CONCURRENCY_LIMIT`, `LOW_PRIORITY` or `FAIR_SHARE`.
    pub fn slot(&self, slots: &Arc<Slots>, capacity: u32, context: &Context) -> Result<Slot> {
        slots.enter(&self.door.options, &self.door.tenants, capacity, context)
    }

    /// Whoever only looks on needs no permit, and is not waited for.
    ///
    /// # Errors
    /// `Unavailable` while draining.
    pub fn must_not_drain(&self) -> Result<()> {
        if !self.is_draining() {
            return Ok(());
        }
        metrics::counter!("sensorium_admission_refused_total", "reason" => "draining").increment(1);
        Err(Error::Unavailable {
            reason: "DRAINING",
            message: "the server is draining".to_owned(),
            retry_after: Duration::from_secs(1),
        })
    }

    /// Requests inside.
    pub fn in_flight(&self) -> usize {
        self.door.inside.load(Ordering::Acquire) as usize
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.door.draining.load(Ordering::Acquire)
    }

    /// Returns when new requests are refused: whoever only looks on is better off elsewhere.
    pub async fn draining(&self) {
        let mut began = std::pin::pin!(self.door.began.notified());
        began.as_mut().enable();
        if !self.is_draining() {
            began.await;
        }
    }

    /// Refuses all that come from now on, and waits for those inside.
    pub async fn drain(&self) {
        self.door.draining.store(true, Ordering::Release);
        self.door.began.notify_waiters();
        loop {
            let mut emptied = std::pin::pin!(self.door.empty.notified());
            emptied.as_mut().enable();
            if self.in_flight() == 0 && self.door.lingering.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tenant: &str) -> Context {
        Context { tenant: tenant.into(), ..Context::default() }
    }

    fn reason<T>(refused: Result<T>) -> &'static str {
        match refused.err() {
            Some(Error::Exhausted { reason, retry_after, .. }) if retry_after > Duration::ZERO => reason,
            other => panic!("expected a refusal that says when to come again, got {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_holds_and_a_drain_waits_for_those_inside() {
        let admission = Admission::new(Options::bound(2));
        let one = admission.enter(&of("")).unwrap();
        let two = admission.pass().unwrap();
        assert_eq!(reason(admission.enter(&of(""))), "CONCURRENCY_LIMIT");
        assert_eq!(reason(admission.pass()), "CONCURRENCY_LIMIT");
        assert_eq!(admission.in_flight(), 2);
        drop(one);
        let three = admission.enter(&of("")).unwrap();
        let draining = tokio::spawn({
            let admission = admission.clone();
            async move { admission.drain().await }
        });
        tokio::task::yield_now().await;
        assert_eq!(admission.enter(&of("")).err().unwrap().code(), "unavailable");
        drop(two);
        tokio::task::yield_now().await;
        assert!(!draining.is_finished());
        drop(three);
        draining.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_lingers_takes_no_place_and_is_waited_for() {
        let admission = Admission::new(Options::bound(1));
        let lingering = (admission.linger().unwrap(), admission.linger().unwrap());
        drop(admission.enter(&of("")).unwrap());
        let draining = tokio::spawn({
            let admission = admission.clone();
            async move { admission.drain().await }
        });
        tokio::task::yield_now().await;
        assert!(!draining.is_finished() && admission.linger().is_err());
        drop(lingering);
        draining.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_to_nothing_costs_no_rate() {
        let quota = Quota { requests_per_second: 0.001, burst: 2, ..Quota::default() };
        let admission = Admission::new(Options { tenants: [("acme".to_owned(), quota)].into(), ..Options::bound(8) });
        for _ in 0..10 {
            admission.enter(&of("acme")).unwrap().came_to_nothing();
        }
        drop((admission.enter(&of("acme")).unwrap(), admission.enter(&of("acme")).unwrap()));
        assert_eq!(reason(admission.enter(&of("acme"))), "QUOTA");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_alone_has_everything_and_yields_to_another_one() {
        let admission = Admission::new(Options::bound(32));
        let mut greedy: Vec<Permit> =
            std::iter::from_fn(|| admission.enter(&Context { priority: 1, ..of("greedy") }).ok()).collect();
        assert_eq!(greedy.len(), 32, "alone");
        // who comes to a full house is refused once, and remembered
        assert_eq!(reason(admission.enter(&of("small"))), "CONCURRENCY_LIMIT");
        greedy.truncate(31);
        assert_eq!(reason(admission.enter(&of("greedy"))), "FAIR_SHARE");
        let small = admission.enter(&of("small")).unwrap();
        greedy.truncate(20);
        // there is room for both up to the part that is kept
        while let Ok(permit) = admission.enter(&Context { priority: 1, ..of("greedy") }) {
            greedy.push(permit);
        }
        assert_eq!(greedy.len(), 27);
        let more: Vec<Permit> = std::iter::from_fn(|| admission.enter(&of("small")).ok()).collect();
        assert_eq!(more.len(), 4, "the part that is kept");
        drop((small, more));
        tokio::time::advance(Duration::from_secs(11)).await;
        while let Ok(permit) = admission.enter(&Context { priority: 1, ..of("greedy") }) {
            greedy.push(permit);
        }
        assert_eq!(greedy.len(), 32, "alone again");
    }

    #[tokio::test(start_paused = true)]
    async fn low_priorities_are_refused_first() {
        let admission = Admission::new(Options::bound(16));
        let mut inside = Vec::new();
        for (priority, most) in [(u32::MAX, 8), (3, 12), (0, 15), (2, 15), (1, 16)] {
            let context = Context { priority, ..of("") };
            let refusal = loop {
                match admission.enter(&context) {
                    Ok(permit) => inside.push(permit),
                    refused => break reason(refused),
                }
            };
            assert_eq!(inside.len(), most, "priority {priority}");
            assert_eq!(refusal, if most < 15 { "LOW_PRIORITY" } else { "CONCURRENCY_LIMIT" });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_leave_nothing_behind() {
        let quota = Quota { max_inflight: 2, ..Quota::default() };
        let tenants = [("acme".to_owned(), quota)].into();
        let admission = Admission::new(Options { tenants, ..Options::bound(3) });
        let inside = (admission.enter(&of("acme")).unwrap(), admission.enter(&of("acme")).unwrap());
        for _ in 0..10 {
            assert_eq!(reason(admission.enter(&of("acme"))), "QUOTA");
        }
        assert_eq!(admission.in_flight(), 2);
        drop(inside);
        assert_eq!(admission.in_flight(), 0);
        assert!(admission.enter(&of("acme")).is_ok());
    }
}
