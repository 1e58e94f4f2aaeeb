//! The configuration of `sensorium serve`, `gateway` and `worker`: one set of keys, of which each uses what it needs.

mod check;
mod open;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use sensorium_actors::admission::Quota;
use sensorium_actors::understand;
use sensorium_gateway::auth;
use sensorium_gateway::server::Limits;
use sensorium_runtime::config;
use serde::{Deserialize, Serialize};

/// Everything that can be set. Each key is also `SENSORIUM_<KEY>` (a dot is two underscores) and `--set <key>=<value>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The node's name, unique in its cluster, and the root of its actors' paths. Default: `sensorium-1` for `serve`, the
    /// host's name, role and port for others.
    pub name: String,
    /// The model repository. Default: `models` in the cache folder, where the set-up put the default pack.
    pub repository: PathBuf,
    /// Models to load at the start. Default: all of the repository.
    #[serde(deserialize_with = "config::list")]
    pub models: Vec<String>,
    /// Where the door's gRPC listens. Default: `127.0.0.1:8001`.
    pub grpc: SocketAddr,
    /// Where a worker's gRPC listens for gateways. Default: `127.0.0.1:8101`.
    pub listen: SocketAddr,
    /// `host:port` by which gateways reach this worker. Default: `listen`, with the host's name in place of an address
    /// that means any.
    pub advertise: String,
    /// Where HTTP (`/metrics`, `/livez`, `/readyz`) listens. Default: `127.0.0.1:8002`, of a worker `127.0.0.1:8102`.
    pub http: Option<SocketAddr>,
    /// Where the node stands. Gateways prefer workers of their own zone. Default: none.
    pub zone: String,
    /// Requests that a worker works on side by side before they queue; others are preferred from then on. Default: 8.
    pub capacity: u32,
    /// URLs of etcd. Default: none; a gateway or worker needs it.
    #[serde(deserialize_with = "config::list")]
    pub etcd: Vec<String>,
    /// URLs of NATS, which keeps jobs. Default: none; a gateway then takes no jobs, and `serve` keeps them in a file.
    #[serde(deserialize_with = "config::list")]
    pub nats: Vec<String>,
    /// URL of Redis, behind the cache of this process: `redis://`, `rediss://`, `redis+sentinel://HOSTS/MASTER` or
    /// `redis+cluster://HOSTS`. Default: none, and each process has its own cache alone.
    pub redis: String,
    /// Answers that are kept.
    pub cache: Cache,
    /// Work for when there is time.
    pub jobs: Jobs,
    /// How the node is registered in etcd.
    pub register: Register,
    /// How gateways call workers.
    pub plane: Plane,
    /// TLS at the door.
    pub tls: Tls,
    /// Who may do what at the door.
    pub auth: auth::Options,
    /// Path of the metrics on the HTTP side; empty: none. Default: `/metrics`.
    pub metrics_path: String,
    /// Seconds that requests in flight are given when the process is asked to stop. Default: 30.
    pub drain_seconds: u64,
    /// Milliseconds between a drain's first word and the first refusal: routers and balancers move meanwhile.
    /// Default: 500.
    pub drain_notice_ms: u64,
    /// Threads and devices.
    pub compute: Compute,
    /// What one connection and one message may cost.
    pub limits: Limits,
    /// What each tenant is due, by its name; `default` is of those that are not named, `anonymous` of requests without a
    /// tenant. Default: all tenants alike, without quotas.
    pub tenants: BTreeMap<String, Quota>,
    /// Which models understand text, image and audio together.
    pub understand: understand::Options,
}

/// Answers that are kept: those of models whose manifest says `cache = true`, never across tenants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Whether anything is kept at all. Default: true.
    pub enabled: bool,
    /// Bytes of the cache in this process; 0: none. Default: 268435456.
    pub near_bytes: u64,
    /// Seconds after which an answer is forgotten. Default: 86400.
    pub ttl_seconds: u64,
    /// Bytes of one answer at most; longer ones are not kept. Default: 1048576.
    pub max_value_bytes: usize,
    /// Milliseconds that a look-up in Redis may take; after that it is a miss. Default: 5.
    pub timeout_ms: u64,
    /// Redis's password; the environment is a better place for it than a file.
    pub password: String,
    /// PEM file of who may have signed Redis's certificate. Default: whom the system trusts.
    pub ca: Option<PathBuf>,
    /// PEM file of our own certificate, where Redis asks for one.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            enabled: true,
            near_bytes: 256 << 20,
            ttl_seconds: 86_400,
            max_value_bytes: 1 << 20,
            timeout_ms: 5,
            password: String::new(),
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

