//! etcd goes away, for longer than a lease, and comes back, with and without its data.

use std::time::Duration;

use sensorium_tests::eventually;

use super::{cluster, load, none_failed};

async fn survives(forget: bool) {
    let mut cluster = cluster(2, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = load(&client);
    load.answers(30).await;
    cluster.etcd.stop().await;
    // longer than the lease of two seconds
    tokio::time::sleep(Duration::from_secs(5)).await;
    load.answers(50).await;
    let told = client.cluster().await.unwrap();
    assert_eq!(told.dependencies[0].state, "stale", "{told:?}");
    assert!(told.dependencies[0].seconds > 3.0, "{told:?}");
    assert_eq!(told.nodes.iter().filter(|node| node.role == "worker").count(), 2, "{told:?}");
    // a worker that dies meanwhile is noticed without etcd
    cluster.workers[0].process.signal("KILL");
    load.answers(50).await;

    if forget {
        cluster.etcd.forget();
    }
    cluster.etcd.resume().await;
    eventually("the view is current again, without the dead worker", async || {
        let told = client.cluster().await.ok()?;
        let workers: Vec<_> = told.nodes.iter().filter(|node| node.role == "worker").collect();
        (told.dependencies[0].state == "ok" && workers.len() == 1 && workers[0].name == "worker-1").then_some(())
    })
    .await;
    cluster.workers[0].resurrect();
    cluster.ready().await;
    load.answers(50).await;
    none_failed(load).await;
}

#[tokio::test]
async fn an_outage_of_etcd_is_not_noticed_by_requests() {
    survives(false).await;
}

#[tokio::test]
async fn etcd_may_even_lose_its_data() {
    survives(true).await;
}
