//! Nodes that leave on purpose, with no error to anyone.

use std::time::Duration;

use sensorium_tests::Server;

use super::{cluster, load, none_failed};

#[tokio::test]
async fn a_drained_worker_leaves_without_a_trace() {
    let mut cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = load(&client);
    load.answers(30).await;
    let server = format!("http://{}", cluster.gateways[0].grpc);
    let (code, out, err) = Server::verb(&["drain", "worker-0", "--server", &server, "-o", "json"]).await;
    assert_eq!((code, out.contains("worker-0")), (Some(0), true), "{out}{err}");
    load.answers(50).await;
    none_failed(load).await;
    let drained = cluster.workers.remove(0);
    let exit = drained.process.wait(Duration::from_secs(20)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    let (code, _, err) = Server::verb(&["drain", "worker-0", "--server", &server]).await;
    assert!(code == Some(1) && err.contains("worker-1"), "who is there is said: {err}");
}

#[tokio::test]
async fn every_process_can_be_rolled_under_load() {
    let mut cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = load(&client);
    load.answers(30).await;
    for at in 0..2 {
        cluster.workers[at].process.signal("TERM");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.workers[at].resurrect();
        cluster.ready().await;
        load.answers(30).await;
    }
    none_failed(load).await;
}
