//! Sentence embeddings.

use futures::future::join_all;
use sensorium_tests::samples::{floats, reference};
use sensorium_tests::{Ask, Repository, Server, ServerOptions, cosine};
use serde_json::Value;

use super::client;

#[tokio::test]
async fn embeddings_are_those_of_the_reference() {
    let client = client().await;
    let reference = reference("embeddings");
    let items = reference["items"].as_array().unwrap();
    let texts: Vec<&str> = items.iter().map(|item| item["text"].as_str().unwrap()).collect();
    let together = client.infer(Ask::of("minilm").bytes("text", &texts)).await.unwrap();
    assert_eq!(together.shape("embedding"), [i64::try_from(texts.len()).unwrap(), 384]);
    let together = together.fp32("embedding");
    let mut worst = 1.0f32;
    for ((item, text), row) in items.iter().zip(&texts).zip(together.chunks_exact(384)) {
        let expected = floats(&item["embedding"]);
        let alone = client.infer(Ask::text(text)).await.unwrap().fp32("embedding");
        for got in [row, &alone[..]] {
            let length = got.iter().map(|value| value * value).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 0.01, "length {length}: {text}");
            worst = worst.min(cosine(got, &expected));
        }
        assert!(worst >= 0.998, "cosine {worst}: {text}");
    }
    println!("minilm: worst cosine {worst:.5} of {} texts, alone and together", texts.len());
}

#[tokio::test]
async fn meanings_are_near_where_words_are_not() {
    let client = client().await;
    let texts =
        ["A cat sits on the sofa.", "A kitten is lying on the couch.", "The stock market fell sharply on Monday."];
    let rows = client.infer(Ask::of("minilm").bytes("text", &texts)).await.unwrap().fp32("embedding");
    let row = |n: usize| &rows[n * 384..(n + 1) * 384];
    assert!(cosine(row(0), row(1)) > cosine(row(0), row(2)) + 0.3);
}

#[tokio::test]
async fn what_was_cut_is_said() {
    let client = client().await;
    let long = "word ".repeat(400);
    let given = client.infer(Ask::of("minilm").bytes("text", &["short", &long])).await.unwrap();
    let cut: Vec<Value> = serde_json::from_str(given.parameter_text("truncated")).unwrap();
    assert_eq!(cut.len(), 1, "{cut:?}");
    assert_eq!((cut[0]["row"].as_u64(), cut[0]["limit"].as_u64()), (Some(1), Some(256)), "{cut:?}");
    assert!(cut[0]["tokens"].as_u64() > Some(256), "{cut:?}");
    let short = client.infer(Ask::text("short")).await.unwrap();
    assert!(short.parameter("truncated").is_none());
}

#[tokio::test]
async fn mixed_lengths_waste_little_on_padding() {
    // a server of its own: others' texts would count too
    let server = Server::start(ServerOptions::new(Repository::new().with(&["minilm"]))).await;
    let client = server.client().await;
    let texts = (0..400).map(|n| "word ".repeat(6 + n * 97 % 249));
    let answers = texts.map(|text| {
        let client = &client;
        // some are of one length, and would be answered at once by the cache
        async move { client.infer(Ask::of("minilm").bytes("text", &[text]).set("cache", false)).await }
    });
    for answer in join_all(answers).await {
        answer.unwrap();
    }
    let useful = server.metric("sensorium_batch_useful_tokens_total", &["minilm"]).await;
    let padding = server.metric("sensorium_batch_padding_tokens_total", &["minilm"]).await;
    println!("minilm, 8 to 256 tokens: {:.1} % padding", 100.0 * padding / (useful + padding));
    assert!(useful > 50_000.0 && padding <= 0.15 * (useful + padding), "{padding} of {useful} tokens");
    let statistics = client.statistics("minilm").await;
    assert!(statistics.execution_count < 400, "requests were batched: {statistics:?}");
}
