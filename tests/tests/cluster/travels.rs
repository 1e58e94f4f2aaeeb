//! How a request travels between processes: to the nearest worker, with its deadline and its trace, and no further once
//! nobody waits for it.

use futures::future::join_all;
use sensorium_tests::jobs::header;
use sensorium_tests::{Ask, Cluster, Collector, Node, Repository, Span, chaos, eventually};
use tonic::Code;

use super::jobs::texts;
use super::steady::{models, with_jobs};

/// Tokens that nobody would wait for.
const LONG: u32 = 1500;
/// Milliseconds that nobody would wait for.
const FOR_EVER: f32 = 250_000.0;

/// One worker that computes one row of `chaos` after the other.
async fn single() -> Cluster {
    let repository = Repository::new().chaos("chaos", &[("batching.max_batch_size", "1")]);
    Cluster::start(repository, 1, 1).await
}

#[tokio::test]
async fn requests_stay_within_their_zone_for_as_long_as_somebody_is_there() {
    let mut cluster = Cluster::new(Repository::new().with(&["identity"])).await;
    for zone in ["a", "b"] {
        cluster.add_worker(&["--zone", zone]);
        cluster.add_gateway_with(&["--zone", zone]);
    }
    cluster.ready().await;
    let identity = || chaos("identity", 0.0, 0.0).deadline(20_000);
    let ask = async |gateway: &Node| {
        let client = gateway.client().await;
        for _ in 0..50 {
            client.infer(identity()).await.unwrap();
        }
    };
    let answered = async |worker: &Node| worker.metric("sensorium_requests_total", &["code=\"ok\""]).await;
    for (gateway, [own, other]) in [(0, [0, 1]), (1, [1, 0])] {
        let workers = [&cluster.workers[own], &cluster.workers[other]];
        let before = [answered(workers[0]).await, answered(workers[1]).await];
        ask(&cluster.gateways[gateway]).await;
        let [own, other] = [answered(workers[0]).await - before[0], answered(workers[1]).await - before[1]];
        // a hiccup of the near one may send some away
        assert!(own >= 40.0 && own + other >= 50.0, "{own} and {other} by the gateway in zone {}", ["a", "b"][gateway]);
    }
    cluster.workers[0].process.signal("KILL");
    let before = answered(&cluster.workers[1]).await;
    ask(&cluster.gateways[0]).await;
    let elsewhere = answered(&cluster.workers[1]).await - before;
    assert!((elsewhere - 50.0).abs() < 0.1, "{elsewhere}: the other zone is better than nobody");
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_computed() {
    let cluster = single().await;
    let client = cluster.gateways[0].client().await;
    let mut calls: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.infer(chaos("chaos", -FOR_EVER, 0.0)).await })
        })
        .collect();
    client.in_work("chaos", 4).await;
    cluster.workers[0].metric_becomes("sensorium_queue_depth", &["model=\"chaos\""], 3.0).await;
    // three that wait, and then the one that is being computed
    for call in calls.drain(1..) {
        call.abort();
    }
    client.in_work("chaos", 1).await;
    cluster.workers[0].metric_becomes("sensorium_requests_total", &["code=\"cancelled\""], 3.0).await;
    calls[0].abort();
    client.infer(chaos("chaos", 0.0, 0.0).deadline(60_000)).await.unwrap();
    cluster.workers[0].metric_becomes("sensorium_requests_total", &["code=\"cancelled\""], 4.0).await;
    let executed = client.statistics("chaos").await.execution_count;
    assert!(executed <= 2, "{executed} batches: what waited was computed for nobody");
    client.in_work("chaos", 0).await;
}

