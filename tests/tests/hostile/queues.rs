//! Queues of jobs in NATS: nobody's tasks, or messages that are none, hold up anybody else's.

use std::time::Duration;

use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::{Job, JobItem, ReplayDeadTaskRequest, SubmitJobRequest, WatchJobRequest, job};
use sensorium_tests::jobs::{header, text};
use sensorium_tests::{Ask, Client, Cluster, Outside, Refusal, Repository, Server, ServerOptions, eventually, within};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::{Code, Request};

fn texts(name: &str, count: usize) -> Vec<JobItem> {
    (0..count).map(|at| text(&format!("{name}-{at}"), &format!("sentence {at} of {name}"))).collect()
}

/// `serve` whose jobs lie in this NATS.
async fn serving(nats: &Outside, repository: Repository, settings: &[(&str, &str)]) -> Server {
    let options = ServerOptions::new(repository).set("nats", &format!("nats://{}", nats.address()));
    let options = options.set("understand.text_guard", "").set("jobs.tasks.backoff_ms", "20");
    Server::start(settings.iter().fold(options, |options, (key, value)| options.set(key, value))).await
}

/// A request of whoever has the key.
fn by<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

async fn submit(client: &Client, key: &str, items: Vec<JobItem>) -> Job {
    let messages = [Message::Header(header(""))].into_iter().chain(items.into_iter().map(Message::Item));
    let messages: Vec<_> = messages.map(|message| SubmitJobRequest { message: Some(message) }).collect();
    within(client.jobs.clone().submit_job(by(key, tokio_stream::iter(messages)))).await.unwrap().into_inner()
}

/// The job as it is; it is not waited for.
async fn now(client: &Client, key: &str, id: &str) -> Job {
    let request = by(key, WatchJobRequest { id: id.to_owned() });
    let mut told = within(client.jobs.clone().watch_job(request)).await.unwrap().into_inner();
    within(told.message()).await.unwrap().expect("the job as it is")
}

async fn is_over(client: &Client, key: &str, id: &str) -> Job {
    eventually("the job is over", async || {
        let job = now(client, key, id).await;
        (job.state() != job::State::Running).then_some(job)
    })
    .await
}

/// Tenants with a little quota, or with much to do, are no reason for others to wait; in NATS as in the file.
#[tokio::test]
async fn tenants_do_not_wait_for_each_others_tasks() {
    let nats = Outside::nats(None).await;
    let address = format!("nats://{}", nats.address());
    let mut entries = String::new();
    let mut keys = Vec::new();
    for tenant in ["slow", "large", "small"] {
        let (code, entry, secret) = Server::verb(&["key", tenant, "--tenant", tenant]).await;
        assert_eq!(code, Some(0), "{secret}");
        entries += &entry;
        entries.push('\n');
        keys.push(secret.trim().to_owned());
    }
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), entries).unwrap();
    for store in [Some(address.as_str()), None] {
        let repository =
            Repository::new().with(&["minilm"]).copy("minilm", "slow", &[("batching.max_queue_delay_us", "100_000")]);
        let mut options = ServerOptions::new(repository).set("auth.keys", &file.path().display().to_string());
        for (key, value) in [
            ("understand.text_guard", ""),
            ("understand.text", "slow"),
            ("tenants.slow.requests_per_second", "0.01"),
            ("jobs.tasks.concurrency", "2"),
        ] {
            options = options.set(key, value);
        }
        if let Some(nats) = store {
            options = options.set("nats", nats);
        }
        let server = Server::start(options).await;
        let client = server.client().await;
        let slow = submit(&client, &keys[0], texts("slow", 50)).await;
        let large = submit(&client, &keys[1], texts("large", 400)).await;
        let small = submit(&client, &keys[2], texts("small", 3)).await;
        let over = is_over(&client, &keys[2], &small.id).await;
        assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, 3, 0), "{over:?}");
        let large = now(&client, &keys[1], &large.id).await;
        assert!(large.done < 300, "the small job waited for most of the large one: {large:?}");
        // its own requests find their rate: tasks that only wait take nothing of it
        let slow = now(&client, &keys[0], &slow.id).await;
        assert!(slow.state() == job::State::Running && slow.failed == 0, "{slow:?}");
        let deferred = server.metric("sensorium_job_tasks_total", &["outcome=\"deferred\""]).await;
        assert!(deferred >= 1.0, "nobody's place was freed");
        let again = server.metric("sensorium_job_tasks_total", &["outcome=\"again\""]).await;
        assert!(again < 0.1, "waiting is no failure");
    }
}

