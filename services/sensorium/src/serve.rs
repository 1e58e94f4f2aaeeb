//! `sensorium serve`: gateway and worker in one process, with embedded twins of etcd, NATS and Redis. It only wires.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use owo_colors::OwoColorize;
use sensorium_actors::admission::Admission;
use sensorium_actors::pipeline::Assets;
use sensorium_actors::route::Router;
use sensorium_actors::route::client::Client;
use sensorium_actors::supervision::tree::Tree;
use sensorium_actors::understand::Understanding;
use sensorium_actors::worker::{Options, Worker};
use sensorium_cluster::membership::{Membership, Registration};
use sensorium_gateway::health::Readiness;
use sensorium_gateway::server::{self, Door};
use sensorium_gateway::{Settings, http};
use sensorium_runtime::signal::Shutdown;
use sensorium_runtime::telemetry;
use sensorium_worker::TchLoader;
use tokio::sync::watch;

use crate::config::{Config, ConfigArgs, cache};

/// The process has to be started anew: a device call hangs and cannot be ended, or the tree has given up.
pub const EXIT_BROKEN: u8 = 70;

/// Seconds that requests in flight are given when the process is broken.
const BROKEN_DRAIN_SECONDS: u64 = 5;

/// The clip that a newcomer is shown.
const CLIP: &str = "sense_and_sensibility_01_austen_64kb-0880.wav";

/// Serves until a signal.
pub async fn run(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    if args.supervised {
        return crate::parent::run().await;
    }
    let config = args.read()?;
    let mut shutdown = Shutdown::listen()?;
    let telemetry = telemetry::init()?;
    sensorium_actors::metrics::describe();
    let grpc = server::bind(config.grpc).await?;
    let side = server::bind(config.http).await?;

    let door = Arc::new(build(&config).await?);
    let (stop, stopped) = watch::channel(false);
    let wait = |mut stopped: watch::Receiver<bool>| async move {
        // a sender that is gone means stop as well
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let metrics = http::Metrics { path: config.metrics_path.clone(), render: telemetry.render() };
    let side = tokio::spawn(http::serve(side, door.readiness.clone(), metrics, wait(stopped.clone())));
    let settings = Settings::new(telemetry.set_filter(), telemetry.endpoint());
    let serving = tokio::spawn({
        let (door, stopped) = (door.clone(), wait(stopped));
        async move { server::serve(door, settings, grpc, stopped).await }
    });

    let loaded = tokio::select! {
        loaded = load(&door, &config) => Some(loaded),
        signal = shutdown.wait() => {
            tracing::info!(signal, "stopped while loading");
            None
        }
    };
    let broken = match loaded {
        None => None,
        Some(loaded) => {
            loaded?;
            door.readiness.set(true);
            welcome(&config);
            until_asked_to_stop(&door, &config, &mut shutdown).await
        }
    };

    door.readiness.set(false);
    // what is broken finishes little
    let seconds = if broken.is_some() { config.drain_seconds.min(BROKEN_DRAIN_SECONDS) } else { config.drain_seconds };
    let patience = Duration::from_secs(seconds);
    if tokio::time::timeout(patience, door.router.admission().drain()).await.is_err() {
        tracing::warn!(in_flight = door.router.admission().in_flight(), "drain deadline passed, requests are cut off");
    }
    stop.send_replace(true);
    // connections that idle clients keep open are not waited for
    let closed = tokio::time::timeout(Duration::from_secs(2), serving).await;
    if let Ok(served) = closed {
        served.context("the gRPC server panicked")??;
    }
    side.abort();
    tracing::info!("drained");
    telemetry.flush();
    Ok(broken.map_or(ExitCode::SUCCESS, |()| ExitCode::from(EXIT_BROKEN)))
}

/// `Some` if the process must not go on.
async fn until_asked_to_stop(door: &Door, config: &Config, shutdown: &mut Shutdown) -> Option<()> {
    tokio::select! {
        signal = shutdown.wait() => {
            tracing::info!(signal, "draining");
            None
        }
        reason = door.worker.failed(config.compute.max_hung_threads) => {
            tracing::error!(reason, "giving up, to be started anew");
            Some(())
        }
    }
}

async fn build(config: &Config) -> anyhow::Result<Door> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let or_cores = |threads: usize| if threads == 0 { cores } else { threads };
    let intra_op_threads = or_cores(config.compute.intra_op_threads).min(cores);
    let tree = Tree::default();
    let options = Options {
        name: format!("{}-worker", config.name),
        repository: config.repository.clone(),
        concurrent_calls: cores / intra_op_threads,
        decode_threads: or_cores(config.compute.decode_threads),
    };
    let loader = Arc::new(TchLoader::new(sensorium_worker::Options { intra_op_threads }));
    let worker = Worker::start(options, loader, tree.clone()).await?;

    let membership = Membership::embedded();
    let lease = membership.register(Registration { worker: worker.name().to_string(), models: Vec::new() });
    let connect = {
        let worker = worker.clone();
        Arc::new(move |name: &str| (name == &**worker.name()).then(|| Arc::new(worker.clone()) as Arc<dyn Client>))
    };
    let admission = Admission::new(config.limits.max_inflight);
    let router = Router::start(&format!("{}-gateway", config.name), &membership, connect, admission, tree).await?;
    let labels = {
        let worker = worker.clone();
        Arc::new(move |model: &str| match worker.served(model, None) {
            Ok(served) => match &served.assets {
                Assets::Image { labels } => labels.clone(),
                _ => Vec::new(),
            },
            Err(_) => Vec::new(),
        })
    };
    let understanding = Understanding::new(router.clone(), config.understand.clone(), labels)?;
    let readiness = {
        let worker = worker.clone();
        Readiness::new(move || !worker.has_lost_a_required_model())
    };
    Ok(Door { router, worker, understanding, readiness, limits: config.limits.clone(), lease })
}