#[tokio::test]
async fn readers_who_leave_free_their_slots_at_the_worker() {
    let cluster = Cluster::start(Repository::new().with(&["smollm2-135m"]), 1, 1).await;
    let client = cluster.gateways[0].client().await;
    let streams = join_all((0..3).map(|_| client.generating(LONG))).await;
    drop(streams);
    cluster.workers[0].metric_becomes("sensorium_requests_total", &["code=\"cancelled\""], 3.0).await;
    let tokens = async || cluster.workers[0].metric("sensorium_generated_tokens_total", &[]).await;
    let before = tokens().await;
    assert!(before < f64::from(LONG), "{before} tokens");
    client.infer(Ask::prompt("1, 2, 3,", 4)).await.unwrap();
    let more = tokens().await - before;
    assert!(more < 40.0, "{more} tokens for nobody");
}

/// The worker knows itself until when an answer is wanted: nobody tells it, for the gateway is frozen.
#[tokio::test]
async fn a_deadline_holds_at_the_worker() {
    let cluster = single().await;
    let client = cluster.gateways[0].client().await;
    let long = tokio::spawn({
        let client = client.clone();
        async move { client.infer(chaos("chaos", -FOR_EVER, 0.0).deadline(3000)).await }
    });
    client.in_work("chaos", 1).await;
    cluster.workers[0].metric_becomes("sensorium_inflight_requests", &[], 1.0).await;
    cluster.gateways[0].process.signal("STOP");
    cluster.workers[0].metric_becomes("sensorium_requests_total", &["code=\"deadline_exceeded\""], 1.0).await;
    cluster.workers[0].metric_becomes("sensorium_inflight_requests", &[], 0.0).await;
    cluster.gateways[0].process.signal("CONT");
    let status = long.await.unwrap().unwrap_err();
    // tonic's client ends the call itself, and calls that cancelled
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    client.infer(chaos("chaos", 0.0, 0.0).deadline(60_000)).await.unwrap();
}

/// Whether `span` descends from one that `is` the one that is looked for.
fn descends(all: &[Span], span: &Span, is: &dyn Fn(&Span) -> bool) -> bool {
    let parent = all.iter().find(|other| other.id == span.parent);
    parent.is_some_and(|parent| is(parent) || descends(all, parent, is))
}

/// Waits for a span of `service` and this name, below one of another service and name.
async fn below(collector: &Collector, trace: &str, span: (&str, &str), above: (&str, &str)) {
    let what = format!("{span:?} below {above:?}, both of trace {trace}");
    eventually(&what, async || {
        let all = collector.trace(trace);
        let is = |(service, name): (&str, &str), of: &Span| of.service == service && of.name == name;
        all.iter().any(|of| is(span, of) && descends(&all, of, &|of| is(above, of))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn one_trace_reaches_through_all_processes_and_nats() {
    const REQUEST: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const JOB: &str = "0af7651916cd43dd8448eb211c80319c";
    let collector = Collector::start().await;
    let mut cluster = with_jobs(Cluster::new(models()).await.traced(&collector)).await;
    cluster.add_worker(&[]);
    // one takes the job, the other works on it
    cluster.add_gateway_with(&["--set", "jobs.tasks.concurrency=0"]);
    cluster.add_gateway();
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    let parent = |trace: &str| format!("00-{trace}-00f067aa0ba902b7-01");
    let mut request = Ask::text("A cat sits on the sofa.").request();
    request.metadata_mut().insert("traceparent", parent(REQUEST).parse().unwrap());
    client.inference.clone().model_infer(request).await.unwrap();
    below(&collector, REQUEST, ("worker-0", "worker"), ("gateway-0", "request")).await;
    below(&collector, REQUEST, ("worker-0", "batch"), ("gateway-0", "request")).await;

    let job = client.submit_within(Some(&parent(JOB)), header("traced"), texts("traced", 1)).await.unwrap();
    client.finish(&job.id).await.unwrap();
    below(&collector, JOB, ("gateway-1", "task"), ("gateway-0", "request")).await;
    below(&collector, JOB, ("worker-0", "batch"), ("gateway-1", "task")).await;
    // the sense and the join
    eventually("both tasks", async || {
        let all = collector.trace(JOB);
        (all.iter().filter(|span| span.name == "task").count() == 2).then_some(())
    })
    .await;
}
