//! Numbers that are none, and names that are not known: refused at every edge, and never averaged, kept, or let pass.

use futures::StreamExt;
use sensorium_proto::v1::branch::State;
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::understand_event::Event;
use sensorium_proto::v1::*;
use sensorium_tests::samples::picture;
use sensorium_tests::{Ask, Client, Neighbours, Refusal, Repository, Server, ServerOptions, chaos, within};
use serde_json::Value;
use tonic::{Code, Status};

const NOT_FINITE: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

fn parts() -> Vec<Part> {
    let contents = [Content::Text("A cat looks at us.".to_owned()), Content::Image(picture("chelsea.png").into())];
    contents.map(|content| Part { content: Some(content) }).to_vec()
}

/// The last event.
async fn understand(client: &Client, request: UnderstandRequest) -> Result<UnderstandResult, Status> {
    let mut events = within(client.sensorium.clone().understand(request)).await?.into_inner();
    let mut last = None;
    while let Some(event) = within(events.next()).await {
        last = event?.event;
    }
    match last {
        Some(Event::Result(result)) => Ok(result),
        other => panic!("the last event is {other:?}, expected the result"),
    }
}

fn weighted(weights: [f64; 2]) -> UnderstandRequest {
    let weights = [Modality::Text, Modality::Image].into_iter().zip(weights);
    let emphasis = weights.map(|(modality, weight)| Emphasis {
        modality: modality.into(),
        weight: Some(weight),
        mute: false,
        budget_ms: None,
    });
    UnderstandRequest { parts: parts(), emphasis: emphasis.collect(), no_answer: true, ..UnderstandRequest::default() }
}

async fn submit(client: &Client, header: JobHeader) -> Result<(), Status> {
    let item = JobItem { name: "one".to_owned(), parts: parts() };
    let messages = [Message::Header(header), Message::Item(item)];
    let messages = messages.map(|message| SubmitJobRequest { message: Some(message) });
    within(client.jobs.clone().submit_job(tokio_stream::iter(messages))).await.map(drop)
}

/// A server with a text and an image, and the generator that writes the answer.
async fn server() -> Server {
    let models = ["identity", "minilm", "efficientnet-lite0", "smollm2-135m"];
    let options = ServerOptions::new(Repository::new().with(&models));
    Server::start(options.set("understand.text_guard", "").set("understand.image_guard", "")).await
}

#[tokio::test]
async fn what_is_no_number_or_out_of_range_fails_the_request() {
    let server = server().await;
    let client = server.client().await;
    // what models make of themselves for their first request is nobody's fault
    understand(&client, UnderstandRequest { no_answer: false, ..weighted([1.0, 1.0]) }).await.unwrap();
    let neighbours = Neighbours::beside(&server).await;
    let blames = |refused: Result<(), Status>, field: &str| Refusal::of(refused).blames(field, &[]);

    for number in NOT_FINITE {
        // also where nobody reads it: parameters are kept beside answers
        for name in ["temperature", "somebody_elses"] {
            let ask = chaos("identity", 0.0, 0.0).set(name, number);
            blames(client.infer(ask).await.map(drop), &format!("parameters.{name}"));
        }
        let ask = Ask::of("understand").bytes("text", &["a"]).set("modality.text.weight", number);
        blames(client.infer(ask).await.map(drop), "parameters.modality.text.weight");
        blames(client.infer(Ask::prompt("a", 1).set("temperature", number)).await.map(drop), "parameters.temperature");
        blames(understand(&client, weighted([number, 1.0])).await.map(drop), "emphasis.text.weight");
        let header = JobHeader { emphasis: weighted([1.0, number]).emphasis, ..JobHeader::default() };
        blames(submit(&client, header).await, "emphasis.image.weight");
    }
    blames(understand(&client, weighted([-1.0, 1.0])).await.map(drop), "emphasis.text.weight");

    for (name, wrong) in [
        ("temperature", vec![99.0, -1.0, f64::NAN, f64::INFINITY]),
        ("top_p", vec![1.5, -0.1, f64::NAN, f64::NEG_INFINITY]),
    ] {
        for wrong in wrong {
            let mut sampling = Sampling::default();
            match name {
                "temperature" => sampling.temperature = Some(wrong),
                _ => sampling.top_p = Some(wrong),
            }
            let field = format!("sampling.{name}");
            let request =
                UnderstandRequest { sampling: Some(sampling.clone()), no_answer: false, ..weighted([1.0, 1.0]) };
            blames(understand(&client, request).await.map(drop), &field);
            let request = GenerateRequest {
                prompt: "a".to_owned(),
                parts: parts(),
                sampling: Some(sampling.clone()),
                ..GenerateRequest::default()
            };
            blames(within(client.sensorium.clone().generate(request)).await.map(drop), &field);
            let header = JobHeader { sampling: Some(sampling), ..JobHeader::default() };
            blames(submit(&client, header).await, &field);
            let ask = Ask::of("understand").bytes("text", &["a"]).set(name, wrong);
            blames(client.infer(ask).await.map(drop), &format!("parameters.{name}"));
        }
    }
    let many = Sampling { max_tokens: u32::MAX, ..Sampling::default() };
    let request = UnderstandRequest { sampling: Some(many), ..weighted([1.0, 1.0]) };
    blames(understand(&client, request).await.map(drop), "sampling.max_tokens");
    // a question that the generator cannot read is the caller's as well
    let question = "why ".repeat(20_000);
    let request = UnderstandRequest { question, no_answer: false, ..weighted([1.0, 1.0]) };
    blames(understand(&client, request).await.map(drop), "question");

    let address = format!("http://{}", server.grpc);
    let (code, _, err) = Server::verb(&["infer", "--server", &address, "--text", "a", "--temperature", "99"]).await;
    assert!(code != Some(0) && err.contains("INVALID_ARGUMENT") && err.contains("temperature"), "{code:?} {err}");
    neighbours.were_not_hurt("numbers that are none").await;
}

