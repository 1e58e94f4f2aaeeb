//! When to ask a second worker: after a percentile of the model's own latency (The Tail at Scale, Dean and Barroso,
//! 2013).

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Answers before an estimate is made.
const ENOUGH: u64 = 50;
/// Answers after which the older half of them fades.
const WINDOW: u64 = 2000;
/// Nobody is hedged sooner than this.
const SOONEST: Duration = Duration::from_millis(1);

/// Latencies of a model, the last few thousand of them.
#[derive(Default)]
pub struct Latencies {
    recent: Mutex<Option<Pair>>,
}

struct Pair {
    filling: Histogram<u64>,
    full: Histogram<u64>,
}

impl Latencies {
    /// Latencies are kept from the first time that somebody asks for a percentile: most models are never hedged.
    pub fn record(&self, took: Duration) {
        if let Some(pair) = self.recent.lock().as_mut() {
            pair.filling.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            if pair.filling.len() >= WINDOW / 2 {
                std::mem::swap(&mut pair.filling, &mut pair.full);
                pair.filling.reset();
            }
        }
    }

    /// The latency that `percentile` per cent of the answers stay below; `None` before there are enough.
    pub fn percentile(&self, percentile: f64) -> Option<Duration> {
        let mut recent = self.recent.lock();
        if recent.is_none() {
            let histogram = || Histogram::new_with_bounds(1, 600_000_000, 2).ok();
            *recent = histogram().zip(histogram()).map(|(filling, full)| Pair { filling, full });
        }
        let pair = recent.as_ref()?;
        let of = if pair.full.is_empty() { &pair.filling } else { &pair.full };
        (of.len() >= ENOUGH).then(|| Duration::from_micros(of.value_at_percentile(percentile)).max(SOONEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_follows_the_latest() {
        let latencies = Latencies::default();
        latencies.record(Duration::from_millis(1));
        assert_eq!(latencies.percentile(95.0), None);
        (1..=100).for_each(|n| latencies.record(Duration::from_millis(n)));
        let first = latencies.percentile(95.0).unwrap();
        assert!((94..=97).contains(&first.as_millis()), "{first:?}");
        (0..2 * WINDOW).for_each(|_| latencies.record(Duration::from_millis(500)));
        assert!(latencies.percentile(50.0).unwrap() >= Duration::from_millis(495));
    }
}
