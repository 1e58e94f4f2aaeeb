//! Decoding, resampling, mel spectrograms, image preprocessing and tokenisation.
//!
//! Pure synchronous functions from bytes to what a model reads, and from what it writes to text. They know no
//! actor, no runtime and no tensor library: the caller runs them on its decoding pool. Bytes come from strangers,
//! so every decoder is given its limits, and refuses before it allocates.

pub mod audio;
pub mod image;
pub mod mel;
mod signature;
pub mod text;
pub mod transcript;
pub mod vad;
