//! `model.toml`: what a model is, what goes in and out, and how it is to be served.
//!
//! Weights, preprocessing, thresholds and cache namespace of a version are one unit: all of it is read from the
//! repository, `<repository>/<model>/model.toml` and `<repository>/<model>/<version>/`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::tensor::DataType;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// The parser's message, with line and key.
        message: String,
    },
    /// A value is out of its range.
    #[error("{path}: {key} = {value}, expected {expected}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

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

/// What happens to a request whose queue timeout has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeoutAction {
    /// It is refused with DEADLINE_EXCEEDED.
    #[default]
    Reject,
    /// It goes behind all requests that have not timed out.
    Delay,
}

/// `[batching]`: how rows of concurrent requests become one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// Rows of a batch at most.
    pub max_batch_size: usize,
    /// Rows times longest length of a batch at most, for models whose rows have a length. 0: no limit.
    pub max_batch_tokens: usize,
    /// Share of padding in a batch at most; rows whose length would exceed it wait for the next.
    pub max_padding: f64,
    /// Microseconds that the oldest row waits for others while a replica is idle. 0: go at once.
    pub max_queue_delay_us: u64,
    /// Sizes at which a batch goes before the delay has passed. Empty: only a full batch does.
    pub preferred_batch_size: Vec<usize>,
    /// Rows that may wait; more are refused with RESOURCE_EXHAUSTED.
    pub max_queue_size: usize,
    /// Levels of priority, 1 the highest.
    pub priority_levels: u32,
    /// Level of a request that names none.
    pub default_priority_level: u32,
    /// Microseconds that a request may wait in the queue, for requests that set no timeout. 0: no limit.
    pub default_timeout_us: u64,
    /// What becomes of a request that waited longer.
    pub timeout_action: TimeoutAction,
    /// Whether a request's `timeout` parameter replaces the default.
    pub allow_timeout_override: bool,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_batch_size: 32,
            max_batch_tokens: 0,
            max_padding: 0.15,
            max_queue_delay_us: 0,
            preferred_batch_size: Vec::new(),
            max_queue_size: 2048,
            priority_levels: 3,
            default_priority_level: 2,
            default_timeout_us: 0,
            timeout_action: TimeoutAction::Reject,
            allow_timeout_override: true,
        }
    }
}

/// `[limits]`: what one request may ask of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one encoded image, clip or text.
    pub max_bytes: usize,
    /// Pixels of a decoded image.
    pub max_pixels: u64,
    /// Seconds of a decoded clip.
    pub max_seconds: f64,
    /// Tokens of a text or prompt. What happens beyond is `truncate`'s.
    pub max_tokens: usize,
    /// Whether a text with more tokens is cut, and the answer says so, or refused.
    pub truncate: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_pixels: 64_000_000, max_seconds: 600.0, max_tokens: 256, truncate: true }
    }
}

/// `[image]`: the preprocessing that the model was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePreprocess {
    /// The shorter side is resized to this many pixels first.
    pub resize: u32,
    /// Then the centre of this size is cut: height and width of the model's input.
    pub crop: u32,
    /// The filter of the resize.
    pub filter: Filter,
    /// Value `p` in 0..=255 becomes `(p * scale - mean) / std`, per channel.
    pub scale: f32,
    /// See `scale`, in the order of `channels`.
    pub mean: [f32; 3],
    /// See `scale`, in the order of `channels`.
    pub std: [f32; 3],
    /// Order of the channels.
    #[serde(default)]
    pub channels: Channels,
}

/// Interpolation of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Filter {
    Bilinear,
    Bicubic,
    Lanczos,
}

/// Order of an image's channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Channels {
    #[default]
    Rgb,
    Bgr,
}

/// `[generation]`: defaults of a text generator and the shape of its cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Generation {
    /// Sequences decoded together.
    pub max_sequences: usize,
    /// Tokens of a prompt that are processed between two steps of the running sequences.
    pub prefill_chunk: usize,
    /// Tokens of a sequence at most, prompt and continuation; 0 takes the model's own limit.
    pub context_length: usize,
    /// Tokens generated when a request does not say.
    pub default_max_tokens: usize,
    /// Text that wraps the user's prompt: `{prompt}` is replaced.
    pub chat_template: String,
    /// Tokens that end a generation.
    pub stop_tokens: Vec<String>,
    /// Up to this many sequences step with int8 weights; more with the wide ones. 0: always wide.
    pub int8_max_sequences: usize,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_sequences: 8,
            prefill_chunk: 256,
            context_length: 0,
            default_max_tokens: 128,
            chat_template: "{prompt}".to_owned(),
            stop_tokens: Vec::new(),
            int8_max_sequences: 0,
        }
    }
}

/// `[replicas]`: how many, where, and when one counts as hung.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replicas {
    /// Device threads that run the model side by side.
    pub count: usize,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Milliseconds without a beat after which a busy device thread counts as hung.
    pub hang_timeout_ms: u64,
    /// Restarts of a replica within `restart_window_ms` before the failure goes up.
    pub max_restarts: u32,
    /// See `max_restarts`.
    pub restart_window_ms: u64,
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            count: 1,
            device: "auto".to_owned(),
            hang_timeout_ms: 60_000,
            max_restarts: 10,
            restart_window_ms: 60_000,
        }
    }
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
    /// `bert`, `llama`, `efficientnet-lite`, `whisper`, `silero-vad`, `open-nsfw`, `mlp`; `identity`, `chaos` for built-ins.
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

    /// Parses the text of a `model.toml`; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let manifest: Self =
            toml::from_str(text).map_err(|error| Error::Parse { path: path.to_owned(), message: error.to_string() })?;
        manifest.check(path)?;
        Ok(manifest)
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        let bad = |key, value: String, expected| Err(Error::Value { path: path.to_owned(), key, value, expected });
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return bad("name", format!("\"{}\"", self.name), "letters, digits, '-', '_' and '.'");
        }
        if self.batching.max_batch_size == 0 {
            return bad("batching.max_batch_size", "0".into(), "at least 1");
        }
        if !(0.0..1.0).contains(&self.batching.max_padding) {
            return bad("batching.max_padding", self.batching.max_padding.to_string(), "a share from 0 to below 1");
        }
        if self.batching.max_queue_size == 0 {
            return bad("batching.max_queue_size", "0".into(), "at least 1");
        }
        let levels = self.batching.priority_levels;
        if levels == 0 || !(1..=levels).contains(&self.batching.default_priority_level) {
            return bad(
                "batching.default_priority_level",
                self.batching.default_priority_level.to_string(),
                "a level from 1 to batching.priority_levels",
            );
        }
        if self.replicas.count == 0 {
            return bad("replicas.count", "0".into(), "at least 1");
        }
        let device = self.replicas.device.as_str();
        let cuda = device.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
        if !(device == "auto" || device == "cpu" || cuda) {
            return bad("replicas.device", format!("\"{device}\""), "auto, cpu or cuda:N");
        }
        let images = matches!(self.pipeline, Pipeline::ImageClassification | Pipeline::ImageGuard);
        if images && self.image.is_none() {
            return bad("image", "missing".into(), "the preprocessing of an image pipeline");
        }
        if self.inputs.is_empty() || self.outputs.is_empty() {
            return bad("inputs, outputs", "empty".into(), "at least one tensor each");
        }
        Ok(())
    }
}
