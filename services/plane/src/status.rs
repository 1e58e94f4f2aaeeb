//! The one file that turns our errors into gRPC status, with the details that clients act on.
//!
//! A status with all of its details stays below 4 kB: what a caller sent is shortened where it is repeated, since clients
//! take no more than 8 kB of metadata, and would say RESOURCE_EXHAUSTED of an error that is larger.
//!
//! Codes and details: `docs/ARCHITECTURE.md`, "Status codes". Details are those of `google.rpc` (AIP-193); the trailer
//! `grpc-retry-pushback-ms` is gRFC A6.

use std::collections::HashMap;
use std::time::Duration;

use sensorium_actors::error::Error;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Names us in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "sensorium";

/// Our error as a status.
pub fn from_error(error: &Error) -> Status {
    let error = error.shortened();
    let message = error.to_string();
    match &error {
        Error::InvalidArgument { field, message: description } => Status::with_error_details(
            Code::InvalidArgument,
            message,
            ErrorDetails::with_bad_request_violation(field, description),
        ),
        Error::NotFound { .. } => Status::not_found(message),
        Error::Exhausted { reason, retry_after, .. } => {
            retriable(Code::ResourceExhausted, message, reason, *retry_after)
        }
        Error::Unavailable { reason, retry_after, .. } => retriable(Code::Unavailable, message, reason, *retry_after),
        Error::DeadlineExceeded { .. } => Status::deadline_exceeded(message),
        Error::FailedPrecondition { reason, .. } => Status::with_error_details(
            Code::FailedPrecondition,
            message,
            ErrorDetails::with_error_info(*reason, DOMAIN, HashMap::new()),
        ),
        Error::Unauthenticated(_) => Status::unauthenticated(message),
        Error::PermissionDenied(_) => Status::permission_denied(message),
        Error::Unimplemented(_) => Status::unimplemented(message),
        Error::Cancelled => Status::cancelled(message),
        Error::Internal(_) => Status::internal(message),
    }
}

fn retriable(code: Code, message: String, reason: &str, after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(after));
    let mut status = Status::with_error_details(code, message, details);
    let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(milliseconds));
    status
}

/// A field of a request is not what it must be.
pub fn invalid(field: &str, description: impl std::fmt::Display) -> Status {
    from_error(&Error::invalid(field, description))
}

/// How the transport's own complaints about a message begin.
const COMPLAINTS: [&str; 3] = ["Error decompressing", "failed to decode Protobuf message", "protocol error"];

/// A status that the transport made before a handler saw the request: a message that is over the limit, or that it
/// cannot read, is OUT_OF_RANGE, RESOURCE_EXHAUSTED or INTERNAL to it, and a mistake of the caller's to us.
pub fn from_transport(status: Status) -> Status {
    let complains = || COMPLAINTS.iter().any(|complaint| status.message().starts_with(complaint));
    match status.code() {
        Code::OutOfRange => invalid("message", status.message()),
        Code::ResourceExhausted | Code::Internal if complains() => invalid("message", status.message()),
        _ => status,
    }
}

/// Bytes of a status at most, as its trailers are written.
pub const MOST: usize = 4096;
/// Trailers that make up a status, and those that we add.
const OF_A_STATUS: [&str; 5] =
    ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms", crate::error::TRAILER];

/// A status that others have made, such as tonic's own services, and that repeats too much of what it was given.
fn bounded(status: Status) -> Status {
    let short = Error::Internal(status.message().to_owned()).shortened();
    Status::new(status.code(), short.to_string())
}

fn is_too_large(headers: &http::HeaderMap) -> bool {
    let of = |name: &str| headers.get(name).map_or(0, |value| name.len() + value.len());
    OF_A_STATUS.into_iter().map(of).sum::<usize>() > MOST
}

/// The same for a response that holds nothing but such a status.
pub fn amend<B: Default>(response: http::Response<B>) -> http::Response<B> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    if is_too_large(response.headers())
        && let Some(status) = Status::from_header_map(response.headers())
    {
        return bounded(status).into_http();
    }
    if response.headers().get("grpc-status").is_some_and(|code| ["8", "11", "13"].iter().any(|seen| code == seen))
        && let Some(status) = Status::from_header_map(response.headers())
    {
        return from_transport(status).into_http();
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a status with all of its trailers, as they are written.
    fn size(status: Status) -> usize {
        let response = status.into_http::<()>();
        response.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    }

    #[test]
    fn no_status_is_larger_than_clients_take() {
        let retry_after = Duration::from_secs(1);
        for piece in ["a", " ", "%", "{", "\0", "\u{202e}", "ä", "\u{1f43b}", "a b, "] {
            let long = || piece.repeat(20_000);
            for error in [
                Error::invalid(long(), long()),
                Error::NotFound { what: long(), known: long() },
                Error::Exhausted { reason: "DEADLINE_UNMEETABLE", message: long(), retry_after },
                Error::Unavailable { reason: "UPSTREAM_MISSING", message: long(), retry_after },
                Error::DeadlineExceeded { stage: long() },
                Error::FailedPrecondition { reason: "IDEMPOTENCY_KEY_REUSED", message: long() },
                Error::Unauthenticated(long()),
                Error::PermissionDenied(long()),
                Error::Unimplemented(long()),
                Error::Internal(long()),
            ] {
                let code = error.code();
                assert!(size(from_error(&error)) < MOST, "{code} of {piece:?}");
                let told = crate::error::status(&error);
                assert!(size(told.clone()) < MOST, "{code} of {piece:?} from a worker: {}", size(told));
                // told by a worker, and told on by a gateway
                let again = crate::error::from_status("w", &crate::error::status(&error));
                assert_eq!(again.to_string(), error.to_string());
            }
            let foreign = amend(Status::not_found(long()).into_http::<()>());
            assert_eq!(foreign.headers()["grpc-status"], "5");
            assert!(size(Status::from_header_map(foreign.headers()).unwrap()) < MOST, "{piece:?}");
        }
    }
}
