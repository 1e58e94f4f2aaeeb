//! `whisper` and `silero-vad`, over readings of Sense and Sensibility.

use std::collections::HashMap;

use sensorium_actors::engine::{Batch, Engine, Error};
use sensorium_actors::manifest::Dtype;
use sensorium_actors::tensor::Tensor;
use sensorium_worker::multiplies_bf16;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::support::speech::{log_mel, recording};
use crate::support::{Calm, call, cosine, engine, engine_with, manifest, reference};

const READINGS: [(&str, &str); 5] = [
    (
        "0870",
        "and mr john dashwood had then leisure to consider how much there might be prudently in his power to do for them",
    ),
    ("0880", "he was not an ill disposed young man"),
    ("0890", "unless to be rather cold hearted and rather selfish is to be ill disposed"),
    ("0920", "had he married a more amiable woman he might have been made still more respectable than he was"),
    ("0930", "he might even have been made amiable himself"),
];

const ENGLISH: i64 = 50259;

struct Transcript {
    tokens: Vec<i64>,
    avg_logprob: f32,
    no_speech: f32,
    language: i64,
    feature: Vec<f32>,
}

fn transcribe(engine: &mut dyn Engine, windows: &[Vec<f32>], language: i64) -> Vec<Transcript> {
    let n = windows.len();
    let mel: Vec<f32> = windows.iter().flat_map(|samples| log_mel(samples, 80).to_f32().unwrap()).collect();
    let mel = Tensor::from_f32(vec![n as i64, 80, 3000], &mel).unwrap();
    let languages = Tensor::from_i64(vec![n as i64], &vec![language; n]).unwrap();
    let outputs = call(engine, vec![mel, languages, temperatures(&vec![0.0; n])]).tensors;
    assert_eq!(outputs[6].to_i64().unwrap(), vec![0; n], "the model ended all of them");
    let (tokens, width) = (outputs[0].to_i64().unwrap(), outputs[0].shape()[1] as usize);
    let features = outputs[4].to_f32().unwrap();
    (0..n)
        .map(|row| Transcript {
            tokens: tokens[row * width..(row + 1) * width].iter().copied().filter(|&token| token != -1).collect(),
            avg_logprob: outputs[1].to_f32().unwrap()[row],
            no_speech: outputs[2].to_f32().unwrap()[row],
            language: outputs[3].to_i64().unwrap()[row],
            feature: features[row * features.len() / n..(row + 1) * features.len() / n].to_vec(),
        })
        .collect()
}

fn temperatures(values: &[f32]) -> Tensor {
    Tensor::from_f32(vec![values.len() as i64], values).unwrap()
}

/// Lower-case words, as the transcripts of the recordings have them.
fn words(model: &str, tokens: &[i64]) -> String {
    let tokenizer = Tokenizer::from_file(manifest(model).1.join("tokenizer.json")).unwrap();
    let text: Vec<u32> = tokens.iter().filter(|&&token| token < 50256).map(|&token| token as u32).collect();
    let text = tokenizer.decode(&text, true).unwrap().to_lowercase();
    let plain: String = text.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<&str> = b.split(' ').collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for word in a.split(' ') {
        let mut diagonal = row[0];
        row[0] += 1;
        for (at, other) in b.iter().enumerate() {
            let cost = (diagonal + usize::from(word != *other)).min(row[at] + 1).min(row[at + 1] + 1);
            diagonal = std::mem::replace(&mut row[at + 1], cost);
        }
    }
    row[b.len()]
}

fn clips() -> Vec<Vec<f32>> {
    READINGS.iter().map(|(number, _)| recording(number)).collect()
}

#[derive(Deserialize)]
struct Decoded {
    models: HashMap<String, Vec<Clip>>,
}

#[derive(Deserialize)]
struct Clip {
    file: String,
    tokens: Vec<i64>,
}

#[test]
fn f32_tokens_are_those_of_transformers() {
    for (model, clips) in reference::<Decoded>("whisper_tokens").models {
        let mut engine = engine(&model, Some(Dtype::F32));
        for clip in clips {
            let (_, number) = clip.file.trim_end_matches(".wav").rsplit_once('-').unwrap();
            let found = transcribe(engine.as_mut(), &[recording(number)], -1).remove(0);
            assert_eq!(found.tokens, clip.tokens, "{model}, {}", clip.file);
        }
    }
}

