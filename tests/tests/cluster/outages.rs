//! etcd goes away, for longer than a lease, and comes back, with and without its data.

use std::time::Duration;

use sensorium_tests::{Cluster, Repository, chaos, eventually, get};

use super::steady::{Steady, cluster, models, with_jobs};

async fn survives(forget: bool) {
    let mut cluster = cluster(2, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(30).await;
    load.recovered("start");
    cluster.etcd.stop().await;
    // longer than the lease of two seconds
    tokio::time::sleep(Duration::from_secs(5)).await;
    load.answers(50).await;
    let told = client.cluster().await.unwrap();
    assert_eq!(told.dependencies[0].state, "stale", "{told:?}");
    assert!(told.dependencies[0].seconds > 3.0, "{told:?}");
    let metric = async |name: &str| cluster.gateways[0].metric(name, &["dependency=\"etcd\""]).await;
    assert!(metric("sensorium_dependency_up").await < 0.5);
    assert!(metric("sensorium_dependency_unwell_seconds").await > 1.0);
    assert_eq!(told.nodes.iter().filter(|node| node.role == "worker").count(), 2, "{told:?}");
    // a worker that dies meanwhile is noticed without etcd
    cluster.workers[0].process.signal("KILL");
    load.answers(50).await;
    load.recovered("outage of etcd, and a dead worker in it");

    if forget {
        cluster.etcd.forget();
    }
    cluster.etcd.resume().await;
    let resumed = format!("\"resumed\":{}", !forget);
    eventually("it is read on from where it was, unless it was emptied", async || {
        cluster.gateways[0].process.log().contains(&resumed).then_some(())
    })
    .await;
    eventually("the view is current again, without the dead worker", async || {
        let told = client.cluster().await.ok()?;
        let workers: Vec<_> = told.nodes.iter().filter(|node| node.role == "worker").collect();
        (told.dependencies[0].state == "ok" && workers.len() == 1 && workers[0].name == "worker-1").then_some(())
    })
    .await;
    cluster.workers[0].resurrect();
    cluster.ready().await;
    load.answers(50).await;
    load.recovered("etcd's return");
    load.none_lost().await;
}

#[tokio::test]
async fn an_outage_of_etcd_is_not_noticed_by_requests() {
    survives(false).await;
}

#[tokio::test]
async fn etcd_may_even_lose_its_data() {
    survives(true).await;
}

/// It keeps its connections and answers nobody: worse to tell from a slow one than one that is gone.
#[tokio::test]
async fn an_etcd_that_hangs_is_not_noticed_by_requests() {
    let cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(30).await;
    load.recovered("start");
    let state = async || Some(client.cluster().await.ok()?.dependencies[0].state.clone());
    cluster.etcd.process().signal("STOP");
    eventually("the view is known to be stale", async || (state().await? == "stale").then_some(())).await;
    // longer than the lease of two seconds
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.answers(50).await;
    load.recovered("an etcd that hangs");
    cluster.etcd.process().signal("CONT");
    eventually("the view is current again", async || (state().await? == "ok").then_some(())).await;
    cluster.seen_by(&cluster.gateways[0], &["worker-0".to_owned(), "worker-1".to_owned()]).await;
    load.answers(50).await;
    load.recovered("it goes on");
    load.none_lost().await;
}

/// Who rolls workers waits until one is ready before the next is stopped: others must have heard of it by then.
#[tokio::test]
async fn a_worker_is_not_ready_before_the_register_knows_its_models() {
    // one that takes its time to load
    let models = ["identity", "smollm2-135m"];
    let mut cluster = Cluster::start(Repository::new().with(&models), 1, 1).await;
    let client = cluster.gateways[0].client().await;
    let exit = cluster.workers[0].restart().await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    let worker = &cluster.workers[0].process;
    eventually("it is registered", async || worker.log().contains("registered").then_some(())).await;
    cluster.etcd.process().signal("STOP");
    assert!(!worker.log().contains("smollm2-135m"), "it loaded too quickly for this test:\n{}", worker.log());
    eventually("it has loaded its models", async || {
        (worker.log().matches("replica ready").count() == models.len()).then_some(())
    })
    .await;
    // nobody can know of its models yet: until it says that etcd does not answer it is not ready
    loop {
        let (status, _) = get(cluster.workers[0].http, "/readyz").await.unwrap();
        if worker.log().contains("etcd does not answer") {
            break;
        }
        assert_eq!(status, 503, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.etcd.process().signal("CONT");
    cluster.ready().await;
    client.infer(chaos("identity", 0.0, 0.0).deadline(20_000)).await.unwrap();
}

#[tokio::test]
async fn workers_may_be_rolled_while_etcd_is_away() {
    let mut cluster = with_jobs(Cluster::new(models().chaos("chaos", &[])).await).await.of(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(30).await;
    load.recovered("start");
    cluster.etcd.stop().await;
    for at in 0..2 {
        // what a worker still has to finish keeps it refusing for long enough to be remembered for it
        let slow = (0..6).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.infer(chaos("chaos", -500.0, 1.0).deadline(20_000)).await })
        });
        let slow: Vec<_> = slow.collect();
        let name = cluster.workers[at].name.clone();
        eventually("it has something to finish", async || {
            let told = client.cluster().await.ok()?;
            let route = told.routes.into_iter().find(|route| route.model == "chaos")?;
            route.workers.iter().any(|worker| worker.worker == name && worker.in_flight > 0).then_some(())
        })
        .await;
        let exit = cluster.workers[at].restart().await;
        assert_eq!(exit.code, Some(0), "{}", exit.log);
        for slow in slow {
            slow.await.unwrap().unwrap();
        }
        cluster.workers[at].ready().await;
        load.answers(30).await;
    }
    load.recovered("restart of both workers without etcd");
    cluster.etcd.resume().await;
    cluster.ready().await;
    load.answers(50).await;
    load.recovered("etcd's return");
    load.none_lost().await;
}

/// etcd closes connections that ask it too often whether it is there.
#[tokio::test]
async fn a_view_is_kept_while_nothing_happens() {
    let cluster = cluster(1, 1).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    for node in [&cluster.gateways[0], &cluster.workers[0]] {
        let log = node.process.log();
        let lost = log.lines().filter(|line| line.contains("out of reach") || line.contains("not registered")).count();
        // a busy machine may miss an answer; refusals would come every few seconds
        assert!(lost <= 1, "{}: {log}", node.name);
    }
}
