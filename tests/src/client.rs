//! Clients of everything behind the door.

use std::net::SocketAddr;

use futures::StreamExt;
use hyper_util::client::legacy::Client as Hyper;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{Actor, GetActorTreeRequest, GetClusterRequest, GetClusterResponse, RestartActorRequest};
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::*;
use sensorium_proto::v1::jobs_client::JobsClient;
use sensorium_proto::v1::sensorium_client::SensoriumClient;
use sensorium_proto::v1::{GenerateRequest, GenerateResponse, Sampling};
use tonic::transport::{self, Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::{Ask, Given, Identity, PATIENCE, eventually, get};

/// Waits, but not for ever: a hang is a failure with a name.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no answer in {PATIENCE:?}: it hangs"))
}

/// All services over one connection.
#[derive(Clone)]
pub struct Client {
    /// Open Inference Protocol.
    pub inference: GrpcInferenceServiceClient<Channel>,
    /// `sensorium.v1`.
    pub sensorium: SensoriumClient<Channel>,
    /// `sensorium.v1.Jobs`.
    pub jobs: JobsClient<Channel>,
    /// `sensorium.admin.v1`.
    pub admin: AdminClient<Channel>,
    /// `grpc.health.v1`.
    pub health: HealthClient<Channel>,
    /// The connection.
    pub channel: Channel,
    address: SocketAddr,
}

impl Client {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = within(endpoint.connect()).await.unwrap_or_else(|error| panic!("cannot connect: {error}"));
        Self::over(channel, address)
    }

    /// Connects with TLS, trusting the authorities in `ca` (PEM); or says why there is no connection.
    pub async fn connect_tls(address: SocketAddr, ca: &str, identity: Option<&Identity>) -> Result<Self, String> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some(Identity { certificate, key }) = identity {
            let read = |path| std::fs::read(path).expect("a PEM file");
            tls = tls.identity(transport::Identity::from_pem(read(certificate), read(key)));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
        let channel = within(endpoint.tls_config(tls).expect("certificates").connect()).await;
        Ok(Self::over(channel.map_err(|error| format!("{error:?}"))?, address))
    }

    fn over(channel: Channel, address: SocketAddr) -> Self {
        let most = 128 << 20;
        Self {
            inference: GrpcInferenceServiceClient::new(channel.clone()).max_decoding_message_size(most),
            sensorium: SensoriumClient::new(channel.clone()).max_decoding_message_size(most),
            jobs: JobsClient::new(channel.clone()).max_decoding_message_size(most),
            admin: AdminClient::new(channel.clone()),
            health: HealthClient::new(channel.clone()),
            channel,
            address,
        }
    }

    /// A client that leaves a deadline to the server alone.
    pub fn patient(&self) -> GrpcInferenceServiceClient<Hyper<HttpConnector, tonic::body::Body>> {
        let hyper = Hyper::builder(TokioExecutor::new()).http2_only(true).build_http();
        let origin = format!("http://{}", self.address).parse().expect("an address");
        GrpcInferenceServiceClient::with_origin(hyper, origin)
    }

    /// ModelInfer.
    pub async fn infer(&self, ask: Ask) -> Result<Given, Status> {
        let answer = within(self.inference.clone().model_infer(ask.request())).await?;
        Ok(Given(answer.into_inner()))
    }

    /// ModelStreamInfer with one request: all answers until the stream ends.
    pub async fn stream(&self, ask: Ask) -> Result<Vec<ModelStreamInferResponse>, Status> {
        self.stream_all(vec![ask]).await
    }

    /// ModelStreamInfer with several requests.
    pub async fn stream_all(&self, asks: Vec<Ask>) -> Result<Vec<ModelStreamInferResponse>, Status> {
        let requests = tokio_stream::iter(asks.into_iter().map(Ask::message));
        let mut answers = within(self.inference.clone().model_stream_infer(requests)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = within(answers.next()).await {
            all.push(answer?);
        }
        Ok(all)
    }

    /// Figures of a model's one version.
    pub async fn statistics(&self, model: &str) -> ModelStatistics {
        let request = ModelStatisticsRequest { name: model.to_owned(), version: String::new() };
        let answer = within(self.inference.clone().model_statistics(request)).await.expect("statistics");
        let [statistics] = answer.into_inner().model_stats.try_into().expect("one version");
        statistics
    }

    /// Loads a model.
    pub async fn load(&self, model: &str) -> Result<(), Status> {
        let request = RepositoryModelLoadRequest { model_name: model.to_owned(), ..Default::default() };
        within(self.inference.clone().repository_model_load(request)).await.map(drop)
    }

    /// Unloads a model.
    pub async fn unload(&self, model: &str) -> Result<(), Status> {
        let request = RepositoryModelUnloadRequest { model_name: model.to_owned(), ..Default::default() };
        within(self.inference.clone().repository_model_unload(request)).await.map(drop)
    }

    /// `grpc.health.v1` Check.
    pub async fn check(&self, service: &str) -> Result<ServingStatus, Status> {
        let request = HealthCheckRequest { service: service.to_owned() };
        Ok(within(self.health.clone().check(request)).await?.into_inner().status())
    }

    /// The live tree from `path` on.
    pub async fn tree(&self, path: &str) -> Vec<Actor> {
        let request = GetActorTreeRequest { path: path.to_owned() };
        within(self.admin.clone().get_actor_tree(request)).await.expect("the actor tree").into_inner().actors
    }

    /// The actor at the one path that ends with `end`.
    pub async fn actor(&self, end: &str) -> Actor {
        let tree = self.tree("").await;
        let paths = || tree.iter().map(|actor| actor.path.as_str()).collect::<Vec<_>>().join("\n");
        let found = tree.iter().find(|actor| actor.path.ends_with(end));
        found.unwrap_or_else(|| panic!("no actor '{end}' among\n{}", paths())).clone()
    }

    /// Waits until so many calls of a model are in work.
    pub async fn in_work(&self, model: &str, count: u64) {
        let route = format!("route/{model}");
        eventually(&format!("{count} in work"), async || (self.actor(&route).await.queue_depth == count).then_some(()))
            .await;
    }

    /// Starts a generation of so many tokens, and reads its first piece.
    pub async fn generating(&self, max_tokens: u32) -> Streaming<GenerateResponse> {
        let request = GenerateRequest {
            prompt: "1, 2, 3, 4, 5,".to_owned(),
            raw: true,
            sampling: Some(Sampling { max_tokens, ..Sampling::default() }),
            ..GenerateRequest::default()
        };
        let generated = within(self.sensorium.clone().generate(request)).await;
        let mut pieces = generated.expect("a generation").into_inner();
        within(pieces.next()).await.expect("a first piece").expect("a piece");
        pieces
    }

    /// The cluster, as a gateway sees it.
    pub async fn cluster(&self) -> Result<GetClusterResponse, Status> {
        Ok(self.admin.clone().get_cluster(GetClusterRequest {}).await?.into_inner())
    }

    /// Restarts the actor at `path`.
    pub async fn restart(&self, path: &str) -> Result<(), Status> {
        let request = RestartActorRequest { path: path.to_owned() };
        within(self.admin.clone().restart_actor(request)).await.map(drop)
    }
}

