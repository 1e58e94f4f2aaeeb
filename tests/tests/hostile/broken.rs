//! Models that cannot be loaded when a server starts.

use std::fs;

use sensorium_tests::{Ask, Client, Refusal, Repository, Server, ServerOptions, chaos, eventually, get};
use tonic::Code;

use super::index;

async fn readyz(server: &Server) -> (u16, String) {
    get(server.http, "/readyz").await.unwrap_or_default()
}

/// Waits until all that can be loaded is.
async fn says(server: &Server, words: &[&str]) {
    eventually(&format!("/readyz says {words:?}"), async || {
        let (status, text) = readyz(server).await;
        (status == 503 && words.iter().all(|word| text.contains(word))).then_some(())
    })
    .await;
}

async fn refuses(client: &Client, model: &str) {
    let refusal = Refusal::of(client.infer(Ask::of(model).bytes("text", &["hello"])).await);
    assert_eq!(refusal.code, Code::FailedPrecondition, "{model}: {refusal:?}");
}

#[tokio::test]
async fn broken_models_keep_no_others_from_being_served_and_come_back() {
    let repository = Repository::new()
        .with(&["identity"])
        .copy_files("minilm", "no-tokeniser")
        .copy_files("minilm", "no-manifest")
        .broken("minilm", "half", &[])
        .broken("minilm", "optional", &[("required", "false")]);
    let (root, pack) = (repository.path().to_owned(), Repository::pack());
    let manifest = fs::read_to_string(root.join("no-manifest/model.toml")).unwrap();
    fs::write(root.join("no-manifest/model.toml"), "name = 7\n[[[").unwrap();
    fs::remove_file(root.join("no-tokeniser/1/tokenizer.json")).unwrap();
    let server = Server::spawn(ServerOptions::new(repository));

    says(&server, &["no-tokeniser", "tokenizer.json", "no-manifest", "TOML", "half", "past the end"]).await;
    assert!(!readyz(&server).await.1.contains("optional"));
    let client = server.client().await;
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
    for model in ["no-tokeniser", "no-manifest", "half", "optional"] {
        // the last of them is tried after the others have been told of
        eventually(&format!("{model} is known to be broken"), async || {
            let (state, reason) = index(&client).await[model].clone();
            (state == "UNAVAILABLE" && reason.contains(model)).then_some(())
        })
        .await;
        refuses(&client, model).await;
        assert!(server.log().contains(model), "{}", server.log());
    }

    // once the files are there, so are the models
    let source = pack.path().join("minilm/1");
    fs::copy(source.join("tokenizer.json"), root.join("no-tokeniser/1/tokenizer.json")).unwrap();
    fs::write(root.join("no-manifest/model.toml"), manifest).unwrap();
    for model in ["half", "optional"] {
        fs::copy(source.join("model.safetensors"), root.join(model).join("1/model.safetensors")).unwrap();
    }
    eventually("ready", async || (readyz(&server).await.0 == 200).then_some(())).await;
    for model in ["no-tokeniser", "no-manifest", "half", "optional"] {
        eventually(&format!("{model} answers"), async || {
            client.infer(Ask::of(model).bytes("text", &["hello"])).await.ok().map(drop)
        })
        .await;
        let tree = client.tree(&format!("sensorium-1-worker/text/{model}/1")).await;
        assert!(!tree.is_empty(), "{model} is where it would have been");
    }
}

#[tokio::test]
async fn a_server_without_models_is_not_ready() {
    let repository = Repository::new();
    let root = repository.path().to_owned();
    let server = Server::spawn(ServerOptions::new(repository));
    says(&server, &["no model is loaded"]).await;
    let client = server.client().await;
    std::os::unix::fs::symlink(Repository::pack().path().join("identity"), root.join("identity")).unwrap();
    client.load("identity").await.unwrap();
    eventually("ready", async || (readyz(&server).await.0 == 200).then_some(())).await;
}

/// A model that reads from another one is not ready without it.
#[tokio::test]
async fn a_model_whose_upstream_is_missing_is_not_ready() {
    let server =
        Server::start(ServerOptions::new(Repository::new().with(&["identity", "minilm", "prompt-guard"]))).await;
    let client = server.client().await;
    let ask = |text: &'static str| client.infer(Ask::of("prompt-guard").bytes("text", &[text]));
    ask("with").await.unwrap();
    client.unload("minilm").await.unwrap();
    let (state, reason) = index(&client).await["prompt-guard"].clone();
    assert!(state == "UNAVAILABLE" && reason.contains("minilm, which is not loaded"), "{state}: {reason}");
    says(&server, &["prompt-guard", "minilm"]).await;
    Refusal::of(ask("without").await).is_retriable(Code::Unavailable, "UPSTREAM_MISSING");
    client.load("minilm").await.unwrap();
    eventually("ready", async || (readyz(&server).await.0 == 200).then_some(())).await;
    ask("with it again").await.unwrap();
}

/// A classifier names as many classes as its manifest promises, and no more than it has.
#[tokio::test]
async fn a_classifier_of_three_classes_answers() {
    let config = std::fs::read_to_string(Repository::pack().path().join("efficientnet-lite0/1/config.json")).unwrap();
    let config = config.replace("\"num_classes\": 1000", "\"num_classes\": 3");
    let three = |name: &str, repository: Repository, settings: &[(&str, &str)]| {
        let narrow = repository.reweighted("efficientnet-lite0", name, settings, |weights| {
            weights.get_mut("classifier.weight").unwrap().keep_rows(3);
            weights.get_mut("classifier.bias").unwrap().keep_rows(3);
        });
        narrow.file(name, "config.json", &config).file(name, "labels.txt", "cat\ndog\nnone\n")
    };
    let outputs = |labels: i64| {
        format!(
            "[{{name = 'embedding', datatype = 'FP32', shape = [-1, 1280]}}, \
             {{name = 'probabilities', datatype = 'FP32', shape = [-1, 3]}}, \
             {{name = 'labels', datatype = 'BYTES', shape = [-1, {labels}]}}]"
        )
    };
    let repository = three("five", Repository::new().with(&["identity"]), &[]);
    let repository = three("three", repository, &[("outputs", &outputs(3))]);
    let repository = three("one", repository, &[("outputs", &outputs(1))]);
    let repository = three("any", repository, &[("outputs", &outputs(-1))]);
    let repository =
        three("mismatched", repository, &[("required", "false")]).file("mismatched", "labels.txt", "cat\ndog");
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let picture = sensorium_tests::samples::picture("chelsea.png");
    for (model, count) in [("five", 5), ("three", 3), ("one", 1), ("any", 3)] {
        let answer = client.infer(Ask::of(model).bytes("image", &[&picture, &picture])).await.unwrap();
        assert_eq!((answer.shape("labels"), answer.shape("probabilities")), (vec![2, count], vec![2, 3]), "{model}");
        let labels = answer.texts("labels");
        let named: std::collections::BTreeSet<&str> =
            labels[..labels.len() / 2].iter().map(String::as_str).filter(|label| !label.is_empty()).collect();
        assert_eq!(named.len(), usize::try_from(count.min(3)).unwrap(), "{model}: {labels:?}");
    }
    let (state, reason) = index(&client).await["mismatched"].clone();
    assert!(state == "UNAVAILABLE" && reason.contains("labels.txt has 2 lines"), "{state}: {reason}");
}
