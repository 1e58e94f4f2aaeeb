//! Health per service and per model, checked and watched.

use futures::StreamExt;
use sensorium_proto::inference::{ModelReadyRequest, ServerLiveRequest, ServerReadyRequest};
use sensorium_tests::{Repository, Server, ServerOptions, within};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::client;

#[tokio::test]
async fn services_and_models_are_serving() {
    let client = client().await;
    for name in [
        "",
        "inference.GRPCInferenceService",
        "sensorium.v1.Sensorium",
        "sensorium.v1.Jobs",
        "sensorium.admin.v1.Admin",
        "identity",
        "minilm",
    ] {
        assert_eq!(client.check(name).await.unwrap(), ServingStatus::Serving, "{name}");
    }
    assert_eq!(client.check("nobody").await.unwrap_err().code(), Code::NotFound);
    let mut inference = client.inference;
    assert!(inference.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(inference.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let request = ModelReadyRequest { name: "minilm".to_owned(), version: "1".to_owned() };
    assert!(inference.model_ready(request).await.unwrap().into_inner().ready);
}

#[tokio::test]
async fn a_watched_model_tells_that_it_goes_and_comes() {
    let server = Server::start(ServerOptions::new(Repository::new().with(&["identity"]).chaos("chaos", &[]))).await;
    let client = server.client().await;
    let watch = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let stream = within(client.health.clone().watch(request)).await.unwrap().into_inner();
        stream.map(|status| status.map(|status| status.status()))
    };
    let mut model = watch("chaos").await;
    let mut overall = watch("").await;
    let mut nobody = watch("nobody").await;
    let next = async |stream: &mut (dyn futures::Stream<Item = Result<ServingStatus, tonic::Status>> + Unpin)| {
        within(stream.next()).await.unwrap().unwrap()
    };
    assert_eq!(next(&mut model).await, ServingStatus::Serving);
    assert_eq!(next(&mut overall).await, ServingStatus::Serving);
    assert_eq!(next(&mut nobody).await, ServingStatus::ServiceUnknown);
    client.unload("chaos").await.unwrap();
    assert_ne!(next(&mut model).await, ServingStatus::Serving);
    client.load("chaos").await.unwrap();
    while next(&mut model).await != ServingStatus::Serving {}
    server.terminate();
    assert_eq!(next(&mut overall).await, ServingStatus::NotServing, "a drain begins with not being ready");
}
