//! Decoders against real encoders' files, bombs, and arbitrary bytes; the mel transform against its definition.

#![allow(clippy::unwrap_used)]

#[path = "media/audio.rs"]
mod audio;
#[path = "media/hostile.rs"]
mod hostile;
#[path = "media/image.rs"]
mod image;
#[path = "media/mel.rs"]
mod mel;
#[path = "media/reference.rs"]
mod reference;
#[path = "media/text.rs"]
mod text;

/// A file of `tests/fixtures`.
fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read the fixture {path}: {error}"))
}
