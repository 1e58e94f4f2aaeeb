//! Audio to speech segments, and to a transcript with times.

mod hearing;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use sensorium_media::mel::Mel;
use sensorium_media::text::Tokenizer;
use sensorium_media::{audio, vad};
use serde::Deserialize;
use serde_json::json;

use self::hearing::{Hearing, Part, hear};
use super::room::Share;
use super::{Answer, Assets, Pool, elements, named, unexpected};
use crate::engine;
use crate::error::{Error, Result};
use crate::request::{Context, Parameter, Parameters, Request};
use crate::tensor::{self, Tensor};
use crate::worker::served::{Row, Served};

/// What both models hear, in samples per second.
const RATE: u32 = 16_000;
/// Samples that the voice activity detector judges at a time.
const CHUNK: usize = 512;
/// Frames of a Whisper window of 30 s.
const FRAMES: i64 = 3000;

/// What Whisper's front and back need.
pub struct Speech {
    tokenizer: Tokenizer,
    mel: Mel,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    num_mel_bins: usize,
    timestamp_begin: u32,
    eot: u32,
    #[serde(default)]
    languages: std::collections::BTreeMap<String, i64>,
}

impl Speech {
    /// Reads `config.json`.
    pub fn read(directory: &Path, tokenizer: Tokenizer) -> Result<Self, engine::Error> {
        let failed = |error: String| engine::Error::Load(format!("{}/config.json: {error}", directory.display()));
        let text = std::fs::read_to_string(directory.join("config.json")).map_err(|error| failed(error.to_string()))?;
        let config: Config = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let mel = Mel::new(config.num_mel_bins).map_err(|error| failed(error.to_string()))?;
        Ok(Self { tokenizer, mel, config })
    }

    /// Mel FP32 `[1, bands, 3000]`, language INT64 `[1]`, -1 to detect it, and temperature FP32 `[1]`.
    fn row(&self, mel: &[f32], language: i64, temperature: f32) -> Result<Row, tensor::Error> {
        let bands = i64::try_from(self.config.num_mel_bins).unwrap_or(i64::MAX);
        let mel = Tensor::from_f32(vec![1, bands, FRAMES], mel)?;
        let language = Tensor::from_i64(vec![1], &[language])?;
        let temperature = Tensor::from_f32(vec![1], &[temperature])?;
        Ok(Row { tensors: vec![mel, language, temperature], rows: 1, length: 0, kind: 0 })
    }

    pub(super) fn warm_up(&self) -> Result<Vec<Vec<Tensor>>, tensor::Error> {
        Ok(vec![self.row(&self.mel.log_mel(&[0.0; 1600]), -1, 0.0)?.tensors])
    }

    fn language(&self, parameters: &Parameters) -> Result<i64> {
        let Some(code) = parameters.text("language")? else { return Ok(-1) };
        self.config.languages.get(code).copied().ok_or_else(|| {
            let known: Vec<_> = self.config.languages.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "none: the model is English only".to_owned()
            } else {
                crate::error::names(&known)
            };
            Error::invalid("parameters.language", format!("'{code}', expected one of {known}"))
        })
    }

    /// The token of the language that all guesses together take for the likeliest.
    fn agreed(&self, guesses: &[&[f32]]) -> Option<i64> {
        let count = guesses.iter().map(|guess| guess.len()).min()?;
        let sum = |language: usize| guesses.iter().map(|guess| guess[language]).sum::<f32>();
        let index = (0..count).max_by(|&a, &b| sum(a).total_cmp(&sum(b)))?;
        let first = self.config.languages.values().min()?;
        Some(first + i64::try_from(index).ok()?)
    }

    fn language_code(&self, token: i64) -> &str {
        let found = self.config.languages.iter().find(|(_, id)| **id == token);
        found.map_or("en", |(code, _)| code.as_str())
    }
}

/// Samples at 16 kHz, mono, and the room that they take.
struct Clip {
    samples: Vec<f32>,
    room: Share,
}

