//! An etcd without space: it is read like any other, and takes no writes.

use std::time::Duration;

use sensorium_tests::{Client, Cluster, Node, Server, chaos, eventually, get};

use super::steady::{Steady, models, with_jobs};

async fn etcd_is(client: &Client, wanted: &str) -> String {
    eventually("the state of etcd", async || {
        let told = client.cluster().await.ok()?;
        let etcd = told.dependencies.into_iter().find(|of| of.name == "etcd")?;
        (etcd.state == wanted).then_some(etcd.reason)
    })
    .await
}

async fn is_ready(node: &Node) -> bool {
    get(node.http, "/readyz").await.is_ok_and(|(status, _)| status == 200)
}

#[tokio::test]
async fn an_etcd_without_space_is_read_and_who_cannot_register_is_not_ready() {
    let mut cluster = with_jobs(Cluster::new(models().chaos("chaos", &[])).await).await.of(2, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(30).await;
    load.recovered("start");
    cluster.etcd.has_no_space(true).await;
    let reason = etcd_is(&client, "degraded").await;
    assert!(reason.contains("NOSPACE"), "{reason}");
    let server = format!("http://{}", cluster.gateways[0].grpc);
    let (code, out, err) = Server::verb(&["status", "--server", &server]).await;
    assert!(code == Some(0) && out.contains("NOSPACE"), "{out}{err}");
    let up = cluster.gateways[0].metric("sensorium_dependency_up", &["dependency=\"etcd\""]).await;
    assert!(up < 0.5, "{up}");

    // what a node wants to write meanwhile does not cost it its place
    client.unload("chaos").await.unwrap();
    client.load("chaos").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await; // longer than the lease
    let told = client.cluster().await.unwrap();
    assert_eq!(told.nodes.iter().filter(|node| node.role == "worker").count(), 2, "{told:?}");

    // reading needs no write
    cluster.gateways[1].resurrect();
    cluster.gateways[1].ready().await;
    let second = cluster.gateways[1].client().await;
    second.infer(chaos("identity", 0.0, 1.0).deadline(20_000)).await.unwrap();
    assert!(etcd_is(&second, "degraded").await.contains("space"), "also where only the own registration is refused");

    // who rolls workers stops at one that nobody can hear of
    cluster.workers[1].restart().await;
    cluster.workers[1].lives().await;
    let worker = &cluster.workers[1];
    eventually("it has loaded its models", async || {
        (worker.process.log().matches("replica ready").count() == 3).then_some(())
    })
    .await;
    eventually("it says why it is not registered", async || {
        worker.process.log().contains("database space exceeded").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!is_ready(worker).await, "{}", worker.process.log());
    load.answers(50).await;
    load.recovered("an etcd without space");

    cluster.etcd.has_no_space(false).await;
    cluster.ready().await;
    assert_eq!(etcd_is(&client, "ok").await, "");
    etcd_is(&second, "ok").await;
    load.answers(30).await;
    load.none_lost().await;
}
