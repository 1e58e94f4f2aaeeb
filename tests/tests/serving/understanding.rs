//! Understand with the whole pack.

use futures::StreamExt;
use sensorium_proto::v1::branch::State;
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::understand_event::Event;
use sensorium_proto::v1::*;
use sensorium_tests::samples::{clip, picture, transcripts};
use sensorium_tests::{Ask, Client, Refusal, within};
use serde_json::Value;
use tonic::Status;

use super::client;

const QUESTION: &str = "Is there an animal in the picture?";

fn part(content: Content) -> Part {
    Part { content: Some(content) }
}

pub(super) fn three_parts() -> Vec<Part> {
    let clip = clip(&transcripts()[1].0);
    vec![
        part(Content::Text("A cat with green eyes looks at us.".to_owned())),
        part(Content::Image(picture("chelsea.png").into())),
        part(Content::Audio(clip.into())),
    ]
}

pub(super) async fn understand(
    client: &Client,
    request: impl tonic::IntoRequest<UnderstandRequest>,
) -> Result<Vec<Event>, Status> {
    let mut events = within(client.sensorium.clone().understand(request)).await?.into_inner();
    let mut all = Vec::new();
    while let Some(event) = within(events.next()).await {
        all.push(event?.event.expect("an event"));
    }
    Ok(all)
}

pub(super) fn result(events: &[Event]) -> &UnderstandResult {
    match events.last() {
        Some(Event::Result(result)) => result,
        other => panic!("the last event is {other:?}, expected the result"),
    }
}

pub(super) fn branch(result: &UnderstandResult, modality: Modality) -> &Branch {
    result.branches.iter().find(|branch| branch.modality() == modality).expect("a branch")
}

pub(super) fn shapley(result: &UnderstandResult, modality: Modality) -> f64 {
    let contributions = &result.fusion.as_ref().unwrap().contributions;
    contributions.iter().find(|contribution| contribution.modality() == modality).expect("a contribution").shapley
}

#[tokio::test]
async fn three_senses_speak_and_the_answer_streams() {
    let client = client().await;
    let request =
        UnderstandRequest { parts: three_parts(), question: QUESTION.to_owned(), ..UnderstandRequest::default() };
    let events = understand(&client, request).await.unwrap();
    let result = result(&events);

    assert_eq!(result.branches.len(), 3);
    for branch in &result.branches {
        assert_eq!((branch.state(), branch.reason.as_str()), (State::Ok, ""), "{:?}", branch.modality());
        assert_eq!(branch.embedding.len(), 384);
        assert!(branch.seconds > 0.0 && !branch.model.as_ref().unwrap().version.is_empty());
    }
    let image = branch(result, Modality::Image);
    assert!(image.labels.len() == 5 && image.labels[0].name.contains("cat"), "{:?}", image.labels);
    assert!(image.words.contains("cat"), "{}", image.words);
    assert_eq!(image.guards.len(), 1);
    let audio = branch(result, Modality::Audio);
    assert!(audio.words.contains("young man"), "{}", audio.words);
    assert!(!audio.segments.is_empty());

    let fusion = result.fusion.as_ref().unwrap();
    let total: f64 = fusion.contributions.iter().map(|contribution| contribution.shapley).sum();
    assert!((total - 1.0).abs() < 1e-3, "{total}");
    assert_eq!((fusion.contributions.len(), fusion.consistency.len(), fusion.embedding.len()), (3, 3, 384));
    let text_image = &fusion.consistency[0];
    assert_eq!((text_image.a(), text_image.b()), (Modality::Text, Modality::Image));
    assert_ne!(text_image.verdict(), consistency::Verdict::Conflict, "{}", text_image.similarity);

    let answer = result.answer.as_ref().unwrap();
    println!("{QUESTION} {}", answer.text);
    assert!(!answer.text.trim().is_empty() && answer.reason.is_empty(), "{answer:?}");
    assert_eq!(answer.alternative_text, image.words);
    assert_eq!(answer.transcript, audio.words);
    assert!(answer.prompt_tokens > 0 && answer.completion_tokens > 1);
    assert_ne!(answer.finish_reason(), FinishReason::Unspecified);
    assert!(!result.degraded);
    for stage in ["text", "image", "audio", "branches", "answer", "total"] {
        assert!(result.timings.iter().any(|timing| timing.stage == stage), "{stage} in {:?}", result.timings);
    }

    // branches, then the fusion, then the answer in pieces
    let order: Vec<u8> = events
        .iter()
        .map(|event| match event {
            Event::Branch(_) => 0,
            Event::Fusion(_) => 1,
            Event::AnswerDelta(_) => 2,
            Event::Result(_) => 3,
        })
        .collect();
    assert!(order.is_sorted(), "{order:?}");
    let pieces: Vec<&str> = events
        .iter()
        .filter_map(|event| if let Event::AnswerDelta(piece) = event { Some(&**piece) } else { None })
        .collect();
    assert!(pieces.len() > 1, "{pieces:?}");
    assert_eq!(pieces.concat(), answer.text);
}

