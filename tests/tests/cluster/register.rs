//! An etcd with TLS and users.

use std::time::Duration;

use sensorium_tests::{Ask, Authority, Client, Cluster, Etcd, Repository, eventually};

fn ask() -> Ask {
    Ask::of("identity").fp32("INPUT0", &[1, 16], &[1.0; 16]).deadline(20_000)
}

/// A cluster to come on an etcd whose user has the password `etcds`, and whose nodes think that it is `nodes`.
async fn cluster(etcds: &str, nodes: &str, token_seconds: u64) -> (Cluster, Authority) {
    let authority = Authority::new("etcd's");
    let etcd = Etcd::start_secure(&authority, token_seconds).await;
    etcd.ask_for_users("sensorium", etcds, "/sensorium/").await;
    let own = authority.issue("node");
    let cluster = Cluster::on(etcd, Repository::new().with(&["identity"]))
        .set("register.ca", &authority.file().display().to_string())
        .set("register.certificate", &own.certificate.display().to_string())
        .set("register.key", &own.key.display().to_string())
        .set("register.user", "sensorium")
        .set("register.password", nodes);
    (cluster, authority)
}

/// What nodes write to etcd arrives: a model that is unloaded and loaded again is seen so by the gateway.
async fn what_is_written_arrives(client: &Client) {
    let held = async || {
        let told = client.cluster().await.ok()?;
        let worker = told.nodes.into_iter().find(|node| node.role == "worker")?;
        Some(worker.models.iter().any(|model| model.name == "identity" && model.state == "READY"))
    };
    client.unload("identity").await.unwrap();
    eventually("unloaded", async || held().await.filter(|held| !held)).await;
    client.load("identity").await.unwrap();
    eventually("loaded", async || held().await.filter(|held| *held)).await;
    eventually("it answers", async || client.infer(ask()).await.ok()).await;
}

#[tokio::test]
async fn a_cluster_forms_on_an_etcd_with_tls_and_users() {
    let (mut cluster, _authority) = cluster("right", "right", 2).await;
    cluster.add_worker(&[]);
    cluster.add_gateway();
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    client.infer(ask()).await.unwrap();
    what_is_written_arrives(&client).await;

    // longer than the life of a token that nobody uses
    tokio::time::sleep(Duration::from_secs(6)).await;
    what_is_written_arrives(&client).await;

    // a restart makes all tokens void
    for _ in 0..2 {
        cluster.etcd.stop().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        client.infer(ask()).await.unwrap();
        cluster.etcd.resume().await;
        eventually("the view is current again", async || {
            let told = client.cluster().await.ok()?;
            (told.dependencies[0].state == "ok" && told.dependencies[0].reason.is_empty()).then_some(())
        })
        .await;
        what_is_written_arrives(&client).await;
    }
    // leaving the register works, too
    let gateway = cluster.gateways.remove(0);
    gateway.process.signal("TERM");
    let exit = gateway.process.wait(Duration::from_secs(20)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
}

#[tokio::test]
async fn a_wrong_password_is_told_and_heals() {
    let (mut cluster, _authority) = cluster("another", "right", 300).await;
    cluster.add_worker(&[]);
    cluster.add_gateway();
    let gateway = &cluster.gateways[0];
    gateway.lives().await;
    let client = gateway.client().await;
    eventually("the reason in the status", async || {
        let told = client.cluster().await.ok()?;
        let etcd = &told.dependencies[0];
        (etcd.state == "stale" && etcd.reason.contains("authentication failed")).then_some(())
    })
    .await;
    let server = format!("http://{}", gateway.grpc);
    let (code, out, err) = sensorium_tests::Server::verb(&["status", "--server", &server]).await;
    assert!(code == Some(0) && out.contains("authentication failed"), "{out}{err}");
    for node in [&cluster.gateways[0], &cluster.workers[0]] {
        assert!(node.process.log().contains("authentication failed"), "{}", node.process.log());
        assert!(!node.process.log().contains("password=right"));
    }
    cluster.etcd.change_password("sensorium", "right").await;
    cluster.ready().await;
    eventually("it answers", async || client.infer(ask()).await.ok()).await;
}
