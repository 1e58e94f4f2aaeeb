//! Replicas that cannot be loaded again, files that change under a version, device threads that hang for a while.

use std::fs;
use std::time::Duration;

use futures::future::join_all;
use sensorium_tests::{Ask, Neighbours, Refusal, Repository, Server, ServerOptions, chaos, eventually};
use tonic::Code;

use super::index;

#[tokio::test]
async fn a_replica_that_cannot_be_loaded_leaves_the_version_to_the_other() {
    let two = [("replicas.count", "2"), ("cache", "false")];
    let repository = Repository::new().with(&["identity", "minilm"]).reweighted("minilm", "pair", &two, |_| ());
    let folder = repository.path().join("pair/1");
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    fs::rename(folder.join("config.json"), folder.join("away")).unwrap();
    client.restart("sensorium-1-worker/text/pair/1/replica-1").await.unwrap();
    eventually("the index says so", async || {
        let (state, reason) = index(&client).await["pair"].clone();
        assert_eq!(state, "READY", "{reason}");
        (reason.contains("1 of 2 replicas") && reason.contains("config.json")).then_some(())
    })
    .await;
    for answer in join_all((0..40).map(|n| client.infer(Ask::of("pair").bytes("text", &[format!("text {n}")])))).await {
        answer.unwrap();
    }
    fs::rename(folder.join("away"), folder.join("config.json")).unwrap();
    eventually("both replicas are ready", async || {
        let down = index(&client).await["pair"].1.len();
        (down == 0 && client.actor("text/pair/1/replica-1").await.state == "running").then_some(())
    })
    .await;
    assert!(server.metric("sensorium_quarantines_total", &[]).await < 0.5);
    // the operator's restart, and the tries that followed it
    neighbours.were_not_hurt_but_for_restarts("a replica that cannot be loaded").await;
}

/// Answers of other weights are neither told nor kept under the name of those that were loaded.
#[tokio::test]
async fn files_that_change_in_place_are_a_version_of_their_own() {
    let cached = [("cache", "true")];
    let repository = Repository::new()
        .with(&["identity"])
        .reweighted("minilm", "changing", &cached, |_| ())
        .reweighted("minilm", "other", &cached, |weights| {
            let layer = weights.get_mut("encoder.layer.5.output.LayerNorm.bias").unwrap();
            layer.data.chunks_exact_mut(4).step_by(3).for_each(|value| value.copy_from_slice(&1f32.to_le_bytes()));
        });
    let (file, other) =
        (repository.path().join("changing/1/model.safetensors"), repository.path().join("other/1/model.safetensors"));
    let before = fs::read(&file).unwrap();
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let embed = async |model: &str, text: &str| {
        let answer = client.infer(Ask::of(model).bytes("text", &[text])).await;
        answer.map(|answer| answer.fp32("embedding"))
    };
    let (first, second) = (embed("changing", "first").await.unwrap(), embed("other", "first").await.unwrap());
    assert_ne!(first, second);
    for (weights, expected) in [(fs::read(&other).unwrap(), &second), (before, &first)] {
        fs::write(&file, weights).unwrap();
        let asked = embed("changing", "first").await.unwrap();
        assert_ne!(&asked, expected, "what is loaded is loaded");
        client.restart("sensorium-1-worker/text/changing/1/replica-0").await.unwrap();
        eventually("the files of now answer", async || match embed("changing", "first").await {
            Ok(answer) if answer == *expected => Some(()),
            Ok(answer) => {
                assert_eq!(answer, asked, "neither those nor these");
                None
            }
            Err(status) => {
                let refusal = Refusal::from(status);
                assert_eq!(refusal.code, Code::FailedPrecondition, "{refusal:?}");
                None
            }
        })
        .await;
    }
}

/// A thread that comes back is no burden any more: three that hang one after the other are never two at a time.
#[tokio::test]
async fn a_hang_that_ends_is_forgotten() {
    let hasty = [("replicas.hang_timeout_ms", "300"), ("replicas.max_restarts", "1000")];
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &hasty);
    let server = Server::start(ServerOptions::new(repository).set("compute.max_hung_threads", "1")).await;
    let client = server.client().await;
    for hang in 1..=3 {
        let refusal = Refusal::of(client.infer(chaos("chaos", 1_001_500.0, 0.0)).await);
        assert_eq!(refusal.code, Code::Internal, "{refusal:?}");
        server.metric_becomes("sensorium_hung_device_threads_total", &[], f64::from(hang)).await;
        server.metric_becomes("sensorium_hung_device_threads", &[], 0.0).await;
        client.infer(chaos("chaos", 1.0, 1.0)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.infer(chaos("identity", 1.0, 1.0)).await.expect("the process lives on");
}

/// What must not be executed twice is executed once, whatever its batch comes to.
#[tokio::test]
async fn what_must_run_once_runs_once() {
    let once =
        [("routing.idempotent", "false"), ("replicas.max_restarts", "1000"), ("batching.max_queue_delay_us", "50000")];
    let repository = Repository::new().with(&["identity"]).chaos("once", &once).chaos("again", &once[1..]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    // nine that are begun together, and one of them fails the device
    let nine = async |model: &str| {
        let asks = (0..9u16).map(|n| {
            let order = if n == 4 { f32::NEG_INFINITY } else { 1.0 };
            client.infer(chaos(model, order, f32::from(n)))
        });
        let answers = join_all(asks).await;
        answers.into_iter().filter_map(Result::err).map(Refusal::from).collect::<Vec<_>>()
    };
    let [refusal] = nine("again").await.try_into().expect("the culprit alone");
    assert!(refusal.code == Code::Internal && refusal.message.contains("told to fail"), "{refusal:?}");
    let refused = nine("once").await;
    assert!(refused.len() > 1, "{refused:?}");
    for refusal in refused {
        assert_eq!(refusal.code, Code::Internal, "{refusal:?}");
        let told = ["told to fail", "routing.idempotent = false"].iter().all(|words| refusal.message.contains(words));
        assert!(told, "{refusal:?}");
    }
}
