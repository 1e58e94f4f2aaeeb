//! `sensorium status`: is it up, what does it serve, and how do requests fare.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use owo_colors::Style;
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::{
    ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest, StatisticDuration,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::connect::{self, Failure, MAX_ANSWER, Output, Server};
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
    let mut client = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    loop {
        let status = ask(&mut client).await?;
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
    models: Vec<Model>,
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
    Ok(Status { name: server.name, version: server.version, live, ready, models: models.collect() })
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
    format!("{server}  {live}  {ready}\n{table}")
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