#[tokio::test]
async fn an_answer_is_written_from_what_the_question_is_about() {
    let client = client().await;
    let text = || part(Content::Text("Anna bought two apples and a bottle of milk at the market.".to_owned()));
    let image = || part(Content::Image(picture("chelsea.png").into()));
    let audio = || part(Content::Audio(clip(&transcripts()[1].0).into()));
    for (parts, question, expected) in [
        (vec![text(), image(), audio()], "What is in the picture?", Modality::Image),
        (vec![text(), image(), audio()], "What does the voice say?", Modality::Audio),
        (vec![text(), image(), audio()], "How many apples did Anna buy?", Modality::Text),
        // a letter says something, too
        (vec![text()], "What does it say about Anna?", Modality::Text),
    ] {
        let request = UnderstandRequest {
            parts,
            question: question.to_owned(),
            sampling: Some(Sampling { max_tokens: 8, ..Sampling::default() }),
            ..UnderstandRequest::default()
        };
        let events = understand(&client, request).await.unwrap();
        let answer = result(&events).answer.as_ref().unwrap();
        assert_eq!(answer.evidence().collect::<Vec<_>>(), [expected], "{question} {answer:?}");
    }
}

#[tokio::test]
async fn weight_moves_the_contribution() {
    let client = client().await;
    let with = async |weight: f64| {
        let emphasis =
            vec![Emphasis { modality: Modality::Image.into(), weight: Some(weight), mute: false, budget_ms: None }];
        let parts = three_parts();
        let request = UnderstandRequest { parts, emphasis, no_answer: true, ..UnderstandRequest::default() };
        let events = understand(&client, request).await.unwrap();
        let result = result(&events);
        assert!(result.answer.as_ref().unwrap().text.is_empty());
        shapley(result, Modality::Image)
    };
    let (none, even, heavy) = (with(0.0).await, with(1.0).await, with(5.0).await);
    println!("contribution of the image at weights 0, 1, 5: {none:.3}, {even:.3}, {heavy:.3}");
    assert!(none.abs() < 1e-6 && even > none + 0.05 && heavy > even + 0.05, "{none} {even} {heavy}");
}

#[tokio::test]
async fn parts_at_fault_are_named() {
    let client = client().await;
    let image = |bytes: &[u8]| part(Content::Image(bytes.to_vec().into()));
    let of = |parts| UnderstandRequest { parts, no_answer: true, ..UnderstandRequest::default() };
    let mut parts = three_parts();
    parts[1] = image(b"this is no image at all");
    Refusal::of(understand(&client, of(parts)).await).blames("image", &["23 bytes"]);
    let mut parts = three_parts();
    parts[2] = part(Content::Audio(b"nor is this a clip".to_vec().into()));
    Refusal::of(understand(&client, of(parts)).await).blames("audio", &["18 bytes"]);
    Refusal::of(understand(&client, of(Vec::new())).await).blames("parts", &["empty"]);
    let twice = vec![part(Content::Text("a".to_owned())), part(Content::Text("b".to_owned()))];
    Refusal::of(understand(&client, of(twice)).await).blames("parts[1]", &["at most one"]);
    let weighted = |weight| UnderstandRequest {
        emphasis: vec![Emphasis {
            modality: Modality::Text.into(),
            weight: Some(weight),
            mute: false,
            budget_ms: None,
        }],
        ..of(vec![part(Content::Text("a".to_owned()))])
    };
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        Refusal::of(understand(&client, weighted(weight)).await).blames("emphasis", &["0 or more"]);
    }
}

#[tokio::test]
async fn clients_of_the_inference_protocol_understand_too() {
    let client = client().await;
    let ask = || {
        Ask::of("understand")
            .bytes("text", &["A cat with green eyes looks at us."])
            .bytes("image", &[picture("chelsea.png")])
            .bytes("audio", &[clip(&transcripts()[1].0)])
            .set("question", QUESTION)
            .set("max_tokens", 24)
            .set("modality.image.weight", 2.0)
            .set("modality.audio.mute", true)
    };
    let given = client.infer(ask()).await.unwrap();
    let report: Value = serde_json::from_str(&given.one_text("report")).unwrap();
    let states: Vec<&str> =
        report["branches"].as_array().unwrap().iter().map(|branch| branch["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ok", "ok", "muted"]);
    assert_eq!(
        report["fusion"]["contributions"][1]["weight"].as_f64(),
        Some(2.0),
        "{}",
        report["fusion"]["contributions"]
    );
    assert_eq!(given.shape("embedding"), [1, 384]);
    assert_eq!(report["answer"]["text"].as_str(), Some(given.one_text("answer").as_str()));
    assert!(!given.one_text("answer").is_empty());

    let answers = client.stream(ask().output("report")).await.unwrap();
    assert!(answers.len() > 2, "{} answers", answers.len());
    assert!(answers.iter().all(|answer| answer.error_message.is_empty()), "{answers:?}");
}

#[tokio::test]
async fn generate_answers_from_parts() {
    let client = client().await;
    let request = GenerateRequest {
        prompt: "Which animal is in the picture? Answer with one word.".to_owned(),
        parts: vec![part(Content::Image(picture("chelsea.png").into()))],
        sampling: Some(Sampling { max_tokens: 24, ..Sampling::default() }),
        ..GenerateRequest::default()
    };
    let mut pieces = within(client.sensorium.clone().generate(request)).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(piece) = within(pieces.next()).await {
        text.push_str(&piece.unwrap().text);
    }
    println!("{text}");
    assert!(text.to_lowercase().contains("cat"), "{text}");
}
