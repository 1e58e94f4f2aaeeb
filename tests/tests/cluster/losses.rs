//! Workers that die, freeze, or never come back.

use std::time::Duration;

use sensorium_proto::inference::ModelStreamInferResponse;
use sensorium_tests::{Ask, Client, Cluster, Doors, Given, Load, Repository, chaos, eventually, get, within};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::steady::{Steady, cluster};

#[tokio::test]
async fn a_killed_worker_fails_no_request() {
    let mut cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(50).await;
    load.recovered("start");
    cluster.workers[0].process.signal("KILL");
    load.answers(100).await;
    load.recovered("kill -9 of a worker");
    // it comes back under the same name, as another process
    cluster.workers[0].resurrect();
    cluster.ready().await;
    load.answers(50).await;
    load.none_lost().await;
    let retries = cluster.gateways[0].metric("sensorium_retries_total", &[]).await;
    println!("{retries} retries");
}

#[tokio::test]
async fn a_frozen_worker_fails_no_request() {
    let cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let load = Steady::at(&client);
    load.answers(50).await;
    load.recovered("start");
    cluster.workers[0].process.signal("STOP");
    load.answers(100).await;
    tokio::time::sleep(Duration::from_secs(4)).await; // longer than keep-alive and lease
    load.answers(50).await;
    load.recovered("SIGSTOP of a worker");
    cluster.workers[0].process.signal("CONT");
    let gateway = &cluster.gateways[0];
    cluster.seen_by(gateway, &["worker-0".to_owned(), "worker-1".to_owned()]).await;
    load.answers(50).await;
    load.none_lost().await;
}

/// What waits for a frozen worker is asked of another one long before keep-alive has noticed it, which takes three seconds.
#[tokio::test]
async fn a_frozen_worker_fails_nobody_whose_deadline_is_shorter_than_keep_alive() {
    let repository = Repository::new().with(&["identity", "minilm"]).chaos("chaos", &[]);
    let cluster = Cluster::start(repository, 1, 3).await;
    let client = cluster.gateways[0].client().await;
    let load = Load::of(9, move |caller, turn| {
        let client = client.clone();
        async move {
            let ask = match caller % 3 {
                0 => chaos("identity", 0.0, turn as f32),
                1 => Ask::text(&format!("caller {caller} in turn {turn}")),
                _ => chaos("chaos", 0.0, turn as f32),
            };
            if caller < 6 {
                return client.infer(ask.deadline(2000)).await.map(drop);
            }
            // a stream of one request has no other way
            let answers = within(client.stream(ask.set("timeout", 2_000_000))).await?;
            match answers.as_slice() {
                [answer] if answer.error_message.is_empty() => Ok(()),
                answers => Err(Status::internal(format!("{answers:?}"))),
            }
        }
    });
    load.answers(600).await;
    load.recovered("start");
    for worker in [&cluster.workers[0], &cluster.workers[2]] {
        worker.process.signal("STOP");
        load.answers(300).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        load.answers(100).await;
        load.recovered("SIGSTOP of one of three");
        worker.process.signal("CONT");
        let all: Vec<String> = cluster.workers.iter().map(|worker| worker.name.clone()).collect();
        cluster.seen_by(&cluster.gateways[0], &all).await;
        load.answers(100).await;
    }
    let hedges = cluster.gateways[0].metric("sensorium_hedges_total", &[]).await;
    assert!(hedges >= 1.0, "nobody was asked a second time");
    println!("{hedges} hedges");
    super::none_failed(load).await;
}

