//! The span of a request, continued from the caller's trace, and its time at the door.

use std::sync::LazyLock;
use std::time::Instant;

use metrics::{Histogram, histogram};
use tonic::metadata::MetadataMap;

/// A span for one request; a child of the caller's if `traceparent` says so.
pub fn request_span(method: &'static str, model: &str, metadata: &MetadataMap) -> tracing::Span {
    let span = tracing::info_span!("request", otel.kind = "server", rpc.method = method, model);
    sensorium_plane::extract_trace(&span, metadata);
    span
}

/// Calls that are timed at the door.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Method {
    ModelInfer,
    ModelStreamInfer,
    Embed,
    Understand,
    Generate,
    SubmitJob,
}

impl Method {
    const ALL: [Self; 6] =
        [Self::ModelInfer, Self::ModelStreamInfer, Self::Embed, Self::Understand, Self::Generate, Self::SubmitJob];
}

/// By method; looked up once, for every request has one.
static DURATIONS: LazyLock<[Histogram; Method::ALL.len()]> = LazyLock::new(|| {
    Method::ALL.map(|method| histogram!("sensorium_door_duration_seconds", "method" => format!("{method:?}")))
});

/// Notes how long a call took from the door to its answer, or to its caller's leaving.
pub struct Timed {
    method: Method,
    started: Instant,
}

impl Timed {
    /// A call of this method starts.
    pub fn start(method: Method) -> Self {
        Self { method, started: Instant::now() }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        DURATIONS[self.method as usize].record(self.started.elapsed());
    }
}
