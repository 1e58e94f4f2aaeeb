//! Hosts that do not hear each other, and cables that are slow or lossy. Hosts are network namespaces: without root
//! these tests say that they did not run.

use std::time::Duration;

use sensorium_tests::jobs::header;
use sensorium_tests::{Client, Cluster, Link, Network, Node, eventually};

use super::jobs::{complete, texts};
use super::steady::{Steady, models, with_jobs};
use super::{load, none_failed};

/// `identity` and `minilm` on two workers, each node and etcd on a host of its own; `wired` hosts hang on a cable that
/// can be made worse.
async fn apart(gateways: usize, wired: &[&str]) -> Option<Cluster> {
    let hosts = ["etcd", "nats", "worker-0", "worker-1", "gateway-0", "gateway-1"];
    let network = Network::start(&hosts[..4 + gateways], wired)?;
    let mut cluster = with_jobs(Cluster::within(network, models()).await).await;
    (0..2).for_each(|_| cluster.add_worker(&[]));
    (0..gateways).for_each(|_| cluster.add_gateway());
    cluster.ready().await;
    Some(cluster)
}

/// Requests that a worker has answered since it started.
async fn answered(worker: &Node) -> f64 {
    worker.metric("sensorium_requests_total", &["code=\"ok\""]).await
}

/// Those that the gateway under load alone asks for: jobs come by the other one, too.
async fn asked_for_identity(worker: &Node) -> f64 {
    worker.metric("sensorium_requests_total", &["code=\"ok\"", "model=\"identity\""]).await
}

/// Waits until a worker is used.
async fn used(worker: &Node) {
    let before = answered(worker).await;
    eventually("the worker is used", async || (answered(worker).await > before + 20.0).then_some(())).await;
}

/// Whether all routes of a gateway take a worker to be reachable.
async fn reaches(gateway: &Client, worker: &str) -> bool {
    let told = gateway.cluster().await.unwrap();
    told.routes
        .iter()
        .flat_map(|route| &route.workers)
        .filter(|known| known.worker == worker)
        .all(|known| known.reachable)
}

async fn nodes(gateway: &Client) -> Vec<String> {
    gateway.cluster().await.unwrap().nodes.into_iter().map(|node| node.name).collect()
}

#[tokio::test]
async fn a_gateway_goes_round_a_worker_that_it_alone_cannot_reach() {
    let Some(cluster) = apart(2, &[]).await else { return };
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    used(&cluster.workers[0]).await;
    load.recovered("start");
    cluster.network().part("gateway-0", "worker-0");
    eventually("the worker is out of reach", async || (!reaches(&client, "worker-0").await).then_some(())).await;
    let before = asked_for_identity(&cluster.workers[0]).await;
    load.answers(100).await;
    // longer than the lease, which lives on: the worker hears etcd
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.answers(50).await;
    assert!(
        (asked_for_identity(&cluster.workers[0]).await - before).abs() < 0.5,
        "it was used in spite of the partition"
    );
    let other = cluster.gateways[1].client().await;
    assert!(nodes(&client).await.contains(&"worker-0".to_owned()), "its lease lives");
    assert!(reaches(&other, "worker-0").await, "the other gateway is not parted from it");
    load.recovered("partition of a gateway and a worker");
    cluster.network().heal();
    used(&cluster.workers[0]).await;
    load.recovered("its end");
    load.none_lost().await;
}

