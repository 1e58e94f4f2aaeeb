//! `model.toml`: what a model is, what goes in and out, and how it is to be served.
//!
//! Weights, preprocessing, thresholds and cache namespace of a version are one unit: all of it is read from the
//! repository, `<repository>/<model>/model.toml` and `<repository>/<model>/<version>/`.

mod check;
mod sections;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::check::Error;
pub use self::sections::{
    Batching, Channels, Filter, Generation, ImagePreprocess, Limits, Replicas, Routing, TimeoutAction,
};
use crate::tensor::DataType;

/// The sense that a model serves. Supervisors, queues and scaling are per modality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Reads.
    Text,
    /// Sees.
    Image,
    /// Hears.
    Audio,
}

impl Modality {
    /// All of them, in the order in which they are listed everywhere.
    pub const ALL: [Self; 3] = [Self::Text, Self::Image, Self::Audio];

    /// The lower-case name, as in metrics labels and actor paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Audio => "audio",
        }
    }
}

impl std::fmt::Display for Modality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// An architecture of ours over Hugging Face style `config.json` and safetensors.
    Tch,
    /// A user's own TorchScript file.
    Torchscript,
    /// No weights: `identity`.
    Builtin,
}

/// How a request's tensors become rows of a batch, and the model's outputs an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pipeline {
    /// Tensors go through as they are, split and joined along axis 0.
    Tensor,
    /// Text to sentence embedding.
    TextEmbedding,
    /// Image to feature, class probabilities and labels.
    ImageClassification,
    /// Image to the probability that it is not safe for work.
    ImageGuard,
    /// Text to the probability that it is a prompt injection.
    TextGuard,
    /// Audio to transcript and timed segments.
    SpeechRecognition,
    /// Audio to speech probability per 32 ms.
    VoiceActivity,
    /// Prompt to continuation, streamed.
    TextGeneration,
}

/// Numeric type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 where the CPU multiplies it natively (AVX512-BF16, AMX) or on a GPU, else f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

/// A public tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name on the wire.
    pub name: String,
    /// Its datatype.
    pub datatype: DataType,
    /// Its shape; -1 is any size, and the first dimension is the batch.
    pub shape: Vec<i64>,
    /// Whether a request may leave it out.
    #[serde(default)]
    pub optional: bool,
}

/// Which versions of the repository are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionPolicy {
    /// The highest number.
    #[default]
    Latest,
    /// Every one.
    All,
    /// These.
    Specific(Vec<u64>),
}

/// `model.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's id; the name of its folder.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// The sense that it serves.
    pub modality: Modality,
    /// Who runs it.
    pub engine: EngineKind,
    /// `bert`, `llama`, `efficientnet-lite`, `whisper`, `silero-vad`, `open-nsfw`, `mlp`; built-ins `identity`, `chaos`, `chaos-device`.
    #[serde(default)]
    pub architecture: String,
    /// What happens to its inputs and outputs.
    pub pipeline: Pipeline,
    /// Numeric type.
    #[serde(default)]
    pub dtype: Dtype,
    /// Which versions are served.
    #[serde(default)]
    pub version_policy: VersionPolicy,
    /// Public inputs.
    pub inputs: Vec<TensorSpec>,
    /// Public outputs.
    pub outputs: Vec<TensorSpec>,
    /// A model whose output this one reads: `minilm` for `prompt-guard`, `silero-vad` for Whisper.
    #[serde(default)]
    pub upstream: Option<String>,
    /// How rows become batches.
    #[serde(default)]
    pub batching: Batching,
    /// What one request may ask.
    #[serde(default)]
    pub limits: Limits,
    /// Image preprocessing, for image pipelines.
    #[serde(default)]
    pub image: Option<ImagePreprocess>,
    /// Generation, for text generators.
    #[serde(default)]
    pub generation: Generation,
    /// Replicas.
    #[serde(default)]
    pub replicas: Replicas,
    /// The way of requests.
    #[serde(default)]
    pub routing: Routing,
    /// Whether the server is unready until this model is warm.
    #[serde(default = "yes")]
    pub required: bool,
    /// Whether equal inputs may be answered from the cache.
    #[serde(default)]
    pub cache: bool,
}

fn yes() -> bool {
    true
}

impl Manifest {
    /// Reads and checks `model.toml`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Elements of one request at most.
    pub fn max_elements(&self) -> usize {
        let default = match self.pipeline {
            Pipeline::SpeechRecognition | Pipeline::VoiceActivity => 8,
            Pipeline::ImageClassification | Pipeline::ImageGuard => 64,
            _ => 2048,
        };
        let limit = if self.limits.max_elements == 0 { default } else { self.limits.max_elements };
        limit.min(self.batching.max_queue_size)
    }

    /// Parses the text of a `model.toml`; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let manifest: Self =
            toml::from_str(text).map_err(|error| Error::Parse { path: path.to_owned(), message: error.to_string() })?;
        manifest.check(path)?;
        Ok(manifest)
    }
}

#[cfg(test)]
impl Manifest {
    /// Of a model `m` that generates text, with further lines.
    pub(crate) fn generator(more: &str) -> Self {
        let text = r#"
            name = "m"
            modality = "text"
            engine = "builtin"
            pipeline = "text-generation"
            inputs = [{ name = "prompt", datatype = "BYTES", shape = [-1] }]
            outputs = [{ name = "text", datatype = "BYTES", shape = [-1] }]
        "#;
        Self::parse(&format!("{text}{more}"), Path::new("model.toml")).unwrap()
    }
}
