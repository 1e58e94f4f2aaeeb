//! The span of a request, continued from the caller's trace, and its time at the door.

use std::time::Instant;

use opentelemetry::propagation::Extractor;
use tonic::metadata::{KeyRef, MetadataMap};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// W3C trace context in gRPC metadata.
struct Metadata<'a>(&'a MetadataMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let names = self.0.keys().filter_map(|key| match key {
            KeyRef::Ascii(name) => Some(name.as_str()),
            KeyRef::Binary(_) => None,
        });
        names.collect()
    }
}

/// A span for one request; a child of the caller's if `traceparent` says so.
pub fn request_span(method: &'static str, model: &str, metadata: &MetadataMap) -> tracing::Span {
    let span = tracing::info_span!("request", otel.kind = "server", rpc.method = method, model);
    if metadata.contains_key("traceparent") {
        let parent =
            opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Metadata(metadata)));
        // without an exporter there is no trace to continue
        let _ = span.set_parent(parent);
    }
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
