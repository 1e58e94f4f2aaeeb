//! Pictures, speech and the answers of other implementations.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Pictures of the samples.
pub const PICTURES: [&str; 6] =
    ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "rocket.jpg"];

/// Samples per second of the speech.
pub const RATE: u32 = 16_000;

pub(crate) fn cache() -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_default().join(".cache/sensorium");
    std::env::var_os("SENSORIUM_CACHE").map_or_else(home, PathBuf::from)
}

/// The folder of the samples.
pub fn folder() -> PathBuf {
    let path = std::env::var_os("SENSORIUM_SAMPLES").map_or_else(|| cache().join("samples"), PathBuf::from);
    assert!(path.is_dir(), "there are no samples at {}: `make setup` makes them", path.display());
    path
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An encoded picture.
pub fn picture(name: &str) -> Vec<u8> {
    read(&folder().join("images").join(name))
}

/// An encoded clip: 16 kHz, mono, 16 bits.
pub fn clip(name: &str) -> Vec<u8> {
    read(&folder().join("speech").join(name))
}

/// Clips and their official transcripts.
pub fn transcripts() -> Vec<(String, String)> {
    let text = String::from_utf8(read(&folder().join("speech/transcripts.tsv"))).expect("UTF-8");
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    let clips: Vec<_> = lines.map(|(clip, words)| (clip.to_owned(), words.to_owned())).collect();
    assert_eq!(clips.len(), 5, "five clips of LibriVox");
    clips
}

/// Fixtures of the media crate, from where this package's tests run: every container, a second of sine or a small picture.
pub fn fixture(name: &str) -> Vec<u8> {
    read(&Path::new("../actors/media/tests/fixtures").join(name))
}

/// What another implementation says.
pub fn reference(name: &str) -> Value {
    let path = Path::new("reference").join(format!("{name}.json"));
    serde_json::from_slice(&read(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Numbers of a JSON list.
#[allow(clippy::cast_possible_truncation)]
pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number") as f32).collect()
}

/// The samples of a clip.
pub fn samples(name: &str) -> Vec<i16> {
    let bytes = clip(name);
    let at = bytes.windows(4).position(|window| window == b"data").expect("a data chunk") + 8;
    bytes[at..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// A WAV file of 16-bit samples; channels alternate.
pub fn wav(samples: &[i16], rate: u32, channels: u16) -> Vec<u8> {
    let size = u32::try_from(samples.len() * 2).expect("below 4 GiB");
    let mut file = Vec::new();
    file.extend_from_slice(b"RIFF");
    file.extend((36 + size).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0");
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate * u32::from(channels) * 2).to_le_bytes());
    file.extend((channels * 2).to_le_bytes());
    file.extend_from_slice(b"\x10\0data");
    file.extend(size.to_le_bytes());
    file.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    file
}
