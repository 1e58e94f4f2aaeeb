//! W3C trace context in gRPC metadata and as text, both ways.

use std::collections::HashMap;

use opentelemetry::propagation::{Extractor, Injector};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header of W3C trace context.
const PARENT: &str = "traceparent";

struct Reading<'a>(&'a MetadataMap);

impl Extractor for Reading<'_> {
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

struct Writing<'a>(&'a mut MetadataMap);

impl Injector for Writing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

/// Makes `span` a child of the caller's, if `traceparent` says so.
pub fn extract(span: &tracing::Span, metadata: &MetadataMap) {
    if metadata.contains_key(PARENT) {
        let parent =
            opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Reading(metadata)));
        // without an exporter there is no trace to continue
        let _ = span.set_parent(parent);
    }
}

/// Tells whoever is called of `span`.
pub fn inject(span: &tracing::Span, metadata: &mut MetadataMap) {
    if !span.is_disabled() {
        let context = span.context();
        opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Writing(metadata));
        });
    }
}

/// What a span's `traceparent` would be; empty if there is none.
pub fn text(span: &tracing::Span) -> String {
    let mut told = HashMap::new();
    if !span.is_disabled() {
        let context = span.context();
        opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut told));
    }
    told.remove(PARENT).unwrap_or_default()
}

/// Makes `span` a child of the one that `traceparent` tells of, if it tells of any.
pub fn resume(span: &tracing::Span, traceparent: &str) {
    if !traceparent.is_empty() {
        let told = HashMap::from([(PARENT.to_owned(), traceparent.to_owned())]);
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&told));
        let _ = span.set_parent(parent);
    }
}
