//! A replica that panics or errors under load takes down nobody but the request that is to blame.

use futures::future::join_all;
use sensorium_tests::{Refusal, chaos};
use tonic::Code;

use super::server;

/// `culprits` orders among 200 healthy requests.
async fn break_under_load(order: f32, words: &str) {
    let server = server(&[("replicas.max_restarts", "1000"), ("replicas.count", "2")]).await;
    let client = server.client().await;
    let answers = join_all((0..206u16).map(|n| {
        let client = &client;
        async move {
            // a row's mark tells whose answer it is
            let order = if n % 40 == 20 { order } else { -f32::from(n % 7) };
            (n, order, client.infer(chaos("chaos", order, f32::from(n))).await)
        }
    }))
    .await;
    let mut culprits = 0;
    for (n, order, answer) in answers {
        if n % 40 == 20 {
            culprits += 1;
            let refusal = Refusal::of(answer);
            assert_eq!(refusal.code, Code::Internal, "{refusal:?}");
            assert!(refusal.message.contains(words), "{refusal:?}");
        } else {
            let values = answer.unwrap_or_else(|status| panic!("healthy request {n}: {status}")).fp32("OUTPUT0");
            assert!(values[0] == order && values[1..] == [f32::from(n); 15], "request {n} got {values:?}");
        }
    }
    assert_eq!(culprits, 5);
    let tree = client.tree("").await;
    let replicas: Vec<_> = tree.iter().filter(|actor| actor.path.contains("/chaos/1/replica-")).collect();
    assert_eq!(replicas.len(), 2);
    let restarts: u32 = replicas.iter().map(|actor| actor.restarts).sum();
    assert!(restarts >= culprits, "{replicas:?}");
    assert!(replicas.iter().any(|actor| actor.last_failure.contains(words)), "{replicas:?}");
    let counted = server.metric("sensorium_actor_restarts_total", &["kind=\"replica\""]).await;
    assert!((counted - f64::from(restarts)).abs() < 0.1, "{counted} and {restarts}");
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
}

#[tokio::test]
async fn a_panic_under_load_fails_only_its_cause() {
    break_under_load(f32::NAN, "told to panic").await;
}

#[tokio::test]
async fn a_device_error_under_load_fails_only_its_cause() {
    break_under_load(f32::NEG_INFINITY, "told to fail").await;
}