/// Loads the models that are wanted, those that others read from first. A model that is not required may fail.
async fn load(door: &Door, config: &Config) -> anyhow::Result<()> {
    let mut entries = door.worker.repository().list()?;
    if !config.models.is_empty() {
        for wanted in &config.models {
            door.worker.repository().get(wanted)?;
        }
        entries.retain(|entry| config.models.contains(&entry.name));
    }
    entries.sort_by_key(|entry| entry.manifest.as_ref().is_ok_and(|manifest| manifest.upstream.is_some()));
    for entry in entries {
        let started = Instant::now();
        let required = entry.manifest.as_ref().map_or(true, |manifest| manifest.required);
        match door.load(&entry.name, None).await {
            Ok(()) => tell(&format!("  {:20} ready in {:.2} s", entry.name, started.elapsed().as_secs_f64())),
            Err(error) if required => return Err(error).with_context(|| format!("model {}", entry.name)),
            Err(error) => tracing::error!(model = entry.name, %error, "optional model left out"),
        }
    }
    if let Err(error) = door.understanding.space().await {
        tracing::warn!(%error, "images have no place in the shared space yet");
    }
    Ok(())
}

/// What a newcomer can do now.
fn welcome(config: &Config) {
    let binary = std::env::current_exe().map_or_else(|_| "sensorium".to_owned(), |path| path.display().to_string());
    let samples = std::env::var_os("SENSORIUM_SAMPLES").map_or_else(|| cache().join("samples"), Into::into);
    let server = match config.grpc.port() {
        8001 => String::new(),
        port => format!(" --server http://127.0.0.1:{port}"),
    };
    let samples = samples.display();
    tell(&format!("\n{} gRPC on {}, HTTP on {}\n\nTry:", "Ready.".green().bold(), config.grpc, config.http));
    tell(&format!(
        "  {binary} infer{server} --image {samples}/images/chelsea.png --audio {samples}/speech/{CLIP} --text 'Is there an animal in the picture?'"
    ));
    tell(&format!("  {binary} actors tree{server}"));
    tell(&format!("  {binary} status{server}\n"));
}

/// To the person at the terminal; logs go elsewhere.
#[allow(clippy::print_stderr)]
fn tell(line: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{line}");
    } else {
        tracing::info!("{}", line.trim());
    }
}
