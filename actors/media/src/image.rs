//! Encoded images to the rows that a vision model reads.
//!
//! [`decode`] turns a stranger's bytes into upright RGB; [`preprocess`] turns that into the model's input.

mod decode;
mod found;
mod jpeg;
mod preprocess;
mod tiff;
mod truncated;

pub use decode::{decode, decoded_bytes};
pub use preprocess::{Channels, Filter, Preprocess, preprocess};

/// What one encoded image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded image.
    pub max_bytes: usize,
    /// Pixels of the decoded image: width times height.
    pub max_pixels: u64,
    /// Whether an image that ends too early is decoded as far as it came.
    pub allow_truncated: bool,
}

/// An image that ends too early.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// The share of the picture that came, or nearly so, in 0..1; nothing where nobody can tell, as of a progressive JPEG
    /// of which all is there, but coarse.
    pub came: Option<f64>,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.came {
            Some(came) => write!(f, "ends after about {:.0} % of its picture", (100.0 * came).floor()),
            None => f.write_str("ends before its picture does"),
        }
    }
}

/// An upright RGB image, 8 bits a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Columns, after the EXIF orientation was applied.
    pub width: u32,
    /// Rows, after the EXIF orientation was applied.
    pub height: u32,
    /// `[height, width, 3]`, row-major, sRGB values as stored: embedded colour profiles are not applied, as the
    /// training pipelines of the served models did not either.
    pub pixels: Vec<u8>,
    /// Set if it ends too early, which [`Limits`] allowed; what is missing is grey.
    pub cut: Option<Cut>,
}

/// What is read, as refusals say it.
const EXPECTED: &str = "JPEG, PNG, WebP, GIF, BMP or TIFF";

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
    /// The end is missing: judged as it is, it would be judged by what nobody has seen.
    #[error("{format} image of {bytes} bytes {cut}")]
    Truncated {
        /// The format that the content starts like.
        format: &'static str,
        /// Bytes given.
        bytes: usize,
        /// How much of it came.
        cut: Cut,
    },
    /// The content is known, and of a kind that is not read.
    #[error("image of {bytes} bytes is {found}, expected {EXPECTED}")]
    Unsupported {
        /// Bytes given.
        bytes: usize,
        /// What it is, such as `HEIC`.
        found: String,
    },
    /// A decoder panicked, which is a defect of the decoder, and a broken image to the caller.
    #[error("{format} image of {bytes} bytes cannot be decoded: its decoder panicked")]
    Panicked {
        /// The format that the content starts like.
        format: &'static str,
        /// Bytes given.
        bytes: usize,
    },
    /// The content is no image format known here.
    #[error("image of {bytes} bytes starts with {start}, expected {EXPECTED}")]
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
