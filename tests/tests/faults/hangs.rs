//! A device call that never returns.

use std::time::{Duration, Instant};

use futures::future::join_all;
use sensorium_tests::{Ask, Refusal, Repository, Server, ServerOptions, chaos, eventually, get};
use tonic::Code;

const HANG: (&str, &str) = ("replicas.hang_timeout_ms", "400");

#[tokio::test]
async fn a_hang_is_noticed_and_its_company_is_served() {
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &[HANG]);
    let server = Server::start(ServerOptions::new(repository).set("compute.max_hung_threads", "10")).await;
    let client = server.client().await;
    let started = Instant::now();
    let answers = join_all((0..30u16).map(|n| {
        let client = &client;
        async move {
            let order = if n == 15 { f32::INFINITY } else { -1.0 };
            (n, client.infer(chaos("chaos", order, f32::from(n))).await)
        }
    }))
    .await;
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    for (n, answer) in answers {
        if n == 15 {
            let refusal = Refusal::of(answer);
            assert!(refusal.code == Code::Internal && refusal.message.contains("hung"), "{refusal:?}");
        } else {
            assert_eq!(answer.unwrap().fp32("OUTPUT0")[1], f32::from(n));
        }
    }
    let replica = client.actor("chaos/1/replica-0").await;
    assert!(replica.restarts >= 1 && replica.last_failure.contains("silent"), "{replica:?}");
    assert!(server.metric("sensorium_hung_device_threads_total", &[]).await >= 1.0);
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
}

#[tokio::test]
async fn a_hung_device_call_does_not_keep_the_cores() {
    let device = ("architecture", "\"chaos-device\"");
    let repository = Repository::new().with(&["minilm"]).chaos("chaos", &[HANG, device]);
    let options =
        ServerOptions::new(repository).set("compute.max_hung_threads", "10").set("compute.intra_op_threads", "0"); // one call at a time has all the cores
    let server = Server::start(options).await;
    let client = server.client().await;
    let refusal = Refusal::of(client.infer(chaos("chaos", f32::INFINITY, 0.0)).await);
    assert!(refusal.message.contains("hung"), "{refusal:?}");
    // the hung call took its turn with it: others must get theirs, and the successor too
    client.infer(Ask::of("minilm").bytes("text", &["still here"])).await.unwrap();
    client.infer(chaos("chaos", 0.0, 1.0)).await.unwrap();
}

#[tokio::test]
async fn a_call_that_beats_is_no_hang() {
    let repository = Repository::new().chaos("chaos", &[HANG]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    client.infer(chaos("chaos", -2000.0, 1.0)).await.unwrap();
    assert_eq!(client.actor("chaos/1/replica-0").await.restarts, 0);
}

#[tokio::test]
async fn too_many_hangs_end_the_process_for_its_supervisor() {
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &[HANG]);
    let server = Server::start(ServerOptions::new(repository).set("compute.max_hung_threads", "1")).await;
    let client = server.client().await;
    let refusal = Refusal::of(client.infer(chaos("chaos", f32::INFINITY, 0.0)).await);
    assert_eq!(refusal.code, Code::Internal, "{refusal:?}");
    // one hung thread is shed
    client.infer(chaos("chaos", 0.0, 0.0)).await.unwrap();
    Refusal::of(client.infer(chaos("chaos", f32::INFINITY, 0.0)).await);
    let exit = server.wait(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(70), "{}", exit.log);
    assert!(exit.log.contains("hang"), "{}", exit.log);
}

#[tokio::test]
async fn a_supervised_server_is_started_anew() {
    let repository = Repository::new().chaos("chaos", &[HANG]);
    let server = Server::start(ServerOptions::new(repository).supervised()).await;
    let client = server.client().await;
    Refusal::of(client.infer(chaos("chaos", f32::INFINITY, 0.0)).await);
    // the connection breaks with the process, and comes back with its successor
    eventually("a successor", async || {
        let answer = client.infer(chaos("chaos", 0.0, 0.0)).await;
        let ready = get(server.http, "/readyz").await.is_ok_and(|(status, _)| status == 200);
        (answer.is_ok() && ready && server.log().contains("giving up")).then_some(())
    })
    .await;
    server.terminate();
    let exit = server.wait(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}
