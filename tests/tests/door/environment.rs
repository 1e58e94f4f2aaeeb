//! The environment that a server is started in is not only its operator's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use sensorium_tests::{Repository, Server, ServerOptions, binary, chaos};

#[tokio::test]
async fn what_kubernetes_and_others_set_does_not_keep_a_server_from_starting() {
    let services = [
        ("SENSORIUM_PORT", "tcp://10.0.0.1:8001"),
        ("SENSORIUM_SERVICE_HOST", "10.0.0.1"),
        ("SENSORIUM_SERVICE_PORT", "8001"),
        ("SENSORIUM_SERVICE_PORT_GRPC", "8001"),
        ("SENSORIUM_PORT_8001_TCP", "tcp://10.0.0.1:8001"),
        ("SENSORIUM_PORT_8001_TCP_PROTO", "tcp"),
        ("SENSORIUM_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("SENSORIUM_GATEWAY_PORT_8001_TCP_ADDR", "10.0.0.1"),
    ];
    let others = [
        ("SENSORIUM_LIMITS__MAX_INFLGHT", "77777"),
        ("SENSORIUM_SOMEBODY_ELSES", "a secret"),
        ("SENSORIUM_NAME__OF__OTHERS", "x"),
        ("SENSORIUM_", "x"),
    ];
    let ours = [("SENSORIUM_NAME", "7"), ("SENSORIUM_ZONE", "1e5")];
    let options = ServerOptions::new(Repository::new().with(&["identity"]));
    let environment = services.iter().chain(&others).chain(&ours);
    let options = environment.fold(options, |options, (name, value)| options.environment(name, value));
    let server = Server::start(options).await;
    let client = server.client().await;
    client.infer(chaos("identity", 0.0, 0.0)).await.unwrap();
    assert!(client.tree("").await.iter().any(|actor| actor.path.starts_with("7-")), "its name is 7");
    let log = server.log();
    for (name, _) in services {
        assert!(!log.contains(&format!("\"{name}\"")), "{name} is nobody's mistake:\n{log}");
    }
    for name in ["SENSORIUM_LIMITS__MAX_INFLGHT", "SENSORIUM_SOMEBODY_ELSES", "SENSORIUM_NAME__OF__OTHERS"] {
        assert!(log.contains(name), "{name} is warned of:\n{log}");
    }
    assert!(log.contains("did you mean limits.max_inflight?") && !log.contains("a secret"), "{log}");
}

/// Starts a gateway that lacks what it needs; what it says.
async fn gateway(name: &str, value: OsString) -> String {
    let mut command = Command::new(binary());
    command.arg("gateway").env_remove("SENSORIUM_ETCD").env(name, value).stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = sensorium_tests::within(ran).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn what_is_not_utf_8_is_no_panic() {
    let broken = || OsString::from_vec(vec![b'a', 0xff, 0xfe]);
    for name in ["SOMEBODY_ELSES", "SENSORIUM_SOMEBODY_ELSES", "SENSORIUM_PORT_8001_TCP_ADDR"] {
        let said = gateway(name, broken()).await;
        assert!(said.contains("etcd: empty") && !said.contains("panicked"), "{name}: {said}");
    }
    let said = gateway("SENSORIUM_NAME", broken()).await;
    assert!(said.contains("name: ") && said.contains("is not UTF-8") && !said.contains("panicked"), "{said}");
    let said = gateway("SENSORIUM_LIMITS__MAX_INFLIGHT", "many".into()).await;
    assert!(said.contains("limits.max_inflight") && said.contains("expected a whole number"), "{said}");
}