/// Says something on a subject, as any client of NATS may.
async fn publish(nats: &Outside, subject: &str, bodies: &[Vec<u8>]) {
    let mut stream = TcpStream::connect(nats.address()).await.unwrap();
    let mut said = b"CONNECT {\"verbose\":false}\r\n".to_vec();
    for body in bodies {
        said.extend(format!("PUB {subject} {}\r\n", body.len()).into_bytes());
        said.extend(body);
        said.extend(b"\r\n");
    }
    said.extend(b"PING\r\n");
    stream.write_all(&said).await.unwrap();
    let mut reply = [0; 4096];
    loop {
        let count = tokio::io::AsyncReadExt::read(&mut stream, &mut reply).await.unwrap();
        assert!(count > 0, "NATS hung up");
        if reply[..count].windows(4).any(|window| window == b"PONG") {
            return;
        }
    }
}

/// Messages that nobody can read go to the dead letters, and nobody waits for them; large ones go by reference.
#[tokio::test]
async fn messages_that_nobody_can_read_are_buried_and_large_texts_are_done() {
    const POISON: u32 = 300;
    let nats = Outside::nats(None).await;
    let server = serving(&nats, Repository::new().with(&["minilm"]), &[("jobs.tasks.max_deliveries", "2")]).await;
    let client = server.client().await;
    // somebody has to have made the queues
    let first = eventually("jobs are taken", async || client.submit(header(""), texts("first", 1)).await.ok()).await;
    client.finish(&first.id).await.unwrap();
    let bodies: Vec<Vec<u8>> = (0..POISON).map(|at| vec![0xff; 1 + at as usize % 50]).collect();
    publish(&nats, "sensorium.jobs.text.0123456789abcdef", &bodies).await;
    publish(&nats, "sensorium.jobs.text", &bodies[..3]).await;
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(23_222);
    let quotes = "\"".repeat(600_000);
    for large in [&long, &quotes] {
        // as long as a caller who asks at once may be, also where JSON makes more of it
        client.infer(Ask::text(large)).await.unwrap();
    }
    let mut items = texts("beside", 20);
    items.extend([text("long", &long), text("quotes", &quotes)]);
    let job = client.submit(header("beside"), items).await.unwrap();
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, 22, 0), "{over:?}");
    let told = client.job(&job.id, 100).await.unwrap().items;
    let words = |at: usize| told[at].result.as_ref().unwrap().branches[0].words.len();
    assert_eq!((words(20), words(21)), (long.len(), quotes.len()));
    let buried = |count: f64| server.metric_becomes("sensorium_jobs_dead_total", &["modality=\"text\""], count);
    buried(f64::from(POISON + 3)).await;
    let dead = client.dead().await.unwrap();
    assert!(dead.iter().all(|dead| dead.job_id.is_empty() && dead.queue == "text"), "{dead:?}");
    assert!(dead[0].error.contains("cannot read"), "{}", dead[0].error);
    eventually("the queue is empty", async || {
        (server.metric("sensorium_job_queue_depth", &["modality=\"text\""]).await < 0.5).then_some(())
    })
    .await;
    // another build may read it; this one buries it again
    let replay = ReplayDeadTaskRequest { sequence: dead[0].sequence };
    within(client.jobs.clone().replay_dead_task(replay)).await.unwrap();
    buried(f64::from(POISON + 4)).await;
}

