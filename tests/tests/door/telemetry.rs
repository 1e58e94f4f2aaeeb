//! One trace from the door to the batch, continued from the caller's.

use std::time::Duration;

use sensorium_tests::jobs::{header, text};
use sensorium_tests::{Repository, Server, ServerOptions, chaos};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const JOBS_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Reads HTTP requests of one connection and passes their bodies on.
async fn collect(mut stream: TcpStream, bodies: mpsc::UnboundedSender<Vec<u8>>) -> std::io::Result<()> {
    let mut received = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&received[..head]).to_lowercase();
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
        while received.len() < head + length {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        let _ = bodies.send(received[head..head + length].to_vec());
        received.drain(..head + length);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
            .await?;
    }
}

#[tokio::test]
async fn one_trace_reaches_from_the_caller_to_the_batch() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (bodies, mut exported) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(collect(stream, bodies.clone()));
        }
    });
    let options = ServerOptions::new(Repository::new().with(&["minilm"]).chaos("chaos", &[]))
        .set("understand.text_guard", "")
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .environment("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .environment("OTEL_SERVICE_NAME", "sensorium-under-test");
    let server = Server::start(options).await;
    let client = server.client().await;
    let mut request = chaos("chaos", 0.0, 0.0).request();
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    client.inference.clone().model_infer(request).await.unwrap();
    // and of a job: its tasks are worked on long after the call has ended
    let parent = format!("00-{JOBS_TRACE}-00f067aa0ba902b7-01");
    let job = client.submit_within(Some(&parent), header("traced"), vec![text("one", "a word")]).await.unwrap();
    client.finish(&job.id).await.unwrap();
    server.terminate();
    let exit = server.wait(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);

    let mut spans = Vec::new();
    while let Ok(body) = exported.try_recv() {
        spans.extend(body);
    }
    let id = |trace: &str| -> Vec<u8> {
        (0..16).map(|n| u8::from_str_radix(&trace[2 * n..2 * n + 2], 16).unwrap()).collect()
    };
    let count = |needle: &[u8]| spans.windows(needle.len()).filter(|window| *window == needle).count();
    for (trace, least) in [(TRACE, 2), (JOBS_TRACE, 3)] {
        let count = count(&id(trace));
        assert!(count >= least, "{count} spans of the caller's trace {trace} in {} bytes", spans.len());
    }
    for word in ["ModelInfer", "batch", "SubmitJob", "task", "sensorium-under-test"] {
        assert!(count(word.as_bytes()) > 0, "'{word}' in what was exported");
    }
}

#[tokio::test]
async fn a_traceparent_needs_no_exporter() {
    let client = super::client().await;
    for parent in ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "nonsense"] {
        let mut request = chaos("identity", 0.0, 0.0).request();
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        client.inference.clone().model_infer(request).await.unwrap();
    }
}
