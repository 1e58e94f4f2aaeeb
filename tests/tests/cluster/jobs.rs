//! Jobs on a real NATS: nothing is lost and nothing is seen twice, whatever fails meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::{Job, JobItem, ReplayDeadTaskRequest, SubmitJobRequest, job};
use sensorium_tests::jobs::{header, item, text};
use sensorium_tests::samples::picture;
use sensorium_tests::{Authority, Client, Cluster, Doors, Outside, Refusal, Repository, cosine, eventually, within};
use tonic::Code;

use super::steady::{Steady, cluster, models};
use super::{load_at, none_failed};

pub(super) fn texts(job: &str, count: usize) -> Vec<JobItem> {
    (0..count).map(|at| text(&format!("{job}-{at}"), &format!("sentence {at} of {job}"))).collect()
}

/// All items of a job, each of them once and in its place.
pub(super) async fn complete(client: &Client, job: &Job, items: usize) {
    assert_eq!((job.state(), job.done, job.failed), (job::State::Succeeded, items as u64, 0), "{job:?}");
    let told = client.job(&job.id, 1000).await.unwrap().items;
    let indices: Vec<u64> = told.iter().map(|item| item.index).collect();
    assert_eq!(indices, (0..items as u64).collect::<Vec<_>>());
    for item in &told {
        assert_eq!(item.error, "");
        assert!(item.name.ends_with(&format!("-{}", item.index)), "{}", item.name);
        let branch = &item.result.as_ref().unwrap().branches[0];
        assert_eq!(branch.words, format!("sentence {} of {}", item.index, item.name.rsplit_once('-').unwrap().0));
        assert_eq!(branch.embedding.len(), 384);
    }
}

#[tokio::test]
async fn no_job_is_lost_or_doubled_whatever_is_killed() {
    const ITEMS: usize = 1000;
    let cluster = Cluster::new(models()).await.set("understand.text_guard", "").set("jobs.tasks.concurrency", "2");
    let mut cluster = cluster.with_nats().await.with_redis().await.of(3, 2).await;
    // the first gateway is the one that falls
    let clients = [cluster.gateways[1].client().await, cluster.gateways[2].client().await];
    let doors = Doors::new(clients.to_vec());
    let load = load_at(&doors);
    load.answers(20).await;
    let mut submitted = Vec::new();
    for (at, client) in clients.iter().cycle().take(4).enumerate() {
        let key = format!("key-{at}");
        submitted.push(client.submit(header(&key), texts(&key, ITEMS)).await.unwrap());
    }
    load.recovered("quiet");
    let progress = async || {
        let mut done = 0;
        for job in &submitted {
            done += clients[0].job(&job.id, 0).await.ok()?.job?.done;
        }
        Some(done)
    };
    let done = async |share: u64| {
        eventually("some of it is done", async || progress().await.filter(|done| *done >= share)).await
    };
    let all = 4 * ITEMS as u64;
    done(all / 10).await;
    cluster.workers[0].process.signal("KILL");
    done(all / 5).await;
    load.recovered("a worker killed");
    cluster.gateways[0].process.signal("KILL");
    cluster.workers[0].resurrect();
    done(all * 2 / 5).await;
    load.recovered("a gateway killed");
    let nats = cluster.nats.as_mut().unwrap();
    nats.stop().await;
    load.answers(50).await;
    nats.resume().await;
    done(all / 2).await;
    load.recovered("NATS killed");
    // for longer than its lease
    cluster.etcd.stop().await;
    cluster.redis.as_ref().unwrap().process().signal("STOP");
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.answers(50).await;
    cluster.etcd.resume().await;
    cluster.redis.as_ref().unwrap().process().signal("CONT");
    load.recovered("etcd stopped, Redis hung");
    cluster.gateways[0].resurrect();
    // a quick machine may be done with the others by now
    submitted.push(clients[0].submit(header("key-4"), texts("key-4", ITEMS)).await.unwrap());
    cluster.workers[1].process.signal("STOP");
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.workers[1].process.signal("CONT");
    for (at, job) in submitted.iter().enumerate() {
        let over = eventually("the job is over", async || {
            // a stream that was cut is opened again
            clients[1].finish(&job.id).await.ok()
        })
        .await;
        complete(&clients[0], &over, ITEMS).await;
        // whoever never heard of it asks again
        let key = format!("key-{at}");
        let again = clients[1].submit(header(&key), texts(&key, ITEMS)).await.unwrap();
        assert_eq!((again.state(), again.done, again.id), (job::State::Succeeded, ITEMS as u64, job.id.clone()));
    }
    load.recovered("a worker frozen");
    assert_eq!(clients[0].all_jobs(3).await.unwrap().len(), 5);
    assert_eq!(clients[0].dead().await.unwrap().len(), 0);
    none_failed(load).await;
}

