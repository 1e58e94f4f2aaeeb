//! TLS at the door: who is let in, and certificates that are replaced while it serves.

use std::time::Duration;

use sensorium_tests::{Ask, Authority, Client, Identity, Load, Repository, Server, ServerOptions, chaos, eventually};

fn ask() -> Ask {
    chaos("identity", 0.0, 1.0)
}

fn path(path: &std::path::Path) -> String {
    path.display().to_string()
}

async fn server(own: &Identity, client_ca: Option<&Authority>) -> Server {
    let mut options = ServerOptions::new(Repository::new().with(&["identity"]))
        .set("tls.certificate", &path(&own.certificate))
        .set("tls.key", &path(&own.key));
    if let Some(authority) = client_ca {
        options = options.set("tls.client_ca", &path(&authority.file()));
    }
    Server::start(options).await
}

/// Whether a new connection is served; with TLS 1.3 a client learns from its first call that it is not wanted.
async fn served(server: &Server, ca: &str, identity: Option<&Identity>) -> Result<(), String> {
    let client = Client::connect_tls(server.grpc, ca, identity).await?;
    client.infer(ask()).await.map(drop).map_err(|status| format!("{status:?}"))
}

#[tokio::test]
async fn clients_know_the_door_by_its_certificate() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("somebody else's"));
    let server = server(&authority.issue("door"), None).await;
    served(&server, &authority.pem(), None).await.unwrap();
    let error = served(&server, &stranger.pem(), None).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    eventually("the failed handshake is told", async || server.log().contains("TLS handshake failed").then_some(()))
        .await;
    let failures = server.metric("sensorium_tls_handshake_failures_total", &["listener=\"door\""]).await;
    assert!(failures >= 1.0, "{failures}");

    let address = format!("https://{}", server.grpc);
    let (ca, other) = (path(&authority.file()), path(&stranger.file()));
    let status = async |more: &[&str]| Server::verb(&[&["status", "--server"], more].concat()).await;
    let (code, out, err) = status(&[&address, "--ca", &ca]).await;
    assert!(code == Some(0) && out.contains("identity"), "{out}{err}");
    for not_trusted in [&[address.as_str()][..], &[&address, "--ca", &other]] {
        let (code, _, err) = status(not_trusted).await;
        assert!(code == Some(3) && err.contains("UnknownIssuer"), "{code:?} {err}");
    }
    // in the clear: neither silently, nor against the caller's word
    let plain = format!("http://{}", server.grpc);
    assert_ne!(status(&[&plain]).await.0, Some(0));
    let (code, _, err) = status(&[&plain, "--ca", &ca]).await;
    assert!(code == Some(2) && err.contains("https"), "{code:?} {err}");
    let (code, _, err) = status(&[&address, "--certificate", &ca]).await;
    assert!(code == Some(2) && err.contains("--client-key"), "{code:?} {err}");
}

#[tokio::test]
async fn only_clients_with_a_certificate_are_let_in() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("somebody else's"));
    let server = server(&authority.issue("door"), Some(&authority)).await;
    let ca = authority.pem();
    let known = authority.issue("client");
    served(&server, &ca, Some(&known)).await.unwrap();
    served(&server, &ca, None).await.unwrap_err();
    served(&server, &ca, Some(&stranger.issue("client"))).await.unwrap_err();

    let (address, file) = (format!("https://{}", server.grpc), path(&authority.file()));
    let (certificate, key) = (path(&known.certificate), path(&known.key));
    let with_ca = ["models", "list", "--server", &address, "--ca", &file];
    let (code, _, err) =
        Server::verb(&[&with_ca[..], &["--certificate", &certificate, "--client-key", &key]].concat()).await;
    assert_eq!(code, Some(0), "{err}");
    assert_ne!(Server::verb(&with_ca).await.0, Some(0));
    // a client may find its connection broken before it has read why; the server says it
    eventually("the reasons are told", async || {
        let log = server.log();
        (log.contains("peer sent no certificates") || log.contains("UnknownIssuer")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn certificates_are_replaced_under_load() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let own = old.issue("door");
    let server = server(&own, None).await;
    let both = old.pem() + &new.pem();
    let client = Client::connect_tls(server.grpc, &both, None).await.unwrap();
    let load = Load::start(&client, 4, |_, _| ask().deadline(20_000));
    load.answers(50).await;

    own.replace(&new.issue("door"));
    eventually("a new connection sees the new certificate", async || {
        // whoever trusts both is served all the time
        served(&server, &both, None).await.unwrap();
        served(&server, &new.pem(), None).await.ok()
    })
    .await;
    let error = served(&server, &old.pem(), None).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");

    std::fs::write(&own.certificate, "no certificate").unwrap();
    eventually("the broken file is told", async || server.log().contains("cannot be used").then_some(())).await;
    served(&server, &new.pem(), None).await.unwrap();
    load.answers(50).await;
    let (_, failures) = load.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    // whoever drains closes encrypted connections as well
    server.terminate();
    assert_eq!(server.wait(Duration::from_secs(30)).await.code, Some(0));
}

#[tokio::test]
async fn half_of_the_certificates_is_a_mistake() {
    for (given, missing) in [
        (&["tls.key=key.pem"][..], "tls.certificate"),
        (&["tls.client_ca=ca.pem"], "tls.certificate"),
        (&["plane.certificate=c.pem", "plane.key=k.pem"], "plane.ca"),
        (&["plane.server_name=worker"], "plane.ca"),
        (&["register.certificate=c.pem", "register.key=k.pem"], "register.ca"),
        (&["auth.jwks=jwks.json"], "auth.audience"),
    ] {
        let sets: Vec<&str> = given.iter().flat_map(|set| ["--set", *set]).collect();
        let (code, _, err) = Server::verb(&[&["serve"], &sets[..]].concat()).await;
        let set = given[0].split('=').next().unwrap();
        assert!(code == Some(1) && err.contains(set) && err.contains(missing), "{given:?}: {err}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sensorium.toml");
    std::fs::write(&file, "[tls]\ncertificate = 'door.pem'").unwrap();
    let (code, _, err) = Server::verb(&["config", "check", &path(&file)]).await;
    assert!(code == Some(1) && err.contains("tls.key"), "{err}");
}
