//! What happens in a cluster is told on NATS, for whoever listens.

use futures::StreamExt;
use sensorium_proto::v1::part::Content;
use sensorium_tests::jobs::{header, item};
use sensorium_tests::samples::picture;
use sensorium_tests::{Cluster, Repository, chaos, eventually, within};
use serde_json::{Value, json};

#[tokio::test]
async fn ejections_and_dead_tasks_are_told_on_nats() {
    let cluster = Cluster::new(Repository::new().chaos("chaos", &[])).await;
    let cluster = cluster.set("jobs.tasks.max_deliveries", "1").set("jobs.tasks.wait_seconds", "0");
    let cluster = cluster.with_nats().await.of(1, 1).await;
    let nats = async_nats::connect(cluster.nats.as_ref().unwrap().address().to_string()).await.unwrap();
    let mut events = nats.subscribe("sensorium.events.>").await.unwrap();
    nats.flush().await.unwrap();
    let mut next = async || {
        let event = within(events.next()).await.unwrap();
        let told: Value = serde_json::from_slice(&event.payload).unwrap();
        assert!(told["at_ms"].as_u64().unwrap() > 1_700_000_000_000, "{told}");
        (event.subject.to_string(), told)
    };

    let client = cluster.gateways[0].client().await;
    let failing = || chaos("chaos", f32::NEG_INFINITY, 0.0).deadline(20_000);
    eventually("the worker is ejected", async || {
        let _ = client.infer(failing()).await;
        let ejections = cluster.gateways[0].metric("sensorium_ejections_total", &[]).await;
        (ejections > 0.0).then_some(())
    })
    .await;
    let (subject, told) = next().await;
    assert_eq!(subject, "sensorium.events.worker.ejected");
    let of = ["subject", "node", "worker", "model", "seconds"].map(|key| told[key].clone());
    assert_eq!(of, [json!("worker.ejected"), json!("gateway-0"), json!("worker-0"), json!("chaos"), json!(30)]);

    // nobody sees here
    let job = client.submit(header(""), vec![item("cat", vec![Content::Image(picture("chelsea.png").into())])]).await;
    let job = job.unwrap();
    let (subject, told) = next().await;
    assert_eq!(subject, "sensorium.events.task.dead");
    let of = ["job", "item", "modality", "deliveries"].map(|key| told[key].clone());
    assert_eq!(of, [json!(job.id), json!(0), json!("image"), json!(1)]);
    assert!(told["error"].as_str().unwrap().contains("efficientnet-lite0"), "{told}");
}
