//! Decoders against real encoders' files, bombs, and arbitrary bytes; the mel transform against its definition.

#![allow(clippy::unwrap_used)]

#[path = "media/audio.rs"]
mod audio;
#[path = "media/channels.rs"]
mod channels;
#[path = "media/hostile.rs"]
mod hostile;
#[path = "media/image.rs"]
mod image;
#[path = "media/mel.rs"]
mod mel;
#[path = "media/quirks.rs"]
mod quirks;
#[path = "media/reference.rs"]
mod reference;
#[path = "media/text.rs"]
mod text;
#[path = "media/truncated.rs"]
mod truncated;
#[path = "media/watch.rs"]
mod watch;

use std::path::{Path, PathBuf};

/// A folder that the set-up has made: what the variable says, or the default.
fn set_up(variable: &str, name: &str) -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_default().join(".cache/sensorium");
    let cache = || std::env::var_os("SENSORIUM_CACHE").map_or_else(home, PathBuf::from);
    let path = std::env::var_os(variable).map_or_else(|| cache().join(name), PathBuf::from);
    assert!(path.is_dir(), "there is no {}: `make setup` makes it, or set {variable}", path.display());
    path
}

/// An answer of another implementation, from the repository's `tests/reference`.
fn reference(name: &str) -> serde_json::Value {
    let path = Path::new("../../tests/reference").join(format!("{name}.json"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// A file of `tests/fixtures`. Tests run in the root of their package.
fn fixture(name: &str) -> Vec<u8> {
    let path = format!("tests/fixtures/{name}");
    std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read the fixture {path}: {error}"))
}
