//! Encoded images to the rows that a vision model reads.
//!
//! [`decode`] turns a stranger's bytes into upright RGB; [`preprocess`] turns that into the model's input.

mod decode;
mod preprocess;

pub use decode::{decode, decoded_bytes};
pub use preprocess::{Channels, Filter, Preprocess, preprocess};

/// What one encoded image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded image.
    pub max_bytes: usize,
    /// Pixels of the decoded image: width times height.
    pub max_pixels: u64,
}

/// An upright RGB image, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Columns, after the EXIF orientation was applied.
    pub width: u32,
    /// Rows, after the EXIF orientation was applied.
    pub height: u32,
    /// `[height, width, 3]`, row-major, sRGB values as stored: embedded colour profiles are not applied, as the
    /// training pipelines of the served models did not either.
    pub pixels: Vec<u8>,
}

/// Why there is no image. All but [`Error::Preprocess`] are the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bytes at all.
    #[error("image is empty, expected an encoded image")]
    Empty,
    /// More bytes than allowed.
    #[error("image has {bytes} bytes, the limit is {limit}")]
    TooManyBytes {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More pixels than allowed.
    #[error("image is {width}x{height}, {} pixels, the limit is {limit}", u64::from(*width) * u64::from(*height))]
    TooManyPixels {
        /// Columns that the header claims.
        width: u32,
        /// Rows that the header claims.
        height: u32,
        /// Pixels allowed.
        limit: u64,
    },
    /// Decoding needs more memory than the pixel limit accounts for.
    #[error("{format} image of {bytes} bytes needs more than {limit} bytes of memory to decode")]
    TooMuchMemory {
        /// The format that the content starts like.
        format: &'static str,
        /// Bytes given.
        bytes: usize,
        /// Bytes that decoding may allocate.
        limit: u64,
    },
    /// The content is no image format known here.
    #[error("image of {bytes} bytes starts with {start}, expected JPEG, PNG, WebP, GIF, BMP or TIFF")]
    UnknownFormat {
        /// Bytes given.
        bytes: usize,
        /// The first bytes, in hexadecimal.
        start: String,
    },
    /// The content is of a known format, and broken or of a kind that is not read.
    #[error("{format} image of {bytes} bytes cannot be decoded: {reason}")]
    Undecodable {
        /// The format that the content starts like.
        format: &'static str,
        /// Bytes given.
        bytes: usize,
        /// The decoder's words.
        reason: String,
    },
    /// The options of [`preprocess`] contradict each other: the model's settings are wrong, not the image.
    #[error("preprocess.{key} = {value}, expected {expected}")]
    Preprocess {
        /// Which option.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

impl Error {
    /// Whether the image may be fine but is over a limit, rather than undecodable.
    pub fn is_over_limit(&self) -> bool {
        matches!(self, Self::TooManyBytes { .. } | Self::TooManyPixels { .. } | Self::TooMuchMemory { .. })
    }
}
