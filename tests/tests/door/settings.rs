//! Log and trace settings, shared memory without a GPU, compression.

use std::collections::HashMap;

use sensorium_proto::inference::log_settings_request::SettingValue;
use sensorium_proto::inference::log_settings_request::setting_value::ParameterChoice as Given;
use sensorium_proto::inference::log_settings_response::setting_value::ParameterChoice as Told;
use sensorium_proto::inference::*;
use sensorium_tests::{Ask, Client, Refusal, Repository, Server, ServerOptions, chaos};
use tonic::Code;
use tonic::codec::CompressionEncoding;

use super::client;

async fn log(client: &Client, settings: &[(&str, Given)]) -> Result<HashMap<String, Told>, tonic::Status> {
    let settings = settings
        .iter()
        .map(|(name, choice)| ((*name).to_owned(), SettingValue { parameter_choice: Some(choice.clone()) }));
    let request = LogSettingsRequest { settings: settings.collect() };
    let told = client.inference.clone().log_settings(request).await?.into_inner().settings;
    Ok(told.into_iter().map(|(name, value)| (name, value.parameter_choice.unwrap())).collect())
}

#[tokio::test]
async fn the_log_level_changes_while_running() {
    let server = Server::start(ServerOptions::new(Repository::new().chaos("chaos", &[]))).await;
    let client = server.client().await;
    let told = log(&client, &[]).await.unwrap();
    assert_eq!((&told["log_info"], &told["log_verbose_level"]), (&Told::BoolParam(true), &Told::Uint32Param(0)));
    let told = log(&client, &[("log_verbose_level", Given::Uint32Param(1))]).await.unwrap();
    assert_eq!(told["log_verbose_level"], Told::Uint32Param(1));
    assert_eq!(log(&client, &[]).await.unwrap()["log_verbose_level"], Told::Uint32Param(1));
    for (name, value) in [("log_file", Given::StringParam("/tmp/x".to_owned())), ("log_mood", Given::BoolParam(true))] {
        Refusal::of(log(&client, &[(name, value)]).await).blames(&format!("settings.{name}"), &[]);
    }
    // all of them or none: a map has no order, so enough of them that some come before the bad one
    let before = log(&client, &[]).await.unwrap();
    for _ in 0..8 {
        let good = [
            ("log_info", Given::BoolParam(false)),
            ("log_warning", Given::BoolParam(false)),
            ("log_error", Given::BoolParam(false)),
            ("log_verbose_level", Given::Uint32Param(2)),
        ];
        let bad = ("log_mood", Given::BoolParam(true));
        Refusal::of(log(&client, &[good.as_slice(), &[bad]].concat()).await).blames("settings.log_mood", &[]);
        assert_eq!(log(&client, &[]).await.unwrap(), before);
    }
}

#[tokio::test]
async fn trace_settings_are_read() {
    let mut inference = client().await.inference;
    let told = inference.trace_setting(TraceSettingRequest::default()).await.unwrap().into_inner().settings;
    assert_eq!(told["trace_mode"].value, ["opentelemetry"]);
    assert_eq!(told["trace_level"].value, ["OFF"]);
}

#[tokio::test]
async fn cuda_shared_memory_is_not_here() {
    let mut inference = client().await.inference;
    let one = || CudaSharedMemoryStatusRequest { name: "r".to_owned() };
    let answers = [
        inference.cuda_shared_memory_status(one()).await.map(drop),
        inference.cuda_shared_memory_register(CudaSharedMemoryRegisterRequest::default()).await.map(drop),
    ];
    for answer in answers {
        assert_eq!(Refusal::of(answer).code, Code::Unimplemented);
    }
    // that there is no region is no error
    let all = inference.cuda_shared_memory_status(CudaSharedMemoryStatusRequest::default()).await.unwrap();
    assert!(all.into_inner().regions.is_empty());
    for name in ["", "r"] {
        let request = CudaSharedMemoryUnregisterRequest { name: name.to_owned() };
        inference.cuda_shared_memory_unregister(request).await.unwrap();
    }
}

#[tokio::test]
async fn shared_memory_must_exist_and_stay_in_its_folder() {
    let mut inference = client().await.inference;
    let mut register = async |key: &str| {
        let request =
            SystemSharedMemoryRegisterRequest { name: "r".to_owned(), key: key.to_owned(), offset: 0, byte_size: 64 };
        inference.system_shared_memory_register(request).await
    };
    for key in ["/no-such-region", "../etc/passwd", "/../../etc/passwd", "", ".."] {
        Refusal::of(register(key).await).blames("key", &[]);
    }
    let mut inference = client().await.inference;
    let told = inference.system_shared_memory_status(SystemSharedMemoryStatusRequest::default()).await.unwrap();
    assert!(told.into_inner().regions.is_empty());
}

#[tokio::test]
async fn messages_are_compressed_both_ways() {
    let client = client().await;
    let rows = vec![1.5; 16 * 1000];
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut inference = client.inference.clone().send_compressed(encoding).accept_compressed(encoding);
        let ask = Ask::of("identity").fp32("INPUT0", &[1000, 16], &rows);
        let answer = inference.model_infer(ask.request()).await.unwrap();
        let used = answer.metadata().get("grpc-encoding").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(used.as_deref(), Some(if encoding == CompressionEncoding::Gzip { "gzip" } else { "zstd" }));
        assert_eq!(sensorium_tests::Given(answer.into_inner()).fp32("OUTPUT0"), rows);
    }
    // who sends plainly is answered plainly, whatever it would understand
    let mut inference = client.inference.clone().accept_compressed(CompressionEncoding::Gzip);
    let answer = inference.model_infer(chaos("identity", 0.0, 0.0).request()).await.unwrap();
    assert!(answer.metadata().get("grpc-encoding").is_none(), "{:?}", answer.metadata());
}

#[tokio::test]
async fn the_server_describes_itself() {
    let mut inference = client().await.inference;
    let told = inference.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(told.name, "sensorium");
    for extension in ["classification", "model_repository", "system_shared_memory", "statistics"] {
        assert!(told.extensions.iter().any(|known| known == extension), "{extension} in {:?}", told.extensions);
    }
}
