//! What can go wrong between the door and the device: a deliberately small set of codes.

use std::time::Duration;

/// Why a request was not answered. Each variant is one status code at the door.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The caller's input is at fault.
    #[error("{field}: {message}")]
    InvalidArgument {
        /// The field of the request, such as `inputs[0].image`.
        field: String,
        /// The value, and what was expected.
        message: String,
    },
    /// No such model or version. Triton's clients look for the first words.
    #[error("Request for unknown {what}; {known}")]
    NotFound {
        /// What was asked for, such as `model 'minlim'`.
        what: String,
        /// What there is.
        known: String,
    },
    /// A queue or quota is full.
    #[error("{message}")]
    Exhausted {
        /// Machine-readable, such as `QUEUE_FULL`.
        reason: &'static str,
        /// For people.
        message: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// Draining, starting, or nobody holds the model.
    #[error("{message}")]
    Unavailable {
        /// Machine-readable, such as `DRAINING`.
        reason: &'static str,
        /// For people.
        message: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// The deadline, or the queue timeout, has passed; nothing was executed after it.
    #[error("deadline exceeded while {stage}")]
    DeadlineExceeded {
        /// Where the time ran out, such as `waiting in the queue of minilm`.
        stage: String,
    },
    /// The version is quarantined, and nothing can take its place.
    #[error("{message}")]
    FailedPrecondition {
        /// Machine-readable, such as `QUARANTINED`.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// No credentials, or none that are known.
    #[error("{0}")]
    Unauthenticated(String),
    /// The credentials do not allow it.
    #[error("{0}")]
    PermissionDenied(String),
    /// The protocol has it, this server does not.
    #[error("{0}")]
    Unimplemented(String),
    /// Nobody waits any more.
    #[error("cancelled")]
    Cancelled,
    /// Our fault.
    #[error("{0}")]
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
