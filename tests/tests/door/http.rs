//! The HTTP side: liveness, readiness, metrics.

use sensorium_tests::samples::picture;
use sensorium_tests::{Ask, get};

use super::server;

const METRICS: [&str; 16] = [
    "sensorium_batch_padding_tokens_total",
    "sensorium_batch_size_bucket",
    "sensorium_batch_useful_tokens_total",
    "sensorium_compute_duration_seconds_bucket",
    "sensorium_compute_duration_seconds_sum",
    "sensorium_compute_duration_seconds_count",
    "sensorium_door_duration_seconds_bucket",
    "sensorium_inflight_requests",
    "sensorium_queue_abandoned_total",
    "sensorium_queue_depth",
    "sensorium_queue_duration_seconds_bucket",
    "sensorium_queue_expired_total",
    "sensorium_queue_refused_total",
    "sensorium_replicas_ready",
    "sensorium_request_duration_seconds_bucket",
    "sensorium_requests_total",
];

#[tokio::test]
async fn metrics_have_their_names_and_bounded_labels() {
    let server = server().await;
    let client = server.client().await;
    client.infer(Ask::text("hello")).await.unwrap();
    client.infer(Ask::of("efficientnet-lite0").bytes("image", &[picture("rocket.jpg")])).await.unwrap();
    let text = server.metrics().await;
    for name in METRICS {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(line.starts_with("sensorium_"), "{line}");
        let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let name = label.split('=').next().unwrap();
            let known = [
                "code",
                "dependency",
                "kind",
                "le",
                "listener",
                "method",
                "modality",
                "model",
                "outcome",
                "reason",
                "version",
                "worker",
            ];
            assert!(known.contains(&name), "label {name} in {line}");
        }
    }
    assert!(text.contains("# HELP sensorium_queue_depth "), "what a metric means is told");
}

#[tokio::test]
async fn the_server_is_live_and_ready() {
    let server = server().await;
    assert_eq!(get(server.http, "/livez").await.unwrap().0, 200);
    assert_eq!(get(server.http, "/readyz").await.unwrap().0, 200);
    assert_eq!(get(server.http, "/nothing").await.unwrap().0, 404);
}
