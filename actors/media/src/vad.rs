//! Speech probabilities to stretches of speech, and those to windows that a recogniser can hear at once.
//!
//! The model gives one probability per [`CHUNK`] samples at 16 kHz; everything here is arithmetic on those.

mod segments;
mod windows;

pub use segments::{Options, segments};
pub use windows::{MAX_WINDOW, middle, windows};

/// Samples that one probability speaks for: 32 ms at 16 kHz.
pub const CHUNK: usize = 512;
/// Samples per second.
pub const SAMPLE_RATE: usize = 16_000;

/// A stretch of speech, in samples at 16 kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First sample.
    pub start: usize,
    /// The sample after the last.
    pub end: usize,
}

/// A stretch of a clip that is recognised in one go, in samples at 16 kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First sample.
    pub start: usize,
    /// The sample after the last; at most [`MAX_WINDOW`] after `start`.
    pub end: usize,
}
