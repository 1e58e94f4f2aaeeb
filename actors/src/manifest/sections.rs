//! The sections of `model.toml`.

use serde::{Deserialize, Serialize};

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
    /// Images, clips, texts or rows of one request, whose decoded forms are all held at once. 0: 8 clips, 64 images, 2048
    /// of anything else.
    pub max_elements: usize,
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
    /// Whether an image whose file ends too early is judged by what came of it, and the answer says so and is not cached,
    /// or refused. A guard always refuses it: it would call safe what nobody has seen.
    pub allow_truncated: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_elements: 0,
            max_bytes: 16 << 20,
            max_pixels: 64_000_000,
            max_seconds: 600.0,
            max_tokens: 256,
            truncate: true,
            allow_truncated: false,
        }
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

/// `[routing]`: how requests find a worker, and what happens when one is lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// Whether a request may be executed twice. If not, one that a lost worker may have begun is not tried again.
    pub idempotent: bool,
    /// Whether a generation whose worker is lost goes on elsewhere from what was told; if not, it ends with UNAVAILABLE.
    pub resume: bool,
    /// Percentile of the model's own latency after which a second worker is asked, and the slower one cancelled; 0: only
    /// when the first says nothing for far longer than the model ever takes.
    pub hedge_percentile: f64,
    /// A smaller model with the same tensors that answers where this one cannot within its budget; empty: none.
    pub fallback: String,
    /// Milliseconds that a branch of an understanding is given for this model; 0: its share of the deadline.
    pub budget_ms: u64,
}

impl Default for Routing {
    fn default() -> Self {
        Self { idempotent: true, resume: true, hedge_percentile: 0.0, fallback: String::new(), budget_ms: 0 }
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
