//! Shutdown: what is in flight is finished, what comes later is refused politely.

use std::time::Duration;

use futures::future::join_all;
use sensorium_tests::{Refusal, Repository, Server, ServerOptions, chaos, eventually, get};
use tonic::Code;

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight() {
    let server = Server::start(ServerOptions::new(Repository::new().chaos("chaos", &[]))).await;
    let client = server.client().await;
    let in_flight: Vec<_> = (0..20)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.infer(chaos("chaos", -1500.0, n as f32)).await })
        })
        .collect();
    eventually("20 requests in flight", async || {
        (server.metric("sensorium_inflight_requests", &[]).await > 19.5).then_some(())
    })
    .await;
    server.terminate();
    eventually("not ready any more", async || {
        get(server.http, "/readyz").await.is_ok_and(|(status, _)| status == 503).then_some(())
    })
    .await;
    let refusal = Refusal::of(client.infer(chaos("chaos", 0.0, 0.0)).await);
    refusal.is_retriable(Code::Unavailable, "DRAINING");
    assert_eq!(get(server.http, "/livez").await.unwrap().0, 200, "draining is alive");
    for answer in join_all(in_flight).await {
        answer.unwrap().unwrap();
    }
    let exit = server.wait(Duration::from_secs(30)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let repository = Repository::new().chaos("chaos", &[]);
    let server = Server::start(ServerOptions::new(repository).set("drain_seconds", "1")).await;
    let client = server.client().await;
    let endless = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -600_000.0, 0.0)).await }
    });
    client.in_work("chaos", 1).await;
    server.terminate();
    let exit = server.wait(Duration::from_secs(30)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    Refusal::of(endless.await.unwrap());
}

#[tokio::test]
async fn a_server_that_is_still_loading_can_be_stopped() {
    let server = Server::spawn(ServerOptions::new(Repository::pack()));
    eventually("the HTTP side", async || get(server.http, "/livez").await.ok()).await;
    server.terminate();
    let exit = server.wait(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

/// A server with a request in work that takes ten minutes, and the same time to drain.
async fn busy(options: impl FnOnce(ServerOptions) -> ServerOptions) -> Server {
    let repository = Repository::new().chaos("chaos", &[]);
    let server = Server::start(options(ServerOptions::new(repository).set("drain_seconds", "600"))).await;
    let client = server.client().await;
    tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -600_000.0, 0.0)).await }
    });
    client.in_work("chaos", 1).await;
    server
}

async fn drains(server: &Server) {
    eventually("it drains", async || {
        get(server.http, "/readyz").await.is_ok_and(|(status, _)| status == 503).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    for (first, second) in [("INT", "INT"), ("TERM", "TERM"), ("INT", "TERM")] {
        let server = busy(|options| options).await;
        server.signal(first);
        drains(&server).await;
        // what systemd sends right behind SIGTERM is no second request
        server.signal("HUP");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(get(server.http, "/livez").await.unwrap().0, 200, "it drains on");
        server.signal(second);
        let exit = server.wait(Duration::from_secs(20)).await;
        assert_eq!(exit.code, None, "{first}, {second}: ended by the signal: {}", exit.log);
    }
}

#[tokio::test]
async fn a_hangup_drains() {
    let server = Server::start(ServerOptions::new(Repository::new().chaos("chaos", &[]))).await;
    let client = server.client().await;
    let in_flight = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -1500.0, 1.0)).await }
    });
    client.in_work("chaos", 1).await;
    server.signal("HUP");
    drains(&server).await;
    in_flight.await.unwrap().unwrap();
    let exit = server.wait(Duration::from_secs(30)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

#[tokio::test]
async fn a_supervised_server_drains_once_for_both_and_ends_at_once_for_two() {
    // a terminal and a control group send the signal to the parent and to its child
    let server = busy(ServerOptions::supervised).await;
    let child = server.child_process();
    let both = |signal: &str| {
        server.signal(signal);
        sensorium_tests::signal(child, signal);
    };
    both("INT");
    drains(&server).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(get(server.http, "/livez").await.unwrap().0, 200, "it drains on");
    both("INT");
    let http = server.http;
    let exit = server.wait(Duration::from_secs(20)).await;
    assert_eq!(exit.code, None, "128 + 2 or + 9: {}", exit.log);
    get(http, "/livez").await.unwrap_err();

    // an orchestrator knows the parent alone
    let server = busy(ServerOptions::supervised).await;
    let http = server.http;
    server.terminate();
    drains(&server).await;
    server.terminate();
    let exit = server.wait(Duration::from_secs(20)).await;
    assert_eq!(exit.code, None, "{}", exit.log);
    get(http, "/livez").await.unwrap_err();

    let server = Server::start(ServerOptions::new(Repository::new().chaos("chaos", &[])).supervised()).await;
    server.signal("HUP");
    let exit = server.wait(Duration::from_secs(30)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}
