//! One slow sense: the answer comes within the deadline, by a smaller model or without it, and says so.

use std::time::Duration;

use sensorium_proto::v1::branch::State;
use sensorium_proto::v1::*;
use sensorium_tests::samples::{clip, transcripts};
use sensorium_tests::{Ask, Client, Repository, Server, ServerOptions};

use super::understanding::{branch, result, three_parts, understand};

/// A batch waits so long for others: whoever comes alone is slow, on whatever machine.
const SLOW: (&str, &str) = ("batching.max_queue_delay_us", "9_000_000");
/// What the caller grants: less than that, and more than the small model takes.
const DEADLINE: Duration = Duration::from_secs(7);

/// `whisper-base` is slow and `whisper-tiny-en` has these settings; there is no generator to wait for.
async fn server(small: &[(&str, &str)]) -> Server {
    let repository = Repository::new().copy("whisper-base", "large", &[SLOW, ("routing.fallback", "\"small\"")]);
    hearing_with_large(repository.copy("whisper-tiny-en", "small", small)).await
}

/// A server whose ear is the model `large` of `repository`, and whose other senses are those of the pack.
async fn hearing_with_large(repository: Repository) -> Server {
    let options = ServerOptions::new(repository.with(&["minilm", "efficientnet-lite0", "silero-vad"]))
        .set("understand.audio", "large")
        .set("understand.image_guard", "")
        .set("understand.text_guard", "");
    Server::start(options).await
}

/// Lets calls tell how long the models take: what nobody has measured of late is tried.
async fn measure(client: &Client, models: &[&str]) {
    let clip = clip(&transcripts()[1].0);
    let asks = models.iter().map(|model| client.infer(Ask::of(model).bytes("audio", &[&clip])));
    futures::future::join_all(asks).await.into_iter().for_each(|answer| drop(answer.unwrap()));
}

/// The whole of it within the deadline: past that the status would be DEADLINE_EXCEEDED.
async fn understood(client: &Client) -> UnderstandResult {
    let mut request = UnderstandRequest { parts: three_parts(), no_answer: true, ..UnderstandRequest::default() };
    request.question = "What is this?".to_owned();
    let mut request = tonic::Request::new(request);
    request.set_timeout(DEADLINE);
    result(&understand(client, request).await.unwrap()).clone()
}

fn others_speak(result: &UnderstandResult) {
    for modality in [Modality::Text, Modality::Image] {
        let branch = branch(result, modality);
        assert!(branch.state() == State::Ok && branch.reason.is_empty(), "{branch:?}");
    }
}

#[tokio::test]
async fn a_smaller_model_answers_where_the_asked_one_cannot_in_time() {
    let server = server(&[]).await;
    let client = server.client().await;
    // nobody knows yet that it is slow: it is tried, and left out at its budget
    let result = understood(&client).await;
    let audio = branch(&result, Modality::Audio);
    assert_eq!(audio.state(), State::Late, "{}", audio.reason);
    assert!(audio.reason.contains("missed its budget") && result.degraded, "{}", audio.reason);
    others_speak(&result);

    measure(&client, &["large"]).await;
    heard_by_small(&client, "large was expected to take").await;
    for (model, why) in [("small", "it answered"), ("large", "it was not begun in vain")] {
        assert_eq!(client.statistics(model).await.execution_count, 1, "{model}: {why}");
    }
}

/// That a smaller model answers for `large`, and how the reason begins.
async fn heard_by_small(client: &Client, why: &str) {
    let result = understood(client).await;
    let audio = branch(&result, Modality::Audio);
    println!("{}", audio.reason);
    assert_eq!(audio.state(), State::Ok, "{}", audio.reason);
    assert_eq!(audio.model.as_ref().unwrap().name, "small");
    assert!(audio.reason.starts_with(&format!("answered by small: {why}")), "{}", audio.reason);
    assert!(audio.words.contains("young man"), "{}", audio.words);
    assert!(result.degraded, "a smaller model is not what was asked for");
    others_speak(&result);
}

#[tokio::test]
async fn a_smaller_model_answers_where_the_asked_one_is_full_or_gone() {
    let large = [SLOW, ("routing.fallback", "\"small\""), ("batching.max_queue_size", "1")];
    let repository = Repository::new().copy("whisper-base", "large", &large);
    let server = hearing_with_large(repository.copy("whisper-tiny-en", "small", &[])).await;
    let client = server.client().await;
    // another clip: whoever asks for the same one waits for its answer
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.infer(Ask::of("large").bytes("audio", &[clip(&transcripts()[0].0)])).await })
    };
    client.in_work("large", 1).await;
    heard_by_small(&client, "the queue of large is full").await;
    waiting.await.unwrap().unwrap();
    // who held it had told what takes its place
    client.unload("large").await.unwrap();
    heard_by_small(&client, "Request for unknown model 'large'").await;
    client.unload("small").await.unwrap();
    let result = understood(&client).await;
    let audio = branch(&result, Modality::Audio);
    assert!(audio.state() == State::Failed && audio.reason.contains("'large'"), "{audio:?}");
    others_speak(&result);
}

/// Nobody is in a hurry here: no deadline, but a budget of the model or of the request for its branch.
#[tokio::test]
async fn a_branch_has_the_budget_that_its_model_and_its_request_give_it() {
    let large = [SLOW, ("routing.budget_ms", "3000")];
    let server = hearing_with_large(Repository::new().copy("whisper-tiny-en", "large", &large)).await;
    let client = server.client().await;
    let heard = async |budget_ms: Option<u32>| {
        let emphasis = vec![Emphasis { modality: Modality::Audio.into(), budget_ms, ..Emphasis::default() }];
        let request =
            UnderstandRequest { parts: three_parts(), emphasis, no_answer: true, ..UnderstandRequest::default() };
        let answer = understand(&client, request).await.unwrap();
        others_speak(result(&answer));
        assert!(result(&answer).degraded);
        let audio = branch(result(&answer), Modality::Audio);
        assert_eq!(audio.state(), State::Late, "{audio:?}");
        audio.reason.clone()
    };
    // nobody knows yet how long it takes
    for budget in [None, Some(1000)] {
        let reason = heard(budget).await;
        assert!(reason.contains("missed its budget"), "{reason}");
    }
    measure(&client, &["large"]).await;
    // the request may ask for less than the model is given, not for more
    for (asked, budget) in [(None, 3000), (Some(1000), 1000), (Some(60_000), 3000)] {
        let reason = heard(asked).await;
        assert!(reason.contains(&format!("of a budget of {budget} ms")), "{asked:?}: {reason}");
    }
}

#[tokio::test]
async fn a_sense_that_no_model_makes_in_time_is_not_begun() {
    let server = server(&[SLOW]).await;
    let client = server.client().await;
    measure(&client, &["large", "small"]).await;
    let result = understood(&client).await;
    let audio = branch(&result, Modality::Audio);
    println!("{}", audio.reason);
    assert_eq!(audio.state(), State::Late, "{}", audio.reason);
    for word in ["not begun", "large was expected to take", "small"] {
        assert!(audio.reason.contains(word), "'{word}' in {}", audio.reason);
    }
    assert!(result.degraded && audio.words.is_empty());
    others_speak(&result);
    assert_eq!(result.fusion.as_ref().unwrap().contributions.len(), 2);
    for model in ["large", "small"] {
        assert_eq!(client.statistics(model).await.execution_count, 1, "{model}");
    }
}
