//! A cluster forms in any order, and answers as one process does.

use sensorium_proto::v1::EmbedRequest;
use sensorium_proto::v1::embed_request::Space;
use sensorium_proto::v1::part::Content;
use sensorium_tests::{Ask, Cluster, Refusal, Repository, cosine, eventually, get};
use tonic::Code;

use super::steady::cluster;

#[tokio::test]
async fn nodes_start_in_any_order() {
    let mut cluster = Cluster::new(Repository::new().with(&["identity", "minilm"])).await;
    cluster.etcd.stop().await;
    cluster.add_gateway();
    cluster.add_worker(&["--models", "identity"]);
    cluster.gateways[0].lives().await;
    assert_eq!(get(cluster.gateways[0].http, "/readyz").await.unwrap().0, 503, "nobody has offered it anything");
    cluster.etcd.resume().await;
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    client.infer(Ask::of("identity").fp32("INPUT0", &[1, 16], &[1.0; 16])).await.unwrap();
    assert_eq!(Refusal::of(client.infer(Ask::of("minilm").bytes("text", &["x"])).await).code, Code::NotFound);
    // what comes later is found, too
    cluster.add_worker(&["--models", "minilm"]);
    cluster.ready().await;
    client.infer(Ask::of("minilm").bytes("text", &["x"])).await.unwrap();
}

/// A thousand class names are embedded before a picture comes that needs them.
#[tokio::test]
async fn a_gateway_is_ahead_of_its_first_picture() {
    let repository = Repository::new().with(&["minilm", "efficientnet-lite0"]);
    let cluster = Cluster::start(repository, 1, 1).await;
    let client = cluster.gateways[0].client().await;
    eventually("the class names are embedded", async || {
        // a few names stand for two classes
        (client.statistics("minilm").await.inference_count > 990).then_some(())
    })
    .await;
    assert_eq!(client.statistics("efficientnet-lite0").await.inference_count, 0);
}

#[tokio::test]
async fn the_whole_door_works_through_a_gateway() {
    let cluster = cluster(1, 2).await;
    let client = cluster.gateways[0].client().await;
    let given = client.infer(Ask::of("minilm").bytes("text", &["A cat sits on the sofa.", "one more"])).await.unwrap();
    assert_eq!(given.shape("embedding"), [2, 384]);

    let refusal = Refusal::of(client.infer(Ask::of("identity").fp32("INPUT0", &[1, 15], &[0.0; 15])).await);
    refusal.blames("INPUT0.shape", &["[1, 15]"]);
    assert_eq!(Refusal::of(client.infer(Ask::of("nobody").bytes("x", &["y"])).await).code, Code::NotFound);

    let part = sensorium_proto::v1::Part { content: Some(Content::Text("A cat sits on the sofa.".to_owned())) };
    let request = EmbedRequest { parts: vec![part], space: Space::Native.into() };
    let embedded = client.sensorium.clone().embed(request).await.unwrap().into_inner();
    assert!(cosine(&embedded.embeddings[0].values, &given.fp32("embedding")[..384]) > 0.999);

    // figures are those of all workers together
    let asks = (0..20).map(|n| client.infer(Ask::of("identity").fp32("INPUT0", &[1, 16], &[n as f32; 16])));
    futures::future::join_all(asks).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    assert_eq!(client.statistics("identity").await.inference_count, 20);

    // trees of gateway and workers, and a hand on them
    let tree = client.tree("").await;
    for root in ["gateway-0", "worker-0", "worker-1"] {
        assert!(tree.iter().any(|actor| actor.path == root), "{root} in {tree:?}");
    }
    client.restart("worker-1/text/identity/1/replica-0").await.unwrap();
    eventually("the restart", async || {
        let tree = client.tree("worker-1").await;
        let replica = tree.iter().find(|actor| actor.path.ends_with("identity/1/replica-0"))?;
        (replica.restarts == 1 && replica.state == "running").then_some(())
    })
    .await;

    // loading and unloading reach the workers
    client.unload("identity").await.unwrap();
    let gone = Ask::of("identity").fp32("INPUT0", &[1, 16], &[0.0; 16]);
    eventually("unloaded", async || {
        client.infer(gone.clone()).await.err().filter(|status| status.code() == Code::NotFound)
    })
    .await;
    client.load("identity").await.unwrap();
    eventually("loaded", async || client.infer(gone.clone()).await.ok()).await;
}
