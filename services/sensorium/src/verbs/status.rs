//! `sensorium status`: is it up, what does it serve, and how do requests fare.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use owo_colors::Style;
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{GetClusterRequest, GetClusterResponse, Route};
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::{
    ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest, StatisticDuration,
};
use serde::Serialize;

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
    let mut admin = AdminClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
    let mut client = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    loop {
        let mut status = ask(&mut client).await?;
        status.cluster(admin.get_cluster(GetClusterRequest {}).await?.into_inner());
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

#[derive(Serialize)]
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
    requests: u64,
    failed: u64,
    /// Means of a request, in seconds; nothing before the first one.
    mean_queue_seconds: Option<f64>,
    mean_compute_seconds: Option<f64>,
    average_batch_size: Option<f64>,
    memory_bytes: u64,
}

async fn ask(client: &mut GrpcInferenceServiceClient<Channel>) -> Result<Status, Failure> {
    let server = client.server_metadata(ServerMetadataRequest {}).await?.into_inner();
    let live = client.server_live(ServerLiveRequest {}).await?.into_inner().live;
    let ready = client.server_ready(ServerReadyRequest {}).await?.into_inner().ready;
    let index = client.repository_index(RepositoryIndexRequest::default()).await?.into_inner();
    let statistics = client.model_statistics(ModelStatisticsRequest::default()).await?.into_inner();
    let key = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let statistics: HashMap<_, _> =
        statistics.model_stats.into_iter().map(|stats| (key(&stats.name, &stats.version), stats)).collect();
    let models = index.models.into_iter().map(|model| {
        let counted = statistics.get(&key(&model.name, &model.version)).map(describe).unwrap_or_default();
        Model { name: model.name, version: model.version, state: model.state, reason: model.reason, ..counted }
    });
    Ok(Status {
        name: server.name,
        version: server.version,
        live,
        ready,
        in_flight: 0,
        nodes: Vec::new(),
        dependencies: Vec::new(),
        cache_hit_rate: None,
        models: models.collect(),
    })
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
    table.set_header(["model", "version", "state", "requests", "failed", "queue", "compute", "batch", "memory"]);
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
}
