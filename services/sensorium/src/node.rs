//! What the processes of a cluster share: their place in the register, the door, the HTTP side, and the way out.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use sensorium_actors::admission::{self, Admission};
use sensorium_actors::jobs::intake::Intake;
use sensorium_actors::jobs::{Jobs, QUEUES};
use sensorium_actors::route::{self, Router};
use sensorium_actors::supervision::tree::Tree;
use sensorium_actors::understand::Understanding;
use sensorium_cluster::bus::Bus;
use sensorium_cluster::cache::{self, Cache};
use sensorium_cluster::jobs;
use sensorium_cluster::membership::{Credentials, Etcd, Membership, Registration, Role, Tls};
use sensorium_gateway::auth::Auth;
use sensorium_gateway::health::Readiness;
use sensorium_gateway::server::{self, Door};
use sensorium_gateway::{Settings, http};
use sensorium_plane::Fleet;
use sensorium_runtime::lanes::Lanes;
use sensorium_runtime::telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::tls;

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The register in etcd. A worker has no need to know the others.
pub fn membership(config: &Config, role: Role) -> anyhow::Result<Membership> {
    let register = &config.register;
    anyhow::ensure!(!config.etcd.is_empty(), "etcd: empty, expected the URL of etcd (--etcd http://127.0.0.1:2379)");
    let tls = register
        .ca
        .clone()
        .map(|authority| Tls { authority, identity: register.certificate.clone().zip(register.key.clone()) });
    if let Some(tls) = &tls {
        tls.check().context("register.ca, register.certificate, register.key")?;
    }
    let credentials = (!register.user.is_empty())
        .then(|| Credentials { user: register.user.clone(), password: register.password.clone() });
    let etcd = Etcd {
        endpoints: config.etcd.clone(),
        prefix: format!("/{}", register.cluster),
        lease: Duration::from_secs(register.lease_seconds),
        credentials,
        tls,
    };
    Ok(match role {
        Role::Gateway => Membership::etcd(etcd),
        Role::Worker => Membership::etcd_unwatched(etcd),
    })
}

/// The threads that carry requests.
pub fn lanes(config: &Config) -> anyhow::Result<Lanes> {
    Lanes::start(config.compute.lanes).context("compute.lanes: cannot start threads")
}

/// The name of a node: what was chosen, or host, role and port.
pub fn name(config: &Config, role: &str, port: u16) -> String {
    if config.name.is_empty() { format!("{}-{role}-{port}", host()) } else { config.name.clone() }
}

fn host() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

/// How others reach a listener.
pub fn reachable(listening: SocketAddr, chosen: &str) -> String {
    match chosen {
        "" if listening.ip().is_unspecified() => format!("{}:{}", host(), listening.port()),
        "" => listening.to_string(),
        chosen => chosen.to_owned(),
    }
}

