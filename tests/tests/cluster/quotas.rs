//! Quotas are of the whole cluster: each gateway gives its part, and all of it when it is alone.

use std::time::Duration;

use sensorium_tests::{Client, Cluster, Refusal, Repository, chaos, eventually};
use tonic::Code;

/// Requests that a gateway lets in at once.
async fn burst(client: &Client) -> usize {
    for passed in 0..100 {
        if let Err(status) = client.infer(chaos("identity", 0.0, 0.0)).await {
            Refusal::from(status).is_retriable(Code::ResourceExhausted, "QUOTA");
            return passed;
        }
    }
    panic!("there is no quota");
}

/// Waits until a gateway sees so many, and has had time to think of it.
async fn sees(client: &Client, gateways: usize) {
    eventually("the gateways", async || {
        let nodes = client.cluster().await.ok()?.nodes;
        let seen = nodes.iter().filter(|node| node.role == "gateway" && !node.draining).count();
        (seen == gateways).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn gateways_share_a_quota() {
    // a rate at which nothing comes back while the test runs
    let rate = ("tenants.default.requests_per_second", "0.001");
    let mut cluster = Cluster::new(Repository::new().with(&["identity"])).await;
    cluster = cluster.set(rate.0, rate.1).set("tenants.default.burst", "10");
    cluster.add_worker(&[]);
    (0..2).for_each(|_| cluster.add_gateway());
    cluster.ready().await;
    let one = cluster.gateways[0].client().await;
    let two = cluster.gateways[1].client().await;
    for client in [&one, &two] {
        sees(client, 2).await;
        assert_eq!(burst(client).await, 5);
    }
    cluster.gateways[1].process.signal("TERM");
    sees(&one, 1).await;
    assert_eq!(burst(&one).await, 10, "what the other one gave is not lost");
}
