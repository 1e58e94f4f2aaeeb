//! `bert` and `mlp`: sentence embeddings and the guard over them.

use sensorium_actors::engine::{Batch, Engine, Error};
use sensorium_actors::manifest::Dtype;
use sensorium_actors::tensor::Tensor;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::support::{Calm, call, cosine, engine, manifest, reference};

#[derive(Deserialize)]
struct Reference {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    text: String,
    tokens: usize,
    embedding: Vec<f32>,
    injection_probability: f32,
}

fn items() -> Vec<Item> {
    reference::<Reference>("embeddings").items
}

fn tokenise(text: &str) -> Vec<i64> {
    let (_, directory) = manifest("minilm");
    let tokenizer = Tokenizer::from_file(directory.join("tokenizer.json")).unwrap();
    let ids: Vec<i64> = tokenizer.encode_fast(text, true).unwrap().get_ids().iter().copied().map(i64::from).collect();
    if ids.len() <= 256 { ids } else { ids[..255].iter().chain(&ids[ids.len() - 1..]).copied().collect() }
}

/// Embeddings of a padded batch.
fn embed(engine: &mut dyn Engine, rows: &[Vec<i64>]) -> Vec<Vec<f32>> {
    let width = rows.iter().map(Vec::len).max().unwrap();
    let shape = vec![rows.len() as i64, width as i64];
    let pad = |row: &Vec<i64>, of: fn(i64) -> i64| -> Vec<i64> {
        row.iter().map(|&id| of(id)).chain(std::iter::repeat_n(0, width - row.len())).collect()
    };
    let ids: Vec<i64> = rows.iter().flat_map(|row| pad(row, |id| id)).collect();
    let mask: Vec<i64> = rows.iter().flat_map(|row| pad(row, |_| 1)).collect();
    let inputs = vec![Tensor::from_i64(shape.clone(), &ids).unwrap(), Tensor::from_i64(shape, &mask).unwrap()];
    let outputs = call(engine, inputs);
    outputs.tensors[0].to_f32().unwrap().chunks_exact(384).map(<[f32]>::to_vec).collect()
}

#[test]
fn f32_embeddings_are_those_of_transformers() {
    let mut engine = engine("minilm", Some(Dtype::F32));
    for item in items() {
        let ids = tokenise(&item.text);
        assert_eq!(ids.len(), item.tokens, "{}", item.text);
        let found = embed(engine.as_mut(), &[ids]);
        let cosine = cosine(&found[0], &item.embedding);
        assert!(cosine > 0.99999, "cosine {cosine} for {:?}", item.text);
    }
}

#[test]
fn bf16_embeddings_stay_close() {
    let mut engine = engine("minilm", Some(Dtype::Bf16));
    let items = items();
    let rows: Vec<Vec<i64>> = items.iter().map(|item| tokenise(&item.text)).collect();
    for (item, found) in items.iter().zip(embed(engine.as_mut(), &rows)) {
        let cosine = cosine(&found, &item.embedding);
        assert!(cosine > 0.998, "cosine {cosine} for {:?}", item.text);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for (dtype, floor) in [(Dtype::F32, 0.999_999), (Dtype::Bf16, 0.9995)] {
        let mut engine = engine("minilm", Some(dtype));
        let rows: Vec<Vec<i64>> = items().iter().map(|item| tokenise(&item.text)).collect();
        let together = embed(engine.as_mut(), &rows);
        for (row, together) in rows.iter().zip(&together) {
            let alone = embed(engine.as_mut(), std::slice::from_ref(row));
            let cosine = cosine(&alone[0], together);
            assert!(cosine > floor, "{dtype:?}: cosine {cosine}");
        }
        assert_eq!(together, embed(engine.as_mut(), &rows), "the same batch gives the same bits");
    }
}

#[test]
fn guard_scores_are_those_of_the_reference() {
    let mut guard = engine("prompt-guard", None);
    let items = items();
    let features: Vec<f32> = items.iter().flat_map(|item| item.embedding.clone()).collect();
    let features = Tensor::from_f32(vec![items.len() as i64, 384], &features).unwrap();
    let outputs = call(guard.as_mut(), vec![features]);
    for (item, score) in items.iter().zip(outputs.tensors[0].to_f32().unwrap()) {
        assert!((score - item.injection_probability).abs() < 1e-3, "{score} for {:?}", item.text);
    }
}

#[test]
fn bad_inputs_are_the_callers_fault() {
    let mut engine = engine("minilm", None);
    let mut refuse = |ids: Tensor, mask: Tensor, says: &str| {
        let rows = ids.rows();
        let error = engine.forward(Batch { tensors: vec![ids, mask], rows }, &Calm).unwrap_err();
        assert!(matches!(&error, Error::Input(message) if message.contains(says)), "{error}");
    };
    let ints = |shape: &[i64], value: i64| {
        Tensor::from_i64(shape.to_vec(), &vec![value; shape.iter().product::<i64>() as usize]).unwrap()
    };
    refuse(ints(&[1, 3], 30_522), ints(&[1, 3], 1), "expected 0 to 30521");
    refuse(ints(&[1, 3], -1), ints(&[1, 3], 1), "expected 0 to 30521");
    refuse(ints(&[1, 513], 5), ints(&[1, 513], 1), "1 to 512 tokens");
    refuse(ints(&[1, 3], 5), ints(&[1, 2], 1), "attention_mask");
    refuse(ints(&[3], 5), ints(&[3], 1), "expected INT64 [-1, -1]");
    refuse(Tensor::from_f32(vec![1, 1], &[1.0]).unwrap(), ints(&[1, 1], 1), "expected INT64");
}