#[tokio::test]
async fn a_worker_that_is_cut_off_from_everybody_comes_back_by_itself() {
    let Some(cluster) = apart(1, &[]).await else { return };
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    used(&cluster.workers[0]).await;
    load.recovered("start");
    cluster.network().cut_off("worker-0");
    eventually("its lease runs out", async || (!nodes(&client).await.contains(&"worker-0".to_owned())).then_some(()))
        .await;
    load.answers(100).await;
    load.recovered("a worker cut off");
    cluster.network().heal();
    used(&cluster.workers[0]).await;
    load.recovered("its end");
    load.none_lost().await;
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_from_etcd_serves_on() {
    let Some(mut cluster) = apart(2, &[]).await else { return };
    let client = cluster.gateways[0].client().await;
    let other = cluster.gateways[1].client().await;
    let load = Steady::at(&client);
    load.answers(30).await;
    cluster.network().part("gateway-0", "etcd");
    eventually("others miss it", async || (!nodes(&other).await.contains(&"gateway-0".to_owned())).then_some(())).await;
    eventually("it says that its view is stale", async || {
        (client.cluster().await.ok()?.dependencies[0].state == "stale").then_some(())
    })
    .await;
    assert_eq!(other.cluster().await.unwrap().dependencies[0].state, "ok");
    load.answers(50).await;
    // it does not hear that a worker leaves, nor that it comes back
    let exit = cluster.workers[1].restart().await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    cluster.workers[1].ready().await;
    load.answers(50).await;
    load.recovered("partition of a gateway and etcd, and a worker's restart");
    // how it came to be is not to be had any more: what is there is read anew
    cluster.etcd.compact().await;
    cluster.network().heal();
    eventually("all is known again", async || {
        let current = client.cluster().await.ok()?.dependencies[0].state == "ok";
        (current && nodes(&other).await.contains(&"gateway-0".to_owned())).then_some(())
    })
    .await;
    let log = || cluster.gateways[0].process.log();
    eventually("etcd says that it is compacted", async || log().contains("is compacted").then_some(())).await;
    let relisted = || log().matches("\"resumed\":false").count() > 1;
    eventually("what is there is read anew", async || relisted().then_some(())).await;
    used(&cluster.workers[1]).await;
    load.recovered("its end");
    load.none_lost().await;
}

#[tokio::test]
async fn a_slow_cable_turns_requests_to_the_other_worker() {
    let Some(cluster) = apart(1, &["worker-0"]).await else { return };
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    used(&cluster.workers[0]).await;
    used(&cluster.workers[1]).await;
    load.recovered("start");
    let slow = Link { delay: Duration::from_millis(200), rate: Some(100_000.0), ..Link::default() };
    cluster.network().set("worker-0", slow);
    load.answers(300).await;
    let [slow, quick] = [&cluster.workers[0], &cluster.workers[1]];
    let before = (answered(slow).await, answered(quick).await);
    load.answers(1000).await;
    let (slow_took, quick_took) = (answered(slow).await - before.0, answered(quick).await - before.1);
    println!("over the slow cable {slow_took}, over the other {quick_took} requests");
    assert!(
        slow_took * 4.0 < quick_took,
        "{slow_took} of {} requests went over the slow cable",
        slow_took + quick_took
    );
    load.recovered("a slow cable");
    cluster.network().set("worker-0", Link::default());
    used(&cluster.workers[0]).await;
    load.recovered("its end");
    load.none_lost().await;
}

#[tokio::test]
async fn lost_packets_lose_no_request() {
    let Some(cluster) = apart(1, &["worker-0", "gateway-0"]).await else { return };
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(50).await;
    load.recovered("start");
    let lossy = Link { loss: 0.05, ..Link::default() };
    ["worker-0", "gateway-0"].iter().for_each(|host| cluster.network().set(host, lossy));
    load.answers(300).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    load.answers(100).await;
    load.recovered("5 % of the packets lost");
    load.none_lost().await;
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_from_nats_and_redis_leaves_its_tasks_to_the_other() {
    const ITEMS: usize = 500;
    let hosts = ["etcd", "nats", "redis", "worker-0", "gateway-0", "gateway-1"];
    let Some(network) = Network::start(&hosts, &[]) else { return };
    let cluster = with_jobs(Cluster::within(network, models()).await).await.with_redis().await.of(2, 1).await;
    let (parted, other) = (cluster.gateways[0].client().await, cluster.gateways[1].client().await);
    let state = async |client: &Client, name: &str, wanted: &str| {
        eventually("the state of what stands outside", async || {
            let told = client.cluster().await.ok()?;
            told.dependencies.iter().any(|of| of.name == name && of.state == wanted).then_some(())
        })
        .await;
    };
    state(&parted, "nats", "ok").await;
    let load = load(&parted);
    load.answers(30).await;
    load.recovered("start");
    let job = parted.submit(header("one"), texts("one", ITEMS)).await.unwrap();
    let tasks = async |node: &Node| node.metric("sensorium_job_tasks_total", &[]).await;
    eventually("it works on the job", async || (tasks(&cluster.gateways[0]).await > 5.0).then_some(())).await;
    cluster.network().scatter(&["gateway-0", "nats", "redis"]);
    // what it had in hand is done by the other
    let over = eventually("the job is over", async || other.finish(&job.id).await.ok()).await;
    complete(&other, &over, ITEMS).await;
    state(&parted, "nats", "down").await;
    load.answers(50).await;
    load.recovered("partition of a gateway from NATS and Redis");
    cluster.network().heal();
    state(&parted, "nats", "ok").await;
    let again = eventually("it knows the job", async || parted.submit(header("one"), texts("one", ITEMS)).await.ok());
    assert_eq!(again.await.id, job.id);
    let next = parted.submit(header("two"), texts("two", 50)).await.unwrap();
    complete(&parted, &parted.finish(&next.id).await.unwrap(), 50).await;
    load.recovered("its end");
    none_failed(load).await;
}
