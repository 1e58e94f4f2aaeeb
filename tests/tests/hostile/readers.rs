//! Callers that take nothing of what they are answered, and those that send half of a message.

use std::collections::HashSet;

use prost::Message;
use sensorium_proto::v1::{GenerateRequest, Sampling};
use sensorium_tests::{Ask, Frames, Neighbours, Repository, Server, ServerOptions, eventually, within};

use super::server;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A row of 768 KiB, which comes back as it is: below the window of a stream.
fn row() -> Vec<u8> {
    let values: Vec<f32> = (0..196_608u32).map(|n| n as f32).collect();
    Ask::of("wide").fp32("INPUT0", &[1, 196_608], &values).message().encode_to_vec()
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_and_given_up() {
    let settings = [("limits.max_buffered_bytes", "67108864"), ("limits.stall_seconds", "3")];
    let server = server(&settings).await;
    let neighbours = Neighbours::beside(&server).await;
    // few bytes that ask for three megabytes, which the cache knows
    let few = Ask::of("minilm").bytes("text", &["the same"; 2000]);
    server.client().await.infer(few.clone()).await.unwrap();
    let message = few.message().encode_to_vec();
    let mut deaf = Frames::open(server.grpc, 0).await;
    for call in 0..300 {
        let frames = deaf.call(2 * call + 1, INFER, &message);
        deaf.write(&frames).await;
    }
    // a quarter of the whole for one connection, the rest is refused
    eventually("the connection's part is full", async || {
        (server.metric("sensorium_admission_refused_total", &["reason=\"bytes\""]).await > 100.0).then_some(())
    })
    .await;
    let held = server.metric("sensorium_buffered_bytes", &[]).await;
    assert!(held <= 26e6, "{held}");
    eventually("what nobody takes is given up", async || {
        (server.metric("sensorium_buffered_bytes", &[]).await < 1e6).then_some(())
    })
    .await;
    assert!(server.metric("sensorium_stalled_total", &["direction=\"answer\""]).await >= 1.0);
    // the connection is as good as any
    let live = deaf.call(601, "/inference.GRPCInferenceService/ServerLive", &[]);
    deaf.write(&live).await;
    deaf.write(&Frames::window(601, 1 << 20)).await;
    assert!(within(deaf.is_answered(601)).await);
    drop(deaf);
    neighbours.were_not_hurt("answers that nobody takes").await;
}

#[tokio::test]
async fn a_slow_reader_is_no_deaf_one() {
    let server = server(&[("limits.stall_seconds", "2")]).await;
    let mut slow = Frames::open(server.grpc, 64 << 10).await;
    slow.write(&Frames::window(0, 8 << 20)).await;
    let call = slow.call(1, INFER, &row());
    slow.write(&call).await;
    let mut bytes = 0;
    let last = loop {
        let came = within(slow.next()).await.unwrap();
        if came.is_data() {
            bytes += came.payload.len();
            // for all of its pieces longer than it may go untaken
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            slow.write(&Frames::window(1, u32::try_from(came.payload.len()).unwrap())).await;
        }
        if came.ends() {
            break came;
        }
    };
    assert!(!last.is_reset() && bytes > 768 << 10, "{bytes} bytes, {last:?}");
}

#[tokio::test]
async fn generations_that_nobody_reads_end() {
    let repository = Repository::new().with(&["identity", "smollm2-135m"]);
    let options = ServerOptions::new(repository).set("limits.max_inflight", "64").set("limits.stall_seconds", "3");
    let server = Server::start(options).await;
    let request = GenerateRequest {
        prompt: "1, 2, 3,".to_owned(),
        raw: true,
        sampling: Some(Sampling { max_tokens: 12, ..Sampling::default() }),
        ..GenerateRequest::default()
    };
    let message = request.encode_to_vec();
    let mut deaf = Frames::open(server.grpc, 0).await;
    for call in 0..60 {
        let frames = deaf.call(2 * call + 1, "/sensorium.v1.Sensorium/Generate", &message);
        deaf.write(&frames).await;
    }
    eventually("all have their place", async || {
        (server.metric("sensorium_inflight_requests", &[]).await > 50.0).then_some(())
    })
    .await;
    // and give it back
    server.metric_becomes("sensorium_inflight_requests", &[], 0.0).await;
    let given_up = server.metric("sensorium_stalled_total", &["direction=\"answer\""]).await;
    assert!(given_up >= 10.0, "{given_up}");
    let client = server.client().await;
    client.infer(Ask::prompt("1, 2, 3,", 4)).await.unwrap();
}

#[tokio::test]
async fn half_a_message_is_not_waited_for_for_ever() {
    let server = server(&[("limits.stall_seconds", "2")]).await;
    let neighbours = Neighbours::beside(&server).await;
    let mut mute = Frames::open(server.grpc, 1 << 20).await;
    for call in 0..50 {
        let head = mute.head(2 * call + 1, INFER, &[]);
        mute.write(&head).await;
        // a message of eight megabytes, of which five bytes and some more come
        let mut half = vec![0, 0, 0x70, 0, 0];
        half.resize(10_000, 7);
        mute.write(&Frames::data(2 * call + 1, &half)).await;
    }
    let mut ended = HashSet::new();
    while ended.len() < 50 {
        let came = within(mute.next()).await.expect("the connection stands");
        if came.ends() {
            ended.insert(came.stream);
        }
    }
    assert!(server.metric("sensorium_stalled_total", &["direction=\"request\""]).await >= 50.0);
    let call = mute.call(1001, INFER, &row());
    mute.write(&Frames::window(0, 8 << 20)).await;
    mute.write(&call).await;
    mute.write(&Frames::window(1001, 8 << 20)).await;
    assert!(within(mute.is_answered(1001)).await);
    neighbours.were_not_hurt("halves of messages").await;
}
