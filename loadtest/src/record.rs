//! What a run saw, and the report made of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Code;

use crate::work::Outcome;

/// Highest recordable time, one hour; longer ones count as this.
const HIGHEST_NS: u64 = 3_600_000_000_000;

/// The measured part of a run.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// End of the warm-up.
    pub start: Instant,
    /// No request starts after this.
    pub end: Instant,
}

impl Window {
    /// The share of `begin..end` that lies in here. A request counts by it: at a second and more per request, whole
    /// requests would make the throughput a matter of luck.
    fn share(&self, begin: Instant, end: Instant) -> f64 {
        let inside = end.min(self.end).saturating_duration_since(begin.max(self.start));
        let whole = end.saturating_duration_since(begin);
        if whole.is_zero() {
            f64::from(u8::from(begin >= self.start))
        } else {
            inside.as_secs_f64() / whole.as_secs_f64()
        }
    }
}

/// Times in nanoseconds, with three significant digits.
struct Times(Histogram<u64>);

impl Times {
    fn new() -> Self {
        // the bounds are constants that the constructor accepts
        #[allow(clippy::expect_used)]
        Self(Histogram::new_with_bounds(1, HIGHEST_NS, 3).expect("bounds and digits are valid"))
    }

    fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(HIGHEST_NS));
    }

    fn summary(&self) -> Option<Latency> {
        let ms = |ns: u64| ns as f64 / 1e6;
        let quantile = |q| ms(self.0.value_at_quantile(q));
        (!self.0.is_empty()).then(|| Latency {
            mean: self.0.mean() / 1e6,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: ms(self.0.max()),
        })
    }
}

/// What one stream, or a whole run, saw.
pub struct Record {
    latency: Times,
    first_token: Times,
    token_gap: Times,
    requests: f64,
    tokens: f64,
    finished: u64,
    errors: BTreeMap<String, u64>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            latency: Times::new(),
            first_token: Times::new(),
            token_gap: Times::new(),
            requests: 0.0,
            tokens: 0.0,
            finished: 0,
            errors: BTreeMap::new(),
        }
    }
}

impl Record {
    /// Notes a request that was due at `begin`. Latencies are those of requests that were due in the window.
    pub fn note(&mut self, window: &Window, begin: Instant, end: Instant, result: Result<Outcome, Code>) {
        let due = begin >= window.start && begin < window.end;
        match result {
            Ok(outcome) => {
                let share = window.share(begin, end);
                self.requests += share;
                self.tokens += share * outcome.tokens as f64;
                if !due {
                    return;
                }
                self.finished += 1;
                let whole = end.saturating_duration_since(begin);
                self.latency.add(whole);
                let Some(first) = outcome.first else { return };
                self.first_token.add(first.saturating_duration_since(begin));
                if let Some(gaps) =
                    u32::try_from(outcome.tokens).ok().and_then(|tokens| tokens.checked_sub(1)).filter(|&gaps| gaps > 0)
                {
                    self.token_gap.add(end.saturating_duration_since(first) / gaps);
                }
            }
            Err(code) if due => self.fail(&format!("{code:?}")),
            Err(_) => {}
        }
    }

    /// Counts a failure by its name.
    pub fn fail(&mut self, name: &str) {
        *self.errors.entry(name.to_owned()).or_default() += 1;
    }

    /// Adds what another stream saw.
    pub fn merge(&mut self, other: &Self) {
        // all histograms have the same bounds, and one of the same bounds always fits
        let _ = self.latency.0.add(&other.latency.0);
        let _ = self.first_token.0.add(&other.first_token.0);
        let _ = self.token_gap.0.add(&other.token_gap.0);
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.finished += other.finished;
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
    }

    /// The figures of a run of `seconds`.
    pub fn report(&self, work: &str, mode: Mode, seconds: f64) -> Report {
        let gap = self.token_gap.summary();
        Report {
            work: work.to_owned(),
            mode,
            seconds,
            finished: self.finished,
            requests_per_s: self.requests / seconds,
            errors: self.errors.clone(),
            latency_ms: self.latency.summary(),
            tokens_per_s: (self.tokens > 0.0).then_some(self.tokens / seconds),
            decode_tokens_per_s: gap.map(|gap| 1e3 / gap.p50),
            first_token_ms: self.first_token.summary(),
        }
    }
}

/// How the load was made.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A new request when the last one is answered.
    Closed {
        /// HTTP/2 connections.
        connections: usize,
        /// Requests in flight on each.
        streams: usize,
    },
    /// Requests at a rate, whatever the answers do.
    Open {
        /// Requests per second, as a Poisson process.
        rate: f64,
    },
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked.
    pub work: String,
    /// How the load was made.
    pub mode: Mode,
    /// Measured seconds, without the warm-up.
    pub seconds: f64,
    /// Requests that succeeded, of those due in the window.
    pub finished: u64,
    /// Succeeded requests per second; one that lies partly outside the window counts by its share.
    pub requests_per_s: f64,
    /// Requests that failed, by gRPC code; `NotSent` were due while too many were outstanding.
    pub errors: BTreeMap<String, u64>,
    /// Of succeeded requests; open loop: from the moment they were due.
    pub latency_ms: Option<Latency>,
    /// Generated tokens per second, of all streams together, prompts included in the time.
    pub tokens_per_s: Option<f64>,
    /// Tokens per second of one request after its first token; the median of requests.
    pub decode_tokens_per_s: Option<f64>,
    /// Time to the first piece of text.
    pub first_token_ms: Option<Latency>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        let start = Instant::now() + Duration::from_secs(10);
        Window { start, end: start + Duration::from_secs(10) }
    }

    #[test]
    fn a_request_counts_by_the_part_of_it_inside() {
        let window = window();
        let at = |seconds: i64| {
            let apart = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { window.start - apart } else { window.start + apart }
        };
        for (begin, end, share) in
            [(-2, 2, 0.5), (0, 10, 1.0), (8, 16, 0.25), (-4, -1, 0.0), (11, 12, 0.0), (3, 3, 1.0)]
        {
            assert!((window.share(at(begin), at(end)) - share).abs() < 1e-9, "{begin}..{end}");
        }
    }

    #[test]
    fn merged_records_report_both() {
        let window =
            Window { start: Instant::now() - Duration::from_secs(1), end: Instant::now() + Duration::from_secs(9) };
        let (mut one, mut two) = (Record::default(), Record::default());
        one.note(&window, Instant::now() - Duration::from_millis(20), Instant::now(), Ok(Outcome::default()));
        two.note(&window, Instant::now() - Duration::from_millis(20), Instant::now(), Err(Code::Unavailable));
        one.merge(&two);
        let report = one.report("identity", Mode::Open { rate: 1.0 }, 10.0);
        assert_eq!((report.finished, report.errors["Unavailable"]), (1, 1));
        assert!(report.latency_ms.is_some_and(|latency| latency.p50 >= 20.0 && latency.p50 < 1000.0));
        assert!(report.first_token_ms.is_none() && report.tokens_per_s.is_none());
    }
}