#[tokio::test]
async fn without_nats_jobs_are_refused_and_requests_do_not_notice() {
    let mut cluster = cluster(2, 1).await;
    let doors = Doors::of(&cluster.gateways).await;
    let client = cluster.gateways[0].client().await;
    let nats = |told: &sensorium_proto::admin::GetClusterResponse| {
        told.dependencies.iter().find(|of| of.name == "nats").unwrap().state.clone()
    };
    let state = async |wanted: &str| {
        eventually("the state of NATS", async || {
            let told = client.cluster().await.ok()?;
            (nats(&told) == wanted).then_some(())
        })
        .await;
    };
    state("ok").await;
    let refused = async || {
        let refused = Refusal::of(client.submit(header(""), texts("refused", 3)).await);
        refused.is_retriable(Code::Unavailable, "JOBS_UNAVAILABLE");
    };
    // with jobs that were taken before, and jobs that are asked for until they are taken
    let load = Steady::at_any(&doors);
    load.answers(50).await;
    cluster.nats.as_mut().unwrap().stop().await;
    state("down").await;
    refused().await;
    load.answers(50).await;
    load.recovered("no NATS");
    cluster.nats.as_mut().unwrap().resume().await;
    state("ok").await;
    load.answers(50).await;
    load.recovered("its return");
    load.none_lost().await;

    // its jobs are gone with its data
    let load = load_at(&doors);
    cluster.nats.as_mut().unwrap().stop().await;
    state("down").await;
    refused().await;
    load.answers(50).await;
    cluster.nats.as_ref().unwrap().forget();
    cluster.nats.as_mut().unwrap().resume().await;
    let job = eventually("jobs are taken again", async || client.submit(header(""), texts("taken", 10)).await.ok());
    let job = job.await;
    complete(&client, &client.finish(&job.id).await.unwrap(), 10).await;
    load.recovered("a NATS without its data");
    none_failed(load).await;
}

/// What was said to a NATS that hangs may be heard when it goes on: whoever was refused asks again, and has one job.
#[tokio::test]
async fn a_nats_that_hangs_refuses_jobs_and_doubles_none() {
    let cluster = cluster(2, 1).await;
    let doors = Doors::of(&cluster.gateways).await;
    let client = cluster.gateways[0].client().await;
    let first = client.submit(header("first"), texts("first", 10)).await.unwrap();
    complete(&client, &client.finish(&first.id).await.unwrap(), 10).await;
    let load = Steady::at_any(&doors);
    load.answers(20).await;
    cluster.nats.as_ref().unwrap().process().signal("STOP");
    for _ in 0..2 {
        let refused = Refusal::of(client.submit(header("hung"), texts("hung", 10)).await);
        refused.is_retriable(Code::Unavailable, "JOBS_UNAVAILABLE");
    }
    load.answers(50).await;
    load.recovered("NATS hangs");
    cluster.nats.as_ref().unwrap().process().signal("CONT");
    let job = eventually("jobs are taken again", async || client.submit(header("hung"), texts("hung", 10)).await.ok());
    let job = job.await;
    complete(&client, &client.finish(&job.id).await.unwrap(), 10).await;
    load.recovered("it goes on");
    load.none_lost_beside(&[first, job]).await;
}

