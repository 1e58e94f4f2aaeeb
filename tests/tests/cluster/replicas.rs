//! A replica that panics or hangs inside a worker of a cluster: only the request that is to blame fails.

use sensorium_tests::{Client, Cluster, Doors, Load, Refusal, chaos, eventually};
use tonic::Code;

use super::steady::{ITEMS, Steady, models, with_jobs};

/// Two workers with `chaos`, started anew by a parent as an orchestrator would. A device that is silent for so many
/// milliseconds hangs.
async fn breakable(silence: &str) -> Cluster {
    let repository = models().chaos("chaos", &[("replicas.hang_timeout_ms", silence)]);
    let mut cluster = with_jobs(Cluster::new(repository).await).await;
    (0..2).for_each(|_| cluster.add_worker(&["--supervised"]));
    cluster.add_gateway();
    cluster.ready().await;
    cluster
}

/// Healthy requests, also to the model that breaks.
fn healthy(client: &Client) -> Steady {
    let load = Load::start(client, 6, |caller, turn| {
        let model = if (caller + turn) % 3 == 0 { "identity" } else { "chaos" };
        chaos(model, -2.0, turn as f32).deadline(20_000)
    });
    Steady::beside(load, Doors::new(vec![client.clone()]), ITEMS)
}

#[tokio::test]
async fn a_panic_fails_only_the_request_that_is_to_blame() {
    // a busy machine takes its time to print where a thread panicked
    let cluster = breakable("20000").await;
    let client = cluster.gateways[0].client().await;
    let load = healthy(&client);
    load.answers(100).await;
    load.recovered("start");
    for _ in 0..4 {
        let refusal = Refusal::of(client.infer(chaos("chaos", f32::NAN, 0.0).deadline(20_000)).await);
        assert!(refusal.code == Code::Internal && refusal.message.contains("told to panic"), "{refusal:?}");
        load.answers(50).await;
    }
    load.recovered("panics of replicas");
    let tree = client.tree("").await;
    let replicas = tree.iter().filter(|actor| actor.path.contains("/chaos/1/replica-"));
    assert!(replicas.map(|replica| replica.restarts).sum::<u32>() >= 4, "each panic takes a replica: {tree:?}");
    load.none_lost().await;
}

#[tokio::test]
async fn a_hang_ends_its_worker_and_nobody_else_notices() {
    let mut cluster = breakable("1000").await;
    let client = cluster.gateways[0].client().await;
    let load = healthy(&client);
    load.answers(100).await;
    load.recovered("start");
    let refusal = Refusal::of(client.infer(chaos("chaos", f32::INFINITY, 0.0).deadline(20_000)).await);
    assert!(refusal.code == Code::Internal && refusal.message.contains("hung"), "{refusal:?}");
    let gave_up = |cluster: &Cluster| -> Vec<usize> {
        (0..2).filter(|&at| cluster.workers[at].process.log().contains("giving up")).collect()
    };
    let broken = eventually("its worker gives up", async || gave_up(&cluster).first().copied()).await;
    load.answers(100).await;
    // its parent starts it anew: another process, that is found by itself
    eventually("its successor is ready", async || {
        (cluster.workers[broken].process.log().matches("ready").count() > 1).then_some(())
    })
    .await;
    cluster.ready().await;
    let worker = &cluster.workers[broken];
    eventually("its successor is used", async || {
        (worker.metric("sensorium_requests_total", &["code=\"ok\""]).await > 20.0).then_some(())
    })
    .await;
    load.recovered("a hang");
    load.none_lost().await;
    assert_eq!(gave_up(&cluster), [broken], "the poison was not handed to the other worker");
}
