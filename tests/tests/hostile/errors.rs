//! Errors repeat what they were given: shortened, escaped, and small enough for every client.

use std::collections::HashMap;

use sensorium_proto::admin::{DrainRequest, GetActorTreeRequest, GetModelCardRequest, RestartActorRequest};
use sensorium_proto::inference::log_settings_request::SettingValue;
use sensorium_proto::inference::log_settings_request::setting_value::ParameterChoice;
use sensorium_proto::inference::*;
use sensorium_proto::v1::{CancelJobRequest, GenerateRequest, GetJobRequest};
use sensorium_tests::{Ask, Client, Neighbours, Repository, Server, ServerOptions, chaos, within};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

/// Bytes of a status at most, as its trailers are written: clients take 8 kB of metadata in all.
const MOST: usize = 4096;

fn size(status: &Status) -> usize {
    let written = status.clone().into_http::<()>();
    written.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// A caller's mistake, said in few words and none of them hidden.
fn is_small(what: &str, status: &Status) {
    let expected = [Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition, Code::PermissionDenied];
    assert!(expected.contains(&status.code()), "{what}: {status:?}");
    assert!(size(status) < MOST, "{what}: {} bytes: {}", size(status), status.message());
    let hidden = |character: char| character.is_control() || character == '\u{202e}';
    assert!(!status.message().is_empty() && !status.message().contains(hidden), "{what}: {:?}", status.message());
}

/// Everything that repeats a name, asked with this one.
async fn ask_by(client: &Client, name: &str) -> Vec<(&'static str, Status)> {
    let mut refused = Vec::new();
    let mut inference = client.inference.clone();
    let mut admin = client.admin.clone();
    let (one, text) = (|| name.to_owned(), |text: &str| text.to_owned());
    macro_rules! refused {
        ($what:literal, $call:expr) => {
            match within($call).await {
                Ok(answer) => panic!("{}: expected a refusal, got {answer:?}", $what),
                Err(status) => refused.push(($what, status)),
            }
        };
    }
    let value = [1.0; 16];
    refused!("model", client.infer(chaos(name, 0.0, 0.0)));
    let mut version = chaos("identity", 0.0, 0.0);
    version.message.model_version = one();
    refused!("version", client.infer(version));
    refused!("input", client.infer(Ask::of("identity").fp32(name, &[1, 16], &value)));
    refused!("datatype", client.infer(Ask::of("identity").raw("INPUT0", name, &[1, 16], vec![0; 64])));
    refused!("output", client.infer(chaos("identity", 0.0, 0.0).output(name)));
    refused!("value of a parameter", client.infer(chaos("identity", 0.0, 0.0).set("priority", name)));
    refused!("parameter", client.infer(Ask::text("a").set(name, 1)));
    refused!("parameter of understand", client.infer(Ask::of("understand").bytes("text", &["a"]).set(name, 1)));
    refused!("input of understand", client.infer(Ask::of("understand").bytes(name, &["a"])));
    let shape: Vec<i64> = vec![1; 20_000];
    refused!("shape", client.infer(Ask::of("identity").raw("INPUT0", "FP32", &shape, vec![0; 4])));
    refused!("ready", inference.model_ready(ModelReadyRequest { name: one(), version: one() }));
    refused!("metadata", inference.model_metadata(ModelMetadataRequest { name: one(), version: text("") }));
    refused!("config", inference.model_config(ModelConfigRequest { name: one(), version: text("") }));
    refused!("statistics", inference.model_statistics(ModelStatisticsRequest { name: one(), version: text("") }));
    let load = RepositoryModelLoadRequest { model_name: one(), ..Default::default() };
    refused!("load", inference.repository_model_load(load));
    let unload = RepositoryModelUnloadRequest { model_name: one(), ..Default::default() };
    refused!("unload", inference.repository_model_unload(unload));
    let region = SystemSharedMemoryRegisterRequest { name: one(), key: one(), offset: 0, byte_size: 8 };
    refused!("register", inference.system_shared_memory_register(region));
    refused!("region", inference.system_shared_memory_status(SystemSharedMemoryStatusRequest { name: one() }));
    let setting = SettingValue { parameter_choice: Some(ParameterChoice::StringParam(one())) };
    refused!("log", inference.log_settings(LogSettingsRequest { settings: HashMap::from([(one(), setting)]) }));
    let setting = trace_setting_request::SettingValue { value: vec![one()] };
    let request = TraceSettingRequest { settings: HashMap::from([(one(), setting)]), model_name: text("") };
    refused!("trace", inference.trace_setting(request));
    refused!("tree", admin.get_actor_tree(GetActorTreeRequest { path: one() }));
    refused!("restart", admin.restart_actor(RestartActorRequest { path: one() }));
    refused!("card", admin.get_model_card(GetModelCardRequest { name: one(), version: text("") }));
    refused!("drain", admin.drain(DrainRequest { node: one() }));
    refused!("job", client.jobs.clone().get_job(GetJobRequest { id: one(), ..Default::default() }));
    refused!("cancel", client.jobs.clone().cancel_job(CancelJobRequest { id: one() }));
    let request = GenerateRequest { prompt: text("a"), model: one(), ..Default::default() };
    refused!("generate", client.sensorium.clone().generate(request));
    refused!("health", client.health.clone().check(HealthCheckRequest { service: one() }));
    refused
}

/// What reflection says of a symbol. It is not ours: it repeats the name as it is, or ends without a word.
async fn reflect(client: &Client, name: &str) -> Option<Status> {
    let symbol = MessageRequest::FileContainingSymbol(name.to_owned());
    let question = ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
    let mut reflection = ServerReflectionClient::new(client.channel.clone());
    let answers = within(reflection.server_reflection_info(tokio_stream::iter([question]))).await;
    match within(answers.ok()?.into_inner().message()).await {
        Ok(answer) => {
            assert!(answer.is_none(), "{answer:?}");
            None
        }
        Err(status) => Some(status),
    }
}

#[tokio::test]
async fn whatever_an_error_repeats_it_stays_small() {
    let repository = (0..200).fold(Repository::new().with(&["identity", "minilm"]), |repository, n| {
        repository.chaos(&format!("one-of-many-models-{n}"), &[])
    });
    let server = Server::start(ServerOptions::new(repository).models(&["identity", "minilm"])).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    let long = |piece: &str| piece.repeat(20_000 / piece.len());
    for name in [
        long("a"),
        long("%"),
        long("\u{1b}[2J"),
        long("ä\u{202e}"),
        long("🐻"),
        long("a, "),
        "\u{1b}]0;owned\u{7}\r\nforged: line\0\u{202e}".to_owned(),
    ] {
        for (what, status) in ask_by(&client, &name).await {
            is_small(what, &status);
        }
        let reflected = reflect(&client, &name).await;
        assert!(reflected.as_ref().is_none_or(|status| size(status) < MOST), "{reflected:?}");
    }
    // one error of a stream is a message of its own
    for answer in client.stream(chaos(&long("a"), 0.0, 0.0)).await.unwrap() {
        assert!(
            !answer.error_message.is_empty() && answer.error_message.len() < MOST,
            "{}",
            answer.error_message.len()
        );
    }
    // a list of names is cut with a count
    let request = RepositoryModelLoadRequest { model_name: "nobody".to_owned(), ..Default::default() };
    let status = client.inference.clone().repository_model_load(request).await.unwrap_err();
    is_small("a list", &status);
    assert!(status.message().contains("one-of-many-models-1") && status.message().contains(" more"), "{status:?}");
    neighbours.were_not_hurt("names of 20,000 characters").await;
}
