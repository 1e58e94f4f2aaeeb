//! Nodes that leave on purpose, with no error to anyone.

use std::time::Duration;

use sensorium_tests::{Ask, Cluster, Doors, Repository, Server};

use super::losses::{in_the_middle, text};
use super::steady::{Steady, cluster};

#[tokio::test]
async fn a_drained_worker_leaves_without_a_trace() {
    let mut cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(30).await;
    let server = format!("http://{}", cluster.gateways[0].grpc);
    let (code, out, err) = Server::verb(&["drain", "worker-0", "--server", &server, "-o", "json"]).await;
    assert_eq!((code, out.contains("worker-0")), (Some(0), true), "{out}{err}");
    load.answers(50).await;
    load.none_lost().await;
    let drained = cluster.workers.remove(0);
    let exit = drained.process.wait(Duration::from_secs(20)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    let (code, _, err) = Server::verb(&["drain", "worker-0", "--server", &server]).await;
    assert!(code == Some(1) && err.contains("worker-1"), "who is there is said: {err}");
}

#[tokio::test]
async fn every_process_can_be_rolled_under_load() {
    let mut cluster = cluster(2, 2).await;
    let doors = Doors::of(&cluster.gateways).await;
    let load = Steady::at_any(&doors);
    load.answers(30).await;
    load.recovered("start");
    for at in 0..4 {
        let node = if at < 2 { &mut cluster.workers[at] } else { &mut cluster.gateways[at - 2] };
        let exit = node.restart().await;
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        let name = node.name.clone();
        cluster.ready().await;
        load.answers(30).await;
        load.recovered(&format!("restart of {name}"));
    }
    println!("{} requests turned to the other gateway", doors.turned());
    load.none_lost().await;
}

#[tokio::test]
async fn a_stream_ends_where_it_began_while_its_worker_and_its_gateway_leave() {
    // as long as a machine takes that others use, too
    let cluster = Cluster::new(Repository::new().with(&["smollm2-135m"])).await.set("drain_seconds", "300");
    let mut cluster = cluster.of(2, 2).await;
    let [client, other] = [cluster.gateways[0].client().await, cluster.gateways[1].client().await];
    let ask = || Ask::prompt("Write a long story about a ship.", 160).set("raw", false);
    let (stream, at) = in_the_middle(&cluster, &client, "smollm2-135m", ask(), "TERM").await;
    cluster.gateways[0].process.signal("TERM");
    let written = text(&stream.await.unwrap().unwrap());
    for node in [cluster.workers.remove(at), cluster.gateways.remove(0)] {
        let exit = node.process.wait(Duration::from_secs(300)).await;
        assert_eq!(exit.code, Some(0), "{}", exit.log);
    }
    assert_eq!(other.statistics("smollm2-135m").await.inference_count, 0, "the worker that stays had no part in it");
    assert_eq!(text(&other.stream(ask()).await.unwrap()), written, "nothing was missing");
}