/// Decodes a clip within the room that it says to need. One that says nothing, or too little, has its length guessed; if
/// that was too short, it is decoded again with room for the longest clip that is allowed.
async fn decode(served: &Arc<Served>, field: &str, encoded: &Bytes, context: &Context, pool: &Pool) -> Result<Clip> {
    let manifest = &served.manifest;
    let limits = audio::Limits { max_bytes: manifest.limits.max_bytes, max_seconds: manifest.limits.max_seconds };
    let (head, clip) = (encoded.clone(), encoded.clone());
    let length =
        pool.run(move || audio::length(&head, &limits)).await?.map_err(|error| Error::invalid(field, error))?;
    let mut seconds = length.seconds.min(limits.max_seconds);
    loop {
        let mut room = pool.room(room_for(seconds, &length), field, context).await?;
        let (clip, allowed) = (clip.clone(), audio::Limits { max_seconds: seconds, ..limits });
        let decoded = pool.run(move || {
            let clip = audio::decode(&clip, &allowed)?;
            audio::resample(&clip, RATE)
        });
        match decoded.await? {
            Ok(samples) => {
                room.shrink(bytes_of(&samples, DETECTING));
                return Ok(Clip { samples, room });
            }
            Err(audio::Error::TooLong { .. }) if seconds < limits.max_seconds => seconds = limits.max_seconds,
            Err(error @ audio::Error::Resample { .. }) => return Err(Error::Internal(error.to_string())),
            Err(error) => return Err(Error::invalid(field, error)),
        }
    }
}

/// Bytes that a clip takes: its samples as they were recorded, what decoding them holds beside, and those at 16 kHz up to
/// four times: as they are, padded for the detector, as its tensor, and as a window's spectrogram.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn room_for(seconds: f64, length: &audio::Length) -> u64 {
    let samples = seconds * (f64::from(length.sample_rate) + f64::from(COPIES) * f64::from(RATE));
    (samples * 4.0).ceil() as u64 + length.working_bytes
}

/// Copies of the samples at 16 kHz there are at most, and while the detector is asked.
const COPIES: u16 = 4;
const DETECTING: u64 = 3;

fn bytes_of(samples: &[f32], copies: u64) -> u64 {
    copies * size_of_val(samples) as u64
}

/// Speech probability of each 512 samples.
async fn probabilities(detector: &Arc<Served>, samples: &[f32], context: &Context) -> Result<Vec<f32>> {
    let chunks = samples.len().div_ceil(CHUNK).max(1);
    let mut padded = samples.to_vec();
    padded.resize(chunks * CHUNK, 0.0);
    let length = i64::try_from(padded.len()).unwrap_or(i64::MAX);
    let tensor = Tensor::from_f32(vec![1, length], &padded).map_err(unexpected)?;
    let reply = detector.forward(Row { tensors: vec![tensor], rows: 1, length: chunks, kind: 0 }, context).await?;
    let mut values = reply.tensors.first().ok_or_else(|| unexpected("no output"))?.to_f32().map_err(unexpected)?;
    values.truncate(chunks); // a longer neighbour in the batch padded the row
    Ok(values)
}

/// `segments` BYTES `[n]`: JSON `[{"start": seconds, "end": seconds}, ...]` per clip.
pub(super) async fn voice(served: &Arc<Served>, request: &Request, context: &Context, pool: &Pool) -> Result<Answer> {
    let (field, clips) = elements(&served.manifest, request)?;
    let found = clips.into_iter().enumerate().map(|(index, clip)| {
        let field = format!("{field}[{index}]");
        async move {
            let Clip { samples, room: _room } = decode(served, &field, &clip, context, pool).await?;
            let probabilities = probabilities(served, &samples, context).await?;
            let segments = vad::segments(&probabilities, samples.len(), &vad::Options::default());
            let seconds = |at: usize| seconds(at);
            let segments: Vec<_> =
                segments.iter().map(|s| json!({"start": seconds(s.start), "end": seconds(s.end)})).collect();
            Ok::<_, Error>(serde_json::Value::from(segments).to_string())
        }
    });
    let found = try_join_all(found).await?;
    Ok((vec![named(&served.manifest.outputs[0].name, Tensor::from_elements(&found))], Parameters::default()))
}

