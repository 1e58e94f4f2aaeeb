//! The span of a request, continued from the caller's trace, and its time at the door.

use std::time::Instant;

use tonic::metadata::MetadataMap;

/// A span for one request; a child of the caller's if `traceparent` says so.
pub fn request_span(method: &'static str, model: &str, metadata: &MetadataMap) -> tracing::Span {
    let span = tracing::info_span!("request", otel.kind = "server", rpc.method = method, model);
    sensorium_plane::extract_trace(&span, metadata);
    span
}

/// Notes how long a call took from the door to its answer, or to its caller's leaving.
pub struct Timed {
    method: &'static str,
    started: Instant,
}

impl Timed {
    /// A call of this name starts.
    pub fn start(method: &'static str) -> Self {
        Self { method, started: Instant::now() }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        metrics::histogram!("sensorium_door_duration_seconds", "method" => self.method).record(self.started.elapsed());
    }
}
