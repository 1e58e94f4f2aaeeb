//! What overload and impatience get: refusals that say when to come again, and nothing executed for nobody.

use std::time::Duration;

use futures::future::join_all;
use sensorium_tests::{Refusal, Repository, Server, ServerOptions, chaos, eventually, within};
use tonic::Code;

async fn server(settings: &[(&str, &str)]) -> Server {
    Server::start(ServerOptions::new(Repository::new().chaos("chaos", settings))).await
}

/// One row at a time, so that the rest waits.
const SINGLE: (&str, &str) = ("batching.max_batch_size", "1");

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_again() {
    let server = server(&[SINGLE, ("batching.max_queue_size", "3")]).await;
    let client = server.client().await;
    let answers = join_all((0..10).map(|_| client.infer(chaos("chaos", -400.0, 0.0)))).await;
    let refused: Vec<Refusal> = answers.into_iter().filter_map(Result::err).map(Refusal::from).collect();
    assert_eq!(refused.len(), 6, "one in work, three in the queue: {refused:?}");
    for refusal in &refused {
        refusal.is_retriable(Code::ResourceExhausted, "QUEUE_FULL");
    }
    let refusals = server.metric("sensorium_queue_refused_total", &["model=\"chaos\""]).await;
    assert!((refusals - 6.0).abs() < 0.1, "{refusals}");
    assert_eq!(client.statistics("chaos").await.inference_count, 4);
}

#[tokio::test]
async fn more_than_the_door_lets_in_are_refused() {
    let options = ServerOptions::new(Repository::new().chaos("chaos", &[])).set("limits.max_inflight", "2");
    let server = Server::start(options).await;
    let client = server.client().await;
    let inside = tokio::spawn({
        let client = client.clone();
        async move { tokio::join!(client.infer(chaos("chaos", -1500.0, 0.0)), client.infer(chaos("chaos", -1500.0, 0.0))) }
    });
    eventually("two requests inside", async || {
        (server.metric("sensorium_inflight_requests", &[]).await > 1.5).then_some(())
    })
    .await;
    let refusal = Refusal::of(client.infer(chaos("chaos", 0.0, 0.0)).await);
    refusal.is_retriable(Code::ResourceExhausted, "CONCURRENCY_LIMIT");
    let (one, two) = inside.await.unwrap();
    one.and(two).unwrap();
    client.infer(chaos("chaos", 0.0, 0.0)).await.unwrap();
}

#[tokio::test]
async fn a_request_past_its_deadline_is_never_executed() {
    let server = server(&[SINGLE]).await;
    let client = server.client().await;
    let mut patient = client.patient();
    let blocker = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -3000.0, 0.0)).await }
    });
    client.in_work("chaos", 1).await;
    let started = std::time::Instant::now();
    let refusal = Refusal::of(within(patient.model_infer(chaos("chaos", 0.0, 0.0).deadline(1000).request())).await);
    assert_eq!(refusal.code, Code::DeadlineExceeded, "{refusal:?}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    blocker.await.unwrap().unwrap();
    client.infer(chaos("chaos", 0.0, 0.0)).await.unwrap();
    let statistics = client.statistics("chaos").await;
    assert_eq!((statistics.inference_count, statistics.execution_count), (2, 2), "{statistics:?}");
}

#[tokio::test]
async fn a_deadline_ends_a_call_on_the_device() {
    let server = server(&[]).await;
    let client = server.client().await;
    let refusal = Refusal::of(
        within(client.patient().model_infer(chaos("chaos", -60_000.0, 0.0).deadline(1000).request())).await,
    );
    assert_eq!(refusal.code, Code::DeadlineExceeded, "{refusal:?}");
    // the device does not go on for a minute for nobody
    tokio::time::timeout(Duration::from_secs(30), client.infer(chaos("chaos", 0.0, 0.0))).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_queue_timeout_is_kept() {
    let server = server(&[SINGLE]).await;
    let client = server.client().await;
    let blocker = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -900.0, 0.0)).await }
    });
    client.in_work("chaos", 1).await;
    let refusal = Refusal::of(client.infer(chaos("chaos", 0.0, 0.0).set("timeout", 50_000)).await);
    assert_eq!(refusal.code, Code::DeadlineExceeded, "{refusal:?}");
    assert!(refusal.message.contains("queue"), "{refusal:?}");
    assert!(!blocker.is_finished(), "refused while it waited, not afterwards");
    blocker.await.unwrap().unwrap();
    assert_eq!(client.statistics("chaos").await.inference_count, 1);
    let expired = server.metric("sensorium_queue_expired_total", &["model=\"chaos\""]).await;
    assert!((expired - 1.0).abs() < 0.1, "{expired}");
}

#[tokio::test]
async fn where_timeouts_delay_a_request_is_answered_late() {
    let server = server(&[SINGLE, ("batching.timeout_action", "'delay'")]).await;
    let client = server.client().await;
    let blocker = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -600.0, 0.0)).await }
    });
    client.in_work("chaos", 1).await;
    client.infer(chaos("chaos", 0.0, 0.0).set("timeout", 50_000)).await.unwrap();
    blocker.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_high_priority_goes_first() {
    let server = server(&[SINGLE]).await;
    let client = server.client().await;
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    let send = |name: &'static str, order: f32, priority: i64| {
        let (client, done) = (client.clone(), done.clone());
        tokio::spawn(async move {
            client.infer(chaos("chaos", order, 0.0).set("priority", priority)).await.unwrap();
            done.send(name).unwrap();
        })
    };
    let depth = async |depth: u64| {
        eventually("a queue", async || (client.actor("chaos/1/batcher").await.queue_depth == depth).then_some(()))
            .await;
    };
    send("blocker", -1500.0, 2);
    client.in_work("chaos", 1).await;
    for n in 1..=3 {
        send("low", -60.0, 3);
        depth(n).await;
    }
    send("middle", -60.0, 2);
    depth(4).await;
    send("high", -60.0, 1);
    depth(5).await;
    let mut names = Vec::new();
    for _ in 0..6 {
        names.push(within(order.recv()).await.unwrap());
    }
    assert_eq!(names, ["blocker", "high", "middle", "low", "low", "low"]);
}

#[tokio::test]
async fn a_caller_that_leaves_the_queue_is_not_executed() {
    let server = server(&[SINGLE]).await;
    let client = server.client().await;
    let blocker = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -900.0, 0.0)).await }
    });
    client.in_work("chaos", 1).await;
    // one hangs up, one loses its connection
    let other = server.client().await;
    let callers =
        [client.clone(), other].map(|client| tokio::spawn(async move { client.infer(chaos("chaos", 0.0, 0.0)).await }));
    eventually("two in the queue", async || (client.actor("chaos/1/batcher").await.queue_depth == 2).then_some(()))
        .await;
    for caller in &callers {
        caller.abort();
    }
    blocker.await.unwrap().unwrap();
    client.infer(chaos("chaos", 0.0, 0.0)).await.unwrap();
    let statistics = client.statistics("chaos").await;
    assert_eq!(statistics.inference_count, 2, "{statistics:?}");
    let abandoned = server.metric("sensorium_queue_abandoned_total", &["model=\"chaos\""]).await;
    assert!((abandoned - 2.0).abs() < 0.1, "{abandoned}");
}
