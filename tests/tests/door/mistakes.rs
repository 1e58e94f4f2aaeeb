//! Callers' mistakes and overlarge inputs: the code, the field, the limit and the size.

use sensorium_proto::inference::{ModelConfigRequest, ModelMetadataRequest, ModelReadyRequest, ModelStatisticsRequest};
use sensorium_tests::samples::{RATE, clip, picture, transcripts, wav};
use sensorium_tests::{Ask, Refusal, chaos};
use tonic::Code;

use super::client;

/// NOT_FOUND, with each of `words` in what is said.
fn unknown(refusal: &Refusal, words: &[&str]) {
    assert_eq!(refusal.code, Code::NotFound, "{refusal:?}");
    assert!(refusal.message.starts_with("Request for unknown model"), "{refusal:?}");
    for word in words {
        assert!(refusal.message.contains(word), "'{word}' in {refusal:?}");
    }
}

#[tokio::test]
async fn unknown_models_and_versions_are_told_what_there_is() {
    let client = client().await;
    unknown(&Refusal::of(client.infer(chaos("identiti", 0.0, 0.0)).await), &["identiti", "identity", "minilm"]);
    let mut version = chaos("identity", 0.0, 0.0);
    "7".clone_into(&mut version.message.model_version);
    unknown(&Refusal::of(client.infer(version.clone()).await), &["version 7", "loaded are 1"]);
    "1".clone_into(&mut version.message.model_version);
    client.infer(version.clone()).await.unwrap();
    "one".clone_into(&mut version.message.model_version);
    Refusal::of(client.infer(version).await).blames("model_version", &["one"]);

    let (name, version) = ("nobody".to_owned(), String::new());
    let mut inference = client.inference.clone();
    // not ready is no error
    for (name, version) in [("nobody", ""), ("nobody", "1"), ("identity", "7")] {
        let request = ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        assert!(!inference.model_ready(request).await.unwrap().into_inner().ready, "{name} {version}");
    }
    let request = ModelReadyRequest { name: "identity".to_owned(), version: "one".to_owned() };
    Refusal::of(inference.model_ready(request).await).blames("version", &["one"]);
    let told = inference.model_metadata(ModelMetadataRequest { name: name.clone(), version: version.clone() }).await;
    unknown(&Refusal::of(told), &["nobody", "identity"]);
    let told = inference.model_config(ModelConfigRequest { name: name.clone(), version: version.clone() }).await;
    unknown(&Refusal::of(told), &["nobody", "identity"]);
    let told = inference.model_statistics(ModelStatisticsRequest { name, version }).await;
    unknown(&Refusal::of(told), &["nobody", "identity"]);
}

#[tokio::test]
async fn undecodable_media_are_named() {
    let client = client().await;
    let image = |bytes: &[u8]| Ask::of("efficientnet-lite0").bytes("image", &[bytes]);
    Refusal::of(client.infer(image(b"no image")).await).blames("image[0]", &["8 bytes"]);
    Refusal::of(client.infer(image(b"")).await).blames("image[0]", &["empty"]);
    let whole = picture("rocket.jpg");
    Refusal::of(client.infer(image(&whole[..200])).await).blames("image[0]", &["200 bytes"]);
    let second = Ask::of("efficientnet-lite0").bytes("image", &[&whole[..], b"no image"]);
    Refusal::of(client.infer(second).await).blames("image[1]", &["8 bytes"]);

    let audio = |bytes: &[u8]| Ask::of("silero-vad").bytes("audio", &[bytes]);
    Refusal::of(client.infer(audio(b"no clip")).await).blames("audio[0]", &["7 bytes", "WAV"]);
    Refusal::of(client.infer(audio(b"")).await).blames("audio[0]", &["empty"]);
    Refusal::of(client.infer(audio(&whole)).await).blames("audio[0]", &["bytes"]);
}

#[tokio::test]
async fn what_is_over_a_limit_is_told_the_limit_and_its_size() {
    let client = client().await;
    let image = |name: &str| Ask::of("small-pictures").bytes("image", &[picture(name)]);
    Refusal::of(client.infer(image("astronaut.png")).await).blames("image[0]", &["791555", "600000"]);
    // 451 x 300 pixels
    Refusal::of(client.infer(image("chelsea.png")).await).blames("image[0]", &["135300", "100000"]);
    let audio = |bytes: Vec<u8>| Ask::of("short-clips").bytes("audio", &[bytes]);
    Refusal::of(client.infer(audio(clip(&transcripts()[0].0))).await).blames("audio[0]", &["227244", "150000"]);
    let long = wav(&vec![0; 2 * RATE as usize + 1000], RATE, 1);
    Refusal::of(client.infer(audio(long)).await).blames("audio[0]", &["2 seconds"]);
    client.infer(audio(wav(&vec![0; 2 * RATE as usize], RATE, 1))).await.unwrap();
    let text = |text: &str| Ask::of("minilm-strict").bytes("text", &[text]);
    Refusal::of(client.infer(text(&"word ".repeat(400))).await).blames("text[0]", &["402", "256"]);
    Refusal::of(client.infer(text(&"word ".repeat(1000))).await).blames("text[0]", &["5000", "4096"]);
    let rows = vec![0.0; 16 * 2049];
    let many = Ask::of("identity").fp32("INPUT0", &[2049, 16], &rows);
    Refusal::of(client.infer(many).await).blames("INPUT0.shape", &["2049", "2048"]);
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    let client = client().await;
    let rows = vec![0.0; 16 * 70_000];
    let refusal = Refusal::of(client.infer(Ask::of("identity").fp32("INPUT0", &[70_000, 16], &rows)).await);
    assert_eq!(refusal.code, Code::InvalidArgument, "{refusal:?}");
    assert!(refusal.message.contains("4000000"), "{refusal:?}");
    client.infer(chaos("identity", 0.0, 0.0)).await.unwrap();
}

#[tokio::test]
async fn parameters_of_the_wrong_kind_are_named() {
    let client = client().await;
    let ask = || chaos("identity", 0.0, 0.0);
    Refusal::of(client.infer(ask().set("timeout", "soon")).await).blames("parameters.timeout", &["soon"]);
    Refusal::of(client.infer(ask().set("priority", -1)).await).blames("parameters.priority", &["0 or more"]);
    client.infer(ask().set("somebody_elses", true)).await.unwrap();
}
