//! When to ask a second worker.
//!
//! Of a model that wants it, after a percentile of its own latency (The Tail at Scale, Dean and Barroso, 2013). Of any
//! model when an attempt takes far longer than the model ever takes, and so tells of its worker rather than of the request:
//! a worker that is frozen, or whose host has stalled, says nothing, and it takes keep-alive seconds to notice it.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Answers before a percentile is estimated.
const ENOUGH: u64 = 50;
/// Answers before it is known what a model ever takes.
const FEW: u64 = 10;
/// Answers after which the older half of them fades.
const WINDOW: u64 = 2000;
/// After so many answers it is reckoned anew what most of them take.
const RECKONED: u64 = 64;
/// Nobody is hedged sooner than this.
const SOONEST: Duration = Duration::from_millis(1);
/// So many times the longest that the model has taken of late is far longer…
const FAR: u32 = 3;
/// …but nothing below this is.
const LEAST: Duration = Duration::from_millis(100);
/// Where a deadline leaves less than that, so much has to suffice.
const HURRIED: Duration = Duration::from_millis(50);

/// Latencies of a model, the last few thousand of them.
#[derive(Default)]
pub struct Latencies {
    recent: Mutex<Option<Pair>>,
}

struct Pair {
    filling: Half,
    full: Half,
    /// Answers so far, and microseconds that 99 of 100 of them stay below: every request asks, and it takes a walk to say.
    count: u64,
    most: u64,
}

struct Half {
    microseconds: Histogram<u64>,
    /// The largest request of them.
    size: f64,
}

impl Half {
    fn new() -> Option<Self> {
        Some(Self { microseconds: Histogram::new_with_bounds(1, 600_000_000, 2).ok()?, size: 1.0 })
    }
}

impl Pair {
    fn new() -> Option<Self> {
        Some(Self { filling: Half::new()?, full: Half::new()?, count: 0, most: 0 })
    }

    /// The older half, unless there is none yet.
    fn known(&self) -> &Histogram<u64> {
        let Self { filling, full, .. } = self;
        if full.microseconds.is_empty() { &filling.microseconds } else { &full.microseconds }
    }
}

impl Latencies {
    /// A request of `size` units was answered.
    pub fn record(&self, took: Duration, size: f64) {
        let mut recent = self.recent.lock();
        if recent.is_none() {
            *recent = Pair::new();
        }
        let Some(pair) = recent.as_mut() else { return };
        let filling = &mut pair.filling;
        filling.microseconds.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        filling.size = filling.size.max(size);
        if filling.microseconds.len() >= WINDOW / 2 {
            std::mem::swap(&mut pair.filling, &mut pair.full);
            pair.filling.microseconds.reset();
            pair.filling.size = 1.0;
        }
        if pair.count < ENOUGH || pair.count.is_multiple_of(RECKONED) {
            pair.most = pair.known().value_at_percentile(99.0);
        }
        pair.count += 1;
    }

    /// The latency that `percentile` per cent of the answers stay below; `None` before there are enough.
    pub fn percentile(&self, percentile: f64) -> Option<Duration> {
        let recent = self.recent.lock();
        let of = recent.as_ref()?.known();
        (of.len() >= ENOUGH).then(|| Duration::from_micros(of.value_at_percentile(percentile)).max(SOONEST))
    }

    /// After how long without a word a request of `size` units takes far longer than the model ever takes. `left` is what
    /// its deadline leaves: another worker needs some of it. `None` before anything is known of the model.
    pub fn far_longer(&self, size: f64, left: Option<Duration>) -> Option<Duration> {
        let recent = self.recent.lock();
        let pair = recent.as_ref()?;
        let (filling, full) = (&pair.filling.microseconds, &pair.full.microseconds);
        if filling.len() + full.len() < FEW {
            return None;
        }
        let larger = (size / pair.filling.size.max(pair.full.size)).max(1.0);
        let of_its_size = |microseconds: u64| Duration::from_micros(microseconds).mul_f64(larger);
        let far = (of_its_size(filling.max().max(full.max())) * FAR).max(LEAST);
        let Some(left) = left else { return Some(far) };
        let most = of_its_size(pair.most);
        let latest = left.saturating_sub(most * 2).max(most).max(HURRIED);
        Some(far.min(latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_follows_the_latest() {
        let latencies = Latencies::default();
        latencies.record(Duration::from_millis(1), 1.0);
        assert_eq!(latencies.percentile(95.0), None);
        (1..=100).for_each(|n| latencies.record(Duration::from_millis(n), 1.0));
        let first = latencies.percentile(95.0).unwrap();
        assert!((94..=97).contains(&first.as_millis()), "{first:?}");
        (0..2 * WINDOW).for_each(|_| latencies.record(Duration::from_millis(500), 1.0));
        assert!(latencies.percentile(50.0).unwrap() >= Duration::from_millis(495));
    }

    #[test]
    fn what_a_model_has_taken_says_what_is_far_longer() {
        let latencies = Latencies::default();
        assert_eq!(latencies.far_longer(1.0, None), None, "nothing is known yet");
        let within = |told: Option<Duration>, from: u128, to: u128| {
            let told = told.unwrap();
            assert!((from..=to).contains(&told.as_millis()), "{told:?}");
        };
        (0..20).for_each(|_| latencies.record(Duration::from_millis(10), 2.0));
        within(latencies.far_longer(1.0, None), 100, 100);
        (0..20).for_each(|_| latencies.record(Duration::from_millis(100), 2.0));
        within(latencies.far_longer(2.0, None), 300, 306);
        within(latencies.far_longer(20.0, None), 3000, 3060);
        // a deadline leaves some of its time to another worker, but at least what the model may take
        within(latencies.far_longer(2.0, Some(Duration::from_secs(60))), 300, 306);
        within(latencies.far_longer(2.0, Some(Duration::from_millis(420))), 210, 220);
        within(latencies.far_longer(2.0, Some(Duration::from_millis(110))), 100, 102);
    }
}