/// A gateway that leaves waits for an upload, for nobody has its first half, and sends watchers elsewhere.
#[tokio::test]
async fn a_gateway_that_leaves_takes_what_is_uploaded_and_sends_watchers_on() {
    const ITEMS: usize = 400;
    let mut cluster = cluster(2, 1).await;
    let (leaving, other) = (cluster.gateways[0].client().await, cluster.gateways[1].client().await);
    let job = leaving.submit(header("watched"), texts("watched", ITEMS)).await.unwrap();
    let watching = tokio::spawn({
        let (leaving, id) = (leaving.clone(), job.id.clone());
        async move { leaving.finish(&id).await }
    });
    let (messages, upload) = tokio::sync::mpsc::channel(1);
    let uploading = tokio::spawn({
        let leaving = leaving.clone();
        let upload = tokio_stream::wrappers::ReceiverStream::new(upload);
        async move { leaving.jobs.clone().submit_job(upload).await }
    });
    let message = |message| SubmitJobRequest { message: Some(message) };
    messages.send(message(Message::Header(header("uploaded")))).await.unwrap();
    let items = texts("uploaded", 20);
    for item in &items[..10] {
        messages.send(message(Message::Item(item.clone()))).await.unwrap();
    }
    cluster.gateways[0].process.signal("TERM");
    let refused = Refusal::of(watching.await.unwrap());
    refused.is_retriable(Code::Unavailable, "DRAINING");
    for item in &items[10..] {
        messages.send(message(Message::Item(item.clone()))).await.unwrap();
    }
    drop(messages);
    let uploaded = uploading.await.unwrap().unwrap().into_inner();
    let exit = cluster.gateways[0].process.ended(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    for (job, items) in [(job, ITEMS), (uploaded, 20)] {
        let over = eventually("the job is over", async || other.finish(&job.id).await.ok()).await;
        complete(&other, &over, items).await;
    }
}

/// What a gateway is started with holds from then on, whoever made the queues.
#[tokio::test]
async fn a_queue_takes_the_settings_of_the_gateway_that_starts() {
    let mut cluster = cluster(1, 1).await;
    let generous = cluster.gateways[0].client().await;
    let job = generous.submit(header("first"), texts("first", 300)).await.unwrap();
    complete(&generous, &generous.finish(&job.id).await.unwrap(), 300).await;
    cluster.add_gateway_with(&["--set", "jobs.max_queued=5"]);
    cluster.ready().await;
    let strict = cluster.gateways[1].client().await;
    let refused = Refusal::of(strict.submit(header("second"), texts("second", 300)).await);
    refused.is_retriable(Code::ResourceExhausted, "JOBS_QUEUE_FULL");
    // senses that fill the queue leave no place for what joins them, and need none
    let five = eventually("room for five", async || strict.submit(header(""), texts("few", 5)).await.ok()).await;
    complete(&strict, &strict.finish(&five.id).await.unwrap(), 5).await;
}

/// What was accepted waits for whoever can do it: nobody's absence is a failure of the task.
#[tokio::test]
async fn tasks_wait_for_a_worker_that_holds_their_model() {
    let mut cluster = gateway(&[("backoff_ms", "20"), ("max_deliveries", "1")]).await;
    let client = cluster.gateways[0].client().await;
    let job = eventually("it is taken", async || client.submit(header("early"), texts("early", 9)).await.ok()).await;
    cluster.gateways[0].metric_becomes("sensorium_job_queue_depth", &["modality=\"text\""], 9.0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.add_worker(&["--models", "minilm"]);
    complete(&client, &client.finish(&job.id).await.unwrap(), 9).await;
    assert!(client.dead().await.unwrap().is_empty());
}

/// A gateway on a NATS, for texts and pictures, with these settings of tasks.
async fn gateway(tasks: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::new(Repository::new().with(&["identity", "minilm", "efficientnet-lite0"])).await;
    for guard in ["text_guard", "image_guard"] {
        cluster = cluster.set(&format!("understand.{guard}"), "");
    }
    for (key, value) in tasks {
        cluster = cluster.set(&format!("jobs.tasks.{key}"), value);
    }
    cluster = cluster.with_nats().await;
    cluster.add_gateway();
    cluster.gateways[0].lives().await;
    cluster
}

/// A text and a picture.
fn both() -> Vec<JobItem> {
    let words = Content::Text("A cat looks at us.".to_owned());
    vec![item("both", vec![words, Content::Image(picture("chelsea.png").into())])]
}

#[tokio::test]
async fn what_fails_too_often_is_buried_and_can_be_replayed() {
    let mut cluster = gateway(&[("backoff_ms", "20"), ("max_deliveries", "2"), ("wait_seconds", "0")]).await;
    cluster.add_worker(&["--models", "minilm"]);
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    let job = client.submit(header("cat"), both()).await.unwrap();
    // nobody sees: the text alone is an answer
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done), (job::State::Succeeded, 1), "{over:?}");
    let result = client.job(&job.id, 1).await.unwrap().items.remove(0).result.unwrap();
    assert!(result.degraded);
    assert!(result.branches[1].reason.contains("given up after 2 deliveries"), "{}", result.branches[1].reason);
    let dead = client.dead().await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].queue.as_str(), dead[0].item_name.as_str(), dead[0].job_id == job.id), ("image", "both", true));

    cluster.add_worker(&["--models", "minilm,efficientnet-lite0"]);
    cluster.ready().await;
    let request = ReplayDeadTaskRequest { sequence: dead[0].sequence };
    let replayed = within(client.jobs.clone().replay_dead_task(request)).await.unwrap().into_inner();
    assert_eq!(replayed.job_id, job.id);
    client.finish(&job.id).await.unwrap();
    let result = client.job(&job.id, 1).await.unwrap().items.remove(0).result.unwrap();
    assert!(!result.degraded, "{result:?}");
    assert_eq!(result.branches[1].labels.len(), 5);
    assert!(client.dead().await.unwrap().is_empty());
    let gone = within(client.jobs.clone().replay_dead_task(request)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    // the same as whoever asks at once
    let direct = client.submit(header("again"), both()).await.unwrap();
    client.finish(&direct.id).await.unwrap();
    let direct = client.job(&direct.id, 1).await.unwrap().items.remove(0).result.unwrap();
    let (one, other) = (result.fusion.unwrap().embedding, direct.fusion.unwrap().embedding);
    assert!(cosine(&one, &other) > 0.9999);
}

