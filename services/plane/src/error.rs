//! An error of the worker as a status, and the same error again at the gateway.

use std::time::Duration;

use h2::Reason;
use prost::Message;
use sensorium_actors::error::Error;
use sensorium_proto::worker;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::connection::Unreached;
use crate::status::from_error;

/// The trailer that carries the whole error; code and message of the status are for people and proxies.
pub(crate) const TRAILER: &str = "sensorium-error-bin";

/// Reasons are compile-time constants, so that metrics stay bounded: those that may cross the plane.
const REASONS: [&str; 23] = [
    "BLOCKED",
    "CONCURRENCY_LIMIT",
    "DECODING_FULL",
    "DRAINING",
    "LOADING",
    "LOAD_FAILED",
    "NOT_EMBEDDED",
    "NOT_RUNNING",
    "NO_EVIDENCE",
    "NO_VERSION",
    "NO_WORKER",
    "POOL_EXHAUSTED",
    "QUARANTINED",
    "QUEUE_FULL",
    "QUOTA",
    "REPOSITORY",
    "RESTARTING",
    "ROOT",
    "UNLOADING",
    "UNREACHABLE",
    "UPSTREAM_MISSING",
    "WORKER_LOST",
    "DEADLINE_UNMEETABLE",
];

fn reason(text: &str) -> &'static str {
    REASONS.into_iter().find(|reason| *reason == text).unwrap_or("OTHER")
}

/// The public status, and the whole error beside it.
pub fn status(error: &Error) -> Status {
    let error = &error.shortened();
    let (subject, message, reason, retry_after) = match error {
        Error::InvalidArgument { field, message } => (field.as_str(), message.as_str(), "", Duration::ZERO),
        Error::NotFound { what, known } => (what.as_str(), known.as_str(), "", Duration::ZERO),
        Error::Exhausted { reason, message, retry_after } | Error::Unavailable { reason, message, retry_after } => {
            ("", message.as_str(), *reason, *retry_after)
        }
        Error::DeadlineExceeded { stage } => (stage.as_str(), "", "", Duration::ZERO),
        Error::FailedPrecondition { reason, message } => ("", message.as_str(), *reason, Duration::ZERO),
        Error::Unauthenticated(message)
        | Error::PermissionDenied(message)
        | Error::Unimplemented(message)
        | Error::Internal(message) => ("", message.as_str(), "", Duration::ZERO),
        Error::Cancelled => ("", "", "", Duration::ZERO),
    };
    let whole = worker::Error {
        code: error.code().to_owned(),
        subject: subject.to_owned(),
        message: message.to_owned(),
        reason: reason.to_owned(),
        retry_after_ms: u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
    };
    let mut status = from_error(error);
    status.metadata_mut().insert_bin(TRAILER, MetadataValue::from_bytes(&whole.encode_to_vec()));
    status
}

/// The worker's error, or what a status without one means: the transport's own word.
pub fn from_status(worker: &str, status: &Status) -> Error {
    let carried = status.metadata().get_bin(TRAILER).and_then(|value| value.to_bytes().ok());
    let Some(error) = carried.and_then(|bytes| worker::Error::decode(bytes).ok()) else {
        return from_transport(worker, status);
    };
    let retry_after = Duration::from_millis(error.retry_after_ms);
    match status.code() {
        Code::InvalidArgument => Error::InvalidArgument { field: error.subject, message: error.message },
        Code::NotFound => Error::NotFound { what: error.subject, known: error.message },
        Code::ResourceExhausted => {
            Error::Exhausted { reason: reason(&error.reason), message: error.message, retry_after }
        }
        Code::Unavailable => Error::Unavailable { reason: reason(&error.reason), message: error.message, retry_after },
        Code::DeadlineExceeded => Error::DeadlineExceeded { stage: error.subject },
        Code::FailedPrecondition => Error::FailedPrecondition { reason: reason(&error.reason), message: error.message },
        Code::Unauthenticated => Error::Unauthenticated(error.message),
        Code::PermissionDenied => Error::PermissionDenied(error.message),
        Code::Unimplemented => Error::Unimplemented(error.message),
        Code::Cancelled => Error::Cancelled,
        _ => Error::Internal(error.message),
    }
}

/// Whether the worker itself has written the status. What failed on the way to it has a cause on this side.
pub fn is_answer(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
}

/// A status that no worker of ours has written. A connection that could not be made never reached it, and what it says it
/// has not begun it did not; a connection that broke may have.
fn from_transport(worker: &str, status: &Status) -> Error {
    if status.code() == Code::DeadlineExceeded {
        return Error::DeadlineExceeded { stage: format!("waiting for {worker}") };
    }
    let mut cause = std::error::Error::source(status);
    let mut unreachable = false;
    let mut text = status.message().to_owned();
    while let Some(error) = cause {
        unreachable |= error.is::<Unreached>();
        unreachable |= error.downcast_ref::<h2::Error>().is_some_and(was_not_begun);
        text = format!("{text}: {error}");
        cause = error.source();
    }
    let reason = if unreachable { "UNREACHABLE" } else { "WORKER_LOST" };
    Error::Unavailable {
        reason,
        message: format!("{worker} is out of reach: {text}"),
        retry_after: Duration::from_millis(200),
    }
}

/// A stream that was refused, or came after the last that a worker on its way out still takes.
fn was_not_begun(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.reason() == Some(Reason::REFUSED_STREAM)
            || error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        let retry_after = Duration::from_millis(250);
        for error in [
            Error::invalid("inputs.text", "no"),
            Error::NotFound { what: "model 'x'".into(), known: "loaded are y".into() },
            Error::Exhausted { reason: "QUEUE_FULL", message: "full".into(), retry_after },
            Error::Unavailable { reason: "DRAINING", message: "draining".into(), retry_after },
            Error::DeadlineExceeded { stage: "waiting".into() },
            Error::FailedPrecondition { reason: "QUARANTINED", message: "broken".into() },
            Error::Unauthenticated("who".into()),
            Error::PermissionDenied("no".into()),
            Error::Unimplemented("not here".into()),
            Error::Cancelled,
            Error::Internal("ours".into()),
        ] {
            let again = from_status("w1", &status(&error));
            assert_eq!(format!("{error:?}"), format!("{again:?}"));
        }
    }

    #[test]
    fn what_no_worker_has_written_is_the_transports() {
        let error = from_status("w1", &Status::unavailable("connection reset"));
        assert!(matches!(&error, Error::Unavailable { reason: "WORKER_LOST", .. }), "{error:?}");
    }
}
