//! What stands behind the door, and the gRPC server itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sensorium_actors::jobs::Jobs;
use sensorium_actors::jobs::intake::Intake;
use sensorium_actors::route::Router;
use sensorium_actors::understand::Understanding;
use sensorium_plane::deal::{self, Listening};
use sensorium_plane::tls::ServerTls;
use sensorium_plane::{AdminService, CONNECTION_WINDOW, Cluster, Fleet, STREAM_WINDOW};
use sensorium_proto::admin::admin_server::AdminServer;
use sensorium_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use sensorium_proto::v1::jobs_server::JobsServer;
use sensorium_proto::v1::sensorium_server::SensoriumServer;
use sensorium_runtime::lanes::Lanes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::service::interceptor::InterceptedService;

use crate::auth::{Auth, Role};
use crate::cluster;
use crate::health::{self, Readiness};
use crate::inference::{InferenceService, Settings};
use crate::v1::{JobsService, SensoriumService};

/// What one connection and one message may cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a received message at most, after decompression.
    pub max_message_bytes: usize,
    /// Requests in work at most; more are refused with RESOURCE_EXHAUSTED. Default: 2048.
    pub max_inflight: u32,
    /// Whether each model's requests in work are limited to what it bears at the moment: fewer as requests wait,
    /// deadlines are missed or workers refuse, more as they no longer do. Default: true.
    pub adaptive: bool,
    /// What that limit never falls below, unless twice what the model's workers work on side by side is more.
    /// Default: 16.
    pub min_inflight: u32,
    /// Milliseconds that waiting may add to the time that a model takes by itself, before its limit falls. Callers with
    /// less patience say so by their deadlines. Default: 10000.
    pub patience_ms: u64,
    /// Streams of one connection at most.
    pub max_streams: u32,
    /// Requests of one ModelStreamInfer stream in work at once.
    pub stream_requests: usize,
    /// Parts of one Embed request at most.
    pub max_parts: usize,
    /// Regions of system shared memory that one tenant may have registered at a time. 0: none. Default: 256.
    pub max_shared_memory_regions: usize,
    /// Bytes of all of them together. What one request reads or writes in them is bounded by `max_message_bytes`.
    /// Default: 4 GiB.
    pub max_shared_memory_bytes: u64,
    /// Seconds of silence after which a connection is asked whether it is alive.
    pub keep_alive_seconds: u64,
    /// Seconds after which a connection that does not answer is closed.
    pub keep_alive_timeout_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 64 << 20,
            max_inflight: 2048,
            adaptive: true,
            min_inflight: 16,
            patience_ms: 10_000,
            max_streams: 1024,
            stream_requests: 32,
            max_parts: 64,
            max_shared_memory_regions: 256,
            max_shared_memory_bytes: 4 << 30,
            keep_alive_seconds: 30,
            keep_alive_timeout_seconds: 10,
        }
    }
}

/// What the services share.
pub struct Door {
    /// The name of this node.
    pub node: String,
    /// The way of requests.
    pub router: Router,
    /// All workers, for what is asked of them by name or all together.
    pub fleet: Fleet,
    /// Text, image and audio together.
    pub understanding: Understanding,
    /// What is done when there is time; nothing: no jobs are taken.
    pub jobs: Option<Jobs>,
    /// Works on jobs.
    pub intake: Option<Intake>,
    /// Whether the server is ready.
    pub readiness: Readiness,
    /// What a connection may cost.
    pub limits: Limits,
    /// Who may do what.
    pub auth: Auth,
    /// TLS of the listener; nothing: in the clear.
    pub tls: Option<ServerTls>,
}

impl Door {
    /// Tells of the cluster as it is seen from here.
    fn cluster(&self) -> Cluster {
        let (router, jobs, node) = (self.router.clone(), self.jobs.clone(), self.node.clone());
        Arc::new(move || cluster::describe(&node, &router, jobs.as_ref()))
    }
}

/// Serves on all lanes until `shutdown` resolves; then finishes what is in flight.
pub async fn serve(
    door: Arc<Door>,
    settings: Settings,
    lanes: &Lanes,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let limits = door.limits.clone();
    let size = limits.max_message_bytes;
    macro_rules! limited {
        ($server:expr) => {
            $server
                .max_decoding_message_size(size)
                .max_encoding_message_size(usize::MAX)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd)
                .send_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Zstd)
        };
    }
    let inference = limited!(GrpcInferenceServiceServer::new(InferenceService::new(door.clone(), settings)));
    let sensorium = limited!(SensoriumServer::new(SensoriumService::new(door.clone())));
    let jobs = limited!(JobsServer::new(JobsService::new(door.clone())));
    let admin = limited!(AdminServer::new(AdminService::new(door.fleet.clone(), Some(door.cluster()))));
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(sensorium_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // the descriptors are compiled in: if they did not parse, no test would pass
    let reflection = descriptors().build_v1().ok();
    let reflection_alpha = descriptors().build_v1alpha().ok();
    let health = health::service(door.clone());
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(limits.max_streams)
        .http2_keepalive_interval(Some(Duration::from_secs(limits.keep_alive_seconds)))
        .http2_keepalive_timeout(Some(Duration::from_secs(limits.keep_alive_timeout_seconds)))
        .layer(tower::util::MapResponseLayer::new(sensorium_plane::status::amend::<tonic::body::Body>))
        .layer(tower::util::MapRequestLayer::new(answer_in_kind::<tonic::body::Body>))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(InterceptedService::new(inference, door.auth.require(Role::Infer)))
        .add_service(InterceptedService::new(sensorium, door.auth.require(Role::Infer)))
        .add_service(InterceptedService::new(jobs, door.auth.require(Role::Infer)))
        .add_service(InterceptedService::new(admin, door.auth.require(Role::Admin)))
        .add_service(health)
        .add_optional_service(reflection)
        .add_optional_service(reflection_alpha);
    let listening = Listening { listener, tls: door.tls.clone(), name: "door" };
    deal::serve(lanes, listening, shutdown, |incoming, stop| {
        server.clone().serve_with_incoming_shutdown(incoming, stop)
    })
    .await
}

/// Answers are compressed for those who compress what they ask. Stock clients always say that they would understand
/// gzip, and compressing embeddings takes longer than computing them.
fn answer_in_kind<B>(mut request: http::Request<B>) -> http::Request<B> {
    let encoded = request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
    if !encoded {
        request.headers_mut().remove("grpc-accept-encoding");
    }
    request
}

/// Binds, with the address in the error.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}
