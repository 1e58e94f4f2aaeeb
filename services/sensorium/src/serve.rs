//! `sensorium serve`: gateway and worker in one process, with embedded twins of etcd, NATS and Redis. It only wires.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use owo_colors::OwoColorize;
use sensorium_actors::supervision::tree::Tree;
use sensorium_cluster::membership::{Membership, Role};
use sensorium_gateway::server::{self, Door};
use sensorium_plane::LocalMember;
use sensorium_runtime::signal::Shutdown;
use sensorium_runtime::telemetry;

use crate::config::{Config, ConfigArgs, cache};
use crate::node::{self, Serving};
use crate::verbs::output::{clean, complain};
use crate::worker;

/// The clip that a newcomer is shown.
const CLIP: &str = "sense_and_sensibility_01_austen_64kb-0880.wav";

/// Serves until a signal.
pub async fn run(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    if args.supervised {
        return crate::parent::run().await;
    }
    // first of all: reading the configuration has warnings to tell
    let telemetry = telemetry::init()?;
    let config = args.read()?;
    let mut shutdown = Shutdown::listen()?;
    sensorium_runtime::files::raise_limit();
    sensorium_actors::metrics::describe();
    config.warn_of_an_open_door();
    let grpc = server::bind(config.grpc).await?;
    let side = server::bind(config.http(8002)).await?;
    let http = side.local_addr()?;

    let name = if config.name.is_empty() { "sensorium-1" } else { &config.name };
    let lanes = node::lanes(&config)?;
    let membership = Membership::embedded();
    let registration = node::registration(&config, Role::Worker, &format!("{name}-worker"), String::new(), http);
    let member = Arc::new(worker::start(&config, &lanes, &membership, registration, Tree::default()).await?);
    let tree = Tree::default();
    let fleet = worker::alone(&membership, &member, tree.clone());
    let gateway = format!("{name}-gateway");
    let door = Arc::new(node::door(&config, &gateway, &membership, fleet, tree, worker::readiness(&member)).await?);
    let serving = Serving::of_door(&config, side, grpc, &lanes, &door, &telemetry);

    let loaded = tokio::select! {
        loaded = load(&door, &member, &config) => Some(loaded),
        signal = shutdown.wait() => {
            tracing::info!(signal, "stopped while loading");
            None
        }
    };
    let mut broken = false;
    if let Some(loaded) = loaded {
        loaded?;
        door.readiness.set(true);
        if door.readiness.is_ready() {
            welcome(&config, http);
        } else {
            let why = door.readiness.why_not();
            tell(&format!("\n{} {why}\n", "Serving, but not ready:".red().bold()));
        }
        broken = worker::until_over(&member, &config, &mut shutdown).await;
    }

    door.readiness.set(false);
    node::drain_door(&door, &config, broken).await;
    serving.stop().await?;
    tracing::info!("drained");
    telemetry.flush();
    Ok(worker::exit_code(broken))
}

async fn load(door: &Door, member: &LocalMember, config: &Config) -> anyhow::Result<()> {
    worker::load(member, config, |model, took| {
        tell(&format!("  {:20} ready in {:.2} s", clean(model), took.as_secs_f64()))
    })
    .await?;
    member.registrar().loaded().await;
    door.router.refresh().await;
    if let Err(error) = door.understanding.space().await {
        tracing::warn!(%error, "images have no place in the shared space yet");
    }
    Ok(())
}

/// What a newcomer can do now.
fn welcome(config: &Config, http: SocketAddr) {
    let binary = std::env::current_exe().map_or_else(|_| "sensorium".to_owned(), |path| path.display().to_string());
    let samples = std::env::var_os("SENSORIUM_SAMPLES").map_or_else(|| cache().join("samples"), Into::into);
    let server = match config.grpc.port() {
        _ if config.tls.certificate.is_some() => " --server https://HOST:PORT --ca FILE".to_owned(),
        8001 => String::new(),
        port => format!(" --server http://127.0.0.1:{port}"),
    };
    let samples = samples.display();
    tell(&format!("\n{} gRPC on {}, HTTP on {}\n\nTry:", "Ready.".green().bold(), config.grpc, http));
    tell(&format!(
        "  {binary} infer{server} --image {samples}/images/chelsea.png --audio {samples}/speech/{CLIP} --text 'Is there an animal in the picture?'"
    ));
    tell(&format!("  {binary} actors tree{server}"));
    tell(&format!("  {binary} status{server}\n"));
}

/// To the person at the terminal; logs go elsewhere.
fn tell(line: &str) {
    if std::io::stderr().is_terminal() {
        complain(line);
    } else {
        tracing::info!("{}", line.trim());
    }
}
