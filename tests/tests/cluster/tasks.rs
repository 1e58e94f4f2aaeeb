//! Tasks of jobs that take long, that change hands, and that are forgotten in the end.

use std::time::Duration;

use sensorium_proto::v1::job;
use sensorium_tests::jobs::header;
use sensorium_tests::{Cluster, Repository, eventually};
use tonic::Code;

use super::jobs::{complete, texts};

/// Gateways to come on a NATS, before a worker whose texts take so many microseconds: a batch waits so long for others.
async fn slow(microseconds: &str) -> Cluster {
    let settings = [("batching.max_queue_delay_us", microseconds)];
    let repository = Repository::new().copy("minilm", "slow", &settings);
    let cluster = Cluster::new(repository).await.with_nats().await;
    let mut cluster = cluster.set("understand.text", "slow").set("understand.text_guard", "");
    cluster.add_worker(&[]);
    cluster
}

#[tokio::test]
async fn a_task_that_takes_longer_than_its_acknowledgement_is_delivered_once() {
    let mut cluster = slow("7_000_000").await;
    (0..2).for_each(|_| cluster.add_gateway());
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    // the tests' clusters wait two seconds for a word of whoever has a task
    let job = client.submit(header("long"), texts("long", 1)).await.unwrap();
    complete(&client, &client.finish(&job.id).await.unwrap(), 1).await;
    assert_eq!(client.statistics("slow").await.inference_count, 1, "it was computed by two at once");
    let mut ended = [0.0; 2];
    for gateway in &cluster.gateways {
        for (count, outcome) in ended.iter_mut().zip(["outcome=\"done\"", "outcome="]) {
            *count += gateway.metric("sensorium_job_tasks_total", &[outcome]).await;
        }
    }
    assert_eq!(ended, [2.0, 2.0], "the sense and the join, once each");
}

#[tokio::test]
async fn a_gateway_that_leaves_hands_its_tasks_to_the_next_at_once() {
    // longer than a drain waits for tasks, of which nobody hears anything for longer than the test has patience
    let mut cluster = slow("10_000_000").await.set("drain_seconds", "4").set("jobs.ack_seconds", "3600");
    cluster.add_gateway();
    cluster.ready().await;
    let leaving = cluster.gateways[0].client().await;
    let job = leaving.submit(header("handed"), texts("handed", 1)).await.unwrap();
    leaving.in_work("slow", 1).await;
    cluster.add_gateway();
    cluster.ready().await;
    let client = cluster.gateways[1].client().await;
    cluster.gateways[0].process.signal("TERM");
    let exit = cluster.gateways[0].process.ended(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    complete(&client, &client.finish(&job.id).await.unwrap(), 1).await;
    let done = cluster.gateways[1].metric("sensorium_job_tasks_total", &["outcome=\"done\""]).await;
    assert!((done - 2.0).abs() < 0.1, "{done} tasks done by who stays");
}

/// What a job is kept for counts from its end: nothing that was accepted is dropped before.
#[tokio::test]
async fn a_job_that_takes_longer_than_it_is_kept_is_done_before_it_is_forgotten() {
    let mut cluster = slow("1_000_000").await.set("jobs.retention_seconds", "6").set("jobs.tasks.concurrency", "2");
    cluster.add_gateway();
    cluster.ready().await;
    let client = cluster.gateways[0].client().await;
    let job = client.submit(header("long"), texts("long", 20)).await.unwrap();
    complete(&client, &client.finish(&job.id).await.unwrap(), 20).await;
    eventually("it is forgotten", async || {
        let told = client.job(&job.id, 1).await;
        told.is_err_and(|status| status.code() == Code::NotFound).then_some(())
    })
    .await;
    assert!(client.dead().await.unwrap().is_empty());
}

#[tokio::test]
async fn jobs_and_their_results_expire() {
    let cluster = Cluster::new(Repository::new().with(&["minilm"])).await.set("understand.text_guard", "");
    let cluster = cluster.set("jobs.retention_seconds", "8").with_nats().await.of(1, 1).await;
    let client = cluster.gateways[0].client().await;
    let job = client.submit(header("short-lived"), texts("short-lived", 3)).await.unwrap();
    complete(&client, &client.finish(&job.id).await.unwrap(), 3).await;
    eventually("it is forgotten", async || {
        let status = match client.job(&job.id, 10).await {
            Err(status) => status,
            Ok(told) => {
                let job = told.job.unwrap();
                assert_eq!((job.state(), job.done), (job::State::Succeeded, 3), "what is over stays so");
                return None;
            }
        };
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains("expired"), "{status:?}");
        Some(())
    })
    .await;
    assert!(client.all_jobs(10).await.unwrap().is_empty());
    // its key stands for another job from now on
    let again = client.submit(header("short-lived"), texts("other", 3)).await.unwrap();
    assert_eq!(client.finish(&again.id).await.unwrap().state(), job::State::Succeeded);
}
