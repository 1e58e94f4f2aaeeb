//! Few bytes that say they are many rows.

use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{EmbedRequest, Part};
use sensorium_tests::{Ask, Neighbours, Refusal, within};
use tonic::Code;

use super::server;

/// No shape is too large to be refused at once, whatever its tail, and whether or not the cache knows the rows.
#[tokio::test]
async fn more_rows_than_a_model_takes_are_refused_before_anything_is_made_of_them() {
    let server = server(&[]).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    let is_refused = |refusal: Refusal, what: &str| {
        assert_eq!(refusal.code, Code::InvalidArgument, "{what}: {refusal:?}");
        assert!(refusal.fields.iter().any(|(field, _)| field.ends_with(".shape")), "{what}: {refusal:?}");
    };
    let inputs = [("minilm", "text", "BYTES"), ("identity", "INPUT0", "FP32"), ("wide", "INPUT0", "FP32")];
    for rows in [-1, 0, 2049, 10_000_000, 200_000_000, i64::MAX] {
        for (model, input, datatype) in inputs {
            let ask = Ask::of(model).raw(input, datatype, &[rows, 0], "");
            is_refused(Refusal::of(client.infer(ask.clone()).await), &format!("{model} {rows}"));
            let streamed = client.stream(ask).await.unwrap();
            assert!(streamed[0].error_message.contains("shape"), "{model} {rows}: {streamed:?}");
        }
    }
    for shape in [vec![1, 0], vec![2, 0, 3], vec![i64::MAX, i64::MAX], vec![0], vec![-1]] {
        let ask = Ask::of("minilm").raw("text", "BYTES", &shape, "");
        is_refused(Refusal::of(client.infer(ask).await), &format!("{shape:?}"));
    }
    // millions of empty texts, said and unsaid
    let empty = vec![0u8; 4 << 20];
    is_refused(
        Refusal::of(client.infer(Ask::of("minilm").raw("text", "BYTES", &[1 << 20], empty.clone())).await),
        "said",
    );
    let unsaid = Refusal::of(client.infer(Ask::of("minilm").raw("text", "BYTES", &[1], empty.clone())).await);
    assert_eq!(unsaid.code, Code::InvalidArgument, "{unsaid:?}");
    let understood = Ask::of("understand").raw("text", "BYTES", &[1 << 20], empty);
    is_refused(Refusal::of(client.infer(understood).await), "understand");
    // what is known to the cache is refused as well
    let words: Vec<String> = (0..2100).map(|n| format!("word {}", n % 50)).collect();
    for _ in 0..2 {
        is_refused(Refusal::of(client.infer(Ask::of("minilm").bytes("text", &words)).await), "cold and warm");
        client.infer(Ask::of("minilm").bytes("text", &words[..50])).await.unwrap();
    }
    let parts = vec![Part { content: Some(Content::Text(String::new())) }; 10_000];
    let many = within(client.sensorium.clone().embed(EmbedRequest { parts, ..Default::default() })).await;
    assert_eq!(Refusal::of(many.map(drop)).code, Code::InvalidArgument);
    neighbours.were_not_hurt("shapes of many rows").await;
}
