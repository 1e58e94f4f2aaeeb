//! Text generation.

use futures::StreamExt;
use futures::future::join_all;
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::v1::{FinishReason, GenerateRequest, Sampling};
use sensorium_tests::samples::reference;
use sensorium_tests::{Ask, Client, Given, Refusal, Repository, Server, ServerOptions, within};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::client;

const MODEL: &str = "smollm2-135m";

/// A generator whose numbers do not depend on how many sequences run.
async fn exact() -> Client {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let start = || {
        let settings = [("dtype", "'f32'"), ("generation.int8_max_sequences", "0")];
        Server::start(ServerOptions::new(Repository::new().copy(MODEL, MODEL, &settings)))
    };
    SERVER.get_or_init(start).await.client().await
}

fn greedy(item: &Value) -> Ask {
    let prompt = item["prompt"].as_str().unwrap();
    let tokens = i64::try_from(item["tokens"].as_array().unwrap().len()).unwrap();
    let ask = Ask::of(MODEL).bytes("prompt", &[prompt]).set("max_tokens", tokens);
    ask.set("raw", !item["chat"].as_bool().unwrap())
}

/// Share of the reference's text that was written before the first difference.
fn agreement(got: &str, reference: &str) -> f64 {
    let same = got.bytes().zip(reference.bytes()).take_while(|(a, b)| a == b).count();
    same as f64 / reference.len().max(1) as f64
}

async fn agreements(client: &Client) -> Vec<f64> {
    let reference = reference("generation");
    let mut shares = Vec::new();
    for item in reference["items"].as_array().unwrap() {
        let wanted = item["text"].as_str().unwrap();
        let given = client.infer(greedy(item)).await.unwrap();
        assert_eq!(given.parameter_count("prompt_tokens"), item["prompt_tokens"].as_array().unwrap().len() as u64);
        let got = given.one_text("text");
        let share = agreement(&got, wanted);
        println!("{:3.0} % {:?} margin {}\n  {got:?}\n  {wanted:?}", 100.0 * share, item["prompt"], item["margin"]);
        shares.push(share);
    }
    shares
}

#[tokio::test]
async fn in_full_precision_the_text_is_that_of_the_reference() {
    let shares = agreements(&exact().await).await;
    let exact = shares.iter().filter(|&&share| share >= 1.0).count();
    assert!(exact + 1 >= shares.len(), "{shares:?}: one near tie may fall the other way");
}

#[tokio::test]
async fn as_served_the_text_follows_the_reference_to_the_first_near_tie() {
    let shares = agreements(&client().await).await;
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!(mean >= 0.5, "{mean}: {shares:?}");
}

#[tokio::test]
async fn company_does_not_change_a_text() {
    let client = exact().await;
    let reference = reference("generation");
    let items = reference["items"].as_array().unwrap();
    let mut alone = Vec::new();
    for item in items {
        alone.push(client.infer(greedy(item)).await.unwrap().one_text("text"));
    }
    let crowd = join_all(items.iter().cycle().take(12).map(|item| client.infer(greedy(item)))).await;
    for (given, alone) in crowd.into_iter().zip(alone.iter().cycle()) {
        assert_eq!(&given.unwrap().one_text("text"), alone);
    }
}

#[tokio::test]
async fn the_same_seed_writes_the_same_text() {
    let client = exact().await;
    let write = async |seed: i64| {
        let ask = Ask::prompt("Once upon a time,", 24).set("temperature", 0.8).set("top_p", 0.95).set("seed", seed);
        client.infer(ask).await.unwrap().one_text("text")
    };
    let first = write(1).await;
    assert_eq!(first, write(1).await);
    let others = [write(2).await, write(3).await, write(4).await];
    assert!(others.iter().any(|other| *other != first), "{first:?}");
}