#[tokio::test]
async fn weights_count_by_their_ratio_and_names_are_spelt_right() {
    let server = server().await;
    let client = server.client().await;
    let fusion = async |weights| understand(&client, weighted(weights)).await.unwrap().fusion.unwrap();
    let plain = fusion([1.0, 1.0]).await;
    let length = |embedding: &[f32]| embedding.iter().map(|value| value * value).sum::<f32>().sqrt();
    for weight in [1e-300, 1e-200, 1e155, 1e300] {
        let fusion = fusion([weight, weight]).await;
        assert!((length(&fusion.embedding) - 1.0).abs() < 1e-3, "{weight}");
        let off = fusion.embedding.iter().zip(&plain.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-3, "{weight}: {off}");
        for (one, other) in fusion.contributions.iter().zip(&plain.contributions) {
            assert!(one.shapley > 0.1 && (one.shapley - other.shapley).abs() < 1e-3, "{weight}: {one:?} {other:?}");
        }
    }
    let text = fusion([1e155, 1e-200]).await;
    let total: f64 = text.contributions.iter().map(|contribution| contribution.shapley).sum();
    assert!((total - 1.0).abs() < 1e-6 && (length(&text.embedding) - 1.0).abs() < 1e-3, "{:?}", text.contributions);

    let misspelt = [
        (Ask::prompt("a", 1), "temprature", "did you mean temperature?"),
        (Ask::prompt("a", 1), "max_token", "did you mean max_tokens?"),
        (Ask::text("a"), "truncate", "expected none"),
        (Ask::of("efficientnet-lite0").bytes("image", &[picture("chelsea.png")]), "top_k", "expected none"),
        (Ask::of("understand").bytes("text", &["a"]), "modality.smell.weight", "modality."),
        (Ask::of("understand").bytes("text", &["a"]), "temprature", "did you mean temperature?"),
    ];
    for (ask, name, words) in misspelt {
        let refusal = Refusal::of(client.infer(ask.set(name, 1)).await);
        refusal.blames(&format!("parameters.{name}"), &["unknown", words]);
    }
    // what Triton's clients send of their own accord means nothing here, and a user's own model may read anything
    let reserved = [
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "headers",
        "triton_enable_empty_final_response",
        "binary_data_output",
    ];
    let ask = reserved.into_iter().fold(Ask::text("a"), |ask, name| ask.set(name, true));
    client.infer(ask.set("priority", 1).set("timeout", 60_000_000).set("cache", false)).await.unwrap();
    client.infer(chaos("identity", 0.0, 0.0).set("temprature", 0.5)).await.unwrap();
}

/// The guard's weights, and those of the image model, are NaN; whoever finds that first, no text passes for it.
#[tokio::test]
async fn a_score_that_is_no_number_lets_nothing_pass() {
    let repository = Repository::new()
        .with(&["identity", "minilm"])
        .without_numbers("prompt-guard", "nan-guard")
        .without_numbers("efficientnet-lite0", "nan-net");
    let options = ServerOptions::new(repository)
        .set("understand.image", "nan-net")
        .set("understand.image_guard", "")
        .set("understand.text_guard", "nan-guard")
        .set("understand.text_guard_blocks", "true");
    let server = Server::start(options).await;
    let client = server.client().await;
    let result = understand(&client, weighted([1.0, 1.0])).await.unwrap();
    let branch = |modality| result.branches.iter().find(|branch| branch.modality() == modality).unwrap();
    let text = branch(Modality::Text);
    assert!(text.state() == State::Blocked && text.reason.contains("cannot judge"), "{text:?}");
    assert!(text.words.is_empty() && text.embedding.is_empty(), "{text:?}");
    let [guard] = text.guards.as_slice() else { panic!("{text:?}") };
    assert!(guard.score.is_none() && guard.blocked && !guard.triggered, "{guard:?}");
    let image = branch(Modality::Image);
    assert!(image.state() == State::Failed && image.reason.contains("nan-net"), "{image:?}");
    assert!(image.labels.is_empty() && image.embedding.is_empty(), "{image:?}");
    assert!(result.degraded && result.fusion.is_none_or(|fusion| fusion.embedding.is_empty()));
    assert!(server.metric("sensorium_guard_failures_total", &["nan-guard"]).await > 0.0);

    // in JSON there is no NaN, which could not be read back
    let ask = Ask::of("understand").bytes("text", &["A cat."]).set("no_answer", true);
    let report = client.infer(ask).await.unwrap().one_text("report");
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(
        (&report["branches"][0]["state"], &report["branches"][0]["guards"][0]["score"]),
        (&"blocked".into(), &Value::Null)
    );

    // and a part of it alone
    let part = Part { content: Some(Content::Text("A cat.".to_owned())) };
    let request = EmbedRequest { parts: vec![part], space: embed_request::Space::Shared.into() };
    let refusal = Refusal::of(within(client.sensorium.clone().embed(request)).await);
    assert_eq!(refusal.code, Code::FailedPrecondition, "{refusal:?}");
}
