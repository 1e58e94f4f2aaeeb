//! Gateways that call some of many workers, each its own part.

use std::collections::BTreeSet;

use sensorium_tests::{Ask, Cluster, Doors, Load, Node, Repository, eventually};

use super::none_failed;

const GATEWAYS: usize = 6;
const WORKERS: usize = 5;

/// What a gateway calls of so many workers, however small its subset: each is called by four of the gateways.
fn part(workers: usize) -> usize {
    (4 * workers).div_ceil(GATEWAYS)
}

/// Workers that a gateway calls.
async fn called(gateway: &Node) -> BTreeSet<String> {
    let told = gateway.client().await.cluster().await.unwrap();
    let routes = told.routes.iter().filter(|route| route.model == "identity");
    routes.flat_map(|route| route.workers.iter().map(|worker| worker.worker.clone())).collect()
}

#[tokio::test]
async fn each_gateway_calls_its_part_of_the_workers_and_fills_it_up_when_one_dies() {
    let cluster = Cluster::new(Repository::new().with(&["identity"])).await.set("plane.subset", "1");
    let cluster = cluster.of(GATEWAYS, WORKERS).await;
    let doors = Doors::of(&cluster.gateways).await;
    let load = Load::of(GATEWAYS, move |_, turn| {
        let doors = doors.clone();
        let ask = Ask::of("identity").fp32("INPUT0", &[1, 16], &[turn as f32; 16]).deadline(20_000);
        async move { doors.infer(ask).await.map(drop) }
    });
    load.answers(100).await;
    let mut used = BTreeSet::new();
    for gateway in &cluster.gateways {
        let own = called(gateway).await;
        assert_eq!(own.len(), part(WORKERS), "{own:?}");
        used.extend(own);
    }
    assert!(part(WORKERS) < WORKERS && used.len() == WORKERS, "nobody stands idle: {used:?}");
    load.recovered("start");

    let first = called(&cluster.gateways[0]).await.pop_first().unwrap();
    let dead = cluster.workers.iter().find(|worker| worker.name == first).unwrap();
    dead.process.signal("KILL");
    load.answers(50).await;
    load.recovered("a worker of some parts killed");
    for gateway in &cluster.gateways {
        eventually("others have taken its place", async || {
            let own = called(gateway).await;
            (own.len() == part(WORKERS - 1) && !own.contains(&first)).then_some(())
        })
        .await;
    }
    load.answers(50).await;
    none_failed(load).await;
}
