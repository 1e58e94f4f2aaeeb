//! Unknown is only what is known not to exist: before the register has been read, and while a model's worker starts anew,
//! a model is unavailable, and the answer says when to come again.

use std::collections::BTreeMap;
use std::time::Duration;

use sensorium_proto::inference::{ModelConfigRequest, ModelMetadataRequest, ModelStatisticsRequest};
use sensorium_tests::{Ask, Client, Cluster, Refusal, Repository, chaos, eventually, get};
use tonic::{Code, Status};

fn version(ask: Ask, version: &str) -> Ask {
    let mut ask = ask;
    ask.message.model_version = version.to_owned();
    ask
}

/// All that names a model.
async fn asked_for(client: &Client, model: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let mut inference = client.inference.clone();
    let name = model.to_owned();
    let row = || chaos(model, 0.0, 1.0).deadline(2000);
    let metadata = ModelMetadataRequest { name: name.clone(), version: String::new() };
    let config = ModelConfigRequest { name: name.clone(), version: String::new() };
    let statistics = ModelStatisticsRequest { name, version: String::new() };
    vec![
        ("infer", client.infer(row()).await.map(drop)),
        ("infer of a version", client.infer(version(row(), "1")).await.map(drop)),
        ("metadata", inference.model_metadata(metadata).await.map(drop)),
        ("config", inference.model_config(config).await.map(drop)),
        ("statistics", inference.model_statistics(statistics).await.map(drop)),
    ]
}

#[tokio::test]
async fn a_gateway_without_a_view_calls_nothing_unknown() {
    let mut cluster = Cluster::start(Repository::new().with(&["identity"]), 1, 1).await;
    cluster.etcd.stop().await;
    cluster.gateways[0].resurrect();
    cluster.gateways[0].lives().await;
    let client = cluster.gateways[0].client().await;
    for model in ["identity", "nobody", "understand me"] {
        for (what, answer) in asked_for(&client, model).await {
            Refusal::of(answer).is_retriable(Code::Unavailable, "NO_VIEW");
            println!("{what} of {model} is unavailable");
        }
        for answer in [client.unload(model).await, client.load(model).await] {
            assert_eq!(answer.unwrap_err().code(), Code::Unavailable, "an operator's question");
        }
    }
    assert_eq!(client.restart("worker-0/text").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(get(cluster.gateways[0].http, "/readyz").await.unwrap().0, 503);
    cluster.etcd.resume().await;
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    client.infer(chaos("identity", 0.0, 1.0).deadline(20_000)).await.unwrap();
    for (what, answer) in asked_for(&client, "nobody").await {
        assert_eq!(answer.unwrap_err().code(), Code::NotFound, "{what}: now it is known");
    }
}

#[tokio::test]
async fn a_worker_that_starts_anew_leaves_its_models_known() {
    let mut cluster = Cluster::start(Repository::new().with(&["identity", "smollm2-135m"]), 1, 1).await;
    let client = cluster.gateways[0].client().await;
    for signal in ["KILL", "TERM"] {
        cluster.workers[0].process.signal(signal);
        cluster.workers[0].process.ended(Duration::from_secs(60)).await;
        cluster.workers[0].resurrect();
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        let mut answered = 0;
        eventually("all of it answers again", async || {
            let all = asked_for(&client, "identity").await;
            let done = all.iter().all(|(_, answer)| answer.is_ok());
            for (what, answer) in all {
                let Err(status) = answer else { continue };
                assert_ne!(status.code(), Code::NotFound, "{what}: {status}");
                assert_ne!(status.code(), Code::ResourceExhausted, "{what}: {status}");
                if status.code() == Code::Unavailable {
                    let refusal = Refusal::from(status);
                    assert!(refusal.retry.is_some(), "{what}: {refusal:?}");
                    *told.entry(format!("{what}: {:?}", refusal.reason)).or_default() += 1;
                }
            }
            // a model that loads last is known all the while
            let slow = client.infer(Ask::prompt("a", 1).deadline(10_000)).await;
            assert!(slow.as_ref().err().is_none_or(|status| status.code() != Code::NotFound), "{slow:?}");
            answered = if done && slow.is_ok() { answered + 1 } else { 0 };
            (answered >= 2).then_some(())
        })
        .await;
        println!("{signal}: {told:?}");
    }
    assert_eq!(client.infer(chaos("nobody", 0.0, 1.0)).await.unwrap_err().code(), Code::NotFound);
    // what an operator has unloaded is unknown
    client.unload("identity").await.unwrap();
    eventually("it is unloaded", async || {
        let status = client.infer(chaos("identity", 0.0, 1.0)).await.err()?;
        (status.code() == Code::NotFound).then_some(())
    })
    .await;
}
