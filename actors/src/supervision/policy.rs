//! Bounded restart intensity, as in Erlang/OTP's supervisors: so many restarts within a window, then the failure
//! goes up.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::RESTART;

/// What to do about a failed child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this long.
    Restart(Duration),
    /// It fails too often: fail yourself.
    Escalate,
}

/// Counts restarts of one child.
#[derive(Clone, Debug)]
pub struct Intensity {
    max_restarts: u32,
    window: Duration,
    failures: VecDeque<Instant>,
}

impl Intensity {
    /// At most `max_restarts` within `window`.
    pub fn new(max_restarts: u32, window: Duration) -> Self {
        Self { max_restarts, window, failures: VecDeque::new() }
    }

    /// What to do about a child that has ended for this reason: a restart that an operator asked for is no failure.
    pub fn judge(&mut self, reason: &str) -> Verdict {
        if reason == RESTART { Verdict::Restart(Duration::ZERO) } else { self.failed() }
    }

    /// Notes a failure. The first restart of a quiet time is immediate; the next ones back off, 50 ms doubled each
    /// time up to 5 s, so that a child that cannot start does not eat a core.
    pub fn failed(&mut self) -> Verdict {
        let now = Instant::now();
        while self.failures.front().is_some_and(|&at| now.duration_since(at) > self.window) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let count = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        if count > self.max_restarts {
            return Verdict::Escalate;
        }
        let backoff = match count {
            1 => Duration::ZERO,
            n => Duration::from_millis(50).saturating_mul(1 << (n - 2).min(10)).min(Duration::from_secs(5)),
        };
        Verdict::Restart(backoff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn restarts_are_bounded_within_the_window() {
        let mut intensity = Intensity::new(3, Duration::from_secs(10));
        assert_eq!(intensity.failed(), Verdict::Restart(Duration::ZERO));
        assert_eq!(intensity.failed(), Verdict::Restart(Duration::from_millis(50)));
        assert_eq!(intensity.failed(), Verdict::Restart(Duration::from_millis(100)));
        assert_eq!(intensity.failed(), Verdict::Escalate);
    }

    #[tokio::test(start_paused = true)]
    async fn old_failures_are_forgotten() {
        let mut intensity = Intensity::new(1, Duration::from_secs(10));
        assert_eq!(intensity.failed(), Verdict::Restart(Duration::ZERO));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(intensity.failed(), Verdict::Restart(Duration::ZERO));
        assert_eq!(intensity.failed(), Verdict::Escalate);
    }
}
