//! What can go wrong between the door and the device: a deliberately small set of codes.
//!
//! What an error says may hold anything that a caller sent. [`Error::shortened`] and the error's own `Display` are the only
//! ways out of the process, and both cut it and escape it, so whoever makes an error needs not think of it.

mod shown;

use std::borrow::Cow;
use std::time::Duration;

pub use self::shown::names;
use self::shown::{ALONE, BESIDE, SUBJECT, shown};

/// Why a request was not answered. Each variant is one status code at the door.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The caller's input is at fault.
    #[error("{}: {}", shown(field, SUBJECT), shown(message, BESIDE))]
    InvalidArgument {
        /// The field of the request, such as `inputs[0].image`.
        field: String,
        /// The value, and what was expected.
        message: String,
    },
    /// No such model or version. Triton's clients look for the first words.
    #[error("Request for unknown {}; {}", shown(what, SUBJECT), shown(known, BESIDE))]
    NotFound {
        /// What was asked for, such as `model 'minlim'`.
        what: String,
        /// What there is.
        known: String,
    },
    /// A queue or quota is full.
    #[error("{}", shown(message, ALONE))]
    Exhausted {
        /// Machine-readable, such as `QUEUE_FULL`.
        reason: &'static str,
        /// For people.
        message: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// Draining, starting, or nobody holds the model.
    #[error("{}", shown(message, ALONE))]
    Unavailable {
        /// Machine-readable, such as `DRAINING`.
        reason: &'static str,
        /// For people.
        message: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// The deadline, or the queue timeout, has passed; nothing was executed after it.
    #[error("deadline exceeded while {}", shown(stage, ALONE))]
    DeadlineExceeded {
        /// Where the time ran out, such as `waiting in the queue of minilm`.
        stage: String,
    },
    /// The version is quarantined, and nothing can take its place.
    #[error("{}", shown(message, ALONE))]
    FailedPrecondition {
        /// Machine-readable, such as `QUARANTINED`.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// No credentials, or none that are known.
    #[error("{}", shown(.0, ALONE))]
    Unauthenticated(String),
    /// The credentials do not allow it.
    #[error("{}", shown(.0, ALONE))]
    PermissionDenied(String),
    /// The protocol has it, this server does not.
    #[error("{}", shown(.0, ALONE))]
    Unimplemented(String),
    /// Nobody waits any more.
    #[error("cancelled")]
    Cancelled,
    /// Our fault.
    #[error("{}", shown(.0, ALONE))]
    Internal(String),
}

impl Error {
    /// The caller's input is at fault.
    pub fn invalid(field: impl Into<String>, message: impl ToString) -> Self {
        Self::InvalidArgument { field: field.into(), message: message.to_string() }
    }

    /// An actor that should have answered is gone: it is being restarted, and the request was not executed.
    pub fn lost(who: &str) -> Self {
        Self::Unavailable {
            reason: "RESTARTING",
            message: format!("{who} is being restarted"),
            retry_after: Duration::from_millis(200),
        }
    }

    /// A request that must not be executed twice was begun when its replica failed.
    pub fn begun(who: &str, why: &str) -> Self {
        Self::Internal(format!(
            "{who} had begun the request when {why}; as routing.idempotent = false, it is not executed again"
        ))
    }

    /// The same with texts as they may leave the process: shortened, and without control characters. An error of a worker,
    /// its status and its trailers stay below 4 kB with it.
    #[must_use]
    pub fn shortened(&self) -> Self {
        let mut short = self.clone();
        for (text, most) in short.texts() {
            if let Cow::Owned(shown) = shown(text, most) {
                *text = shown;
            }
        }
        short
    }

    /// Its texts, and what each may cost.
    fn texts(&mut self) -> Vec<(&mut String, usize)> {
        match self {
            Self::InvalidArgument { field: subject, message: beside }
            | Self::NotFound { what: subject, known: beside } => vec![(subject, SUBJECT), (beside, BESIDE)],
            Self::Exhausted { message: alone, .. }
            | Self::Unavailable { message: alone, .. }
            | Self::FailedPrecondition { message: alone, .. }
            | Self::DeadlineExceeded { stage: alone }
            | Self::Unauthenticated(alone)
            | Self::PermissionDenied(alone)
            | Self::Unimplemented(alone)
            | Self::Internal(alone) => vec![(alone, ALONE)],
            Self::Cancelled => Vec::new(),
        }
    }

    /// Short and lower-case, for metrics labels.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "invalid_argument",
            Self::NotFound { .. } => "not_found",
            Self::Exhausted { .. } => "resource_exhausted",
            Self::Unavailable { .. } => "unavailable",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::FailedPrecondition { .. } => "failed_precondition",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::PermissionDenied(_) => "permission_denied",
            Self::Unimplemented(_) => "unimplemented",
            Self::Cancelled => "cancelled",
            Self::Internal(_) => "internal",
        }
    }
}

/// What every fallible function of this crate gives, unless it says otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;
