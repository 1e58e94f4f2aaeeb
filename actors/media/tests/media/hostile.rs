//! Bombs and bytes that nobody meant: an error each time, quickly, and never a panic.

use proptest::prelude::*;
use sensorium_media::{audio, image};

use crate::audio::wav;
use crate::fixture;

/// Small, so that mutated headers meet them.
const IMAGE: image::Limits = image::Limits { max_bytes: 1 << 20, max_pixels: 1 << 20 };
const AUDIO: audio::Limits = audio::Limits { max_bytes: 1 << 20, max_seconds: 10.0 };

const IMAGES: [&str; 15] = [
    "alpha.png",
    "alpha.webp",
    "animated.gif",
    "cmyk.jpg",
    "cmyk.tiff",
    "grey.jpg",
    "lossless.webp",
    "lossy.webp",
    "palette.png",
    "progressive.jpg",
    "rgb.bmp",
    "rgb.jpg",
    "rgb.png",
    "rgb.tiff",
    "rgb16.png",
];

const CLIPS: [&str; 13] = [
    "aac-16k.aac",
    "aac-stereo-44k.m4a",
    "flac-16k.flac",
    "flac-stereo-22k.flac",
    "mp3-16k.mp3",
    "mp3-stereo-48k.mp3",
    "vorbis-stereo-44k.ogg",
    "wav-f32-4k.wav",
    "wav-mulaw-8k.wav",
    "wav-s16-8k.wav",
    "wav-s24-6k.wav",
    "wav-s32-4k.wav",
    "wav-u8-8k.wav",
];

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn a_png_that_claims_to_be_huge() {
    let mut bytes = fixture("rgb.png");
    bytes[16..20].copy_from_slice(&100_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&100_000_u32.to_be_bytes());
    let sum = crc(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&sum);
    let error = image::decode(&bytes, &IMAGE).unwrap_err();
    assert_eq!(error.to_string(), "image is 100000x100000, 10000000000 pixels, the limit is 1048576");
}

#[test]
fn other_headers_that_claim_to_be_huge() {
    let mut bmp = fixture("rgb.bmp");
    bmp[18..22].copy_from_slice(&60_000_u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000_u32.to_le_bytes());
    let mut gif = fixture("animated.gif");
    gif[6..10].fill(0xff);
    let mut jpeg = fixture("rgb.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    for bytes in [bmp, gif, jpeg] {
        let error = image::decode(&bytes, &IMAGE).unwrap_err();
        assert!(error.is_over_limit(), "{error}");
    }
}

#[test]
fn a_wav_that_claims_hours() {
    // What a streaming encoder writes as it does not know better: the samples that are there count.
    for claimed in [u32::MAX - 36, u32::MAX, 1 << 30] {
        let clip = audio::decode(&wav(1, 1, 16_000, 16, claimed, &[0; 3200]), &AUDIO).unwrap();
        assert_eq!(clip.samples.len(), 1600, "{claimed} bytes claimed");
    }
}

#[test]
fn a_flac_that_claims_hours() {
    let mut bytes = fixture("flac-16k.flac");
    // STREAMINFO's 36 bits of total samples end 8 + 18 bytes into the file.
    bytes[22..26].fill(0xff);
    let clip = audio::decode(&bytes, &AUDIO).unwrap();
    assert!((clip.seconds - 1.0).abs() < 0.1, "{} s", clip.seconds);
}

#[test]
fn decoding_stops_at_the_limit() {
    // Half a minute in 1 MB at 16 kHz; the limit is 10 s.
    let error = audio::decode(&wav(1, 1, 16_000, 16, 960_000, &vec![0; 960_000]), &AUDIO).unwrap_err();
    assert!(matches!(error, audio::Error::TooLong { .. }), "{error}");
}

/// Bytes of a file with some of them replaced, and perhaps cut off.
fn mutated(names: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12);
    // Headers decide what is allocated, so most changes go there.
    let early = prop::collection::vec((0_usize..80, any::<u8>()), 0..6);
    (prop::sample::select(names), changes, early, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(name, changes, early, end, cut)| {
            let mut bytes = fixture(name);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for (at, value) in early {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        },
    )
}

/// Random bytes behind a format's first bytes, or behind none.
fn arbitrary() -> impl Strategy<Value = Vec<u8>> {
    let starts: &'static [&'static [u8]] = &[
        b"",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"BM",
        b"II\x2a\0",
        b"RIFF\xff\0\0\0WEBPVP8 ",
        b"RIFF\xff\0\0\0WAVEfmt ",
        b"fLaC",
        b"OggS",
        b"ID3\x04",
        b"\xff\xfb\x90",
        b"\xff\xf1",
        b"\0\0\0\x1cftypM4A ",
    ];
    (prop::sample::select(starts), prop::collection::vec(any::<u8>(), 0..3000))
        .prop_map(|(start, rest)| [start, &rest].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in arbitrary()) {
        // Most are errors, and which one does not matter here.
        let _ = image::decode(&bytes, &IMAGE);
        let _ = audio::decode(&bytes, &AUDIO);
    }

    #[test]
    fn mutated_images_stay_within_limits(bytes in mutated(&IMAGES)) {
        if let Ok(image) = image::decode(&bytes, &IMAGE) {
            let pixels = u64::from(image.width) * u64::from(image.height);
            prop_assert!(pixels > 0 && pixels <= IMAGE.max_pixels);
            prop_assert_eq!(image.pixels.len() as u64, pixels * 3);
        }
    }

    #[test]
    fn mutated_clips_stay_within_limits(bytes in mutated(&CLIPS)) {
        if let Ok(clip) = audio::decode(&bytes, &AUDIO) {
            prop_assert!(!clip.samples.is_empty() && clip.seconds <= AUDIO.max_seconds);
            prop_assert!(clip.samples.iter().all(|sample| sample.is_finite() && sample.abs() <= 1.0));
        }
    }
}
