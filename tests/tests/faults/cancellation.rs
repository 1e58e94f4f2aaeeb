//! A reader who leaves frees the slot of his generation at once.

use futures::future::join_all;
use sensorium_tests::{Ask, Load, Refusal, Repository, Server, ServerOptions, eventually, within};
use tonic::Code;

/// Tokens that nobody would wait for.
const LONG: u32 = 1500;

async fn generator() -> Server {
    Server::start(ServerOptions::new(Repository::new().with(&["smollm2-135m"]))).await
}

#[tokio::test]
async fn dropped_generations_free_their_slots() {
    let server = generator().await;
    let client = server.client().await;
    let streams = join_all((0..8).map(|_| client.generating(LONG))).await;
    // a ninth finds no slot: it waits
    let ninth = tokio::spawn({
        let client = client.clone();
        async move { client.infer(Ask::prompt("1, 2, 3,", 4)).await }
    });
    eventually("a queue", async || (client.actor("1/batcher").await.queue_depth == 1).then_some(())).await;
    let tokens = server.metric("sensorium_generated_tokens_total", &[]).await;
    assert!(tokens < f64::from(LONG), "{tokens} tokens: the eight are still at their beginning");
    drop(streams);
    within(ninth).await.unwrap().unwrap();
    let tokens = server.metric("sensorium_generated_tokens_total", &[]).await;
    assert!(tokens < f64::from(4 * LONG), "{tokens} tokens: the ninth waited for somebody's end");
    server.metric_becomes("sensorium_requests_total", &["code=\"cancelled\""], 8.0).await;
    eventually("nobody inside", async || (server.metric("sensorium_inflight_requests", &[]).await < 0.5).then_some(()))
        .await;
}

#[tokio::test]
async fn a_deadline_frees_the_slot_too() {
    let server = generator().await;
    let client = server.client().await;
    let ask = Ask::prompt("1, 2, 3, 4, 5,", LONG.into()).deadline(700);
    let refusal = Refusal::of(within(client.patient().model_infer(ask.request())).await);
    assert_eq!(refusal.code, Code::DeadlineExceeded, "{refusal:?}");
    let tokens = server.metric("sensorium_generated_tokens_total", &[]).await;
    client.infer(Ask::prompt("1, 2, 3,", 4)).await.unwrap();
    let later = server.metric("sensorium_generated_tokens_total", &[]).await;
    assert!(later - tokens < 40.0, "{} tokens for nobody", later - tokens);
}

#[tokio::test]
async fn a_restart_of_its_replica_loses_no_generation() {
    let server = generator().await;
    let client = server.client().await;
    let load = Load::start(&client, 4, |_, _| Ask::prompt("1, 2, 3, 4, 5,", 16));
    load.answers(4).await;
    for end in ["1/replica-0", "1/batcher"] {
        let actor = client.actor(end).await;
        client.restart(&actor.path).await.unwrap();
        eventually("a restart", async || {
            let now = client.actor(end).await;
            (now.restarts > actor.restarts && now.state == "running").then_some(())
        })
        .await;
        load.answers(8).await;
    }
    let (answered, failures) = load.stop().await;
    assert!(failures.is_empty(), "{} of {} were lost: {:?}", failures.len(), answered + failures.len(), failures[0]);
}
