//! `sensorium status`: is it up, what does it serve, and how do requests fare.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use owo_colors::Style;
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{Actor, GetActorTreeRequest, GetClusterRequest, GetClusterResponse, Route};
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::{
    ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest, StatisticDuration,
};
use serde::Serialize;
use tonic::Code;

use super::connect::{self, Channel, Failure, MAX_ANSWER, Output, Server};
use super::draw::{bold, dim, paint, seconds};

/// Arguments of `sensorium status`.
#[derive(clap::Args, Clone, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    server: Server,
    /// Draws it anew every second, until interrupted.
    #[arg(long)]
    watch: bool,
    /// How to print; with --watch, one JSON document a line.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// If stdout is gone; what the server says is printed.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    connect::finish(show(args).await)
}

async fn show(args: StatusArgs) -> Result<(), Failure> {
    let channel = args.server.connect().await?;
    let admin = AdminClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
    let client = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    loop {
        let status = match ask(&client, &admin).await {
            // whoever watches sees it come back
            Err(Failure::Status(refusal)) if args.watch && passes(&refusal) => {
                eprintln!("{}: {}, trying again", refusal.code(), refusal.message());
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            status => status?,
        };
        let text = match (args.output, args.watch) {
            (Output::Json, false) => serde_json::to_string_pretty(&status)?,
            (Output::Json, true) => serde_json::to_string(&status)?,
            // home and clear to the end: the screen does not flicker
            (Output::Text, true) => format!("\x1b[H\x1b[J{}", draw(&args.server.server, &status)),
            (Output::Text, false) => draw(&args.server.server, &status),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()?;
        drop(out);
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Whether it may be otherwise in a second: nobody there, or too late. tonic calls a connection that breaks unknown.
fn passes(refusal: &tonic::Status) -> bool {
    matches!(refusal.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
}

#[derive(Serialize, Default)]
struct Status {
    name: String,
    version: String,
    live: bool,
    ready: bool,
    in_flight: u64,
    nodes: Vec<Node>,
    dependencies: Vec<Dependency>,
    /// Share of the look-ups that the embedding cache has answered since the start; nothing before the first.
    cache_hit_rate: Option<f64>,
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Node {
    name: String,
    role: String,
    address: String,
    zone: String,
    build: String,
    draining: bool,
    /// `model/version`, with the state of those that are not ready.
    models: Vec<String>,
    /// Calls in work from the gateway that answers; the slowest model's moving average; models from which it is ejected.
    in_flight: u64,
    latency_seconds: f64,
    ejected: Vec<String>,
    reachable: bool,
}

#[derive(Serialize)]
struct Dependency {
    name: String,
    state: String,
    seconds: f64,
    reason: String,
}

impl Status {
    fn cluster(&mut self, told: GetClusterResponse) {
        self.in_flight = told.in_flight;
        self.dependencies = told
            .dependencies
            .into_iter()
            .map(|of| Dependency { name: of.name, state: of.state, seconds: of.seconds, reason: of.reason })
            .collect();
        self.cache_hit_rate = ratio(told.cache_hits, told.cache_lookups);
        let routes = told.routes;
        self.nodes = told.nodes.into_iter().map(|node| describe_node(node, &routes)).collect();
    }

    /// Counts the replicas of all workers.
    fn replicas(&mut self, actors: &[Actor]) {
        for replica in actors.iter().filter(|actor| actor.kind == "replica") {
            let mut path = replica.path.rsplit('/').skip(1);
            let (version, name) = (path.next(), path.next());
            let mut held = self.models.iter_mut();
            if let Some(model) =
                held.find(|model| Some(model.name.as_str()) == name && Some(model.version.as_str()) == version)
            {
                model.replicas += 1;
                model.replicas_running += u32::from(replica.state == "running");
            }
        }
    }
}

fn describe_node(node: sensorium_proto::admin::Node, routes: &[Route]) -> Node {
    let seen: Vec<_> = routes
        .iter()
        .flat_map(|route| route.workers.iter().map(|worker| (&route.model, worker)))
        .filter(|(_, worker)| worker.worker == node.name)
        .collect();
    let models = node.models.into_iter().map(|held| match held.state.as_str() {
        "READY" => format!("{}/{}", held.name, held.version),
        state => format!("{}/{} {state}", held.name, held.version),
    });
    Node {
        models: models.collect(),
        in_flight: seen.iter().map(|(_, worker)| worker.in_flight).sum(),
        latency_seconds: seen.iter().map(|(_, worker)| worker.latency_seconds).fold(0.0, f64::max),
        ejected: seen.iter().filter(|(_, worker)| worker.ejected).map(|(model, _)| (*model).clone()).collect(),
        reachable: seen.iter().all(|(_, worker)| worker.reachable),
        name: node.name,
        role: node.role,
        address: node.address,
        zone: node.zone,
        build: node.build,
        draining: node.draining,
    }
}

#[derive(Serialize, Default)]
struct Model {
    name: String,
    version: String,
    state: String,
    reason: String,
    /// Of all workers, and those of them that run: others start, or have failed.
    replicas: u32,
    replicas_running: u32,
    requests: u64,
    failed: u64,
    /// Means of a request, in seconds; nothing before the first one.
    mean_queue_seconds: Option<f64>,
    mean_compute_seconds: Option<f64>,
    average_batch_size: Option<f64>,
    memory_bytes: u64,
}

async fn ask(client: &GrpcInferenceServiceClient<Channel>, admin: &AdminClient<Channel>) -> Result<Status, Failure> {
    // side by side: what workers are asked for waits for one that does not answer
    let [mut first, mut second, mut third, mut fourth, mut fifth] = std::array::from_fn(|_| client.clone());
    let (mut cluster, mut tree) = (admin.clone(), admin.clone());
    let (server, live, ready, index, statistics, told, actors) = tokio::try_join!(
        first.server_metadata(ServerMetadataRequest {}),
        second.server_live(ServerLiveRequest {}),
        third.server_ready(ServerReadyRequest {}),
        fourth.repository_index(RepositoryIndexRequest::default()),
        fifth.model_statistics(ModelStatisticsRequest::default()),
        cluster.get_cluster(GetClusterRequest {}),
        tree.get_actor_tree(GetActorTreeRequest::default()),
    )?;
    let (server, live, ready) = (server.into_inner(), live.into_inner().live, ready.into_inner().ready);
    let (index, statistics) = (index.into_inner(), statistics.into_inner());
    let key = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let statistics: HashMap<_, _> =
        statistics.model_stats.into_iter().map(|stats| (key(&stats.name, &stats.version), stats)).collect();
    let models = index.models.into_iter().map(|model| {
        let counted = statistics.get(&key(&model.name, &model.version)).map(describe).unwrap_or_default();
        Model { name: model.name, version: model.version, state: model.state, reason: model.reason, ..counted }
    });
    let mut status = Status {
        name: server.name,
        version: server.version,
        live,
        ready,
        models: models.collect(),
        ..Status::default()
    };
    status.cluster(told.into_inner());
    status.replicas(&actors.into_inner().actors);
    Ok(status)
}

fn describe(stats: &ModelStatistics) -> Model {
    let of = stats.inference_stats.unwrap_or_default();
    let count = |duration: Option<StatisticDuration>| duration.unwrap_or_default().count;
    Model {
        requests: count(of.success),
        failed: count(of.fail),
        mean_queue_seconds: mean(of.queue),
        mean_compute_seconds: mean(of.compute_infer),
        average_batch_size: ratio(stats.inference_count, stats.execution_count),
        memory_bytes: stats.memory_usage.iter().map(|memory| memory.byte_size).sum(),
        ..Model::default()
    }
}

fn mean(duration: Option<StatisticDuration>) -> Option<f64> {
    let duration = duration?;
    ratio(duration.ns, duration.count).map(|ns| ns / 1e9)
}

fn ratio(sum: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum as f64 / count as f64)
}

fn draw(address: &str, status: &Status) -> String {
    let (good, bad) = (Style::new().green(), Style::new().red().bold());
    let mark = |on: bool, yes: &str, no: &str| if on { paint(yes, good) } else { paint(no, bad) };
    let (live, ready) = (mark(status.live, "live", "not live"), mark(status.ready, "ready", "not ready"));
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "model", "version", "state", "replicas", "requests", "failed", "queue", "compute", "batch", "memory",
    ]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let time = |value: Option<f64>| value.map_or("–".to_owned(), seconds);
    for model in &status.models {
        let reason = if model.reason.is_empty() { String::new() } else { format!(" ({})", model.reason) };
        table.add_row([
            model.name.clone(),
            model.version.clone(),
            format!("{}{reason}", model.state),
            match model.replicas_running {
                running if running == model.replicas => running.to_string(),
                running => paint(format!("{running} of {}", model.replicas), bad),
            },
            model.requests.to_string(),
            model.failed.to_string(),
            time(model.mean_queue_seconds),
            time(model.mean_compute_seconds),
            model.average_batch_size.map_or("–".to_owned(), |size| format!("{size:.1}")),
            format!("{:.0} MB", model.memory_bytes as f64 / 1e6),
        ]);
    }
    let server = format!("{} {}", bold(&status.name), dim(format!("{} at {address}", status.version)));
    let dependencies = status.dependencies.iter().map(|of| match of.state.as_str() {
        "embedded" => dim(format!("{} embedded", of.name)),
        "ok" => paint(format!("{} ok", of.name), good),
        state => {
            let reason = if of.reason.is_empty() { String::new() } else { format!(" ({})", of.reason) };
            paint(format!("{} {state} for {}{reason}", of.name, seconds(of.seconds)), bad)
        }
    });
    let dependencies = dependencies.collect::<Vec<_>>().join("  ");
    let cache = status.cache_hit_rate.map(|rate| format!("  {:.0} % cache hits", rate * 100.0)).unwrap_or_default();
    format!(
        "{server}  {live}  {ready}  {} in flight{cache}  {dependencies}\n{}\n{table}",
        status.in_flight,
        draw_nodes(&status.nodes)
    )
}

fn draw_nodes(nodes: &[Node]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["node", "role", "zone", "state", "in flight", "latency", "models"]);
    for node in nodes {
        let mut state = Vec::new();
        state.extend(node.draining.then(|| "draining".to_owned()));
        state.extend((!node.reachable).then(|| "out of reach".to_owned()));
        state.extend((!node.ejected.is_empty()).then(|| format!("ejected from {}", node.ejected.join(", "))));
        let worker = node.role == "worker";
        table.add_row([
            node.name.clone(),
            node.role.clone(),
            node.zone.clone(),
            if state.is_empty() { "ok".to_owned() } else { state.join(", ") },
            if worker { node.in_flight.to_string() } else { "–".to_owned() },
            if node.latency_seconds > 0.0 { seconds(node.latency_seconds) } else { "–".to_owned() },
            node.models.join(" "),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_need_a_request() {
        assert_eq!(mean(Some(StatisticDuration { count: 0, ns: 0 })), None);
        assert_eq!(mean(Some(StatisticDuration { count: 2, ns: 3_000_000_000 })), Some(1.5));
    }

    #[test]
    fn replicas_are_counted_over_all_workers() {
        let model = |version: &str| Model { name: "m".into(), version: version.into(), ..Model::default() };
        let mut status = Status { models: vec![model("1"), model("2")], ..Status::default() };
        let actor = |path: &str, kind: &str, state: &str| Actor {
            path: path.into(),
            kind: kind.into(),
            state: state.into(),
            ..Actor::default()
        };
        status.replicas(&[
            actor("a/text/m/1", "version", "running"),
            actor("a/text/m/1/batcher", "batcher", "running"),
            actor("a/text/m/1/replica-0", "replica", "running"),
            actor("b/text/m/1/replica-0", "replica", "restarting"),
            actor("b/text/m/2/replica-0", "replica", "running"),
            actor("b/text/other/2/replica-0", "replica", "running"),
        ]);
        let counted: Vec<_> = status.models.iter().map(|model| (model.replicas_running, model.replicas)).collect();
        assert_eq!(counted, [(1, 2), (1, 1)]);
        assert!(draw("http://here", &status).contains("1 of 2"));
    }
}