/// Work for when there is time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// Where `serve` keeps jobs when it has no NATS. Default: `jobs.redb` in the cache folder.
    pub path: PathBuf,
    /// Seconds after its end after which a job, its results and its dead letters are forgotten. Default: 86400.
    pub retention_seconds: u64,
    /// Servers of NATS that keep a copy. Default: 1.
    pub replicas: usize,
    /// Seconds without a word after which a task is given to another gateway. Default: 30.
    pub ack_seconds: u64,
    /// Tasks that a queue holds at most; more are refused. Default: 1000000.
    pub max_queued: u32,
    /// Tasks of one tenant that a queue holds at most. Default: 500000.
    pub max_queued_per_tenant: u32,
    /// Bytes that jobs may take, in NATS or in the file. What is submitted is refused from three quarters of it on: the
    /// rest is for results. Default: 10737418240.
    pub max_bytes: u64,
    /// Credentials file of NATS. Default: none.
    pub credentials: Option<PathBuf>,
    /// PEM file of who may have signed NATS's certificate.
    pub ca: Option<PathBuf>,
    /// PEM file of our own certificate, where NATS asks for one.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// What tasks may cost.
    pub tasks: sensorium_actors::jobs::Options,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            path: cache().join("jobs.redb"),
            retention_seconds: 86_400,
            replicas: 1,
            ack_seconds: 30,
            max_queued: 1_000_000,
            max_queued_per_tenant: 500_000,
            max_bytes: 10 << 30,
            credentials: None,
            ca: None,
            certificate: None,
            key: None,
            tasks: sensorium_actors::jobs::Options::default(),
        }
    }
}

/// How the node is registered in etcd.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Register {
    /// Name of the cluster, the root of its keys: several clusters may share one etcd. Default: `sensorium`.
    pub cluster: String,
    /// Seconds after which a node that no longer renews its lease is gone. Default: 10.
    pub lease_seconds: u64,
    /// User of etcd. Default: none.
    pub user: String,
    /// The user's password; the environment is a better place for it than a file.
    pub password: String,
    /// PEM file of who may have signed etcd's certificate. Default: none, for `http` URLs.
    pub ca: Option<PathBuf>,
    /// PEM file of our own certificate, where etcd asks for one.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            cluster: "sensorium".to_owned(),
            lease_seconds: 10,
            user: String::new(),
            password: String::new(),
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

/// TLS at the door. Files are read again when they change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file of the door's certificate and those between it and its authority. Default: none, and the door speaks in
    /// the clear.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// PEM file of who may have signed certificates of clients; those without one are turned away. Default: none, and
    /// no client is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// How gateways call workers, and workers know gateways.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plane {
    /// Workers of a model that a gateway calls, where there are more: each by about as many gateways as any other. More
    /// spread load more evenly, and cost connections; see docs/SCALING.md. 0: all. Default: 64.
    pub subset: usize,
    /// HTTP/2 connections to each worker that is called, at least; each of `compute.lanes` has
    /// one. Default: 2.
    pub connections: usize,
    /// Seconds after which connections to a worker that nobody calls are closed. Default: 60.
    pub idle_seconds: u64,
    /// Milliseconds of silence after which a connection is asked whether it is alive. Default: 1000.
    pub keep_alive_ms: u64,
    /// Milliseconds after which one that does not answer is given up, and its requests go elsewhere. Default: 2000.
    pub keep_alive_timeout_ms: u64,
    /// PEM file of the node's certificate, for TLS between gateways and workers; both ends have one, and show it. Read
    /// again when it changes, as are `key` and `ca`. Default: none, and they talk in the clear.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// PEM file of who may have signed the certificate of the other end.
    pub ca: Option<PathBuf>,
    /// Name that a worker's certificate must be for, where all have one name. Default: the host of the worker's
    /// address.
    pub server_name: String,
}

impl Default for Plane {
    fn default() -> Self {
        Self {
            subset: 64,
            connections: 2,
            idle_seconds: 60,
            keep_alive_ms: 1000,
            keep_alive_timeout_ms: 2000,
            certificate: None,
            key: None,
            ca: None,
            server_name: String::new(),
        }
    }
}

