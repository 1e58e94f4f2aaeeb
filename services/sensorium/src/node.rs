//! What the processes of a cluster share: their place in the register, the door, the HTTP side, and the way out.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt;
use sensorium_actors::admission::Admission;
use sensorium_actors::route::{self, Router};
use sensorium_actors::supervision::tree::Tree;
use sensorium_actors::understand::Understanding;
use sensorium_cluster::bus::Bus;
use sensorium_cluster::membership::{Credentials, Etcd, Membership, Registration, Role, Tls};
use sensorium_gateway::auth::Auth;
use sensorium_gateway::health::Readiness;
use sensorium_gateway::server::{self, Door};
use sensorium_gateway::{Settings, http};
use sensorium_plane::Fleet;
use sensorium_runtime::telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;

/// The register in etcd.
pub fn membership(config: &Config) -> anyhow::Result<Membership> {
    let register = &config.register;
    anyhow::ensure!(!config.etcd.is_empty(), "etcd: empty, expected the URL of etcd (--etcd http://127.0.0.1:2379)");
    anyhow::ensure!(register.lease_seconds > 0, "register.lease_seconds: 0, expected at least 1");
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let identity = match (&register.certificate, &register.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        _ => anyhow::bail!("register.certificate, register.key: one without the other, expected both or none"),
    };
    let tls = match &register.ca {
        Some(ca) => Some(Tls { authority: read(ca)?, identity }),
        None => None,
    };
    let credentials = (!register.user.is_empty())
        .then(|| Credentials { user: register.user.clone(), password: register.password.clone() });
    Ok(Membership::etcd(Etcd {
        endpoints: config.etcd.clone(),
        prefix: format!("/{}", register.cluster),
        lease: Duration::from_secs(register.lease_seconds),
        credentials,
        tls,
    }))
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
        http: reachable(http, ""),
        zone: config.zone.clone(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: config.capacity,
        draining: false,
        models: Vec::new(),
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
    let admission = Admission::new(config.limits.max_inflight);
    let options = route::Options { name: name.to_owned(), zone: config.zone.clone() };
    let router = Router::start(options, membership, connect, admission, Bus::embedded(), tree).await?;
    let labels = {
        let fleet = fleet.clone();
        Arc::new(move |model: String| {
            let fleet = fleet.clone();
            async move { Ok(fleet.describe(&model, None).await?.labels.clone()) }.boxed()
        })
    };
    let understanding = Understanding::new(router.clone(), config.understand.clone(), labels)?;
    let node = name.to_owned();
    let auth = config.auth.keys.as_deref().map(Auth::read).transpose()?.unwrap_or_default();
    Ok(Door { node, router, fleet, understanding, readiness, limits: config.limits.clone(), auth })
}

/// The servers of a process, and what stops them.
pub struct Serving {
    stop: watch::Sender<bool>,
    grpc: JoinHandle<anyhow::Result<()>>,
    http: JoinHandle<std::io::Result<()>>,
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
        let http = tokio::spawn(http::serve(side, readiness.clone(), metrics, stopped(told.clone())));
        Self { stop, grpc: tokio::spawn(grpc(told)), http }
    }

    /// Serves a door.
    pub fn of_door(
        config: &Config,
        side: TcpListener,
        listener: TcpListener,
        door: &Arc<Door>,
        telemetry: &Telemetry,
    ) -> Self {
        let settings = Settings::new(telemetry.set_filter(), telemetry.endpoint());
        let served = door.clone();
        Self::start(config, side, &door.readiness, telemetry, move |told| async move {
            Ok(server::serve(served, settings, listener, stopped(told)).await?)
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

/// Refuses all that comes from now on, and waits for what is inside, but not past the deadline.
pub async fn drain(admission: &Admission, config: &Config, broken: bool) {
    let seconds = if broken { config.drain_seconds.min(BROKEN_DRAIN_SECONDS) } else { config.drain_seconds };
    if tokio::time::timeout(Duration::from_secs(seconds), admission.drain()).await.is_err() {
        tracing::warn!(in_flight = admission.in_flight(), "drain deadline passed, requests are cut off");
    }
}
