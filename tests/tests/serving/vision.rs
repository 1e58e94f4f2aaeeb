//! Pictures: labels, probabilities, features, and every container.

use std::collections::HashSet;

use sensorium_tests::samples::{PICTURES, fixture, floats, picture, reference};
use sensorium_tests::{Ask, cosine};

use super::client;

const CONTAINERS: [&str; 14] = [
    "alpha.png",
    "alpha.webp",
    "animated.gif",
    "cmyk.jpg",
    "cmyk.tiff",
    "grey.jpg",
    "lossless.webp",
    "lossy.webp",
    "palette.png",
    "progressive.jpg",
    "rgb.bmp",
    "rgb.jpg",
    "rgb.tiff",
    "rgb16.png",
];

#[tokio::test]
async fn pictures_are_named_as_the_reference_names_them() {
    let client = client().await;
    let reference = reference("images");
    let items = reference["items"].as_array().unwrap();
    assert_eq!(items.len(), PICTURES.len());
    let mut first = 0;
    for item in items {
        let file = item["file"].as_str().unwrap();
        let wanted: Vec<&str> =
            item["labels"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        let given = client.infer(Ask::of("efficientnet-lite0").bytes("image", &[picture(file)])).await.unwrap();
        let labels = given.texts("labels");
        let probabilities = given.fp32("probabilities");
        let sum: f32 = probabilities.iter().sum();
        assert!((sum - 1.0).abs() < 0.01, "{file}: probabilities add up to {sum}");
        let best = probabilities.iter().copied().fold(0.0, f32::max);
        let expected = floats(&item["probabilities"]);
        println!("{file}: {} {best:.3}, reference {} {:.3}", labels[0], wanted[0], expected[0]);
        assert!((best - expected[0]).abs() < 0.1, "{file}: {best}, reference {}", expected[0]);
        let common = labels.iter().filter(|label| wanted.iter().any(|wanted| label.contains(wanted))).count();
        assert!(common >= 3, "{file}: {labels:?}, reference {wanted:?}");
        if labels[0].contains(wanted[0]) {
            first += 1;
        } else {
            assert!(expected[0] - expected[1] < 0.05, "{file}: {labels:?}, reference {wanted:?}");
        }
        let embedding = given.fp32("embedding");
        let norm = embedding.iter().map(|value| value * value).sum::<f32>().sqrt();
        let expected = item["embedding_norm"].as_f64().unwrap();
        assert!((f64::from(norm) / expected - 1.0).abs() < 0.05, "{file}: norm {norm}, reference {expected}");
    }
    assert!(first >= items.len() - 1, "{first} of {} best labels are the reference's", items.len());
}

#[tokio::test]
async fn several_pictures_of_one_request_are_answered_in_order() {
    let client = client().await;
    let files = ["coffee.png", "camera.png", "rocket.jpg"].map(picture);
    let given = client.infer(Ask::of("efficientnet-lite0").bytes("image", &files)).await.unwrap();
    assert_eq!(given.shape("embedding"), [3, 1280]);
    assert_eq!(given.shape("probabilities"), [3, 1000]);
    assert_eq!(given.shape("labels"), [3, 5]);
    let labels = given.texts("labels");
    for (label, word) in [(&labels[0], "espresso"), (&labels[5], "tripod"), (&labels[10], "missile")] {
        assert!(label.contains(word), "{labels:?}");
    }
}

#[tokio::test]
async fn every_container_is_decoded() {
    let client = client().await;
    for name in CONTAINERS {
        for model in ["efficientnet-lite0", "open-nsfw"] {
            let given = client.infer(Ask::of(model).bytes("image", &[fixture(name)])).await;
            given.unwrap_or_else(|status| panic!("{model} of {name}: {status}"));
        }
    }
}

#[tokio::test]
async fn a_picture_is_the_same_in_every_lossless_container() {
    let client = client().await;
    let names: HashSet<_> = ["rgb.png", "rgb.bmp", "rgb.tiff", "palette.png"].into();
    let files: Vec<_> = names.iter().map(|name| fixture(name)).collect();
    let given = client.infer(Ask::of("efficientnet-lite0").bytes("image", &files)).await.unwrap();
    let embeddings = given.fp32("embedding");
    let mut rows = embeddings.chunks_exact(1280);
    let first = rows.next().unwrap();
    for row in rows {
        assert!(cosine(first, row) > 0.999, "{names:?}");
    }
}
