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
use sensorium_plane::{AdminService, Cluster, Fleet, inbound};
use sensorium_proto::admin::admin_server::AdminServer;
use sensorium_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use sensorium_proto::v1::jobs_server::JobsServer;
use sensorium_proto::v1::sensorium_server::SensoriumServer;
use sensorium_runtime::lanes::Lanes;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;

use crate::auth::{Auth, Role};
use crate::bounds::{Bounded, Bounds, Budget, Unread};
use crate::cluster;
use crate::health::{self, Readiness};
use crate::inference::{InferenceService, Settings};
use crate::v1::{JobsService, SensoriumService};

/// Bytes of a question about the protocol, which is a name. Its errors repeat it, and are to stay small.
const NAME_BYTES: usize = 1024;

/// What one connection and one message may cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a received message at most, inflated. Who needs larger ones says so; each may be held once for each
    /// request in work. Default: 8388608 (8 MiB).
    pub max_message_bytes: usize,
    /// Bytes of all messages in work and of all answers that have not been taken, at most, a quarter of it for one
    /// connection; requests beyond it are refused with RESOURCE_EXHAUSTED. Default: 268435456 (256 MiB).
    pub max_buffered_bytes: usize,
    /// Bytes of a request's headers at most, a bearer token among them. Default: 32768.
    pub max_header_bytes: u32,
    /// Connections of clients at most; more are closed as they come. The HTTP side, which tells of health, has its own.
    /// Default: 4096.
    pub max_connections: usize,
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
    /// Seconds that a client may take to say the first word on a connection. Default: 10.
    pub silence_seconds: u64,
    /// Seconds without a call after which a connection is closed; 0: never. Clients connect again by themselves.
    /// Default: 900.
    pub idle_seconds: u64,
    /// Seconds, a tenth more or less, after which a client is asked to connect anew, so that a new gateway gets its
    /// share of them; calls in work are finished. 0: never. Default: 3600.
    pub max_connection_age_seconds: u64,
    /// Seconds for which a message may stop coming half way, and an answer may go untaken, before the call is ended.
    /// Default: 60.
    pub stall_seconds: u64,
}

impl Limits {
    fn of_connections(&self) -> inbound::Limits {
        let unless_never = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        inbound::Limits {
            connections: self.max_connections,
            streams: self.max_streams,
            // what is a little too large is refused with a status, what is much too large by the transport
            header_bytes: self.max_header_bytes.saturating_mul(4).max(64 << 10),
            silence: Duration::from_secs(self.silence_seconds),
            idle: unless_never(self.idle_seconds),
            age: unless_never(self.max_connection_age_seconds),
            keep_alive: Duration::from_secs(self.keep_alive_seconds),
            keep_alive_timeout: Duration::from_secs(self.keep_alive_timeout_seconds),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 8 << 20,
            max_buffered_bytes: 256 << 20,
            max_header_bytes: 32 << 10,
            max_connections: 4096,
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
            silence_seconds: 10,
            idle_seconds: 900,
            max_connection_age_seconds: 3600,
            stall_seconds: 60,
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
) {
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
    let mut routes = Routes::builder();
    routes
        .add_service(InterceptedService::new(inference, door.auth.require(Role::Infer)))
        .add_service(InterceptedService::new(sensorium, door.auth.require(Role::Infer)))
        .add_service(InterceptedService::new(jobs, door.auth.require(Role::Infer)))
        .add_service(InterceptedService::new(admin, door.auth.require(Role::Admin)))
        .add_service(health::service(door.clone()));
    // the descriptors are compiled in: if they did not parse, no test would pass
    if let Ok(reflection) = descriptors().build_v1() {
        routes.add_service(reflection.max_decoding_message_size(NAME_BYTES));
    }
    if let Ok(reflection) = descriptors().build_v1alpha() {
        routes.add_service(reflection.max_decoding_message_size(NAME_BYTES));
    }
    let bounds = Bounds {
        message_bytes: size,
        header_bytes: limits.max_header_bytes as usize,
        stall: Duration::from_secs(limits.stall_seconds),
    };
    let unread = Unread::start(lanes.handles().len(), bounds.stall);
    let budget = Budget::new(limits.max_buffered_bytes, size);
    let bounded = Bounded::new(routes.routes().prepare(), bounds, budget, unread);
    let listening = Listening { listener, tls: door.tls.clone(), name: "door" };
    deal::serve(lanes, listening, limits.of_connections(), shutdown, bounded).await;
}

/// Connections that the system may finish while we are busy.
const BACKLOG: u32 = 1024;

/// Binds, with the address in the error.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // a process that starts again need not wait for connections of the one before
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| std::io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}