/// NATS without room: nothing is taken in, nothing is given up, and what was accepted is done when there is room again.
#[tokio::test]
async fn a_nats_without_room_gives_nothing_up() {
    let mut nats = Outside::nats_that_stores(48 << 20).await;
    let server = serving(&nats, Repository::new().with(&["minilm"]), &[]).await;
    let client = server.client().await;
    eventually("jobs are taken", async || client.submit(header("first"), texts("first", 1)).await.ok()).await;
    let large = "word ".repeat(100_000);
    let mut accepted = Vec::new();
    let refused = loop {
        let items = (0..4).map(|at| text(&format!("large-{at}"), &large)).chain(texts("small", 10)).collect();
        match client.submit(header(&format!("job-{}", accepted.len())), items).await {
            Ok(job) => accepted.push(job.id),
            refused => break Refusal::of(refused),
        }
        assert!(accepted.len() < 200, "NATS took more than it may store");
    };
    refused.is_retriable(Code::ResourceExhausted, "JOBS_STORAGE_FULL");
    let told = client.cluster().await.unwrap().dependencies.into_iter().find(|of| of.name == "nats").unwrap();
    assert!(told.state == "full" && told.reason.contains("no room"), "{told:?}");
    // longer than all deliveries of a task took, when want of room counted as its failure
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(client.dead().await.unwrap().is_empty(), "given up for want of room");
    nats.store(512 << 20).await;
    for id in &accepted {
        let over = eventually("the job is over", async || client.finish(id).await.ok()).await;
        assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, 14, 0), "{over:?}");
    }
    assert!(client.dead().await.unwrap().is_empty(), "given up for want of room");
    let job = eventually("jobs are taken again", async || client.submit(header("again"), texts("again", 5)).await.ok());
    assert_eq!(client.finish(&job.await.id).await.unwrap().state(), job::State::Succeeded);
}

/// A gateway that sees no cluster would fail everything, and quickly: it takes nothing.
#[tokio::test]
async fn a_gateway_without_a_view_takes_no_tasks() {
    let cluster = Cluster::new(Repository::new().with(&["minilm"])).await.with_nats().await;
    let cluster = cluster.set("understand.text_guard", "").set("jobs.tasks.wait_seconds", "1");
    let mut cluster = cluster.set("jobs.tasks.backoff_ms", "20").of(2, 1).await;
    cluster.etcd.stop().await;
    cluster.gateways[0].resurrect();
    cluster.gateways[0].lives().await;
    let client = cluster.gateways[1].client().await;
    // longer than it would wait for a model before it failed what needs it
    tokio::time::sleep(Duration::from_secs(3)).await;
    let job = client.submit(header("all"), texts("all", 300)).await.unwrap();
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, 300, 0), "{over:?}");
    assert!(client.dead().await.unwrap().is_empty());
    assert!(cluster.gateways[0].metric("sensorium_job_tasks_total", &["outcome="]).await < 0.1, "it took some");
    cluster.etcd.resume().await;
    cluster.gateways[0].ready().await;
    for gateway in &cluster.gateways {
        assert!(!gateway.process.log().contains("cannot take tasks"), "all was well: {}", gateway.process.log());
    }
}

/// A guard that blocks and is away is waited for, as a model is: its absence ruins nothing.
#[tokio::test]
async fn tasks_wait_for_a_guard_that_blocks() {
    let cluster = Cluster::new(Repository::new().with(&["minilm", "prompt-guard"])).await.with_nats().await;
    let cluster = cluster.set("understand.text_guard_blocks", "true").set("jobs.tasks.backoff_ms", "20");
    let mut cluster = cluster.set("jobs.tasks.max_deliveries", "1");
    cluster.add_worker(&["--models", "minilm"]);
    cluster.add_gateway();
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    let job = eventually("it is taken", async || client.submit(header("all"), texts("all", 30)).await.ok()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.add_worker(&["--models", "minilm,prompt-guard"]);
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, 30, 0), "{over:?}");
    for item in client.job(&job.id, 100).await.unwrap().items {
        let guards = &item.result.as_ref().unwrap().branches[0].guards;
        assert!(guards.len() == 1 && guards[0].score.is_some(), "{guards:?}");
    }
    assert!(client.dead().await.unwrap().is_empty());
    let said = cluster.gateways[0].process.log().matches("guard cannot judge").count();
    assert!(said <= 1, "{said} warnings of one absence");
}
