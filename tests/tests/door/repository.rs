//! Loading, unloading, the index, metadata and configuration.

use std::collections::HashMap;

use sensorium_proto::admin::GetModelCardRequest;
use sensorium_proto::inference::model_config::SchedulingChoice;
use sensorium_proto::inference::model_repository_parameter::ParameterChoice;
use sensorium_proto::inference::*;
use sensorium_tests::{Client, Refusal, Repository, Server, ServerOptions, chaos};
use tonic::Code;

use super::client;

async fn index(client: &Client, ready: bool) -> HashMap<String, (String, String)> {
    let request = RepositoryIndexRequest { ready, ..Default::default() };
    let models = client.inference.clone().repository_index(request).await.unwrap().into_inner().models;
    models.into_iter().map(|model| (model.name, (model.state, model.reason))).collect()
}

#[tokio::test]
async fn models_go_and_come_and_the_index_says_so() {
    let repository = Repository::new().with(&["identity", "minilm"]).chaos("chaos", &[]);
    let server = Server::start(ServerOptions::new(repository).models(&["identity", "chaos"])).await;
    let client = server.client().await;
    let state = async |model: &str| index(&client, false).await[model].clone();
    assert_eq!(state("identity").await.0, "READY");
    assert_eq!(state("minilm").await, ("UNAVAILABLE".to_owned(), "unloaded".to_owned()));
    assert_eq!(index(&client, true).await.len(), 2);

    client.load("minilm").await.unwrap();
    assert_eq!(state("minilm").await.0, "READY");
    client.infer(sensorium_tests::Ask::text("hello")).await.unwrap();
    client.unload("minilm").await.unwrap();
    assert_eq!(state("minilm").await.0, "UNAVAILABLE");
    let refusal = Refusal::of(client.infer(sensorium_tests::Ask::text("hello")).await);
    assert!(refusal.code == Code::NotFound && refusal.message.contains("identity"), "{refusal:?}");
    assert_eq!(Refusal::of(client.unload("minilm").await).code, Code::NotFound);
}

