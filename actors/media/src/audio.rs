//! Encoded clips to samples at the rate that a model hears.
//!
//! [`decode`] turns a stranger's bytes into mono samples; [`resample`] brings them to another rate.

mod decode;
mod found;
mod matroska;
mod mix;
mod resample;
mod source;
mod track;
mod wav;

pub use decode::{decode, length};
pub use resample::resample;

/// What one encoded clip may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of the encoded clip.
    pub max_bytes: usize,
    /// Seconds of the decoded clip.
    pub max_seconds: f64,
}

/// How long a clip is before it is decoded: what its header says, or a guess.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// Its end. A header may lie, and a guess may be wrong: decoding alone tells.
    pub seconds: f64,
    /// Samples per second.
    pub sample_rate: u32,
    /// Bytes that are held while it is decoded, beside its samples: the channels that are not mixed yet.
    pub working_bytes: u64,
}

/// A decoded clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Mono, of all channels as [`decode`] mixes them, each sample in -1..=1.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub sample_rate: u32,
    /// Length.
    pub seconds: f64,
    /// Channels before they were mixed down.
    pub channels: usize,
    /// Short name of the codec, such as `mp3`, `flac`, `pcm_s16le`.
    pub codec: &'static str,
}

/// What is read, as refusals say it.
const EXPECTED: &str = "WAV, AIFF, CAF, FLAC, MP3, AAC or ALAC (MP4, ADTS), or Opus or Vorbis (Ogg, WebM, Matroska)";

/// Why there are no samples. All but [`Error::Resample`] are the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bytes at all.
    #[error("clip is empty, expected an encoded clip")]
    Empty,
    /// More bytes than allowed.
    #[error("clip has {bytes} bytes, the limit is {limit}")]
    TooManyBytes {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Longer than allowed. How much longer is not known, as decoding stopped there.
    #[error("clip is longer than {limit} seconds, the limit")]
    TooLong {
        /// Seconds allowed.
        limit: f64,
    },
    /// The content is no container known here.
    #[error("clip of {bytes} bytes is not recognised ({reason}), expected {EXPECTED}")]
    UnknownFormat {
        /// Bytes given.
        bytes: usize,
        /// The prober's words.
        reason: String,
    },
    /// The content is known, and of a kind that is not read.
    #[error("clip of {bytes} bytes is {found}, expected {EXPECTED}")]
    Unsupported {
        /// Bytes given.
        bytes: usize,
        /// Container and codec, such as `MP4 with AC-3`.
        found: String,
    },
    /// A decoder panicked, which is a defect of the decoder, and a broken clip to the caller.
    #[error("clip of {bytes} bytes cannot be decoded: its decoder panicked")]
    Panicked {
        /// Bytes given.
        bytes: usize,
    },
    /// The content is of a known format, and broken or of a kind that is not read.
    #[error("{codec} clip of {bytes} bytes cannot be decoded: {reason}")]
    Undecodable {
        /// Short name of the codec.
        codec: &'static str,
        /// Bytes given.
        bytes: usize,
        /// What is wrong.
        reason: String,
    },
    /// A container without a sample in it.
    #[error("{codec} clip of {bytes} bytes holds no samples")]
    Silent {
        /// Short name of the codec.
        codec: &'static str,
        /// Bytes given.
        bytes: usize,
    },
    /// A rate that no recording of speech has; it would make the length in samples meaningless as a limit.
    #[error("{codec} clip has a sample rate of {rate} Hz, expected {min} to {max} Hz")]
    SampleRate {
        /// Short name of the codec.
        codec: &'static str,
        /// The rate that the clip claims.
        rate: u32,
        /// Lowest rate allowed.
        min: u32,
        /// Highest rate allowed.
        max: u32,
    },
    /// The resampler refused its settings.
    #[error("cannot resample from {from} Hz to {to} Hz: {reason}")]
    Resample {
        /// The clip's rate.
        from: u32,
        /// The rate asked for.
        to: u32,
        /// The resampler's words.
        reason: String,
    },
}

impl Error {
    /// Whether the clip may be fine but is over a limit, rather than undecodable.
    pub fn is_over_limit(&self) -> bool {
        matches!(self, Self::TooManyBytes { .. } | Self::TooLong { .. })
    }
}
