//! The one file that turns our errors into gRPC status, with the details that clients act on.
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
    let message = error.to_string();
    match error {
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

/// The same for a response that holds nothing but such a status.
pub fn amend<B: Default>(response: http::Response<B>) -> http::Response<B> {
    if response.headers().get("grpc-status").is_some_and(|code| ["8", "11", "13"].iter().any(|seen| code == seen))
        && let Some(status) = Status::from_header_map(response.headers())
    {
        return from_transport(status).into_http();
    }
    response
}