#[tokio::test]
async fn all_dead_senses_of_an_item_may_be_replayed_at_once() {
    let mut cluster = gateway(&[("max_deliveries", "1"), ("wait_seconds", "0")]).await;
    // it takes no tasks before it has seen a worker; this one can do nothing of what is asked
    cluster.add_worker(&["--models", "identity"]);
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    let job = eventually("it is taken", async || client.submit(header("cat"), both()).await.ok()).await;
    assert_eq!(client.finish(&job.id).await.unwrap().state(), job::State::Failed);
    let dead = client.dead().await.unwrap();
    assert_eq!(dead.len(), 2);

    cluster.add_worker(&["--models", "minilm,efficientnet-lite0"]);
    cluster.ready().await;
    // one after the other has brought its item to an end, within the time in which equal messages are one
    for (left, letter) in dead.into_iter().enumerate().rev() {
        let request = ReplayDeadTaskRequest { sequence: letter.sequence };
        within(client.jobs.clone().replay_dead_task(request)).await.unwrap();
        client.finish(&job.id).await.unwrap();
        assert_eq!(client.dead().await.unwrap().len(), left, "the list goes past gaps");
    }
    let result = client.job(&job.id, 1).await.unwrap().items.remove(0).result.unwrap();
    assert!(!result.degraded, "{result:?}");
}

#[tokio::test]
async fn nats_may_speak_tls_and_ask_for_a_certificate_and_a_password() {
    let authority = Authority::new("ours");
    let nats = Outside::nats_with_tls(&authority.issue("nats"), &authority.file(), "us", "secret").await;
    let own = authority.issue("gateway");
    let mut cluster = Cluster::new(Repository::new().with(&["minilm"])).await.set("understand.text_guard", "");
    cluster = cluster.set("nats", &format!("tls://us:secret@{}", nats.address()));
    for (key, file) in [("ca", authority.file()), ("certificate", own.certificate), ("key", own.key)] {
        cluster = cluster.set(&format!("jobs.{key}"), &file.display().to_string());
    }
    let cluster = cluster.of(1, 1).await;
    let client = cluster.gateways[0].client().await;
    let job = eventually("NATS lets us in", async || client.submit(header(""), texts("safe", 5)).await.ok()).await;
    complete(&client, &client.finish(&job.id).await.unwrap(), 5).await;
}

#[tokio::test]
async fn a_cancelled_job_stays_as_it_is() {
    let cluster = cluster(1, 1).await;
    let client = cluster.gateways[0].client().await;
    let job = client.submit(header(""), texts("long", 3000)).await.unwrap();
    let cancelled = client.cancel(&job.id).await.unwrap();
    assert_eq!(cancelled.state(), job::State::Cancelled, "{cancelled:?}");
    let over = client.finish(&job.id).await.unwrap();
    assert!(over.done < 3000, "{over:?}");
    // what waits is let go, and the next job has its turn
    let next = client.submit(header(""), texts("next", 20)).await.unwrap();
    complete(&client, &client.finish(&next.id).await.unwrap(), 20).await;
    assert_eq!(client.job(&job.id, 0).await.unwrap().job.unwrap().state(), job::State::Cancelled);
}

#[tokio::test]
async fn a_key_stands_for_one_job() {
    let cluster = cluster(2, 1).await;
    let clients = [cluster.gateways[0].client().await, cluster.gateways[1].client().await];
    let all =
        (0..6).map(|at| {
            let client = clients[at % 2].clone();
            // whoever has a key may submit again when NATS was too busy
            async move {
                eventually("accepted", async || client.submit(header("one"), texts("one", 40)).await.ok()).await.id
            }
        });
    let ids = futures::future::join_all(all).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    complete(&clients[0], &clients[1].finish(&ids[0]).await.unwrap(), 40).await;
    let reused = Refusal::of(clients[0].submit(header("one"), texts("other", 40)).await);
    assert_eq!((reused.code, reused.reason.as_deref()), (Code::FailedPrecondition, Some("IDEMPOTENCY_KEY_REUSED")));
    assert_eq!(clients[1].all_jobs(10).await.unwrap().len(), 1);
    let mistakes = BTreeMap::from([("items[0].parts", vec![item("none", vec![])]), ("items", vec![])]);
    for (field, items) in mistakes {
        Refusal::of(clients[0].submit(header(""), items).await).blames(field, &["empty"]);
    }
}
