//! Answers that have been computed before: in this process first, then in Redis.
//!
//! The near-cache is moka, bounded by bytes and time. Behind it stands Redis, if there is one ([`redis`]); the embedded
//! twin is the near-cache alone. Equal look-ups that run at the same time compute once (single-flight), and that goes
//! for each item of a batch: who asks first holds a [`Claim`], others wait for it, and one of them takes it over if the first turns
//! away. Keys are the caller's: a 128-bit hash
//! of everything that the answer depends on, so nothing is ever invalidated but by another key.

mod flight;
pub mod redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use moka::sync::Cache as Moka;

pub use self::flight::{Claim, Landed, Waiter};
use self::flight::{Flights, Place};
use self::redis::Far;
use crate::health::Health;

/// Content hash of everything that the answer depends on.
pub type Key = u128;

/// What an entry of the near-cache costs beside its value: key, hash and queue nodes.
const OVERHEAD: usize = 128;

/// How much is kept, how long, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the near-cache at most; 0: none.
    pub near_bytes: u64,
    /// A value is forgotten after this long.
    pub time_to_live: Duration,
    /// Longer values are not kept.
    pub max_value_bytes: usize,
    /// The cache behind the near one.
    pub redis: Option<redis::Options>,
}

/// What a look-up gives.
pub enum Found {
    /// The value.
    Value(Bytes),
    /// Somebody is computing it.
    Wait(Waiter),
    /// Nobody has it: whoever asked computes it.
    Claim(Claim),
}

/// Look-ups since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered by the cache.
    pub hits: u64,
    /// All.
    pub lookups: u64,
}

struct Counters {
    near: Counter,
    far: Counter,
    shared: Counter,
    miss: Counter,
    hits: AtomicU64,
    lookups: AtomicU64,
}

/// A cheap handle to the cache.
#[derive(Clone)]
pub struct Cache {
    near: Option<Moka<Key, Bytes>>,
    far: Option<Arc<Far>>,
    flights: Flights,
    counters: Arc<Counters>,
    max_value_bytes: usize,
}

impl Cache {
    /// Starts it; Redis is connected to in the background, and missed until it is there.
    ///
    /// # Errors
    /// A URL of Redis, or a file that goes with it, is not what it must be.
    pub fn start(options: &Options) -> Result<Self, redis::Error> {
        let near = (options.near_bytes > 0).then(|| {
            Moka::builder()
                .max_capacity(options.near_bytes)
                .weigher(|_, value: &Bytes| u32::try_from(value.len() + OVERHEAD).unwrap_or(u32::MAX))
                .time_to_live(options.time_to_live)
                .build()
        });
        let far = options.redis.as_ref().map(|redis| Far::start(redis, options.time_to_live)).transpose()?;
        let count = |outcome| metrics::counter!("sensorium_cache_lookups_total", "outcome" => outcome);
        let counters = Counters {
            near: count("near"),
            far: count("redis"),
            shared: count("shared"),
            miss: count("miss"),
            hits: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
        };
        let flights = Flights::default();
        Ok(Self { near, far, flights, counters: Arc::new(counters), max_value_bytes: options.max_value_bytes })
    }

    /// The values of these keys, in their order. Claims are to be [fulfilled](Cache::fulfil) before any waiter is awaited:
    /// two callers that hold what the other waits for would wait for ever.
    pub async fn look_up(&self, keys: &[Key]) -> Vec<Found> {
        let mut found: Vec<Found> = keys.iter().map(|&key| self.look_near(key)).collect();
        let claimed: Vec<Key> = found.iter().filter_map(|found| found.claim().map(Claim::key)).collect();
        if let (Some(far), false) = (&self.far, claimed.is_empty()) {
            let mut values = far.get(&claimed).await.into_iter();
            for found in found.iter_mut().filter(|found| found.claim().is_some()) {
                if let Some(value) = values.next().flatten() {
                    self.counters.far.increment(1);
                    self.counters.hits.fetch_add(1, Relaxed);
                    if let Found::Claim(claim) = std::mem::replace(found, Found::Value(value.clone())) {
                        self.land(claim, value);
                    }
                }
            }
        }
        let missed = found.iter().filter(|found| found.claim().is_some()).count() as u64;
        if missed > 0 {
            self.counters.miss.increment(missed);
        }
        self.counters.lookups.fetch_add(keys.len() as u64, Relaxed);
        found
    }

    fn look_near(&self, key: Key) -> Found {
        if let Some(value) = self.near.as_ref().and_then(|near| near.get(&key)) {
            return self.hit(value);
        }
        match self.flights.enter(key) {
            Place::Behind(waiter) => {
                self.counters.shared.increment(1);
                self.counters.hits.fetch_add(1, Relaxed);
                Found::Wait(waiter)
            }
            // one that landed between the two looks is there now
            Place::First(claim) => match self.near.as_ref().and_then(|near| near.get(&key)) {
                Some(value) => {
                    claim.land(&value);
                    self.hit(value)
                }
                None => Found::Claim(claim),
            },
        }
    }

    fn hit(&self, value: Bytes) -> Found {
        self.counters.near.increment(1);
        self.counters.hits.fetch_add(1, Relaxed);
        Found::Value(value)
    }

    /// Keeps values that were computed, here and in Redis, and gives them to those who wait. Does not wait for Redis.
    pub fn fulfil(&self, computed: Vec<(Claim, Bytes)>) {
        let mut kept = Vec::with_capacity(computed.len());
        for (claim, value) in computed {
            if value.len() <= self.max_value_bytes {
                kept.push((claim.key(), value.clone()));
                self.land(claim, value);
            } else {
                claim.land(&value);
            }
        }
        if let (Some(far), false) = (&self.far, kept.is_empty()) {
            far.put(kept);
        }
    }

