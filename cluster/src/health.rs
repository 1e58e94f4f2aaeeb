//! How something outside fares, for those who ask.

use std::time::Duration;

use tokio::time::Instant;

/// The state of etcd, NATS or Redis as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Its twin within this process is used.
    Embedded,
    /// It answers.
    Ok,
    /// It answers, and takes no writes.
    Degraded {
        /// Since when.
        since: Instant,
    },
    /// It does not answer; what was known goes on being used.
    Stale {
        /// Since when.
        since: Instant,
    },
    /// It answers, and has no room for anything more.
    Full {
        /// Since when.
        since: Instant,
    },
    /// It does not answer.
    Down {
        /// Since when.
        since: Instant,
    },
}

impl Health {
    /// For operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Ok => "ok",
            Self::Degraded { .. } => "degraded",
            Self::Stale { .. } => "stale",
            Self::Full { .. } => "full",
            Self::Down { .. } => "down",
        }
    }

    /// For how long it has not been well.
    pub fn unwell_for(self) -> Duration {
        match self {
            Self::Embedded | Self::Ok => Duration::ZERO,
            Self::Degraded { since } | Self::Stale { since } | Self::Full { since } | Self::Down { since } => {
                since.elapsed()
            }
        }
    }
}
