//! The worker's end: a gRPC server in front of a [`LocalMember`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use sensorium_actors::admission::Admission;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::Context;
use sensorium_actors::route::client::Client;
use sensorium_proto::admin::admin_server::AdminServer;
use sensorium_proto::inference::*;
use sensorium_proto::worker::worker_server::{Worker, WorkerServer};
use sensorium_proto::worker::*;
use sensorium_runtime::lanes::Lanes;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::admin::AdminService;
use crate::deal::{self, Listening};
use crate::fleet::Fleet;
use crate::inbound::Limits;
use crate::local::LocalMember;
use crate::member::Member;
use crate::{convert, deadline, error, extract_trace};

/// Bytes of a request at most: what a gateway lets in, and its frame.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// A thousand gateways with a connection for each of their lanes.
const MAX_CONNECTIONS: usize = 8192;
/// What a gateway adds to the headers that it lets in.
const MAX_HEADER_BYTES: u32 = 128 << 10;

/// See the module.
pub struct WorkerService {
    member: Arc<LocalMember>,
    admission: Admission,
}

impl WorkerService {
    /// A service that lets in what `admission` does.
    pub fn new(member: Arc<LocalMember>, admission: Admission) -> Self {
        Self { member, admission }
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

/// The request and what travels beside it.
fn incoming(request: Request<InferRequest>) -> Result<(sensorium_actors::request::Request, Context)> {
    let (metadata, _, message) = request.into_parts();
    let span = tracing::info_span!("worker", otel.kind = "server", model = message.model);
    extract_trace(&span, &metadata);
    let (request, mut context) = convert::request_from(message)?;
    context.deadline = deadline::of(metadata.as_ref()).map(|timeout| Instant::now() + timeout);
    context.span = Some(span);
    Ok((request, context))
}

fn refuse(error: Error) -> Status {
    error::status(&error)
}

#[tonic::async_trait]
impl Worker for WorkerService {
    async fn infer(&self, request: Request<InferRequest>) -> Answer<InferResponse> {
        let _permit = self.admission.pass().map_err(refuse)?;
        let (request, context) = incoming(request).map_err(refuse)?;
        let reply = Client::infer(&*self.member, &request, &context).await.map_err(refuse)?;
        Ok(Response::new(convert::reply_to(reply)))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = std::result::Result<InferResponse, Status>> + Send>>;

    async fn stream(&self, request: Request<InferRequest>) -> Answer<Self::StreamStream> {
        let permit = self.admission.pass().map_err(refuse)?;
        let (request, context) = incoming(request).map_err(refuse)?;
        let parts = Client::stream(&*self.member, request, context).await.map_err(refuse)?;
        Ok(Response::new(Box::pin(parts.map(move |part| {
            let _until_the_last = &permit;
            part.map(convert::reply_to).map_err(refuse)
        }))))
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        let DescribeRequest { model, version } = request.into_inner();
        let version = Some(version).filter(|&version| version > 0);
        let told = self.member.describe(&model, version).await.map_err(refuse)?;
        let manifest = serde_json::to_string(&told.manifest)
            .map_err(|error| refuse(Error::Internal(format!("manifest of {model}: {error}"))))?;
        Ok(Response::new(DescribeResponse { manifest, version: told.version, labels: told.labels }))
    }

    async fn statistics(&self, request: Request<ModelStatisticsRequest>) -> Answer<ModelStatisticsResponse> {
        let request = request.into_inner();
        let version = convert::version(&request.version, "version").map_err(refuse)?;
        let model_stats = self.member.statistics(&request.name, version).await.map_err(refuse)?;
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn index(&self, _: Request<RepositoryIndexRequest>) -> Answer<RepositoryIndexResponse> {
        Ok(Response::new(RepositoryIndexResponse { models: self.member.index().await.map_err(refuse)? }))
    }

    async fn load(&self, request: Request<RepositoryModelLoadRequest>) -> Answer<RepositoryModelLoadResponse> {
        self.member.load(request.into_inner()).await.map_err(refuse)?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn unload(&self, request: Request<RepositoryModelUnloadRequest>) -> Answer<RepositoryModelUnloadResponse> {
        self.member.unload(&request.into_inner().model_name).await.map_err(refuse)?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Answer<DrainResponse> {
        self.member.drain().await.map_err(refuse)?;
        Ok(Response::new(DrainResponse {}))
    }
}

/// Serves a worker on all lanes, with `max_streams` of one connection at most, until `shutdown` resolves; then finishes
/// what is in flight.
pub async fn serve(
    member: Arc<LocalMember>,
    admission: Admission,
    fleet: Fleet,
    lanes: &Lanes,
    listening: Listening,
    max_streams: u32,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<WorkerServer<WorkerService>>().await;
    let worker = WorkerServer::new(WorkerService::new(member, admission))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let mut routes = Routes::builder();
    routes
        .add_service(worker)
        .add_service(AdminServer::new(AdminService::new(fleet, None)))
        .add_service(health_service);
    let limits = Limits {
        connections: MAX_CONNECTIONS,
        streams: max_streams,
        header_bytes: MAX_HEADER_BYTES,
        silence: Duration::from_secs(10),
        // gateways close what they do not need
        idle: None,
        age: None,
        keep_alive: Duration::from_secs(10),
        keep_alive_timeout: Duration::from_secs(5),
    };
    deal::serve(lanes, listening, limits, shutdown, routes.routes().prepare()).await;
}
