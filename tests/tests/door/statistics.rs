//! ModelStatistics tells true figures.

use futures::future::join_all;
use sensorium_proto::inference::ModelStatisticsRequest;
use sensorium_tests::{Ask, Repository, Server, ServerOptions, chaos};

#[tokio::test]
async fn counts_are_those_of_the_requests() {
    let server = Server::start(ServerOptions::new(Repository::new().with(&["identity"]).chaos("chaos", &[]))).await;
    let client = server.client().await;
    let before = client.statistics("chaos").await;
    assert_eq!((before.inference_count, before.execution_count, before.last_inference), (0, 0, 0));

    let single = join_all((0..30).map(|n| client.infer(chaos("chaos", -20.0, n as f32)))).await;
    single.into_iter().for_each(|answer| drop(answer.unwrap()));
    client.infer(Ask::of("chaos").fp32("INPUT0", &[5, 16], &[0.0; 80])).await.unwrap();
    client.infer(Ask::of("chaos").fp32("INPUT0", &[1, 15], &[0.0; 15])).await.unwrap_err();
    client.infer(chaos("chaos", f32::NEG_INFINITY, 0.0)).await.unwrap_err();

    let after = client.statistics("chaos").await;
    assert_eq!(after.inference_count, 35, "{after:?}");
    assert!(after.execution_count < 32, "requests were batched: {after:?}");
    assert!(after.last_inference > 0);
    let figures = after.inference_stats.as_ref().unwrap();
    assert_eq!(figures.success.as_ref().unwrap().count, 31, "{after:?}");
    assert_eq!(figures.fail.as_ref().unwrap().count, 2, "{after:?}");
    let compute = figures.compute_infer.as_ref().unwrap();
    assert!(compute.count == 35 && compute.ns > 20_000_000, "{after:?}");
    assert_eq!(figures.queue.as_ref().unwrap().count, 35, "{after:?}");

    let batches = |size: u64| after.batch_stats.iter().filter(move |batch| batch.batch_size == size);
    let executed =
        |stats: &sensorium_proto::inference::InferBatchStatistics| stats.compute_infer.as_ref().unwrap().count;
    assert_eq!(after.batch_stats.iter().map(|batch| batch.batch_size * executed(batch)).sum::<u64>(), 35);
    assert_eq!(after.batch_stats.iter().map(executed).sum::<u64>(), after.execution_count);
    assert!(batches(5).count() == 1 || after.batch_stats.iter().any(|batch| batch.batch_size > 5), "{after:?}");

    let metric = async |name: &str, labels: &[&str]| server.metric(name, labels).await.round() as u64;
    assert_eq!(metric("sensorium_requests_total", &["model=\"chaos\"", "code=\"ok\""]).await, 31);
    assert_eq!(metric("sensorium_requests_total", &["model=\"chaos\"", "code=\"invalid_argument\""]).await, 1);
    assert_eq!(metric("sensorium_requests_total", &["model=\"chaos\"", "code=\"internal\""]).await, 1);
    assert_eq!(metric("sensorium_batch_size_sum", &["model=\"chaos\""]).await, 35);

    let all = client.inference.clone().model_statistics(ModelStatisticsRequest::default()).await.unwrap().into_inner();
    let names: Vec<&str> = all.model_stats.iter().map(|stats| stats.name.as_str()).collect();
    assert_eq!(names, ["chaos", "identity"]);
}

#[tokio::test]
async fn an_inference_of_a_generator_is_a_prompt() {
    let server = Server::start(ServerOptions::new(Repository::new().with(&["smollm2-135m"]))).await;
    let client = server.client().await;
    let prompts = join_all((0..3).map(|_| client.infer(Ask::prompt("1, 2, 3, 4, 5,", 8)))).await;
    prompts.into_iter().for_each(|answer| drop(answer.unwrap()));
    let statistics = client.statistics("smollm2-135m").await;
    assert_eq!(statistics.inference_count, 3, "{statistics:?}");
    assert!(statistics.execution_count >= 8, "{statistics:?}");
    let tokens = server.metric("sensorium_generated_tokens_total", &[]).await;
    assert!((tokens - 24.0).abs() < 0.1, "{tokens} tokens");
}