/// A worker that says nothing has not too much to do.
#[tokio::test]
async fn refusals_beside_a_frozen_worker_are_no_overload() {
    let cluster = Cluster::start(Repository::new().with(&["identity"]), 1, 1).await;
    let client = cluster.gateways[0].client().await;
    for _ in 0..100 {
        client.infer(chaos("identity", 0.0, 1.0).deadline(20_000)).await.unwrap();
    }
    cluster.workers[0].process.signal("STOP");
    // more than the least that a model's limit shrinks to
    let callers = (0..24).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut codes = Vec::new();
            for _ in 0..4 {
                codes.push(client.infer(chaos("identity", 0.0, 1.0).deadline(1000)).await.err());
            }
            codes
        })
    });
    let callers: Vec<_> = callers.collect();
    for caller in callers {
        for status in caller.await.unwrap().into_iter().flatten() {
            // a client that waits no longer calls it cancelled
            let codes = [Code::DeadlineExceeded, Code::Unavailable, Code::Cancelled];
            assert!(codes.contains(&status.code()), "{status:?}");
        }
    }
    cluster.workers[0].process.signal("CONT");
    eventually("it answers again", async || client.infer(chaos("identity", 0.0, 1.0).deadline(20_000)).await.ok())
        .await;
}

#[tokio::test]
async fn the_last_worker_of_a_model_leaves_it_unavailable_not_unknown() {
    let mut cluster = cluster(1, 1).await;
    let client = cluster.gateways[0].client().await;
    let ask = || Ask::of("identity").fp32("INPUT0", &[1, 16], &[0.0; 16]).deadline(2000);
    client.infer(ask()).await.unwrap();
    cluster.workers[0].process.signal("KILL");
    eventually("the lease runs out", async || {
        let status = client.infer(ask()).await.err()?;
        assert_ne!(status.code(), Code::NotFound, "{status:?}");
        (status.code() == Code::Unavailable && status.message().contains("no worker")).then_some(())
    })
    .await;
    // a gateway that has never seen it says the same of it, and of others that there are none such
    cluster.gateways[0].resurrect();
    cluster.gateways[0].lives().await;
    let client = cluster.gateways[0].client().await;
    eventually("it has read the register", async || {
        let status = client.infer(ask()).await.unwrap_err();
        (status.code() == Code::Unavailable && status.message().contains("no worker")).then_some(())
    })
    .await;
    let nobody = Ask::of("nobody").fp32("INPUT0", &[1, 16], &[0.0; 16]);
    assert_eq!(client.infer(nobody).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(cluster.gateways[0].http, "/readyz").await.unwrap().0, 503, "nobody is behind it");
    cluster.workers[0].resurrect();
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    eventually("it answers again", async || client.infer(ask()).await.ok()).await;
}

/// What a stream has written.
pub(super) fn text(answers: &[ModelStreamInferResponse]) -> String {
    let pieces = answers.iter().map(|answer| {
        assert_eq!(answer.error_message, "");
        Given(answer.infer_response.clone().unwrap()).one_text("text")
    });
    pieces.collect()
}

/// A stream whose worker, the one of this number, is sent a signal in the middle of it.
pub(super) async fn in_the_middle(
    cluster: &Cluster,
    client: &Client,
    model: &str,
    ask: Ask,
    signal: &str,
) -> (JoinHandle<Result<Vec<ModelStreamInferResponse>, Status>>, usize) {
    // the worker that writes is the one with a call in work
    let writing = async || {
        let cluster = client.cluster().await.unwrap();
        let route = cluster.routes.into_iter().find(|route| route.model == model).unwrap();
        route.workers.into_iter().find(|worker| worker.in_flight > 0).map(|worker| worker.worker)
    };
    eventually("nobody writes", async || writing().await.is_none().then_some(())).await;
    let written = tokio::spawn({
        let client = client.clone();
        async move { client.stream(ask).await }
    });
    let writing = eventually("somebody writes", writing).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let at = cluster.workers.iter().position(|worker| worker.name == writing).unwrap();
    cluster.workers[at].process.signal(signal);
    (written, at)
}

