//! mTLS between gateways and workers: who may call, who may not, and certificates that are replaced meanwhile.

use std::path::Path;
use std::time::Duration;

use sensorium_tests::{Ask, Authority, Client, Cluster, Identity, Node, Repository, eventually};
use tonic::{Code, Status};

use super::{load, none_failed};

/// Arguments of a node that shows `own` and trusts `ca`.
fn shows(own: &Identity, ca: &Path) -> Vec<String> {
    let files = [("certificate", own.certificate.as_path()), ("key", &own.key), ("ca", ca)];
    files.iter().flat_map(|(key, path)| ["--set".to_owned(), format!("plane.{key}={}", path.display())]).collect()
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn ask() -> Ask {
    Ask::of("identity").fp32("INPUT0", &[1, 16], &[1.0; 16]).deadline(5000)
}

async fn refused(client: &Client) -> Status {
    client.infer(ask()).await.map(drop).unwrap_err()
}

/// Waits until a node has written something.
async fn writes(node: &Node, words: &[&str]) {
    eventually(&format!("{words:?} in the log of {}", node.name), async || {
        let log = node.process.log();
        words.iter().all(|word| log.contains(word)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_gateways_with_a_certificate_call_workers() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("somebody else's"));
    let mut cluster = Cluster::new(Repository::new().with(&["identity"])).await;
    cluster.add_worker(&borrowed(&shows(&authority.issue("worker"), &authority.file())));
    cluster.add_gateway_with(&borrowed(&shows(&authority.issue("gateway"), &authority.file())));
    // it trusts the workers, but they do not trust it; it does not trust the workers; it speaks in the clear
    cluster.add_gateway_with(&borrowed(&shows(&stranger.issue("untrusted"), &authority.file())));
    cluster.add_gateway_with(&borrowed(&shows(&authority.issue("distrusting"), &stranger.file())));
    cluster.add_gateway();
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    client.infer(ask()).await.unwrap();
    for (gateway, words) in [
        // it may find the connection broken before it has read why: the worker says that
        (1, &["worker is out of reach"][..]),
        (2, &["worker is out of reach", "UnknownIssuer"]),
        (3, &["the worker speaks TLS"]),
    ] {
        let gateway = &cluster.gateways[gateway];
        let client = gateway.client().await;
        let status = refused(&client).await;
        assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{}: {status:?}", gateway.name);
        writes(gateway, words).await;
        let told = client.cluster().await.unwrap();
        assert!(told.routes.iter().all(|route| route.workers.iter().all(|worker| !worker.reachable)), "{told:?}");
    }
    writes(&cluster.workers[0], &["TLS handshake failed", "UnknownIssuer"]).await;
    // nobody but them has suffered
    client.infer(ask()).await.unwrap();
}

#[tokio::test]
async fn a_gateway_with_certificates_calls_nobody_in_the_clear() {
    let authority = Authority::new("ours");
    let mut cluster = Cluster::new(Repository::new().with(&["identity"])).await;
    cluster.add_worker(&[]);
    cluster.add_gateway_with(&borrowed(&shows(&authority.issue("gateway"), &authority.file())));
    cluster.ready().await;
    assert_eq!(refused(&cluster.gateways[0].client().await).await.code(), Code::Unavailable);
    writes(&cluster.gateways[0], &["the worker speaks no TLS"]).await;
}

#[tokio::test]
async fn certificates_of_the_plane_are_replaced_under_load() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let own = old.issue("node");
    let arguments = shows(&own, &old.file());
    let mut cluster = Cluster::new(Repository::new().with(&["identity", "minilm"])).await;
    cluster.add_worker(&borrowed(&arguments));
    cluster.add_worker(&borrowed(&arguments));
    cluster.add_gateway_with(&borrowed(&arguments));
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    let load = load(&client);
    load.answers(50).await;

    let read_again = |node: &Node| node.process.log().matches("read again").count();
    let everybody = async |cluster: &Cluster, times: usize| {
        eventually("all have read the files again", async || {
            let nodes = cluster.workers.iter().chain(&cluster.gateways);
            nodes.into_iter().all(|node| read_again(node) >= times).then_some(())
        })
        .await;
    };
    // first all trust both authorities, then they show certificates of the new one, then they trust it alone
    std::fs::write(old.file(), old.pem() + &new.pem()).unwrap();
    everybody(&cluster, 1).await;
    own.replace(&new.issue("node"));
    everybody(&cluster, 2).await;
    std::fs::write(old.file(), new.pem()).unwrap();
    everybody(&cluster, 3).await;
    load.answers(50).await;

    // new connections, with nobody left who was called over the old ones
    for at in 0..2 {
        cluster.workers[at].process.signal("TERM");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.workers[at].resurrect();
        cluster.ready().await;
        load.answers(50).await;
    }
    none_failed(load).await;
}