    /// Kept before it is given away: whoever comes between finds it in one of the two.
    fn land(&self, claim: Claim, value: Bytes) {
        if let Some(near) = &self.near {
            near.insert(claim.key(), value.clone());
        }
        claim.land(&value);
    }

    /// How Redis fares.
    pub fn health(&self) -> Health {
        self.far.as_ref().map_or(Health::Embedded, |far| far.health())
    }

    /// What is wrong with Redis, in its own words; empty while nothing is.
    pub fn trouble(&self) -> String {
        self.far.as_ref().map(|far| far.trouble()).unwrap_or_default()
    }

    /// Look-ups since the start.
    pub fn counts(&self) -> Counts {
        Counts { hits: self.counters.hits.load(Relaxed), lookups: self.counters.lookups.load(Relaxed) }
    }
}

impl Found {
    fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Claim(claim) => Some(claim),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(near_bytes: u64) -> Cache {
        let time_to_live = Duration::from_secs(60);
        Cache::start(&Options { near_bytes, time_to_live, max_value_bytes: 1000, redis: None }).unwrap()
    }

    async fn claim(cache: &Cache, key: Key) -> Claim {
        match cache.look_up(&[key]).await.pop() {
            Some(Found::Claim(claim)) => claim,
            _ => panic!("expected a claim"),
        }
    }

    async fn value(waiter: Waiter) -> Bytes {
        match waiter.wait().await {
            Landed::Value(value) => value,
            _ => panic!("expected a value"),
        }
    }

    async fn waiter(cache: &Cache, key: Key) -> Waiter {
        match cache.look_up(&[key]).await.pop() {
            Some(Found::Wait(waiter)) => waiter,
            _ => panic!("expected to wait"),
        }
    }

    #[tokio::test]
    async fn equal_look_ups_compute_once_and_the_rest_of_a_batch_is_not_held_up() {
        let cache = cache(1 << 20);
        let first = claim(&cache, 7).await;
        // another batch with the same item, twice, beside one of its own
        let mut found = cache.look_up(&[7, 8, 8]).await;
        let Some(Found::Wait(twice)) = found.pop() else { panic!("8 is claimed by this very batch") };
        let Some(Found::Claim(own)) = found.pop() else { panic!("8 is new") };
        let Some(Found::Wait(waiter)) = found.pop() else { panic!("7 is being computed") };
        cache.fulfil(vec![(own, Bytes::from_static(b"eight"))]);
        assert_eq!(value(twice).await, "eight");
        cache.fulfil(vec![(first, Bytes::from_static(b"seven"))]);
        assert_eq!(value(waiter).await, "seven");
        assert!(matches!(cache.look_up(&[7]).await.pop(), Some(Found::Value(value)) if value == "seven"));
        assert_eq!(cache.counts(), Counts { hits: 3, lookups: 5 });
    }

    #[tokio::test]
    async fn of_those_who_wait_the_next_takes_over_from_one_that_turns_away() {
        let cache = cache(1 << 20);
        let first = claim(&cache, 7).await;
        let [gone, second, third, last] =
            [waiter(&cache, 7).await, waiter(&cache, 7).await, waiter(&cache, 7).await, waiter(&cache, 7).await];
        drop(gone);
        drop(first);
        let Landed::Claim(taken) = second.wait().await else { panic!("the next who is there") };
        // it turns away without even having looked at it
        drop(taken);
        drop(third);
        let Landed::Claim(taken) = last.wait().await else { panic!("the next but one") };
        let behind = waiter(&cache, 7).await;
        cache.fulfil(vec![(taken, Bytes::from_static(b"seven"))]);
        assert_eq!(value(behind).await, "seven");
        // nobody waits: it is as if nobody had asked
        drop(claim(&cache, 8).await);
        drop(claim(&cache, 8).await);
    }

    #[tokio::test]
    async fn what_fails_again_is_left_to_each() {
        let cache = cache(1 << 20);
        let first = claim(&cache, 7).await;
        let [second, third, fourth] = [waiter(&cache, 7).await, waiter(&cache, 7).await, waiter(&cache, 7).await];
        first.fail();
        let Landed::Claim(second) = second.wait().await else { panic!("one more tries") };
        second.fail();
        assert!(matches!((third.wait().await, fourth.wait().await), (Landed::Failed, Landed::Failed)));
        drop(claim(&cache, 7).await);
    }

    #[tokio::test]
    async fn what_is_too_long_is_shared_but_not_kept() {
        let cache = cache(1 << 20);
        let first = claim(&cache, 7).await;
        let Some(Found::Wait(waiter)) = cache.look_up(&[7]).await.pop() else { panic!("7 is being computed") };
        cache.fulfil(vec![(first, Bytes::from(vec![0; 1001]))]);
        assert_eq!(value(waiter).await.len(), 1001);
        drop(claim(&cache, 7).await);
    }

    #[tokio::test]
    async fn without_a_near_cache_equal_look_ups_still_compute_once() {
        let cache = cache(0);
        let first = claim(&cache, 7).await;
        let Some(Found::Wait(waiter)) = cache.look_up(&[7]).await.pop() else { panic!("7 is being computed") };
        cache.fulfil(vec![(first, Bytes::from_static(b"seven"))]);
        assert_eq!(value(waiter).await, "seven");
        drop(claim(&cache, 7).await);
    }
}