impl crate::Server {
    /// `/metrics`.
    pub async fn metrics(&self) -> String {
        let (status, text) = within(get(self.http, "/metrics")).await.expect("/metrics");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The sum of all series of a metric whose labels hold each of `labels`, such as `model="minilm"`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric(self.http, name, labels).await
    }

    /// Waits until that sum is this.
    pub async fn metric_becomes(&self, name: &str, labels: &[&str], wanted: f64) {
        becomes(self.http, name, labels, wanted).await;
    }
}

impl crate::Node {
    /// The sum of all series of a metric whose labels hold each of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric(self.http, name, labels).await
    }

    /// Waits until that sum is this.
    pub async fn metric_becomes(&self, name: &str, labels: &[&str], wanted: f64) {
        becomes(self.http, name, labels, wanted).await;
    }
}

/// Waits until a metric at an HTTP side has this value.
async fn becomes(http: SocketAddr, name: &str, labels: &[&str], wanted: f64) {
    eventually(&format!("{name} {labels:?} is {wanted}"), async || {
        ((metric(http, name, labels).await - wanted).abs() < 0.1).then_some(())
    })
    .await;
}

/// The sum of all series of a metric at an HTTP side whose labels hold each of `labels`.
async fn metric(http: SocketAddr, name: &str, labels: &[&str]) -> f64 {
    let (_, text) = within(get(http, "/metrics")).await.expect("/metrics");
    let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let of_name = series.strip_prefix(name)?;
        let ours =
            (of_name.is_empty() || of_name.starts_with('{')) && labels.iter().all(|label| of_name.contains(label));
        ours.then(|| value.parse::<f64>().ok()).flatten()
    });
    values.sum()
}
