//! What each tenant is due: a rate, a number of requests in work, and a weight beside others.
//!
//! Quotas are of the whole cluster. Gateways share no state: each gives its part of them, by how many gateways there
//! are. So a tenant gets all of its quota if its requests are spread over the gateways, and never more.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use governor::RateLimiter;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

use super::{SOON, refused};
use crate::error::Result;

/// Of tenants that have no section of their own.
const DEFAULT: &str = "default";
/// Of requests without a tenant.
const ANONYMOUS: &str = "anonymous";
/// How long a tenant that sends nothing is taken to be there.
const HERE_MS: u64 = 10_000;
/// From so many tenants on, those that have long been away are forgotten.
const MANY: usize = 1024;
const AWAY_MS: u64 = 3_600_000;
/// Where a token may name any tenant, so many at most are remembered beside those that are there.
const TOO_MANY: usize = 8 * MANY;

/// What a tenant is due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Requests per second on average, over all gateways; more are refused. From 0.001 to 1000000; 0: any number.
    /// Default: 0.
    #[serde(deserialize_with = "rate")]
    pub requests_per_second: f64,
    /// Requests that may come at once after a pause, over all gateways. Default: 0, as many as in a second.
    pub burst: u32,
    /// Requests in work at most, over all gateways; 0: any number. Default: 0.
    pub max_inflight: u32,
    /// Share beside other tenants where there is not room for all: who has 2 gets twice as much as who has 1. More than
    /// 0, at most 1000. Default: 1.
    #[serde(deserialize_with = "weight")]
    pub weight: f64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { requests_per_second: 0.0, burst: 0, max_inflight: 0, weight: 1.0 }
    }
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let rate = f64::deserialize(deserializer)?;
    if rate == 0.0 || (0.001..=1e6).contains(&rate) {
        return Ok(rate);
    }
    Err(serde::de::Error::custom("expected 0 or a number from 0.001 to 1000000"))
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let weight = f64::deserialize(deserializer)?;
    if weight > 0.0 && weight <= 1000.0 {
        return Ok(weight);
    }
    Err(serde::de::Error::custom("expected more than 0, at most 1000"))
}

impl Quota {
    /// The rate of one of so many gateways.
    fn bucket(&self, gateways: u32) -> Option<governor::Quota> {
        let one = |all: u32| NonZeroU32::new(all.div_ceil(gateways)).unwrap_or(NonZeroU32::MIN);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let burst = if self.burst == 0 { self.requests_per_second.ceil() as u32 } else { self.burst };
        let period = Duration::try_from_secs_f64(f64::from(gateways) / self.requests_per_second).ok()?;
        governor::Quota::with_period(period).map(|quota| quota.allow_burst(one(burst)))
    }
}

/// What the tenant of a request is called in messages and in the configuration.
pub(super) fn called(tenant: &str) -> &str {
    if tenant.is_empty() { ANONYMOUS } else { tenant }
}

/// Tokio's clock, so that tests may pause it.
#[derive(Clone, Debug)]
struct Ticks(Instant);

impl Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Duration>>;

/// A rate limiter, and for how many gateways it was made.
struct Bucket {
    gateways: u32,
    limiter: Limiter,
}

/// A tenant that has been seen.
pub(super) struct Tenant {
    quota: Quota,
    born: Instant,
    inside: AtomicU32,
    /// Milliseconds after `born` at which it last came or left.
    seen: AtomicU64,
    bucket: ArcSwapOption<Bucket>,
    /// What was taken of the rate for nothing, and may be taken again.
    given_back: AtomicU32,
}

impl Tenant {
    /// Gives one request's part of the rate back; no more than a burst's, should the rate be changed meanwhile.
    pub(super) fn give_back(&self) {
        let most = self.quota.burst.max(1);
        if self.quota.requests_per_second > 0.0 {
            let _ = self.given_back.fetch_update(Relaxed, Relaxed, |given| (given < most).then_some(given + 1));
        }
    }

    fn takes_what_was_given_back(&self) -> bool {
        self.given_back.fetch_update(Relaxed, Relaxed, |given| given.checked_sub(1)).is_ok()
    }

