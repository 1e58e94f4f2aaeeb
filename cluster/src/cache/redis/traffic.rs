//! What goes to Redis one way, reads or writes: a circuit breaker, and how it fares. Each has its own, since a Redis may
//! refuse the one and bear the other.

use std::time::Duration;

use parking_lot::Mutex;
use recloser::{AsyncRecloser, Recloser};
use tokio::time::Instant;

/// Questions over which the breaker takes its measure.
const MEASURED: usize = 8;
/// Share of them that must fail before it opens.
const FAILING: f32 = 0.5;
/// Questions that are let through to see whether Redis is back.
const PROBES: usize = 2;
/// How long it stays open.
const OPEN: Duration = Duration::from_secs(1);
/// Failures in a row after which something is said to be wrong: one look-up that comes too late is no news.
const DOWN: u32 = 3;

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("{0}")]
    Redis(redis::RedisError),
}

impl Failure {
    /// Nothing more comes over this connection.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Redis(error) if error.is_unrecoverable_error())
    }

    /// It is a replica, of which nothing is to be written.
    pub(super) fn is_read_only(&self) -> bool {
        self.to_string().to_ascii_lowercase().contains("readonly")
    }
}

/// What came of a question.
pub(super) enum Outcome<T> {
    Answer(T),
    /// There is no connection, or the breaker is open.
    NotAsked,
    Failed(Failure),
}

/// Failures in a row.
struct Failing {
    since: Instant,
    count: u32,
    why: String,
    /// When it was last due to do something about it.
    due: Instant,
}

/// See the module.
pub(super) struct Traffic {
    pub(super) breaker: AsyncRecloser,
    failing: Mutex<Option<Failing>>,
}

impl Traffic {
    /// Nothing is known to be wrong.
    pub(super) fn well() -> Self {
        let breaker =
            Recloser::custom().error_rate(FAILING).closed_len(MEASURED).half_open_len(PROBES).open_wait(OPEN).build();
        Self { breaker: breaker.into(), failing: Mutex::new(None) }
    }

    /// It has not been reached yet.
    pub(super) fn down() -> Self {
        let traffic = Self::well();
        traffic.is_down(String::new());
        traffic
    }

    /// It cannot be reached at all.
    pub(super) fn is_down(&self, why: String) {
        self.count(DOWN, why);
    }

    /// It has gone well; since when it had not, if that is news.
    pub(super) fn succeeded(&self) -> Option<Instant> {
        self.failing.lock().take().filter(|failing| failing.count >= DOWN).map(|failing| failing.since)
    }

    /// It has failed once more; whether that is news.
    pub(super) fn failed(&self, why: String) -> bool {
        self.count(1, why)
    }

    fn count(&self, failures: u32, why: String) -> bool {
        let mut failing = self.failing.lock();
        let now = Instant::now();
        let failing = failing.get_or_insert_with(|| Failing { since: now, count: 0, why: String::new(), due: now });
        let before = failing.count;
        failing.count = before.saturating_add(failures);
        failing.why = why;
        before < DOWN && failing.count >= DOWN
    }

    /// Whether it has failed for so long, since it did or since this was last so.
    pub(super) fn is_due(&self, period: Duration) -> bool {
        let mut failing = self.failing.lock();
        let Some(failing) = failing.as_mut().filter(|failing| failing.due.elapsed() >= period) else { return false };
        failing.due = Instant::now();
        true
    }

    /// For how long it has failed, however often.
    pub(super) fn unwell_for(&self) -> Duration {
        self.failing.lock().as_ref().map(|failing| failing.since.elapsed()).unwrap_or_default()
    }

    /// Since when it is known to fail.
    pub(super) fn unwell_since(&self) -> Option<Instant> {
        self.failing.lock().as_ref().filter(|failing| failing.count >= DOWN).map(|failing| failing.since)
    }

    /// Why it fails.
    pub(super) fn trouble(&self) -> Option<String> {
        self.failing.lock().as_ref().filter(|failing| failing.count >= DOWN).map(|failing| failing.why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_again_and_again_is_news_once() {
        let traffic = Traffic::well();
        let news: Vec<bool> = (0..5).map(|_| traffic.failed("OOM".into())).collect();
        assert_eq!(news, [false, false, true, false, false]);
        assert_eq!(traffic.trouble().as_deref(), Some("OOM"));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(traffic.is_due(Duration::from_secs(5)) && !traffic.is_due(Duration::from_secs(5)));
        assert!(traffic.succeeded().is_some() && traffic.succeeded().is_none());
        assert!(traffic.unwell_since().is_none() && traffic.trouble().is_none());
        assert!(Traffic::down().unwell_since().is_some(), "before it has been reached");
    }
}
