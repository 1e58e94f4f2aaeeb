//! Weights that hold NaN, and what they would make of an answer.

use futures::future::join_all;
use sensorium_tests::{Ask, Neighbours, Refusal, Repository, Server, ServerOptions, samples};
use tonic::Code;

use super::index;

/// `[UNK]` of the vocabulary: no word of the neighbours, and no id of the warm-up.
const UNKNOWN: usize = 100;
/// What the tokeniser has no word for.
const RARE: &str = "\u{13000}";

#[tokio::test]
async fn nan_is_a_failure_and_never_an_answer() {
    let optional = [("required", "false")];
    let repository = Repository::new()
        .with(&["identity", "minilm"])
        .reweighted("minilm", "rare", &optional, |weights| {
            weights.get_mut("embeddings.word_embeddings.weight").unwrap().spoil_row(UNKNOWN);
        })
        .reweighted("minilm", "nan-text", &optional, |weights| {
            weights.get_mut("embeddings.LayerNorm.weight").unwrap().spoil();
        })
        .reweighted("prompt-guard", "nan-guard", &optional, |weights| {
            weights.get_mut("layers.0.weight").unwrap().spoil_row(3);
        })
        .reweighted("efficientnet-lite0", "nan-image", &optional, |weights| {
            weights.get_mut("classifier.weight").unwrap().spoil_row(2);
        })
        .reweighted("smollm2-135m", "nan-words", &optional, |weights| {
            weights.get_mut("model.norm.weight").unwrap().spoil();
        });
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;

    // a version that computes NaN in its warm-up does not become ready
    let text = |model: &str| Ask::of(model).bytes("text", &["hello"]);
    let asks = [
        text("nan-text"),
        text("nan-guard"),
        Ask::of("nan-image").bytes("image", &[samples::picture("chelsea.png")]),
        Ask::of("nan-words").bytes("prompt", &["hello"]),
    ];
    for ask in asks {
        let model = ask.message.model_name.clone();
        let (state, reason) = index(&client).await[&model].clone();
        assert!(state == "UNAVAILABLE" && reason.contains("NaN"), "{model}: {state}: {reason}");
        let refusal = Refusal::of(client.infer(ask).await);
        assert_eq!(refusal.code, Code::FailedPrecondition, "{model}: {refusal:?}");
        client.unload(&model).await.unwrap();
    }

    // one that computes it for some inputs only answers the others, also beside them
    let neighbours = Neighbours::beside(&server).await;
    let rare = |text: &str| client.infer(Ask::of("rare").bytes("text", &[text]));
    for _ in 0..3 {
        let refusal = Refusal::of(rare(RARE).await);
        assert_eq!(refusal.code, Code::Internal, "kept as an answer: {refusal:?}");
        assert!(refusal.message.contains("NaN"), "{refusal:?}");
    }
    let texts: Vec<String> = (0..60).map(|n| format!("text {n}{}", if n % 10 == 3 { RARE } else { "" })).collect();
    for (n, answer) in join_all(texts.iter().map(|text| rare(text))).await.into_iter().enumerate() {
        if n % 10 == 3 {
            assert_eq!(Refusal::of(answer).code, Code::Internal);
        } else {
            assert!(answer.unwrap().fp32("embedding").iter().all(|value| value.is_finite()), "text {n}");
        }
    }
    assert!(server.metric("sensorium_non_finite_outputs_total", &["model=\"rare\""]).await > 8.5);
    assert_eq!(client.actor("text/rare/1/replica-0").await.restarts, 0, "its device is sound");
    neighbours.were_not_hurt("texts whose embedding is NaN").await;
}