    /// One of its requests comes in; how many there were.
    pub(super) fn entered(&self) -> u32 {
        self.touch();
        self.inside.fetch_add(1, Relaxed)
    }

    /// One of its requests leaves.
    pub(super) fn left(&self) {
        self.touch();
        self.inside.fetch_sub(1, Relaxed);
    }

    /// Its weight beside others.
    pub(super) fn weight(&self) -> f64 {
        self.quota.weight
    }

    fn touch(&self) {
        self.seen.store(self.now(), Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it was there within so many milliseconds.
    fn was_here(&self, milliseconds: u64) -> bool {
        self.inside.load(Relaxed) > 0 || self.now().saturating_sub(self.seen.load(Relaxed)) < milliseconds
    }
}

/// All of them.
pub(super) struct Tenants {
    quotas: BTreeMap<String, Quota>,
    known: DashMap<Arc<str>, Arc<Tenant>>,
    gateways: AtomicU32,
    born: Instant,
}

impl Tenants {
    pub(super) fn new(quotas: BTreeMap<String, Quota>) -> Self {
        Self { quotas, known: DashMap::new(), gateways: AtomicU32::new(1), born: Instant::now() }
    }

    /// See [`super::Admission::share_among`].
    pub(super) fn share_among(&self, gateways: usize) {
        self.gateways.store(u32::try_from(gateways).unwrap_or(u32::MAX).max(1), Relaxed);
    }

    /// The tenant of this name; empty: of requests without one.
    pub(super) fn of(&self, name: &Arc<str>) -> Arc<Tenant> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        if self.known.len() >= MANY {
            self.known.retain(|_, tenant| tenant.was_here(AWAY_MS));
        }
        if self.known.len() >= TOO_MANY {
            self.known.retain(|_, tenant| tenant.was_here(HERE_MS));
        }
        let quota = self.quotas.get(called(name)).or_else(|| self.quotas.get(DEFAULT));
        let tenant = || Tenant {
            quota: quota.cloned().unwrap_or_default(),
            born: self.born,
            inside: AtomicU32::new(0),
            seen: AtomicU64::new(0),
            bucket: ArcSwapOption::empty(),
            given_back: AtomicU32::new(0),
        };
        self.known.entry(name.clone()).or_insert_with(|| Arc::new(tenant())).clone()
    }

    /// What the tenant is due beside those that are there, itself included: up to 1, if it is alone.
    pub(super) fn share(&self, tenant: &Tenant) -> f64 {
        let here = self.known.iter().filter(|known| known.was_here(HERE_MS)).map(|known| known.weight());
        (tenant.weight() / here.sum::<f64>().max(tenant.weight())).min(1.0)
    }

    /// Takes one request from what the tenant is due, of which it has `own` in work.
    ///
    /// # Errors
    /// `Exhausted` with the reason `QUOTA`, and when the next one may come.
    pub(super) fn within_quota(&self, tenant: &Tenant, own: u32, name: &str) -> Result<()> {
        let (quota, gateways) = (&tenant.quota, self.gateways.load(Relaxed));
        let most = quota.max_inflight.div_ceil(gateways);
        let here = || if gateways > 1 { format!(" at one of {gateways} gateways") } else { String::new() };
        if most > 0 && own >= most {
            let message = format!("tenant '{}' has {own} requests in work{}, its quota", called(name), here());
            return Err(refused("quota", "QUOTA", message, SOON));
        }
        if quota.requests_per_second == 0.0 || tenant.takes_what_was_given_back() {
            return Ok(());
        }
        let mut bucket = tenant.bucket.load_full();
        if bucket.as_ref().is_none_or(|bucket| bucket.gateways != gateways) {
            // a bucket of another size starts full: gateways that come and go give a burst away
            bucket = quota.bucket(gateways).map(|size| {
                Arc::new(Bucket { gateways, limiter: RateLimiter::direct_with_clock(size, Ticks(self.born)) })
            });
            tenant.bucket.store(bucket.clone());
        }
        let Some(bucket) = bucket else { return Ok(()) };
        bucket.limiter.check().map_err(|until| {
            let rate = quota.requests_per_second / f64::from(gateways);
            let message = format!("tenant '{}' sends more than {rate} requests per second{}", called(name), here());
            let wait = until.wait_time_from(bucket.limiter.clock().now());
            refused("quota", "QUOTA", message, wait.max(Duration::from_millis(1)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn tenants(sections: &[(&str, Quota)]) -> Tenants {
        Tenants::new(sections.iter().map(|(name, quota)| ((*name).to_owned(), quota.clone())).collect())
    }

    /// Requests that come through at once, and when the next one may.
    fn burst(tenants: &Tenants, name: &str) -> (usize, Duration) {
        let tenant = tenants.of(&name.into());
        for passed in 0..1000 {
            if let Err(error) = tenants.within_quota(&tenant, 0, name) {
                let Error::Exhausted { reason: "QUOTA", retry_after, .. } = error else { panic!("{error:?}") };
                return (passed, retry_after);
            }
        }
        (1000, Duration::ZERO)
    }

    fn per_second(requests_per_second: f64, burst: u32) -> Quota {
        Quota { requests_per_second, burst, ..Quota::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_and_the_refusal_says_when_the_next_may_come() {
        let tenants = tenants(&[("acme", per_second(10.0, 3)), ("default", per_second(2.0, 0))]);
        assert_eq!(burst(&tenants, "acme"), (3, Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(40)).await;
        assert_eq!(burst(&tenants, "acme"), (0, Duration::from_millis(60)));
        tokio::time::advance(Duration::from_millis(60)).await;
        assert_eq!(burst(&tenants, "acme").0, 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(burst(&tenants, "acme").0, 3, "no more than the burst after a pause");
        // each that is not named has what the default says, for itself
        assert_eq!((burst(&tenants, "one").0, burst(&tenants, "two").0, burst(&tenants, "").0), (2, 2, 2));
        assert_eq!(burst(&super::Tenants::new(BTreeMap::new()), "acme").0, 1000, "no quota");
    }

    #[tokio::test(start_paused = true)]
    async fn gateways_give_their_part() {
        let quota = Quota { max_inflight: 5, ..per_second(10.0, 8) };
        let tenants = tenants(&[("acme", quota)]);
        tenants.share_among(4);
        assert_eq!(burst(&tenants, "acme"), (2, Duration::from_millis(400)));
        tokio::time::advance(Duration::from_secs(10)).await;
        let tenant = tenants.of(&"acme".into());
        assert!(tenants.within_quota(&tenant, 1, "acme").is_ok());
        assert!(tenants.within_quota(&tenant, 2, "acme").unwrap_err().to_string().contains("one of 4 gateways"));
        tenants.share_among(0);
        assert_eq!(burst(&tenants, "acme"), (8, Duration::from_millis(100)));
        assert!(tenants.within_quota(&tenant, 5, "acme").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn shares_go_by_weight_among_those_who_are_there() {
        let tenants = tenants(&[("heavy", Quota { weight: 3.0, ..Quota::default() })]);
        let (heavy, light) = (tenants.of(&"heavy".into()), tenants.of(&"light".into()));
        heavy.entered();
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(tenants.share(&heavy), 1.0);
        light.entered();
        light.left();
        assert_eq!((tenants.share(&heavy), tenants.share(&light)), (0.75, 0.25));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(tenants.share(&heavy), 1.0, "the other one has gone");
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_that_have_gone_are_forgotten() {
        let tenants = tenants(&[]);
        let stays = tenants.of(&"stays".into());
        stays.entered();
        for n in 0..TOO_MANY + 500 {
            let tenant = tenants.of(&format!("tenant-{n}").into());
            tenant.entered();
            tenant.left();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(tenants.known.len() <= TOO_MANY + 1, "{}", tenants.known.len());
        assert!(Arc::ptr_eq(&stays, &tenants.of(&"stays".into())), "who has requests in work is known");
    }

    #[test]
    fn a_quota_that_makes_no_sense_is_named() {
        for (text, said) in [
            ("weight = 0", "more than 0"),
            ("weight = nan", "more than 0"),
            ("requests_per_second = -1.0", "0.001"),
            ("requests_per_second = inf", "0.001"),
            ("burts = 1", "burts"),
        ] {
            let error = toml::from_str::<Quota>(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(toml::from_str::<Quota>("requests_per_second = 5").unwrap(), per_second(5.0, 0));
    }
}