/// Threads and devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// Threads that carry requests between clients and workers, each with connections of its own. 0: one for each core, up
    /// to eight.
    pub lanes: usize,
    /// Threads of one model call. 0: all cores. Calls that would need more cores than there are take turns.
    pub intra_op_threads: usize,
    /// Decoding, resampling and tokenising jobs at once. 0: as many as cores.
    pub decode_threads: usize,
    /// Bytes that decoded images and clips of all requests may take together. A request waits for room within its deadline;
    /// one that alone needs more is refused. Default: 1073741824 (1 GiB).
    pub decoded_bytes: usize,
    /// Device threads that may hang before the process ends, so that its supervisor starts a sound one. A hung call
    /// cannot be ended otherwise. Default: 0.
    pub max_hung_threads: usize,
}

impl Default for Compute {
    fn default() -> Self {
        Self { lanes: 0, intra_op_threads: 0, decode_threads: 0, decoded_bytes: 1 << 30, max_hung_threads: 0 }
    }
}

impl Config {
    /// Where HTTP listens; `port` on this machine alone, if nothing is said.
    pub fn http(&self, port: u16) -> SocketAddr {
        self.http.unwrap_or(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            repository: cache().join("models"),
            models: Vec::new(),
            grpc: SocketAddr::from(([127, 0, 0, 1], 8001)),
            listen: SocketAddr::from(([127, 0, 0, 1], 8101)),
            advertise: String::new(),
            http: None,
            zone: String::new(),
            capacity: 8,
            etcd: Vec::new(),
            nats: Vec::new(),
            redis: String::new(),
            cache: Cache::default(),
            jobs: Jobs::default(),
            register: Register::default(),
            plane: Plane::default(),
            tls: Tls::default(),
            auth: auth::Options::default(),
            metrics_path: "/metrics".to_owned(),
            drain_seconds: 30,
            drain_notice_ms: 500,
            compute: Compute::default(),
            limits: Limits::default(),
            tenants: BTreeMap::new(),
            understand: understand::Options::default(),
        }
    }
}

/// Where the set-up puts what it downloads.
pub fn cache() -> PathBuf {
    let chosen = std::env::var_os("SENSORIUM_CACHE").map(PathBuf::from);
    let home = || std::env::home_dir().unwrap_or_default().join(".cache/sensorium");
    chosen.unwrap_or_else(home)
}

/// Flags of `serve`, `gateway` and `worker`.
#[derive(Args)]
pub struct ConfigArgs {
    /// A TOML file; environment and flags go over it.
    #[arg(long, env = "SENSORIUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model repository.
    #[arg(long, value_name = "FOLDER")]
    repository: Option<String>,
    /// Models to load at the start, separated by commas. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "MODELS")]
    models: Vec<String>,
    /// Where the door's gRPC listens.
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<String>,
    /// Where a worker's gRPC listens for gateways.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// `host:port` by which gateways reach this worker.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<String>,
    /// The node's name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the node stands.
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// URLs of etcd, separated by commas.
    #[arg(long, value_name = "URLS")]
    etcd: Option<String>,
    /// URLs of NATS, separated by commas.
    #[arg(long, value_name = "URLS")]
    nats: Option<String>,
    /// URL of Redis.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Where HTTP listens.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Runs the server as a child process and starts it anew when a device call hangs.
    #[arg(long)]
    pub supervised: bool,
    /// Sets any key: `--set limits.max_inflight=100`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}', expected KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ConfigArgs {
    /// Reads the configuration.
    pub fn read(self) -> Result<Config, config::Error> {
        let mut flags = self.set;
        let named = [
            ("repository", self.repository),
            ("grpc", self.grpc),
            ("listen", self.listen),
            ("advertise", self.advertise),
            ("name", self.name),
            ("zone", self.zone),
            ("etcd", self.etcd),
            ("nats", self.nats),
            ("redis", self.redis),
            ("http", self.http),
        ];
        flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), quoted(&value?)))));
        if !self.models.is_empty() {
            let quoted: Vec<String> = self.models.iter().map(|model| quoted(model)).collect();
            flags.push(("models".to_owned(), format!("[{}]", quoted.join(","))));
        }
        config::read(self.config.as_deref(), std::env::vars_os(), &flags, Config::check)
    }
}

/// A TOML string, so that a folder called `1` stays one.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
