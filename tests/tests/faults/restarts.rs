//! `actors restart` under load loses no request, wherever in the tree it strikes.

use sensorium_proto::admin::GetActorTreeRequest;
use sensorium_tests::{Client, Load, Refusal, chaos, eventually};
use tonic::Code;

use super::server;

/// Restarts the actor whose path ends with `end` three times under load.
async fn restart_under_load(end: &str) {
    let server = server(&[]).await;
    let client = server.client().await;
    let load = Load::start(&client, 8, |caller, turn| {
        let model = if (caller + turn) % 2 == 0 { "chaos" } else { "identity" };
        chaos(model, -2.0, 1.0)
    });
    load.answers(50).await;
    for round in 1..=3 {
        let path = client.actor(end).await.path;
        client.restart(&path).await.unwrap();
        eventually("a restart", async || {
            let actor = client.tree("").await.into_iter().find(|actor| actor.path == path)?;
            (actor.restarts >= round && actor.state == "running").then_some(())
        })
        .await;
        load.answers(50).await;
    }
    let (answered, failures) = load.stop().await;
    assert!(
        failures.is_empty(),
        "{} of {} requests were lost: {:?}",
        failures.len(),
        answered + failures.len(),
        failures[0]
    );
}

#[tokio::test]
async fn of_a_replica() {
    restart_under_load("chaos/1/replica-0").await;
}

#[tokio::test]
async fn of_a_batcher() {
    restart_under_load("chaos/1/batcher").await;
}

#[tokio::test]
async fn of_a_version() {
    restart_under_load("text/chaos/1").await;
}

#[tokio::test]
async fn of_a_modality() {
    restart_under_load("-worker/text").await;
}

#[tokio::test]
async fn of_a_route() {
    restart_under_load("route/chaos").await;
}

async fn kinds(client: &Client) -> Vec<(String, String)> {
    client.tree("").await.into_iter().map(|actor| (actor.path, actor.kind)).collect()
}

#[tokio::test]
async fn the_tree_lists_everybody_and_subtrees() {
    let server = server(&[("replicas.count", "2")]).await;
    let client = server.client().await;
    let expected = [
        ("sensorium-1-gateway", "front door"),
        ("sensorium-1-gateway/jobs", "job intake"),
        ("sensorium-1-gateway/jobs/audio", "queue"),
        ("sensorium-1-gateway/jobs/image", "queue"),
        ("sensorium-1-gateway/jobs/text", "queue"),
        ("sensorium-1-gateway/route/chaos", "route"),
        ("sensorium-1-gateway/route/identity", "route"),
        ("sensorium-1-worker", "worker"),
        ("sensorium-1-worker/audio", "supervisor"),
        ("sensorium-1-worker/image", "supervisor"),
        ("sensorium-1-worker/text", "supervisor"),
        ("sensorium-1-worker/text/chaos/1", "version"),
        ("sensorium-1-worker/text/chaos/1/batcher", "batcher"),
        ("sensorium-1-worker/text/chaos/1/replica-0", "replica"),
        ("sensorium-1-worker/text/chaos/1/replica-1", "replica"),
        ("sensorium-1-worker/text/identity/1", "version"),
        ("sensorium-1-worker/text/identity/1/batcher", "batcher"),
        ("sensorium-1-worker/text/identity/1/replica-0", "replica"),
    ];
    let tree = kinds(&client).await;
    let tree: Vec<(&str, &str)> = tree.iter().map(|(path, kind)| (path.as_str(), kind.as_str())).collect();
    assert_eq!(tree, expected);
    assert!(client.tree("").await.iter().all(|actor| actor.state == "running" && actor.restarts == 0));
    assert_eq!(client.tree("sensorium-1-worker/text/chaos").await.len(), 4);

    let unknown = GetActorTreeRequest { path: "sensorium-1-worker/smell".to_owned() };
    let refusal = Refusal::of(client.admin.clone().get_actor_tree(unknown).await);
    assert!(refusal.code == Code::NotFound && refusal.message.contains("sensorium-1-worker/text"), "{refusal:?}");
    assert_eq!(Refusal::of(client.restart("sensorium-1-worker/text/nobody").await).code, Code::NotFound);
    assert_eq!(Refusal::of(client.restart("sensorium-1-worker").await).code, Code::FailedPrecondition);
}
