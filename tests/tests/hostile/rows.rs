//! Few bytes that say they are many rows.

use sensorium_tests::{Ask, Neighbours, Refusal};
use tonic::Code;

use super::server;

/// No shape is too large to be refused at once.
#[tokio::test]
async fn shapes_of_more_rows_than_a_model_takes_are_refused() {
    let server = server(&[]).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    for rows in [2049, 10_000_000, 200_000_000, i64::MAX] {
        for (model, input, datatype) in
            [("minilm", "text", "BYTES"), ("identity", "INPUT0", "FP32"), ("chaos", "INPUT0", "FP32")]
        {
            let refusal = Refusal::of(client.infer(Ask::of(model).raw(input, datatype, &[rows, 0], "")).await);
            assert_eq!(refusal.code, Code::InvalidArgument, "{model} {rows}: {refusal:?}");
            assert!(refusal.message.contains("shape"), "{refusal:?}");
        }
    }
    neighbours.were_not_hurt("shapes of many rows").await;
}
