//! `sensorium worker`: holds models, for the gateways of a cluster. It only wires.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sensorium_actors::admission::{self, Admission};
use sensorium_actors::supervision::tree::Tree;
use sensorium_actors::worker::registrar::Registrar;
use sensorium_actors::worker::{Options, Worker};
use sensorium_cluster::membership::{Membership, Registration, Role};
use sensorium_gateway::health::Readiness;
use sensorium_gateway::server;
use sensorium_plane::deal::Listening;
use sensorium_plane::{Fleet, LocalMember, Member};
use sensorium_runtime::lanes::Lanes;
use sensorium_runtime::signal::Shutdown;
use sensorium_runtime::telemetry;
use sensorium_worker::TchLoader;

use crate::config::{Config, ConfigArgs};
use crate::node::{self, Serving};
use crate::tls;

/// The process has to be started anew: a device call hangs and cannot be ended, or the tree has given up.
pub const EXIT_BROKEN: u8 = 70;

/// Serves until a signal, or until an operator asks for a drain.
pub async fn run(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    if args.supervised {
        return crate::parent::run().await;
    }
    // first of all: reading the configuration has warnings to tell
    let telemetry = telemetry::init()?;
    let config = args.read()?;
    let mut shutdown = Shutdown::listen()?;
    let membership = node::membership(&config, Role::Worker)?;
    sensorium_runtime::files::raise_limit();
    sensorium_actors::metrics::describe();
    config.warn_of_an_open_plane();
    let listener = server::bind(config.listen).await?;
    let side = server::bind(config.http(8102)).await?;
    let listening = listener.local_addr()?;
    let name = node::name(&config, "worker", listening.port());
    let address = node::reachable(listening, &config.advertise);

    let lanes = node::lanes(&config)?;
    let registration = node::registration(&config, Role::Worker, &name, address, side.local_addr()?);
    let member = Arc::new(start(&config, &lanes, &membership, registration, Tree::default()).await?);
    let readiness = readiness(&member);
    let admission = Admission::new(admission::Options::bound(config.limits.max_inflight));
    let serving = {
        let (member, admission) = (member.clone(), admission.clone());
        let fleet = alone(&membership, &member, Tree::default());
        let listening_on = Listening { listener, tls: tls::worker(&config)?, name: "worker" };
        let (lanes, max_streams) = (lanes.clone(), config.limits.max_streams);
        Serving::start(&config, side, &readiness, &telemetry, move |told| async move {
            let stop = node::stopped(told);
            sensorium_plane::serve(member, admission, fleet, &lanes, listening_on, max_streams, stop).await;
            Ok(())
        })
    };

    let loading = async {
        load(&member, &config, |_, _| ()).await?;
        member.registrar().loaded().await;
        // who rolls workers one after the other ends the next one when this one is ready: others must have heard of it
        member.registrar().settled().await;
        anyhow::Ok(())
    };
    let loaded = tokio::select! {
        loaded = loading => Some(loaded),
        _ = shutdown.wait() => None,
    };
    let mut broken = false;
    if let Some(loaded) = loaded {
        loaded?;
        readiness.set(true);
        if readiness.is_ready() {
            tracing::info!(worker = name, address = %listening, "ready");
        } else {
            tracing::error!(worker = name, address = %listening, why = readiness.why_not(), "serving, but not ready");
        }
        broken = until_over(&member, &config, &mut shutdown).await;
    }

    readiness.set(false);
    member.registrar().draining().await;
    tokio::time::sleep(Duration::from_millis(config.drain_notice_ms)).await;
    node::drain(&admission, &config, broken).await;
    member.registrar().withdraw().await;
    serving.stop().await?;
    tracing::info!("drained");
    telemetry.flush();
    Ok(exit_code(broken))
}

/// Whether the worker's models answer, once it has been set.
pub fn readiness(member: &LocalMember) -> Readiness {
    let worker = member.worker().clone();
    Readiness::unless(move || worker.unsound())
}

/// Returns when the process is to end; true if it must not go on.
pub async fn until_over(member: &LocalMember, config: &Config, shutdown: &mut Shutdown) -> bool {
    tokio::select! {
        signal = shutdown.wait() => tracing::info!(signal, "draining"),
        () = member.asked_to_drain() => tracing::info!("an operator asks for it, draining"),
        reason = member.worker().failed(config.compute.max_hung_threads) => {
            tracing::error!(reason, "giving up, to be started anew");
            return true;
        }
    }
    false
}

/// How a process with a worker ends.
pub fn exit_code(broken: bool) -> ExitCode {
    if broken { ExitCode::from(EXIT_BROKEN) } else { ExitCode::SUCCESS }
}

/// A worker in this process, registered. Its actors live on a lane: from there to a device thread and back is all the
/// way that a batch has.
pub async fn start(
    config: &Config,
    lanes: &Lanes,
    membership: &Membership,
    registration: Registration,
    tree: Tree,
) -> anyhow::Result<LocalMember> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let or_cores = |threads: usize| if threads == 0 { cores } else { threads };
    let intra_op_threads = or_cores(config.compute.intra_op_threads).min(cores);
    let options = Options {
        name: registration.node.clone(),
        repository: config.repository.clone(),
        concurrent_calls: cores / intra_op_threads,
        decode_threads: or_cores(config.compute.decode_threads),
        decoded_bytes: config.compute.decoded_bytes,
    };
    let loader = Arc::new(TchLoader::new(sensorium_worker::Options { intra_op_threads }));
    let lane = lanes.handles().first().context("no lanes")?;
    let worker = lane.spawn(Worker::start(options, loader, tree)).await??;
    // what is not loaded yet is not unknown
    let registration = Registration { expects: expected(&worker, config), ..registration };
    let registrar = Registrar::start(&worker, membership.register(registration));
    Ok(LocalMember::new(worker, registrar))
}

/// Names of the models that it is about to load.
fn expected(worker: &Worker, config: &Config) -> Vec<String> {
    if !config.models.is_empty() {
        return config.models.clone();
    }
    // a repository that cannot be read is told of when it is loaded from
    worker.repository().list().unwrap_or_default().into_iter().map(|entry| entry.name).collect()
}

/// A fleet of this worker alone; `tree` is of the actors beside it.
pub fn alone(membership: &Membership, member: &Arc<LocalMember>, tree: Tree) -> Fleet {
    let own = member.clone();
    let make = move |registration: &Registration| {
        (registration.node == **own.worker().name()).then(|| own.clone() as Arc<dyn Member>)
    };
    Fleet::new(membership, Arc::new(make), tree)
}

/// Loads the models that are wanted, those that others read from first. One that cannot be loaded keeps none of the others
/// from being served: the worker says which and why, is unready if the model is required, and tries again.
pub async fn load(member: &LocalMember, config: &Config, told: impl Fn(&str, Duration)) -> anyhow::Result<()> {
    let repository = member.worker().repository();
    let mut entries = repository.list()?;
    if !config.models.is_empty() {
        for wanted in &config.models {
            repository.get(wanted)?;
        }
        entries.retain(|entry| config.models.contains(&entry.name));
    }
    entries.sort_by_key(|entry| entry.manifest.as_ref().is_ok_and(|manifest| manifest.upstream.is_some()));
    for entry in entries {
        let started = Instant::now();
        match member.load_from_the_start(&entry.name).await {
            Ok(()) => told(&entry.name, started.elapsed()),
            Err(error) => tracing::error!(model = entry.name, %error, "model cannot be loaded, the others are served"),
        }
    }
    Ok(())
}