/// What a node says of itself at its start.
pub fn registration(config: &Config, role: Role, name: &str, address: String, http: SocketAddr) -> Registration {
    Registration {
        node: name.to_owned(),
        role,
        incarnation: uuid::Uuid::now_v7().to_string(),
        address,
        tls: match role {
            Role::Gateway => config.tls.certificate.is_some(),
            Role::Worker => config.plane.certificate.is_some(),
        },
        http: reachable(http, ""),
        zone: config.zone.clone(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: config.capacity,
        draining: false,
        models: Vec::new(),
        expects: Vec::new(),
    }
}

/// What stands behind a door.
pub async fn door(
    config: &Config,
    name: &str,
    membership: &Membership,
    fleet: Fleet,
    tree: Tree,
    readiness: Readiness,
) -> anyhow::Result<Door> {
    let connect = {
        let fleet = fleet.clone();
        Arc::new(move |registration: &Registration| fleet.connect(registration))
    };
    let admission = admission(config, membership);
    let cache = cache(config)?;
    let (zone, subset) = (config.zone.clone(), config.plane.subset);
    let options = route::Options { name: name.to_owned(), zone, cache, subset };
    let bus = Bus::new(name);
    let router = Router::start(options, membership, connect, admission, bus.clone(), tree.clone()).await?;
    let labels = {
        let fleet = fleet.clone();
        Arc::new(move |model: String| {
            let fleet = fleet.clone();
            async move { Ok(fleet.describe(&model, None).await?.labels.clone()) }.boxed()
        })
    };
    let understanding = Understanding::new(router.clone(), config.understand.clone(), labels)?;
    tokio::spawn(understanding.clone().keep_ready());
    let node = name.to_owned();
    let auth = Auth::start(&config.auth)?;
    let tls = tls::door(config)?;
    let jobs = jobs(config, membership.is_embedded(), bus).await?;
    let intake = match &jobs {
        Some(jobs) => {
            let trace = Arc::new(|span: &tracing::Span, text: &str| sensorium_plane::resume_trace(span, text));
            let told = readiness.clone();
            let ready = Arc::new(move || told.is_ready());
            Some(Intake::start(jobs.clone(), understanding.clone(), name, tree, trace, ready).await?)
        }
        None => None,
    };
    tokio::spawn(sensorium_gateway::cluster::observe(router.clone(), jobs.clone()));
    let limits = config.limits.clone();
    Ok(Door { node, router, fleet, understanding, jobs, intake, readiness, limits, auth, tls })
}

/// The door's limits. Quotas are of the whole cluster, and shared among the gateways that are there.
fn admission(config: &Config, membership: &Membership) -> Admission {
    let limits = &config.limits;
    let admission = Admission::new(admission::Options {
        max_inflight: limits.max_inflight,
        min_inflight: limits.min_inflight,
        adaptive: limits.adaptive,
        patience: Duration::from_millis(limits.patience_ms),
        tenants: config.tenants.clone(),
    });
    let (told, mut view) = (admission.clone(), membership.watch());
    tokio::spawn(async move {
        loop {
            let gateways = view.borrow_and_update().values().filter(|node| takes_requests(node)).count();
            told.share_among(gateways);
            if view.changed().await.is_err() {
                return;
            }
        }
    });
    admission
}

/// Whether clients are to turn to this node.
fn takes_requests(node: &Registration) -> bool {
    node.role == Role::Gateway && !node.draining
}

/// Where answers are kept.
fn cache(config: &Config) -> anyhow::Result<Option<Cache>> {
    let set = &config.cache;
    if !set.enabled {
        return Ok(None);
    }
    let redis = if config.redis.is_empty() {
        None
    } else {
        let identity = set.certificate.as_deref().zip(set.key.as_deref());
        let identity = identity.map(|(certificate, key)| Ok::<_, anyhow::Error>((read(certificate)?, read(key)?)));
        Some(cache::redis::Options {
            url: config.redis.clone(),
            password: set.password.clone(),
            authority: set.ca.as_deref().map(read).transpose()?,
            identity: identity.transpose()?,
            timeout: Duration::from_millis(set.timeout_ms),
            prefix: config.register.cluster.clone(),
        })
    };
    let time_to_live = Duration::from_secs(set.ttl_seconds);
    let (near_bytes, max_value_bytes) = (set.near_bytes, set.max_value_bytes);
    Ok(Some(Cache::start(&cache::Options { near_bytes, time_to_live, max_value_bytes, redis })?))
}

/// Where jobs are kept: in NATS, or in a file if this is the only process.
async fn jobs(config: &Config, alone: bool, bus: Bus) -> anyhow::Result<Option<Jobs>> {
    let set = &config.jobs;
    let retention = Duration::from_secs(set.retention_seconds);
    let bounds = jobs::Bounds {
        queued: set.max_queued.into(),
        queued_per_flow: set.max_queued_per_tenant.min(set.max_queued).into(),
        bytes: set.max_bytes,
    };
    let store = if !config.nats.is_empty() {
        let options = jobs::Nats {
            servers: config.nats.clone(),
            credentials: set.credentials.clone(),
            authority: set.ca.clone(),
            identity: set.certificate.clone().zip(set.key.clone()),
            prefix: config.register.cluster.clone(),
            replicas: set.replicas,
            patience: Duration::from_secs(set.ack_seconds),
            bounds,
        };
        jobs::Jobs::nats(options, &QUEUES).await?
    } else if alone {
        jobs::Jobs::disk(&set.path, bounds)?
    } else {
        return Ok(None);
    };
    store.announce(&bus);
    Ok(Some(Jobs::new(store, set.tasks.clone(), retention, bus)))
}

/// The servers of a process, and what stops them.
pub struct Serving {
    stop: watch::Sender<bool>,
    grpc: JoinHandle<anyhow::Result<()>>,
    http: JoinHandle<()>,
}

/// Resolves when the process stops its servers.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    // a sender that is gone means stop as well
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Serving {
    /// Serves HTTP, and whatever `grpc` makes of the signal to stop.
    pub fn start<F>(
        config: &Config,
        side: TcpListener,
        readiness: &Readiness,
        telemetry: &Telemetry,
        grpc: impl FnOnce(watch::Receiver<bool>) -> F,
    ) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, told) = watch::channel(false);
        let metrics = http::Metrics { path: config.metrics_path.clone(), render: telemetry.render() };
        let silence = Duration::from_secs(config.limits.silence_seconds);
        let http = tokio::spawn(http::serve(side, readiness.clone(), metrics, silence, stopped(told.clone())));
        Self { stop, grpc: tokio::spawn(grpc(told)), http }
    }

    /// Serves a door.
    pub fn of_door(
        config: &Config,
        side: TcpListener,
        listener: TcpListener,
        lanes: &Lanes,
        door: &Arc<Door>,
        telemetry: &Telemetry,
    ) -> Self {
        let settings = Settings::new(telemetry.set_filter(), telemetry.endpoint());
        let (served, lanes) = (door.clone(), lanes.clone());
        Self::start(config, side, &door.readiness, telemetry, move |told| async move {
            server::serve(served, settings, &lanes, listener, stopped(told)).await;
            Ok(())
        })
    }

    /// Stops the servers; connections that idle clients keep open are not waited for.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        if let Ok(served) = tokio::time::timeout(Duration::from_secs(2), self.grpc).await {
            served.context("the gRPC server panicked")??;
        }
        self.http.abort();
        Ok(())
    }
}

/// Seconds that requests in flight are given when the process is broken: what is broken finishes little.
const BROKEN_DRAIN_SECONDS: u64 = 5;

/// What tasks of jobs are given to end, before they are handed back for others to take.
const TASKS_END: Duration = Duration::from_secs(5);

/// A door's way out: jobs are left to others, and what is inside is waited for.
pub async fn drain_door(door: &Door, config: &Config, broken: bool) {
    let patience = TASKS_END.min(Duration::from_secs(config.drain_seconds) / 2);
    let jobs = async {
        if let Some(intake) = &door.intake {
            intake.drain(patience).await;
        }
    };
    // side by side: requests are refused from now on, tasks are handed back in time for the end
    tokio::join!(jobs, drain(door.router.admission(), config, broken));
}

/// Refuses all that comes from now on, and waits for what is inside, but not past the deadline.
pub async fn drain(admission: &Admission, config: &Config, broken: bool) {
    let seconds = if broken { config.drain_seconds.min(BROKEN_DRAIN_SECONDS) } else { config.drain_seconds };
    if tokio::time::timeout(Duration::from_secs(seconds), admission.drain()).await.is_err() {
        tracing::warn!(in_flight = admission.in_flight(), "drain deadline passed, requests are cut off");
    }
}
