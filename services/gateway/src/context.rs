//! What a gRPC request brings besides its message: deadline, priority, trace.

use std::time::Duration;

use sensorium_actors::request::{Context, Parameters};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::status;

/// What of a deadline, a tenth of it at most, is kept for the answer's own way: one that comes after it is no answer,
/// and the transport would say CANCELLED where we say DEADLINE_EXCEEDED.
const ANSWER: Duration = Duration::from_millis(100);

/// The context of a request that has just been received.
pub fn context(metadata: &MetadataMap, parameters: &Parameters) -> Result<Context, Status> {
    context_since(metadata, parameters, Instant::now())
}

/// The context of a request: its `grpc-timeout`, counted from when the call was received, and Triton's parameters
/// `timeout` (microseconds in the queue) and `priority` (1 is the highest).
pub fn context_since(metadata: &MetadataMap, parameters: &Parameters, received: Instant) -> Result<Context, Status> {
    let timeout = match metadata.get("grpc-timeout") {
        None => None,
        Some(value) => {
            let text = value.to_str().unwrap_or("");
            Some(parse_timeout(text).ok_or_else(|| {
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
    Ok(Context {
        deadline: timeout.map(|timeout| received + timeout - ANSWER.min(timeout / 10)),
        priority: u32::try_from(priority).unwrap_or(u32::MAX),
        queue_timeout,
        span: Some(tracing::Span::current()),
    })
}

/// `TimeoutValue TimeoutUnit` of the gRPC over HTTP/2 protocol.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "5", "-1S", "123456789S", "5x", "5é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