#[test]
fn whisper_hears_what_is_read() {
    for (model, dtype, int8) in [
        ("whisper-base", Dtype::F32, 0),
        ("whisper-base", Dtype::Bf16, 0),
        ("whisper-base", Dtype::Bf16, 4),
        ("whisper-tiny-en", Dtype::Bf16, 4),
    ] {
        let mut engine = engine_with(model, |manifest| {
            manifest.dtype = dtype;
            manifest.generation.int8_max_sequences = int8;
        });
        let (mut wrong, mut all) = (0, 0);
        // a product of bf16 that is emulated takes many times as long
        let few = if dtype == Dtype::Bf16 && !multiplies_bf16() { 2 } else { READINGS.len() };
        let clips = &clips()[..few];
        // one at a time, as few rows as int8 is for, then together
        let mut found: Vec<Transcript> =
            clips.iter().flat_map(|clip| transcribe(engine.as_mut(), std::slice::from_ref(clip), -1)).collect();
        found.extend(transcribe(engine.as_mut(), clips, -1));
        for (found, (_, said)) in found.iter().zip(READINGS[..few].iter().cycle()) {
            let heard = words(model, &found.tokens);
            wrong += distance(&heard, said);
            all += said.split(' ').count();
            assert!(found.avg_logprob > -0.7 && found.avg_logprob < 0.0, "{model}: {}", found.avg_logprob);
            assert!(found.no_speech < 0.3, "{model}: {}", found.no_speech);
            assert_eq!(found.language, if model == "whisper-base" { ENGLISH } else { -1 });
            let stamps: Vec<i64> = found.tokens.iter().copied().filter(|&token| token >= 50363).collect();
            assert!(stamps.len() >= 2 && stamps.is_sorted(), "{model}: timestamps {stamps:?}");
        }
        assert!(wrong * 100 <= all * 12, "{model} {dtype:?} int8 {int8}: {wrong} of {all} words wrong");
    }
}

#[test]
fn a_window_does_not_depend_on_its_batch() {
    let mut engine = engine("whisper-base", Some(Dtype::F32));
    let together = transcribe(engine.as_mut(), &clips(), ENGLISH);
    for (clip, together) in clips().into_iter().zip(&together) {
        let alone = transcribe(engine.as_mut(), &[clip], -1).remove(0);
        assert_eq!(alone.tokens, together.tokens, "given or detected, alone or not");
        assert!((alone.avg_logprob - together.avg_logprob).abs() < 1e-3);
        assert!(cosine(&alone.feature, &together.feature) > 0.9999);
    }
}

#[test]
fn silence_is_no_speech() {
    let mut engine = engine("whisper-base", None);
    let quiet = transcribe(engine.as_mut(), &[vec![0.0; 16_000]], ENGLISH).remove(0);
    assert!(quiet.no_speech > 0.3, "{}", quiet.no_speech);
}

#[test]
fn whisper_names_a_bad_language() {
    let mut engine = engine("whisper-base", None);
    let mut refusal = |language: i64, temperature: f32| {
        let language = Tensor::from_i64(vec![1], &[language]).unwrap();
        let tensors = vec![log_mel(&[], 80), language, temperatures(&[temperature])];
        engine.forward(Batch { tensors, rows: 1 }, &Calm).unwrap_err()
    };
    let error = refusal(17, 0.0);
    assert!(matches!(&error, Error::Input(message) if message.contains("50259 to 50357")), "{error}");
    let error = refusal(ENGLISH, -1.0);
    assert!(matches!(&error, Error::Input(message) if message.contains("temperature -1")), "{error}");
}

#[test]
fn whisper_tells_how_sure_it_is_of_the_language_and_samples_alike() {
    let mut engine = engine("whisper-base", Some(Dtype::F32));
    let mut call_at = |temperature: f32| {
        let language = Tensor::from_i64(vec![1], &[-1]).unwrap();
        call(engine.as_mut(), vec![log_mel(&recording("0880"), 80), language, temperatures(&[temperature])]).tensors
    };
    let greedy = call_at(0.0);
    let probabilities = greedy[5].to_f32().unwrap();
    assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-3 && probabilities[0] > 0.9, "{probabilities:?}");
    let (one, other) = (call_at(1.0), call_at(1.0));
    assert_eq!(one[0].to_i64().unwrap(), other[0].to_i64().unwrap());
    assert!(one[1].to_f32().unwrap()[0] <= greedy[1].to_f32().unwrap()[0], "what is sampled is no likelier");
}

#[derive(Deserialize)]
struct Speech {
    /// Zeros before, between and behind the clips.
    silence_samples: Vec<usize>,
    clips: Vec<String>,
    probabilities: Vec<f32>,
}

#[test]
fn vad_probabilities_are_those_of_the_original_chunk_by_chunk() {
    let expected = reference::<Speech>("speech_segments");
    let mut samples = vec![0.0; expected.silence_samples[0]];
    for (clip, silence) in expected.clips.iter().zip(&expected.silence_samples[1..]) {
        let (_, number) = clip.trim_end_matches(".wav").rsplit_once('-').unwrap();
        samples.extend(recording(number));
        samples.extend(std::iter::repeat_n(0.0, *silence));
    }
    // the original pads the last chunk
    samples.resize(expected.probabilities.len() * 512, 0.0);
    let mut engine = engine("silero-vad", None);
    let mut run = |rows: &[&[f32]]| {
        let shape = vec![rows.len() as i64, rows[0].len() as i64];
        call(engine.as_mut(), vec![Tensor::from_f32(shape, &rows.concat()).unwrap()]).tensors[0].to_f32().unwrap()
    };
    let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let found = run(&[&samples]);
    let worst = off(&found, &expected.probabilities);
    assert_eq!(found.len(), expected.probabilities.len());
    assert!(worst < 1e-3, "off by {worst}");

    let two = run(&[&samples, &vec![0.0; samples.len()]]);
    let worst = off(&found, &two);
    assert!(worst < 1e-4, "a neighbour changes a row by {worst}");
}