#[tokio::test]
async fn unloading_waits_for_what_is_in_work_and_loading_again_changes_over() {
    let repository = Repository::new().chaos("chaos", &[]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let work = |milliseconds: f32| {
        let client = client.clone();
        tokio::spawn(async move { client.infer(chaos("chaos", -milliseconds, 0.0)).await })
    };
    let in_work = work(700.0);
    client.in_work("chaos", 1).await;
    client.load("chaos").await.unwrap();
    in_work.await.unwrap().unwrap();
    let in_work = work(700.0);
    client.in_work("chaos", 1).await;
    client.unload("chaos").await.unwrap();
    in_work.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_load_may_bring_its_own_manifest() {
    let repository = Repository::new().chaos("chaos", &[]);
    let small = repository.manifest("chaos", &[("batching.max_queue_size", "1")]);
    let other = repository.manifest("chaos", &[("name", "'other'")]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let load = async |text: &str| {
        let parameter =
            ModelRepositoryParameter { parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())) };
        let parameters = [("config".to_owned(), parameter)].into();
        let request = RepositoryModelLoadRequest { model_name: "chaos".to_owned(), parameters, ..Default::default() };
        client.inference.clone().repository_model_load(request).await
    };
    load(&small).await.unwrap();
    let two = sensorium_tests::Ask::of("chaos").fp32("INPUT0", &[2, 16], &[0.0; 32]);
    Refusal::of(client.infer(two.clone()).await).blames("INPUT0.shape", &["2 rows"]);
    Refusal::of(load(&other).await).blames("parameters.config", &["other", "chaos"]);
    Refusal::of(load("name = 3").await).blames("parameters.config", &["name"]);
    // as Triton's clients write it, which leaves out what stays as it is
    load(r#"{"dynamic_batching": {"default_queue_policy": {"max_queue_size": 1}}}"#).await.unwrap();
    Refusal::of(client.infer(two.clone()).await).blames("INPUT0.shape", &["2 rows"]);
    load(r#"{"max_batch_size": "16"}"#).await.unwrap();
    client.infer(two.clone()).await.unwrap();
    for (text, word) in [(r#"{"max_batch_size": 0}"#, "max_batch_size"), (r#"{"optimization": {}}"#, "optimization")] {
        let refusal = Refusal::of(load(text).await);
        assert!(refusal.message.starts_with("failed to load"), "{refusal:?}");
        refusal.blames("parameters.config", &[word]);
    }
    client.load("chaos").await.unwrap();
    client.infer(two).await.unwrap();
}

#[tokio::test]
async fn names_do_not_lead_out_of_the_repository() {
    let client = client().await;
    for name in ["../identity", "/etc", "..", ".", "", "identity/..", "identity/1"] {
        let refusal = Refusal::of(client.load(name).await);
        assert_eq!(refusal.code, Code::NotFound, "{name}: {refusal:?}");
        assert!(refusal.message.contains("minilm"), "{refusal:?}");
    }
}

#[tokio::test]
async fn metadata_and_configuration_describe_the_model() {
    let mut inference = client().await.inference;
    let request = ModelMetadataRequest { name: "efficientnet-lite0".to_owned(), version: String::new() };
    let told = inference.model_metadata(request).await.unwrap().into_inner();
    assert_eq!(told.versions, ["1"]);
    let inputs: Vec<_> =
        told.inputs.iter().map(|t| (t.name.as_str(), t.datatype.as_str(), t.shape.as_slice())).collect();
    assert_eq!(inputs, [("image", "BYTES", &[-1][..])]);
    let outputs: Vec<_> =
        told.outputs.iter().map(|t| (t.name.as_str(), t.datatype.as_str(), t.shape.as_slice())).collect();
    let expected = [
        ("embedding", "FP32", &[-1, 1280][..]),
        ("probabilities", "FP32", &[-1, 1000][..]),
        ("labels", "BYTES", &[-1, 5][..]),
    ];
    assert_eq!(outputs, expected);

    let manifest: toml::Table = toml::from_str(&Repository::pack().manifest("minilm", &[])).unwrap();
    let batching = |key: &str| manifest["batching"][key].as_integer().unwrap();
    let request = ModelConfigRequest { name: "minilm".to_owned(), version: "1".to_owned() };
    let config = inference.model_config(request).await.unwrap().into_inner().config.unwrap();
    assert_eq!((config.name.as_str(), i64::from(config.max_batch_size)), ("minilm", batching("max_batch_size")));
    assert_eq!(config.input[0].data_type(), DataType::TypeString);
    assert_eq!((config.output[0].data_type(), config.output[0].dims.as_slice()), (DataType::TypeFp32, &[384][..]));
    let Some(SchedulingChoice::DynamicBatching(told)) = config.scheduling_choice else { panic!("dynamic batching") };
    assert_eq!(i64::try_from(told.max_queue_delay_microseconds).unwrap(), batching("max_queue_delay_us"));
    assert_eq!(told.priority_levels, 3);
}

#[tokio::test]
async fn the_card_of_a_model_is_served() {
    let mut admin = client().await.admin;
    let request = GetModelCardRequest { name: "minilm".to_owned(), version: String::new() };
    let card = admin.get_model_card(request).await.unwrap().into_inner();
    assert_eq!(card.version, "1");
    assert!(card.markdown.contains("Apache-2.0"), "{}", card.markdown);
}

#[tokio::test]
async fn a_version_that_cannot_be_loaded_is_quarantined_and_the_rest_serves() {
    let repository = Repository::new().with(&["identity"]).broken("minilm", "half", &[("required", "false")]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    client.infer(chaos("identity", 1.0, 2.0)).await.unwrap();
    let refusal = Refusal::of(client.infer(sensorium_tests::Ask::of("half").bytes("text", &["hello"])).await);
    assert_eq!(refusal.code, Code::FailedPrecondition, "{refusal:?}");
    assert_eq!(refusal.reason.as_deref(), Some("QUARANTINED"), "{refusal:?}");
    let (state, reason) = index(&client, false).await["half"].clone();
    assert!(state == "UNAVAILABLE" && !reason.is_empty(), "{state}: {reason}");
    let serving = client.check("half").await.unwrap();
    assert_eq!(serving, tonic_health::pb::health_check_response::ServingStatus::NotServing);
    assert_eq!(client.actor("text/half/1").await.state, "quarantined");
}