#[tokio::test]
async fn a_text_ends_where_it_is_told_to() {
    let client = client().await;
    let count = Ask::prompt("1, 2, 3, 4, 5,", 40);
    let given = client.infer(count.clone().set("stop", ", 9")).await.unwrap();
    assert_eq!(given.one_text("text"), " 6, 7, 8");
    assert_eq!(given.parameter_text("finish_reason"), "stop");
    let given = client.infer(count.clone().set("stop", r#"["never", ", 8"]"#)).await.unwrap();
    assert_eq!(given.one_text("text"), " 6, 7");
    let given = client.infer(count.set("max_tokens", 5)).await.unwrap();
    assert_eq!((given.parameter_text("finish_reason"), given.parameter_count("completion_tokens")), ("length", 5));
    assert_eq!(given.parameter_count("prompt_tokens"), 14);
}

#[tokio::test]
async fn the_chat_template_is_applied_unless_told_not_to() {
    let client = client().await;
    let ask = Ask::of(MODEL).bytes("prompt", &["What is the capital of Italy?"]).set("max_tokens", 2);
    let chat = client.infer(ask.clone()).await.unwrap().parameter_count("prompt_tokens");
    let raw = client.infer(ask.set("raw", true)).await.unwrap().parameter_count("prompt_tokens");
    assert!(chat == 37 && raw < 10, "{chat} and {raw} tokens");
}

#[tokio::test]
async fn pieces_of_a_stream_are_the_whole_text() {
    let client = exact().await;
    let ask = || Ask::prompt("Once upon a time, in a small village by the sea,", 24).id("a story");
    let whole = client.infer(ask()).await.unwrap();
    let answers = client.stream(ask()).await.unwrap();
    assert!(answers.len() > 4, "{} pieces", answers.len());
    let count = answers.len();
    let mut text = String::new();
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.error_message, "");
        let given = Given(answer.infer_response.unwrap());
        assert_eq!(given.0.id, "a story");
        text.push_str(&given.one_text("text"));
        let last = n + 1 == count;
        assert_eq!(given.parameter("triton_final_response"), Some(&ParameterChoice::BoolParam(last)), "{n}");
        if last {
            assert_eq!(given.parameter_text("finish_reason"), "length");
        }
    }
    assert_eq!(text, whole.one_text("text"));

    let answers = client.stream(ask().set("triton_enable_empty_final_response", true)).await.unwrap();
    let last = Given(answers.last().unwrap().infer_response.clone().unwrap());
    assert!(
        last.0.outputs.is_empty() && last.parameter("triton_final_response") == Some(&ParameterChoice::BoolParam(true))
    );
}

#[tokio::test]
async fn generate_streams_pieces_and_the_reason_of_its_end() {
    let client = client().await;
    let request = GenerateRequest {
        prompt: "1, 2, 3, 4, 5,".to_owned(),
        raw: true,
        sampling: Some(Sampling { max_tokens: 40, stop: vec![", 9".to_owned()], ..Sampling::default() }),
        ..GenerateRequest::default()
    };
    let mut stream = within(client.sensorium.clone().generate(request)).await.unwrap().into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = within(stream.next()).await {
        pieces.push(piece.unwrap());
    }
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(text, " 6, 7, 8");
    let (last, others) = pieces.split_last().unwrap();
    assert!(others.len() > 1 && others.iter().all(|piece| piece.finish_reason() == FinishReason::Unspecified));
    assert_eq!((last.finish_reason(), last.prompt_tokens), (FinishReason::Stop, 14));
    assert_eq!(last.model.as_ref().unwrap().name, MODEL);
}

#[tokio::test]
async fn sampling_out_of_its_range_is_named() {
    let client = client().await;
    let ask = Ask::prompt("Hello", 4);
    for (name, value, word) in
        [("temperature", -1.0, "0 to 10"), ("top_p", 1.5, "0 to 1"), ("top_k", 0.5, "whole number")]
    {
        Refusal::of(client.infer(ask.clone().set(name, value)).await).blames(&format!("parameters.{name}"), &[word]);
    }
    Refusal::of(client.infer(ask.clone().set("max_tokens", 0)).await).blames("parameters.max_tokens", &["0"]);
    let long = "word ".repeat(3000);
    Refusal::of(client.infer(Ask::prompt(&long, 4)).await).blames("prompt", &["1536"]);
    Refusal::of(client.infer(Ask::prompt("", 4)).await).blames("prompt", &["empty"]);
}