#[tokio::test]
async fn a_generation_goes_on_elsewhere() {
    let repository = Repository::new().with(&["smollm2-135m"]);
    let mut cluster = Cluster::start(repository, 1, 2).await;
    let client = cluster.gateways[0].client().await;
    let ask = || {
        Ask::prompt("Write a long story about a ship.", 160).set("raw", false).set("temperature", 0.8).set("seed", 11)
    };
    let whole = text(&client.stream(ask()).await.unwrap());
    let (broken, at) = in_the_middle(&cluster, &client, "smollm2-135m", ask(), "KILL").await;
    let again = text(&broken.await.unwrap().unwrap());
    let retries = cluster.gateways[0].metric("sensorium_retries_total", &["smollm2-135m"]).await;
    assert!(retries >= 1.0, "the worker was not lost in the middle");
    assert_eq!(whole, again, "the same seed, the same continuation");
    cluster.workers[at].resurrect();
}

/// A model may want that nobody goes on with what another one began.
#[tokio::test]
async fn a_generation_that_may_not_go_on_says_that_its_worker_was_lost() {
    let repository = Repository::new().copy("smollm2-135m", "once", &[("routing.resume", "false")]);
    let mut cluster = Cluster::start(repository, 1, 2).await;
    let client = cluster.gateways[0].client().await;
    let ask = || Ask::of("once").bytes("prompt", &["Write a long story about a ship."]).set("max_tokens", 160);
    let (broken, at) = in_the_middle(&cluster, &client, "once", ask(), "KILL").await;
    let answers = broken.await.unwrap().unwrap();
    let (last, before) = answers.split_last().unwrap();
    assert!(!text(before).is_empty(), "it had begun");
    assert!(last.error_message.contains(&cluster.workers[at].name), "{}", last.error_message);
    assert!(last.infer_response.as_ref().is_none_or(|none| none.outputs.is_empty()), "{last:?}");
    // whoever asks anew is answered by the other
    assert!(!text(&client.stream(ask()).await.unwrap()).is_empty());
    cluster.workers[at].resurrect();
}

#[tokio::test]
async fn a_killed_gateway_is_replaced_by_the_other() {
    let mut cluster = cluster(2, 1).await;
    let doors = Doors::of(&cluster.gateways).await;
    let load = Steady::at_any(&doors);
    for at in 0..2 {
        load.answers(50).await;
        load.recovered("quiet");
        let turned = doors.turned();
        cluster.gateways[at].process.signal("KILL");
        load.answers(100).await;
        load.recovered("kill -9 of a gateway");
        assert!(doors.turned() > turned, "nobody was at the gateway that was killed");
        cluster.gateways[at].resurrect();
        cluster.ready().await;
    }
    load.none_lost().await;
}

#[tokio::test]
async fn a_hedged_model_does_not_wait_for_a_frozen_worker() {
    let hedged = ("routing.hedge_percentile", "90.0");
    let repository = Repository::new().chaos("hedged", &[hedged]);
    let cluster = Cluster::start(repository, 1, 2).await;
    let client = cluster.gateways[0].client().await;
    let ask = || chaos("hedged", 0.0, 1.0).deadline(20_000);
    // a percentile needs something to be taken of
    for _ in 0..150 {
        client.infer(ask()).await.unwrap();
    }
    // one caller alone is served by the quicker of the two
    let told = client.cluster().await.unwrap();
    let route = told.routes.into_iter().find(|route| route.model == "hedged").unwrap();
    let quicker = route.workers.into_iter().min_by(|a, b| a.latency_seconds.total_cmp(&b.latency_seconds)).unwrap();
    let quicker = cluster.workers.iter().find(|worker| worker.name == quicker.worker).unwrap();
    quicker.process.signal("STOP");
    for _ in 0..30 {
        client.infer(ask()).await.unwrap();
    }
    let hedges = cluster.gateways[0].metric("sensorium_hedges_total", &["hedged"]).await;
    assert!(hedges >= 1.0, "nobody was asked a second time");
    quicker.process.signal("CONT");
}
