//! Equal requests at the same time, of which some turn away; and rows that are asked alone and in company.

use std::time::Duration;

use futures::future::join_all;
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_tests::samples::{RATE, samples, transcripts, wav};
use sensorium_tests::{Ask, Client, Repository, Server, ServerOptions};
use tonic::Code;

const EQUALS: usize = 60;

async fn rows_computed(client: &Client, model: &str) -> u64 {
    client.statistics(model).await.inference_count
}

/// Of requests that ask the same, the first that has to wait for nobody computes. When its caller leaves, another one does
/// it, and not all of them.
async fn whoever_leaves_is_followed_by_one(client: &Client) {
    let rounds = 6;
    let before = rows_computed(client, "minilm").await;
    for round in 0..rounds {
        let row = |n: usize| format!("in round {round} all ask for this sentence, the {n}th of a few");
        let first = [row(0), row(1), row(2)];
        // by its deadline, or because its caller resets the stream
        let (one, other) = (client.clone(), client.clone());
        let asked = first.clone();
        let impatient = async move {
            match round % 2 {
                0 => drop(one.infer(Ask::of("minilm").bytes("text", &asked).deadline(2)).await),
                _ => {
                    let asked = one.infer(Ask::of("minilm").bytes("text", &asked).deadline(20_000));
                    drop(tokio::time::timeout(Duration::from_millis(2), asked).await);
                }
            }
        };
        let patient = join_all((0..EQUALS).map(|n| {
            let (client, rows) = (other.clone(), [row(n % 3), row((n + 1) % 3)]);
            async move { client.infer(Ask::of("minilm").bytes("text", &rows).deadline(20_000)).await }
        }));
        let ((), answers) = tokio::join!(impatient, patient);
        for answer in answers {
            assert_eq!(answer.unwrap().shape("embedding"), [2, 384]);
        }
    }
    let computed = rows_computed(client, "minilm").await - before;
    // each row once, and those that the impatient ones had begun
    assert!(computed <= 2 * 3 * rounds, "{computed} rows were computed");
}

/// What fails for one fails for each, and nobody waits for the others to fail one after the other.
async fn what_cannot_be_computed_fails_for_each(client: &Client) {
    let bad = || Ask::of("whisper-tiny-en").bytes("audio", &["this is no sound"]).deadline(60_000);
    for answer in join_all((0..20).map(|_| client.infer(bad()))).await {
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
}

/// The same is said of a clip whether it is asked alone or in company, cached or not.
async fn a_transcript_says_the_same_alone_and_in_company(client: &Client) {
    let short = |name: &str| wav(&samples(name)[..2 * RATE as usize], RATE, 1);
    let clips: Vec<Vec<u8>> = transcripts().iter().take(3).map(|(name, _)| short(name)).collect();
    let asked = |clips: &[&[u8]]| Ask::of("whisper-tiny-en").bytes("audio", clips).deadline(250_000);
    let [a, b, c] = [0, 1, 2].map(|at| clips[at].as_slice());
    let together = client.infer(asked(&[a, b])).await.unwrap();
    let rows: serde_json::Value = serde_json::from_str(together.parameter_text("rows")).unwrap();
    let before = rows_computed(client, "whisper-tiny-en").await;
    let alone = client.infer(asked(&[a])).await.unwrap();
    for said in ["audio_seconds", "speech_seconds"] {
        let Some(ParameterChoice::DoubleParam(value)) = alone.parameter(said) else { panic!("{said} of {alone:?}") };
        assert_eq!(rows[0][said], *value);
    }
    assert_eq!(alone.0.parameters.len(), rows[0].as_object().unwrap().len() - 1, "{alone:?} and {}", rows[0]);
    assert_eq!((&rows[0]["row"], &rows[1]["row"]), (&0.into(), &1.into()));
    let again = client.infer(asked(&[b, a])).await.unwrap();
    let swapped: serde_json::Value = serde_json::from_str(again.parameter_text("rows")).unwrap();
    assert_eq!(swapped[1]["audio_seconds"], rows[0]["audio_seconds"]);
    assert_eq!(rows_computed(client, "whisper-tiny-en").await, before, "all of it was known");
    // one that was asked alone first
    client.infer(asked(&[c])).await.unwrap();
    let before = rows_computed(client, "whisper-tiny-en").await;
    let three = client.infer(asked(&[a, c, b])).await.unwrap();
    assert_eq!(three.shape("transcript"), [3]);
    assert_eq!(rows_computed(client, "whisper-tiny-en").await, before, "all of it was known");
    let past = client.infer(asked(&[a, c, b]).set("cache", false)).await.unwrap();
    assert_eq!(past.parameter_text("rows"), three.parameter_text("rows"));
}

#[tokio::test]
async fn equal_rows_are_computed_once_whoever_leaves_and_in_whatever_company() {
    let repository = Repository::new().with(&["minilm", "silero-vad", "whisper-tiny-en"]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    whoever_leaves_is_followed_by_one(&client).await;
    what_cannot_be_computed_fails_for_each(&client).await;
    a_transcript_says_the_same_alone_and_in_company(&client).await;
}
