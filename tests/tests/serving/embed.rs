//! `sensorium.v1` Embed.

use sensorium_proto::v1::embed_request::Space;
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{EmbedRequest, Embedding, Modality, Part};
use sensorium_tests::samples::{clip, picture, transcripts};
use sensorium_tests::{Ask, Client, Refusal, cosine, within};
use tonic::Status;

use super::client;

async fn embed(client: &Client, space: Space, contents: Vec<Content>) -> Result<Vec<Embedding>, Status> {
    let parts = contents.into_iter().map(|content| Part { content: Some(content) }).collect();
    let request = EmbedRequest { parts, space: space.into() };
    Ok(within(client.sensorium.clone().embed(request)).await?.into_inner().embeddings)
}

fn parts() -> Vec<Content> {
    let clip = clip(&transcripts()[1].0);
    let text = "A cat looks at the camera.".to_owned();
    vec![Content::Text(text), Content::Image(picture("chelsea.png").into()), Content::Audio(clip.into())]
}

#[tokio::test]
async fn each_sense_has_a_space_of_its_own() {
    let client = client().await;
    let embeddings = embed(&client, Space::Native, parts()).await.unwrap();
    let described: Vec<_> = embeddings.iter().map(|e| (e.modality(), e.values.len())).collect();
    assert_eq!(described, [(Modality::Text, 384), (Modality::Image, 1280), (Modality::Audio, 512)]);
    assert!(embeddings.iter().all(|e| e.values.iter().any(|&value| value != 0.0)));
    let models: Vec<_> = embeddings.iter().map(|e| e.model.clone().unwrap().name).collect();
    assert_eq!(models, ["minilm", "efficientnet-lite0", "whisper-base"]);
}

#[tokio::test]
async fn in_the_shared_space_senses_compare() {
    let client = client().await;
    let mut contents = parts();
    let audio = Ask::of("whisper-base").bytes("audio", &[clip(&transcripts()[1].0)]);
    contents.push(Content::Text(client.infer(audio).await.unwrap().one_text("transcript")));
    let embeddings = embed(&client, Space::Shared, contents).await.unwrap();
    for embedding in &embeddings {
        let length = embedding.values.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!(embedding.values.len() == 384 && (length - 1.0).abs() < 0.01, "{length}");
    }
    let [cat, picture, clip, words] = embeddings.try_into().unwrap();
    let near = |a: &Embedding, b: &Embedding| cosine(&a.values, &b.values);
    assert!(near(&clip, &words) > 0.99, "a clip is where its words are: {}", near(&clip, &words));
    assert!(near(&picture, &cat) > near(&picture, &words) + 0.1, "a cat is nearer to a cat");
}

#[tokio::test]
async fn a_part_at_fault_is_named() {
    let client = client().await;
    for space in [Space::Native, Space::Shared] {
        let contents = vec![Content::Text("fine".to_owned()), Content::Image(b"no image".to_vec().into())];
        Refusal::of(embed(&client, space, contents).await).blames("parts[1]", &["8 bytes"]);
    }
    Refusal::of(embed(&client, Space::Native, Vec::new()).await).blames("parts", &["at least one"]);
}