/// `transcript` BYTES `[n]`, `segments` BYTES `[n]` (JSON with times in seconds), `embedding` FP32 `[n, d]`: the
/// encoder's mean over all windows, zeros where nobody speaks.
pub(super) async fn transcribe(
    served: &Arc<Served>,
    request: &Request,
    context: &Context,
    pool: &Pool,
) -> Result<Answer> {
    let Assets::Speech(speech) = &served.assets else {
        return Err(Error::Internal("a speech pipeline without its assets".to_owned()));
    };
    let language = speech.language(&request.parameters)?;
    let (field, clips) = elements(&served.manifest, request)?;
    let heard = clips.into_iter().enumerate().map(|(index, clip)| {
        let field = format!("{field}[{index}]");
        hear(served, field, clip, language, context, pool)
    });
    let heard = try_join_all(heard).await?;

    // where nobody speaks nothing tells the width but the manifest
    let promised = served.manifest.outputs.iter().find(|output| output.name == "embedding");
    let promised = promised.and_then(|output| usize::try_from(*output.shape.get(1)?).ok()).unwrap_or(0);
    let width = heard.iter().map(|h| h.feature.len()).max().filter(|width| *width > 0).unwrap_or(promised);
    let mut features = Vec::with_capacity(width * heard.len());
    for one in &heard {
        features.extend_from_slice(&one.feature);
        features.resize(features.len() + width - one.feature.len(), 0.0);
    }
    let texts: Vec<&str> = heard.iter().map(|h| h.text.as_str()).collect();
    let segments: Vec<String> = heard.iter().map(segments_json).collect();
    let mut outputs =
        vec![named("transcript", Tensor::from_elements(&texts)), named("segments", Tensor::from_elements(&segments))];
    let shape = [heard.len(), width].map(|n| i64::try_from(n).unwrap_or(i64::MAX)).to_vec();
    outputs.push(named("embedding", Tensor::from_f32(shape, &features).map_err(unexpected)?));
    Ok((outputs, said_of(&heard)))
}

/// What is said of one clip is said of it in a batch, too, by its row.
fn said_of(heard: &[Hearing]) -> Parameters {
    let mut parameters = Parameters::default();
    if let [one] = heard {
        parameters.set("audio_seconds", Parameter::Float(one.seconds));
        parameters.set("speech_seconds", Parameter::Float(one.speech_seconds));
        if let Some(language) = &one.language {
            parameters.set("language", Parameter::String(language.clone()));
        }
        return parameters;
    }
    let rows = heard.iter().enumerate().map(|(row, one)| {
        let (audio, speech) = (one.seconds, one.speech_seconds);
        let mut note = serde_json::json!({ "row": row, "audio_seconds": audio, "speech_seconds": speech });
        if let Some(language) = &one.language {
            note["language"] = language.as_str().into();
        }
        note
    });
    parameters.set("rows", Parameter::String(rows.collect::<serde_json::Value>().to_string()));
    parameters
}

/// Start and end in seconds, the text, and what its window was decoded with and like.
fn segments_json(heard: &Hearing) -> String {
    let of = |part: &Part| {
        let common = json!({
            "avg_logprob": round(part.avg_logprob.into()),
            "no_speech_prob": round(part.no_speech_prob.into()),
            "compression_ratio": round(part.compression_ratio.into()),
            "temperature": round(part.temperature.into()),
            "language": part.language,
        });
        let segments = part.transcript.segments.iter().map(move |segment| {
            let mut told = common.clone();
            told["start"] = round(segment.start).into();
            told["end"] = round(segment.end).into();
            told["text"] = segment.text.as_str().into();
            told
        });
        segments.collect::<Vec<_>>()
    };
    heard.parts.iter().flat_map(of).collect::<serde_json::Value>().to_string()
}

#[allow(clippy::cast_precision_loss)]
fn seconds(samples: usize) -> f64 {
    samples as f64 / f64::from(RATE)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn samples_at(seconds: f64) -> usize {
    (seconds * f64::from(RATE)) as usize
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

pub(super) fn voice_warm_up() -> Result<Vec<Vec<Tensor>>, tensor::Error> {
    Ok(vec![vec![Tensor::from_f32(vec![1, 16 * 512], &[0.0; 16 * CHUNK])?]])
}
