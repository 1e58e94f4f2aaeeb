//! What a gRPC request brings besides its message: deadline, priority, trace.

use std::time::Duration;

use sensorium_actors::request::{Context, Parameters};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use sensorium_plane::{deadline, status};

use crate::auth::identity;

/// What of a deadline, a tenth of it at most, is kept for the answer's own way: one that comes after it is no answer,
/// and the transport would say CANCELLED where we say DEADLINE_EXCEEDED.
const ANSWER: Duration = Duration::from_millis(100);

/// The context of a request that has just been received.
pub fn context(metadata: &MetadataMap, extensions: &Extensions, parameters: &Parameters) -> Result<Context, Status> {
    context_since(metadata, extensions, parameters, Instant::now())
}

/// The context of a request: its `grpc-timeout`, counted from when the call was received, and Triton's parameters
/// `timeout` (microseconds in the queue) and `priority` (1 is the highest).
pub fn context_since(
    metadata: &MetadataMap,
    extensions: &Extensions,
    parameters: &Parameters,
    received: Instant,
) -> Result<Context, Status> {
    let timeout = match metadata.as_ref().get(&deadline::HEADER) {
        None => None,
        Some(value) => {
            let text = value.to_str().unwrap_or("");
            Some(deadline::parse(text).ok_or_else(|| {
                status::invalid(
                    "grpc-timeout",
                    format!("'{text}', expected up to 8 digits and a unit of H, M, S, m, u or n"),
                )
            })?)
        }
    };
    let count = |name| parameters.count(name).map_err(|error| status::from_error(&error));
    let queue_timeout = count("timeout")?.filter(|&timeout| timeout > 0).map(Duration::from_micros);
    let priority = count("priority")?.unwrap_or(0);
    let (tenant, models) = identity(extensions);
    Ok(Context {
        deadline: timeout.map(|timeout| received + timeout - ANSWER.min(timeout / 10)),
        priority: u32::try_from(priority).unwrap_or(u32::MAX),
        queue_timeout,
        span: Some(tracing::Span::current()),
        tenant,
        models,
        ..Context::default()
    })
}
