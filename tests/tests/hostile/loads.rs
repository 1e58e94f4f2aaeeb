//! Loads and unloads whose caller goes away.

use std::time::Duration;

use sensorium_proto::inference::{RepositoryModelLoadRequest, RepositoryModelUnloadRequest};
use sensorium_tests::{Ask, Client, Load, Repository, Server, ServerOptions, chaos, eventually};
use tonic::Request;

use super::{index, server};

/// What loads may leave: the allocator opens an arena of some 22 MiB for a new device thread now and then. A version of the
/// model that stayed would hold 90 MiB.
const REMAINDER: u64 = 80 << 20;

fn threads(server: &Server, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process_id())).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|thread| thread.trim() == name).count()
}

async fn load_within(client: &Client, model: &str, milliseconds: u64) {
    let mut request = Request::new(RepositoryModelLoadRequest { model_name: model.to_owned(), ..Default::default() });
    request.set_timeout(Duration::from_millis(milliseconds));
    // most are cancelled, none is an answer to anything
    let _ = client.inference.clone().repository_model_load(request).await;
}

#[tokio::test]
async fn loads_that_are_cancelled_leave_nothing_behind() {
    let server = server(&[]).await;
    let client = server.client().await;
    let load = Load::start(&client, 2, |_, _| chaos("identity", 1.0, 1.0));
    client.load("minilm").await.unwrap();
    let before = server.resident_bytes();
    for milliseconds in [1, 5, 20, 50, 50, 50, 80, 120, 200] {
        load_within(&client, "minilm", milliseconds).await;
    }
    eventually("one device thread is left", async || (threads(&server, "device-minilm") == 1).then_some(())).await;
    let paths: Vec<String> = client.tree("").await.into_iter().map(|actor| actor.path).collect();
    let of_minilm: Vec<&String> = paths.iter().filter(|path| path.contains("/minilm/")).collect();
    let expected = ["", "/batcher", "/replica-0"].map(|end| format!("sensorium-1-worker/text/minilm/1{end}"));
    assert_eq!(of_minilm, expected.iter().collect::<Vec<_>>());
    let kept = server.resident_bytes().saturating_sub(before);
    assert!(kept < REMAINDER, "{} MiB more than before", kept >> 20);
    let (_, failures) = load.stop().await;
    assert!(failures.is_empty(), "a neighbour noticed: {:?}", failures[0]);
    // and what a script knows the actor by is still its name
    client.load("minilm").await.unwrap();
    client.load("minilm").await.unwrap();
    client.restart("sensorium-1-worker/text/minilm/1/replica-0").await.unwrap();
    client.infer(Ask::text("it answers")).await.unwrap();
}

#[tokio::test]
async fn an_unload_that_is_cancelled_goes_on() {
    let repository = Repository::new().with(&["identity", "smollm2-135m"]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let pieces = client.generating(200).await;
    let mut request =
        Request::new(RepositoryModelUnloadRequest { model_name: "smollm2-135m".to_owned(), ..Default::default() });
    request.set_timeout(Duration::from_millis(100));
    client.inference.clone().repository_model_unload(request).await.unwrap_err();
    assert_eq!(index(&client).await["smollm2-135m"].0, "UNLOADING");
    drop(pieces);
    eventually("unloaded", async || {
        (index(&client).await["smollm2-135m"] == ("UNAVAILABLE".to_owned(), "unloaded".to_owned())).then_some(())
    })
    .await;
    eventually("no device thread is left", async || (threads(&server, "device-smollm2-") == 0).then_some(())).await;
    client.load("smollm2-135m").await.unwrap();
    client.infer(Ask::prompt("One, two,", 2)).await.unwrap();
}
