//! Connections that say nothing, that cancel in storms, and that are too many.

use std::time::Duration;

use prost::Message;
use sensorium_proto::inference::ServerLiveRequest;
use sensorium_tests::{Cluster, Frames, Load, Neighbours, Repository, chaos, eventually, get, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server;

const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

#[tokio::test]
async fn a_storm_of_cancellations_leaves_the_connection_to_others() {
    let server = server(&[]).await;
    let neighbours = Neighbours::beside(&server).await;
    let mut proxy = Frames::open(server.grpc, 1 << 20).await;
    let slow = chaos("chaos", -1000.0, 0.0).message().encode_to_vec();
    let standing = proxy.call(1, INFER, &slow);
    proxy.write(&standing).await;
    for (storm, count) in [200u32, 500, 1000].into_iter().enumerate() {
        let first = 10_000 * (u32::try_from(storm).unwrap() + 1) + 1;
        let mut write = Vec::new();
        for call in 0..count {
            write.extend_from_slice(&proxy.call(first + 2 * call, INFER, &slow));
            write.extend_from_slice(&Frames::reset(first + 2 * call));
        }
        proxy.write(&write).await;
    }
    assert!(within(proxy.is_answered(1)).await, "a call that stood before the storm is answered");
    let after = proxy.call(50_001, LIVE, &ServerLiveRequest {}.encode_to_vec());
    proxy.write(&after).await;
    assert!(within(proxy.is_answered(50_001)).await, "the connection lives on");
    eventually("what was cancelled has left", async || {
        (server.metric("sensorium_inflight_requests", &[]).await <= 4.0).then_some(())
    })
    .await;
    neighbours.were_not_hurt("a storm of cancellations").await;
}

/// Callers that turn away speak neither against the worker that they were sent to, nor against its connection.
#[tokio::test]
async fn a_storm_of_cancellations_ejects_no_worker() {
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &[]);
    let cluster = Cluster::start(repository, 1, 1).await;
    let gateway = &cluster.gateways[0];
    let client = gateway.client().await;
    let load = Load::start(&client, 2, |_, _| chaos("identity", 0.0, 1.0));
    load.answers(20).await;
    let mut proxy = Frames::open(gateway.grpc, 1 << 20).await;
    let slow = chaos("chaos", -500.0, 0.0).message().encode_to_vec();
    let mut stream = 1;
    for _ in 0..10 {
        let begun: Vec<u32> = (0..300).map(|n| stream + 2 * n).collect();
        for &call in &begun {
            let frames = proxy.call(call, INFER, &slow);
            proxy.write(&frames).await;
        }
        // some of them have reached the worker
        load.answers(5).await;
        let resets: Vec<u8> = begun.iter().flat_map(|&call| Frames::reset(call)).collect();
        proxy.write(&resets).await;
        stream += 600;
    }
    load.answers(50).await;
    let (_, failures) = load.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    for nothing in ["sensorium_retries_total", "sensorium_ejections_total"] {
        let count = gateway.metric(nothing, &[]).await;
        assert!(count < 0.5, "{nothing}: {count}");
    }
    let live = proxy.call(stream, LIVE, &ServerLiveRequest {}.encode_to_vec());
    proxy.write(&live).await;
    assert!(within(proxy.is_answered(stream)).await, "the connection lives on");
}

/// Connects and reads until the server ends it.
async fn until_closed(mut stream: TcpStream) -> usize {
    let mut all = Vec::new();
    // a reset is an end as well
    let _ = within(stream.read_to_end(&mut all)).await;
    all.len()
}

#[tokio::test]
async fn connections_that_say_nothing_are_closed() {
    let server = server(&[("limits.silence_seconds", "2")]).await;
    let neighbours = Neighbours::beside(&server).await;
    let mut silent = Vec::new();
    for n in 0..400 {
        for address in [server.grpc, server.http] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if n % 4 == 1 {
                // the first letters of something
                let words: &[u8] = if address == server.grpc { b"PRI * HT" } else { b"GET /livez HT" };
                stream.write_all(words).await.unwrap();
            }
            silent.push(tokio::spawn(until_closed(stream)));
        }
    }
    let (status, _) = get(server.http, "/livez").await.unwrap();
    assert_eq!(status, 200, "health is told beside them");
    for stream in silent {
        stream.await.unwrap();
    }
    neighbours.were_not_hurt("silent connections").await;
}

#[tokio::test]
async fn more_connections_than_there_may_be_are_closed_and_health_is_told() {
    let server = server(&[("limits.max_connections", "20")]).await;
    let client = server.client().await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(server.grpc).await.unwrap());
    }
    eventually("the rest is refused", async || {
        (server.metric("sensorium_connections_refused_total", &[]).await >= 80.0).then_some(())
    })
    .await;
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
    assert_eq!(get(server.http, "/readyz").await.unwrap().0, 200);
    drop(held);
    eventually("there is room again", async || {
        let mut next = Frames::open(server.grpc, 1 << 20).await;
        let live = next.call(1, LIVE, &ServerLiveRequest {}.encode_to_vec());
        next.write(&live).await;
        within(next.is_answered(1)).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn idle_and_old_connections_are_told_to_connect_anew() {
    let settings = [("limits.idle_seconds", "2"), ("limits.max_connection_age_seconds", "4")];
    let server = server(&settings).await;
    let client = server.client().await;
    let goaway = async |mut frames: Frames, mut stream: u32| {
        loop {
            let live = frames.call(stream, LIVE, &ServerLiveRequest {}.encode_to_vec());
            frames.write(&live).await;
            loop {
                match within(frames.next()).await {
                    Some(came) if came.is_goaway() => return stream,
                    Some(came) if came.stream == stream && came.ends() => break,
                    Some(_) => {}
                    None => panic!("closed without a word"),
                }
            }
            stream += 2;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    // one that is busy is asked for its age, one that is idle sooner
    let busy = Frames::open(server.grpc, 1 << 20).await;
    assert!(goaway(busy, 1).await > 3, "it was used for a while");
    let mut idle = Frames::open(server.grpc, 1 << 20).await;
    while let Some(came) = within(idle.next()).await {
        if came.is_goaway() {
            break;
        }
    }
    // clients connect again by themselves
    for _ in 0..30 {
        client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
