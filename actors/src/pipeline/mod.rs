//! Pipelines: a request's public tensors become rows of a batch, and the engine's outputs the public answer.

pub(crate) mod generation;
mod image;
mod inputs;
mod pool;
pub mod speech;
mod tensor;
mod text;

use std::path::Path;
use std::sync::Arc;

pub use generation::stream;
pub use image::top;
pub use pool::Pool;

use crate::engine;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Pipeline as Kind};
use crate::replica::generate::Generator;
use crate::request::{Context, NamedTensor, Parameters, Reply, Request};
use crate::tensor::{DataType, Tensor};
use crate::worker::served::Served;

/// What a version's pipeline needs from its directory, read once when it is loaded.
pub enum Assets {
    /// Nothing.
    Tensor,
    /// A tokeniser.
    Text(sensorium_media::text::Tokenizer),
    /// Class names, where there are any.
    Image {
        /// One name per class.
        labels: Vec<String>,
    },
    /// What Whisper's front and back need.
    Speech(Box<speech::Speech>),
    /// Nothing but the audio.
    Voice,
    /// Tokeniser and end tokens.
    Generation(Arc<Generator>),
    /// Reads another model's embedding.
    Guard,
}

impl Assets {
    /// Reads what the pipeline of `manifest` needs from the version's directory.
    pub fn read(manifest: &Manifest, directory: &Path) -> Result<Self, engine::Error> {
        let failed = |error: &dyn std::fmt::Display| engine::Error::Load(format!("{}: {error}", directory.display()));
        let tokenizer =
            || sensorium_media::text::Tokenizer::from_file(&directory.join("tokenizer.json")).map_err(|e| failed(&e));
        Ok(match manifest.pipeline {
            Kind::Tensor => Self::Tensor,
            Kind::TextEmbedding => Self::Text(tokenizer()?),
            Kind::ImageClassification => {
                let labels = std::fs::read_to_string(directory.join("labels.txt")).map_err(|e| failed(&e))?;
                Self::Image { labels: labels.lines().map(str::to_owned).collect() }
            }
            Kind::ImageGuard => Self::Image { labels: Vec::new() },
            Kind::TextGuard => Self::Guard,
            Kind::SpeechRecognition => Self::Speech(Box::new(speech::Speech::read(directory, tokenizer()?)?)),
            Kind::VoiceActivity => Self::Voice,
            Kind::TextGeneration => {
                let tokenizer = tokenizer()?;
                let end = manifest.generation.stop_tokens.iter().map(|token| {
                    tokenizer.token_id(token).ok_or_else(|| failed(&format!("no token '{token}' in tokenizer.json")))
                });
                Self::Generation(Arc::new(Generator { end: end.collect::<Result<_, _>>()?, tokenizer }))
            }
        })
    }

    /// Engine inputs to run before a replica counts as ready.
    pub fn warm_up(&self, manifest: &Manifest) -> Vec<Vec<Tensor>> {
        let made = match self {
            Self::Text(_) => text::warm_up(),
            Self::Image { .. } => image::warm_up(manifest),
            Self::Speech(speech) => speech.warm_up(),
            Self::Voice => speech::voice_warm_up(),
            Self::Tensor => tensor::warm_up(manifest),
            // a decoder is warmed up by its replica, and a guard reads what another model gives
            Self::Generation(_) | Self::Guard => Ok(Vec::new()),
        };
        made.unwrap_or_default()
    }
}

/// Runs one request through the pipeline of `served`.
pub async fn run(served: &Arc<Served>, request: &Request, context: &Context, pool: &Pool) -> Result<Reply> {
    let rows = inputs::check(&served.manifest, request)?;
    let (outputs, parameters) = match &served.assets {
        Assets::Tensor => tensor::run(served, request, context, rows).await?,
        Assets::Text(_) => text::embed(served, request, context, pool).await?,
        Assets::Guard => text::guard(served, request, context, pool).await?,
        Assets::Image { labels } if labels.is_empty() => image::guard(served, request, context, pool).await?,
        Assets::Image { .. } => image::classify(served, request, context, pool).await?,
        Assets::Voice => speech::voice(served, request, context, pool).await?,
        Assets::Speech(_) => speech::transcribe(served, request, context, pool).await?,
        Assets::Generation(_) => generation::complete(served, request, context, pool).await?,
    };
    Ok(Reply {
        model: request.model.clone(),
        version: served.version,
        outputs: outputs.into_iter().filter(|output| request.wants(&output.name)).collect(),
        parameters,
        last: true,
        tokens: Vec::new(),
    })
}

/// What a pipeline gives.
type Answer = (Vec<NamedTensor>, Parameters);

fn named(name: &str, tensor: Tensor) -> NamedTensor {
    NamedTensor { name: name.to_owned(), tensor }
}

/// An engine gave something that the pipeline does not understand.
fn unexpected(error: impl std::fmt::Display) -> Error {
    Error::Internal(format!("the engine's output is not what the pipeline expects: {error}"))
}

/// Joins the `n`-th output of all rows along axis 0.
fn join(replies: &[crate::batching::entry::RowReply], n: usize) -> Result<Tensor> {
    let parts: Option<Vec<&Tensor>> = replies.iter().map(|reply| reply.tensors.get(n)).collect();
    let parts = parts.ok_or_else(|| unexpected(format!("output {n} is missing")))?;
    crate::batching::collate::stack(&parts).map_err(unexpected)
}

/// One number per row as an FP32 tensor of shape `[rows]`.
fn scores(name: &str, values: &[f32]) -> Result<NamedTensor> {
    let rows = i64::try_from(values.len()).unwrap_or(i64::MAX);
    Ok(named(name, Tensor::from_f32(vec![rows], values).map_err(unexpected)?))
}

/// BYTES elements of a request's only input, with the field's name for errors.
fn elements(manifest: &Manifest, request: &Request) -> Result<(String, Vec<bytes::Bytes>)> {
    let spec = &manifest.inputs[0];
    let tensor = request.input(&spec.name).ok_or_else(|| Error::invalid(format!("inputs.{}", spec.name), "missing"))?;
    debug_assert_eq!(tensor.dtype(), DataType::Bytes);
    let field = format!("inputs.{}", spec.name);
    let elements = tensor.elements().map_err(|error| Error::invalid(&field, error))?;
    Ok((field, elements))
}
