//! More than the workers bear, from several gateways: what a gateway refuses by what it knows of them, and in what order
//! they take what waits.

use sensorium_tests::{Ask, Cluster, Refusal, Repository, chaos, eventually};
use tokio::task::JoinSet;
use tonic::Code;

/// One worker that computes one row after the other, behind two gateways.
async fn single(settings: &[(&str, &str)]) -> Cluster {
    let repository = Repository::new().chaos("chaos", &[("batching.max_batch_size", "1")]);
    let cluster = settings.iter().fold(Cluster::new(repository).await, |cluster, (key, value)| cluster.set(key, value));
    cluster.of(2, 1).await
}

/// Takes so many milliseconds.
fn ask(milliseconds: u16) -> Ask {
    chaos("chaos", -f32::from(milliseconds), 0.0).deadline(60_000)
}

#[tokio::test]
async fn a_worker_takes_the_highest_priority_first_whichever_gateway_it_came_by() {
    let cluster = single(&[]).await;
    let clients = [cluster.gateways[0].client().await, cluster.gateways[1].client().await];
    let waiting = async |rows: f64| {
        cluster.workers[0].metric_becomes("sensorium_queue_depth", &["model=\"chaos\""], rows).await;
    };
    let mut all = JoinSet::new();
    let mut send = |gateway: usize, priority: i64, milliseconds: u16| {
        let (client, ask) = (clients[gateway].clone(), ask(milliseconds).set("priority", priority));
        all.spawn(async move { client.infer(ask).await.map(|_| priority) });
    };
    // long enough for a busy machine to bring the others behind it
    send(0, 2, 5000);
    clients[0].in_work("chaos", 1).await;
    waiting(0.0).await;
    let order = [3, 3, 2, 3, 2, 1];
    for (at, &priority) in order.iter().enumerate() {
        send(at % 2, priority, 20);
        waiting((at + 1) as f64).await;
    }
    let mut answered = Vec::new();
    while let Some(priority) = all.join_next().await {
        answered.push(priority.unwrap().unwrap());
    }
    // answers of neighbours may cross on their way through two gateways, those of a level stay together
    assert_eq!(answered[0], 2, "what is being computed is not interrupted");
    let place = |priority| answered[1..].iter().position(|&of| of == priority).unwrap();
    assert!(place(1) <= 1 && place(3) >= 2, "{answered:?}");
}

#[tokio::test]
async fn a_gateway_refuses_at_once_what_a_worker_cannot_answer_in_time() {
    let cluster = single(&[("capacity", "1")]).await;
    let client = cluster.gateways[0].client().await;
    // what is known is forgotten after ten seconds: a machine that stalls may need another try
    let (refusal, executed) = eventually("a refusal at once", async || {
        client.infer(ask(5000)).await.unwrap();
        let executed = client.statistics("chaos").await.execution_count;
        let blocker = tokio::spawn({
            let client = client.clone();
            async move { client.infer(ask(60_000)).await }
        });
        client.in_work("chaos", 1).await;
        let refusal = Refusal::of(client.infer(chaos("chaos", 0.0, 0.0).deadline(4000)).await);
        blocker.abort();
        client.in_work("chaos", 0).await;
        (refusal.code == Code::ResourceExhausted).then_some((refusal, executed))
    })
    .await;
    refusal.is_retriable(Code::ResourceExhausted, "DEADLINE_UNMEETABLE");
    assert_eq!(client.statistics("chaos").await.execution_count, executed, "neither of the two was executed");
    client.infer(chaos("chaos", 0.0, 0.0).deadline(20_000)).await.unwrap();
}

/// Gateways know nothing of each other's requests: a worker that is full says so, and says when to come again.
#[tokio::test]
async fn a_full_worker_refuses_what_two_gateways_let_through() {
    let cluster = single(&[("limits.max_inflight", "16")]).await;
    let clients = [cluster.gateways[0].client().await, cluster.gateways[1].client().await];
    let mut all = JoinSet::new();
    for at in 0..64 {
        let client = clients[at % 2].clone();
        all.spawn(async move { client.infer(ask(40)).await.map(drop) });
    }
    let (mut answered, mut refused) = (0, 0);
    while let Some(answer) = all.join_next().await {
        match answer.unwrap() {
            Ok(()) => answered += 1,
            Err(status) => {
                let refusal = Refusal::from(status);
                assert_eq!(refusal.code, Code::ResourceExhausted, "{refusal:?}");
                assert!(refusal.retry.is_some(), "{refusal:?}");
                refused += 1;
            }
        }
    }
    assert!(answered >= 15 && refused >= 16, "{answered} answered, {refused} refused");
    clients[0].infer(ask(0)).await.unwrap();
}
