//! A version that melts down is taken out of service; others do not notice, and an operator can bring it back.

use sensorium_tests::{Refusal, chaos, eventually};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::server;

#[tokio::test]
async fn a_meltdown_is_quarantined_and_a_load_brings_it_back() {
    let server = server(&[("replicas.max_restarts", "1")]).await;
    let client = server.client().await;
    let mut panics = 0;
    let refusal = loop {
        let refusal = Refusal::of(client.infer(chaos("chaos", f32::NAN, 0.0)).await);
        if refusal.code != Code::Internal {
            break refusal;
        }
        panics += 1;
        assert!(panics < 50, "restarts are not bounded");
    };
    assert_eq!(refusal.code, Code::FailedPrecondition, "{refusal:?}");
    assert_eq!(refusal.reason.as_deref(), Some("QUARANTINED"), "{refusal:?}");
    println!("quarantined after {panics} panics");
    assert!(panics > 1, "one panic is no meltdown");

    // the door's view follows the worker's word a moment later
    eventually("not serving", async || {
        (client.check("chaos").await.unwrap() == ServingStatus::NotServing).then_some(())
    })
    .await;
    assert_eq!(client.check("identity").await.unwrap(), ServingStatus::Serving);
    assert_eq!(client.actor("text/chaos/1").await.state, "quarantined");
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
    assert!(server.metric("sensorium_quarantines_total", &["model=\"chaos\""]).await > 0.5);

    client.load("chaos").await.unwrap();
    client.infer(chaos("chaos", 1.0, 1.0)).await.unwrap();
    eventually("serving again", async || {
        (client.check("chaos").await.unwrap() == ServingStatus::Serving).then_some(())
    })
    .await;
}
