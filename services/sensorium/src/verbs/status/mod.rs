//! `sensorium status`: is it up, what does it serve, and how do requests fare.
//!
//! One gateway says who is there and what the workers hold. What only a gateway knows of itself, such as its calls in work
//! and whom it has ejected, all of them are asked for.

mod draw;
mod gateways;

use std::collections::HashMap;
use std::time::Duration;

use self::draw::draw;
use self::gateways::{Gateways, Seen};
use super::connect::{Channel, MAX_ANSWER, With, quick};
use super::failure::{Failure, code_name, passes};
use super::output::{self, Output, Sink, clean, complain, complain_json};
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{Actor, GetActorTreeRequest, GetClusterRequest, GetClusterResponse};
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::{
    ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest, StatisticDuration,
};
use serde::Serialize;
use serde_json::json;

/// Arguments of `sensorium status`.
#[derive(clap::Args, Clone, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    with: With,
    /// Draws it anew every second, until interrupted; as JSON, one document a line.
    #[arg(long)]
    watch: bool,
}

/// Runs the verb.
///
/// # Errors
/// If it could not be done.
pub async fn run(args: StatusArgs) -> Result<(), Failure> {
    let With { server, output } = &args.with;
    let mut connection = server.open().await?;
    let mut gateways = Gateways::new(server);
    let mut before = HashMap::new();
    loop {
        match ask(connection.channel(), &mut gateways, &mut before).await {
            Ok(status) => print(connection.address(), &status, *output, args.watch)?,
            // whoever watches sees it come back
            Err(Failure::Status(refusal)) if args.watch && passes(&refusal) => {
                let (code, message) = (code_name(refusal.code()), refusal.message());
                match output {
                    Output::Json => {
                        complain_json(&json!({ "code": code, "message": format!("{message}, trying again") }))
                    }
                    Output::Text => complain(clean(&format!("{code}: {message}, trying again"))),
                }
                // nobody there: the next look says it again
                let _ = connection.turn().await;
            }
            Err(failure) => return Err(failure),
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn print(address: &str, status: &Status, output: Output, watch: bool) -> Result<(), Failure> {
    match (output, watch) {
        (Output::Json, false) => output::json(status),
        (Output::Json, true) => output::json_line(status),
        (Output::Text, false) => output::line(draw(address, status)),
        // home and clear to the end: the screen does not flicker
        (Output::Text, true) => Sink::stdout().line(format!("\x1b[H\x1b[J{}", draw(address, status))),
    }
}

#[derive(Serialize, Default)]
struct Status {
    name: String,
    version: String,
    live: bool,
    ready: bool,
    /// At all gateways, but those that do not answer.
    in_flight: u64,
    gateways_silent: Vec<String>,
    nodes: Vec<Node>,
    dependencies: Vec<Dependency>,
    /// Share of the look-ups that the embedding cache has answered since the gateways' start; nothing before the first.
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
    /// Requests in work at a gateway, calls in work at a worker from all gateways; nothing of one that does not answer.
    in_flight: Option<u64>,
    /// The slowest model's moving average at the gateway that sees it slowest.
    latency_seconds: f64,
    ejected: Vec<Ejected>,
    /// No gateway says otherwise.
    reachable: bool,
}

#[derive(Serialize)]
struct Ejected {
    model: String,
    /// Who has ejected it.
    gateways: Vec<String>,
}

#[derive(Serialize)]
struct Dependency {
    name: String,
    state: String,
    seconds: f64,
    reason: String,
}

impl Status {
    /// What the gateway that was asked says of the cluster, and what all say of themselves.
    fn cluster(&mut self, told: GetClusterResponse, seen: &[Seen], silent: Vec<String>) {
        let count = |of: fn(&GetClusterResponse) -> u64| seen.iter().map(|gateway| of(&gateway.told)).sum::<u64>();
        self.in_flight = count(|told| told.in_flight);
        self.gateways_silent = silent;
        self.dependencies = told
            .dependencies
            .into_iter()
            .map(|of| Dependency { name: of.name, state: of.state, seconds: of.seconds, reason: of.reason })
            .collect();
        self.cache_hit_rate = ratio(count(|told| told.cache_hits), count(|told| told.cache_lookups));
        self.nodes = told.nodes.into_iter().map(|node| describe_node(node, seen)).collect();
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

fn describe_node(node: sensorium_proto::admin::Node, seen: &[Seen]) -> Node {
    let models = node.models.into_iter().map(|held| match held.state.as_str() {
        "READY" => format!("{}/{}", held.name, held.version),
        state => format!("{}/{} {state}", held.name, held.version),
    });
    let mut described = Node {
        models: models.collect(),
        in_flight: None,
        latency_seconds: 0.0,
        ejected: Vec::new(),
        reachable: true,
        name: node.name,
        role: node.role,
        address: node.address,
        zone: node.zone,
        build: node.build,
        draining: node.draining,
    };
    for gateway in seen {
        if gateway.name == described.name && described.role == "gateway" {
            described.in_flight = Some(gateway.told.in_flight);
        }
        for route in &gateway.told.routes {
            for worker in route.workers.iter().filter(|worker| worker.worker == described.name) {
                described.in_flight = Some(described.in_flight.unwrap_or(0) + worker.in_flight);
                described.latency_seconds = described.latency_seconds.max(worker.latency_seconds);
                described.reachable &= worker.reachable;
                if worker.ejected {
                    let known = described.ejected.iter_mut().find(|ejected| ejected.model == route.model);
                    match known {
                        Some(ejected) => ejected.gateways.push(gateway.name.clone()),
                        None => described
                            .ejected
                            .push(Ejected { model: route.model.clone(), gateways: vec![gateway.name.clone()] }),
                    }
                }
            }
        }
    }
    described
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
    /// Means of a request, in seconds, since the start or, with `--watch`, since the status before; nothing if there
    /// was none.
    mean_queue_seconds: Option<f64>,
    mean_compute_seconds: Option<f64>,
    average_batch_size: Option<f64>,
    memory_bytes: u64,
}

/// By name and version.
type Statistics = HashMap<(String, String), ModelStatistics>;

/// Asks all of it. `before` is what was counted at the last time, and is what is counted now afterwards.
async fn ask(channel: Channel, gateways: &mut Gateways<'_>, before: &mut Statistics) -> Result<Status, Failure> {
    let admin = AdminClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
    let client = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    // side by side: what workers are asked for waits for one that does not answer
    let [mut first, mut second, mut third, mut fourth, mut fifth] = std::array::from_fn(|_| client.clone());
    let (mut cluster, mut tree) = (admin.clone(), admin);
    let (server, live, ready, index, statistics, told, actors) = tokio::try_join!(
        first.server_metadata(quick(ServerMetadataRequest {})),
        second.server_live(quick(ServerLiveRequest {})),
        third.server_ready(quick(ServerReadyRequest {})),
        fourth.repository_index(quick(RepositoryIndexRequest::default())),
        fifth.model_statistics(quick(ModelStatisticsRequest::default())),
        cluster.get_cluster(quick(GetClusterRequest {})),
        tree.get_actor_tree(quick(GetActorTreeRequest::default())),
    )?;
    let (server, live, ready) = (server.into_inner(), live.into_inner().live, ready.into_inner().ready);
    let (index, statistics) = (index.into_inner(), statistics.into_inner());
    let key = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let told = told.into_inner();
    let (seen, silent) = gateways.ask(&told).await;
    let statistics: Statistics =
        statistics.model_stats.into_iter().map(|stats| (key(&stats.name, &stats.version), stats)).collect();
    let models = index.models.into_iter().map(|model| {
        let key = key(&model.name, &model.version);
        let counted = statistics.get(&key).map(|now| describe(now, before.get(&key))).unwrap_or_default();
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
    status.cluster(told, &seen, silent);
    status.replicas(&actors.into_inner().actors);
    *before = statistics;
    Ok(status)
}

fn describe(stats: &ModelStatistics, before: Option<&ModelStatistics>) -> Model {
    let (of, old) = (stats.inference_stats.unwrap_or_default(), before.and_then(|before| before.inference_stats));
    let count = |duration: Option<StatisticDuration>| duration.unwrap_or_default().count;
    let batches = |of: &ModelStatistics| StatisticDuration { count: of.execution_count, ns: of.inference_count };
    Model {
        requests: count(of.success),
        failed: count(of.fail),
        mean_queue_seconds: mean(of.queue, old.and_then(|old| old.queue)).map(|ns| ns / 1e9),
        mean_compute_seconds: mean(of.compute_infer, old.and_then(|old| old.compute_infer)).map(|ns| ns / 1e9),
        average_batch_size: mean(Some(batches(stats)), before.map(batches)),
        memory_bytes: stats.memory_usage.iter().map(|memory| memory.byte_size).sum(),
        ..Model::default()
    }
}

/// Of what has come since `before`; of everything if that counts more, since a worker with its figures has gone.
fn mean(now: Option<StatisticDuration>, before: Option<StatisticDuration>) -> Option<f64> {
    let (now, before) = (now?, before.unwrap_or_default());
    match (now.count.checked_sub(before.count), now.ns.checked_sub(before.ns)) {
        (Some(count), Some(ns)) => ratio(ns, count),
        _ => ratio(now.ns, now.count),
    }
}

fn ratio(sum: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_need_a_request() {
        let of = |count, ns| Some(StatisticDuration { count, ns });
        assert_eq!(mean(of(0, 0), None), None);
        assert_eq!(mean(of(2, 3), None), Some(1.5));
        assert_eq!(mean(of(4, 13), of(2, 3)), Some(5.0), "of those since then");
        assert_eq!(mean(of(2, 3), of(2, 3)), None);
        assert_eq!(mean(of(2, 3), of(4, 13)), Some(1.5), "a worker has gone");
    }

    #[test]
    fn what_every_gateway_sees_is_put_together() {
        use sensorium_proto::admin::{Node, Route, RouteWorker};
        let seen = |name: &str, in_flight, ejected| {
            let worker = RouteWorker { worker: "w".into(), in_flight, ejected, reachable: true, ..Default::default() };
            let routes = vec![Route { model: "m".into(), workers: vec![worker] }];
            let told = GetClusterResponse { routes, in_flight, cache_hits: 1, cache_lookups: 4, ..Default::default() };
            Seen { name: name.into(), told }
        };
        let node = |name: &str, role: &str| Node { name: name.into(), role: role.into(), ..Node::default() };
        let nodes = vec![node("a", "gateway"), node("b", "gateway"), node("c", "gateway"), node("w", "worker")];
        let told = GetClusterResponse { nodes, ..GetClusterResponse::default() };
        let mut status = Status::default();
        status.cluster(told, &[seen("a", 2, false), seen("b", 3, true)], vec!["c".into()]);
        let in_flight: Vec<_> = status.nodes.iter().map(|node| node.in_flight).collect();
        assert_eq!(in_flight, [Some(2), Some(3), None, Some(5)]);
        assert_eq!((status.in_flight, status.cache_hit_rate), (5, Some(0.25)));
        let text = draw("http://here", &status);
        assert!(text.contains("ejected from m by b") && text.contains("without c"), "{text}");
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
