//! Who did what, and who was refused, stands in the log and in metrics; an open door is warned of.

use sensorium_proto::admin::{DrainRequest, RestartActorRequest};
use sensorium_proto::inference::log_settings_request::SettingValue;
use sensorium_proto::inference::log_settings_request::setting_value::ParameterChoice;
use sensorium_proto::inference::{LogSettingsRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest};
use sensorium_proto::v1::ReplayDeadTaskRequest;
use sensorium_tests::{Repository, Server, ServerOptions, chaos, eventually};
use serde_json::Value;
use tonic::{Code, Request};

use super::keys::{infer, key};

fn by<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

/// Lines of a log with this message.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

#[tokio::test]
async fn operators_acts_and_refusals_name_who_it_was() {
    let (operator, secret) = key(&["olga", "--tenant", "ops", "--admin"]).await;
    let (reader, readers) = key(&["rita", "--tenant", "acme"]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), operator + "\n" + &reader).unwrap();
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &[]);
    let keys = file.path().display().to_string();
    let server = Server::start(ServerOptions::new(repository).set("auth.keys", &keys)).await;
    let client = server.client().await;

    let (mut inference, mut admin, mut jobs) = (client.inference.clone(), client.admin.clone(), client.jobs.clone());
    let name = "chaos".to_owned();
    let load = |name: &str| RepositoryModelLoadRequest { model_name: name.to_owned(), ..Default::default() };
    inference.repository_model_load(by(&secret, load("chaos"))).await.unwrap();
    inference.repository_model_load(by(&secret, load("nobody\n"))).await.unwrap_err();
    let restart = RestartActorRequest { path: "nowhere".to_owned() };
    admin.restart_actor(by(&secret, restart)).await.unwrap_err();
    admin.drain(by(&secret, DrainRequest { node: "nowhere".to_owned() })).await.unwrap_err();
    jobs.replay_dead_task(by(&secret, ReplayDeadTaskRequest { sequence: 7 })).await.unwrap_err();
    let warning = SettingValue { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    let settings = LogSettingsRequest { settings: [("log_warning".to_owned(), warning)].into() };
    inference.log_settings(by(&secret, settings)).await.unwrap();
    inference.log_settings(by(&secret, LogSettingsRequest::default())).await.unwrap();
    let unload = RepositoryModelUnloadRequest { model_name: name, ..Default::default() };
    inference.repository_model_unload(by(&secret, unload)).await.unwrap();

    let acts = lines(&server.log(), "an operator acted");
    let told: Vec<[&str; 3]> =
        acts.iter().map(|act| ["act", "on", "code"].map(|field| act[field].as_str().unwrap())).collect();
    let expected = [
        ["load", "chaos", "ok"],
        ["load", r"nobody\n", "not_found"],
        ["restart", "nowhere", "not_found"],
        ["drain", "nowhere", "not_found"],
        ["replay_dead_task", "7", "not_found"],
        ["log_settings", "log_warning", "ok"],
        ["unload", "chaos", "ok"],
    ];
    assert_eq!(told, expected);
    for act in &acts {
        assert_eq!((&act["by"], &act["tenant"]), (&"API key 'olga'".into(), &"ops".into()), "{act}");
        assert!(act["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{act}");
    }
    let count = async |act: &str, code: &str| {
        let labels = [format!("act=\"{act}\""), format!("code=\"{code}\"")];
        server.metric("sensorium_operator_acts_total", &labels.each_ref().map(String::as_str)).await
    };
    for (act, code, expected) in [("load", "ok", 1.0), ("load", "not_found", 1.0), ("log_settings", "ok", 1.0)] {
        assert!((count(act, code).await - expected).abs() < 0.1, "{act} {code}");
    }

    let ask = || chaos("identity", 0.0, 0.0);
    let refused =
        async |reason: &str| server.metric("sensorium_auth_refused_total", &[&format!("reason=\"{reason}\"")]).await;
    // many refusals are counted each, and few of them logged
    for _ in 0..200 {
        assert_eq!(infer(&client, Some("sk-guessed"), ask()).await.unwrap_err().code(), Code::Unauthenticated);
    }
    infer(&client, None, ask()).await.unwrap_err();
    assert!((refused("unknown_key").await - 200.0).abs() < 0.1);
    assert!((refused("no_credentials").await - 1.0).abs() < 0.1);
    let status = eventually("a refusal for want of a role is logged", async || {
        let status = inference.repository_model_load(by(&readers, load("chaos"))).await.unwrap_err();
        let logged = lines(&server.log(), "request refused");
        logged.iter().any(|line| line["by"] == "API key 'rita'" && line["tenant"] == "acme").then_some(status)
    })
    .await;
    assert_eq!(status.code(), Code::PermissionDenied);
    let log = server.log();
    let logged = lines(&log, "request refused");
    assert!(logged.len() < 100, "{} refusals are logged", logged.len());
    assert!(logged.iter().any(|line| line["reason"] == "unknown_key" && line["peer"] != ""), "{logged:?}");
    assert!(!log.contains("sk-guessed") && !log.contains(&secret) && !log.contains(&readers), "keys are never logged");
    assert!(!log.contains("is open to more than this machine"), "{log}");
}

#[tokio::test]
async fn an_open_door_is_warned_of() {
    let repository = Repository::new().chaos("chaos", &[]);
    let state = tempfile::tempdir().unwrap();
    let jobs = format!("jobs.path={}", state.path().join("jobs.redb").display());
    let folder = repository.path().display().to_string();
    let serve = ["serve", "--http", "127.0.0.1:0", "--repository", &folder, "--set", &jobs];
    let (_, keys) = (key(&["a"]).await, tempfile::NamedTempFile::new().unwrap());
    let keys = format!("auth.keys={}", keys.path().display());
    for (more, open) in [
        (vec!["--grpc", "0.0.0.0:0"], true),
        (vec!["--grpc", "[::]:0"], true),
        (vec!["--grpc", "127.0.0.1:0"], false),
        (vec!["--grpc", "0.0.0.0:0", "--set", &keys], false),
    ] {
        let process = Server::verb_that_goes_on(&[&serve[..], &more].concat());
        eventually("it is ready", async || process.log().contains("Ready.").then_some(())).await;
        let warned = process.log().contains("the door is open to more than this machine");
        assert_eq!(warned, open, "{more:?}\n{}", process.log());
    }
}
