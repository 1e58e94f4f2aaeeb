//! `sensorium gateway`: the front door of a cluster. It only wires.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sensorium_actors::jobs::Jobs;
use sensorium_actors::supervision::tree::Tree;
use sensorium_cluster::membership::{Membership, Registration, Role};
use sensorium_gateway::health::Readiness;
use sensorium_gateway::server;
use sensorium_plane::{Dial, Fleet, Make, Member, RemoteMember};
use sensorium_runtime::lanes::Lanes;
use sensorium_runtime::signal::Shutdown;
use sensorium_runtime::telemetry;

use crate::config::{Config, ConfigArgs};
use crate::node::{self, Serving};
use crate::tls;

/// Serves until a signal.
pub async fn run(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    // first of all: reading the configuration has warnings to tell
    let telemetry = telemetry::init()?;
    let config = args.read()?;
    let mut shutdown = Shutdown::listen()?;
    let membership = node::membership(&config, Role::Gateway)?;
    sensorium_runtime::files::raise_limit();
    sensorium_actors::metrics::describe();
    config.warn_of_an_open_door();
    let grpc = server::bind(config.grpc).await?;
    let side = server::bind(config.http(8002)).await?;
    let name = node::name(&config, "gateway", grpc.local_addr()?.port());

    let tree = Tree::default();
    let lanes = node::lanes(&config)?;
    let fleet = Fleet::new(&membership, remote(&config, &membership, &lanes)?, tree.clone());
    let readiness = Readiness::new(|| true);
    let door = node::door(&config, &name, &membership, fleet, tree, readiness.clone()).await?;
    let address = node::reachable(grpc.local_addr()?, "");
    let lease = membership.register(node::registration(&config, Role::Gateway, &name, address, side.local_addr()?));
    let door = Arc::new(door);
    let serving = Serving::of_door(&config, side, grpc, &lanes, &door, &telemetry);
    let becoming = tokio::spawn(become_ready(membership.clone(), door.jobs.clone(), readiness.clone()));

    let signal = shutdown.wait().await;
    tracing::info!(signal, "draining");
    becoming.abort();
    readiness.set(false);
    lease.update(|registration| registration.draining = true);
    tokio::time::sleep(Duration::from_millis(config.drain_notice_ms)).await;
    node::drain_door(&door, &config, false).await;
    lease.withdraw().await;
    serving.stop().await?;
    tracing::info!("drained");
    telemetry.flush();
    Ok(ExitCode::SUCCESS)
}

/// Workers behind connections.
fn remote(config: &Config, membership: &Membership, lanes: &Lanes) -> anyhow::Result<Make> {
    let plane = &config.plane;
    let dial = Dial {
        connections: plane.connections,
        idle: Duration::from_secs(plane.idle_seconds),
        keep_alive: Duration::from_millis(plane.keep_alive_ms),
        keep_alive_timeout: Duration::from_millis(plane.keep_alive_timeout_ms),
        tls: tls::plane(config)?,
        lanes: Some(lanes.clone()),
        ..Dial::default()
    };
    let link = membership.link();
    Ok(Arc::new(move |registration: &Registration| {
        let made = RemoteMember::new(registration, &dial, link.clone());
        match made {
            Ok(member) => Some(member as Arc<dyn Member>),
            Err(error) => {
                tracing::error!(worker = registration.node, %error, "worker cannot be called");
                None
            }
        }
    }))
}

/// A gateway is ready once somebody has a model to offer, and NATS has been reached or is away; and stays so: an outage is
/// degraded, not unready.
async fn become_ready(membership: Membership, jobs: Option<Jobs>, readiness: Readiness) {
    let mut view = membership.watch();
    let somebody = async {
        view.wait_for(|view| view.values().flat_map(|node| &node.models).any(|held| held.is_ready())).await.is_ok()
    };
    let settled = async {
        if let Some(jobs) = jobs {
            jobs.store().settled().await;
        }
    };
    let (somebody, ()) = tokio::join!(somebody, settled);
    if somebody {
        readiness.set(true);
        tracing::info!("ready");
    }
}
