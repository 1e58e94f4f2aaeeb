//! Bombs and bytes that nobody meant: an error each time, quickly, in little memory, and never a panic, not even one that is
//! caught, but for those that are known.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use sensorium_media::{audio, image};

use crate::audio::wav;
use crate::fixture;
use crate::watch::watch;

/// Small, so that mutated headers meet them.
const IMAGE: image::Limits = image::Limits { max_bytes: 1 << 20, max_pixels: 1 << 20, allow_truncated: false };
const AUDIO: audio::Limits = audio::Limits { max_bytes: 1 << 20, max_seconds: 10.0 };

const IMAGES: [&str; 20] = [
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
    "scene-interlaced.gif",
    "scene-interlaced.png",
    "scene-progressive.jpg",
    "scene.jpg",
    "scene.webp",
];

const CLIPS: [&str; 32] = [
    "aac-16k.aac",
    "aac-stereo-44k.m4a",
    "ac3.mp4",
    "adpcm-ima-8k.wav",
    "adpcm-ms-8k.wav",
    "alac-8k.caf",
    "alaw-8k.caf",
    "alac-8k.m4a",
    "eac3.mkv",
    "flac-16k.flac",
    "flac-stereo-22k.flac",
    "mp2-16k.mp2",
    "mp3-16k.mp3",
    "mp3-stereo-48k.mp3",
    "mulaw-8k.aifc",
    "opus-5.1.ogg",
    "opus-live.webm",
    "opus.mp4",
    "opus.ogg",
    "opus.webm",
    "rf64-8k.wav",
    "s16-8k.aiff",
    "s16-8k.caf",
    "speex.ogg",
    "vorbis-stereo-44k.ogg",
    "vorbis-stereo-44k.webm",
    "wav-f32-4k.wav",
    "wav-mulaw-8k.wav",
    "wav-s16-8k.wav",
    "wav-s24-6k.wav",
    "wav-s32-4k.wav",
    "wav-u8-8k.wav",
];

/// Panics of decoders that are known and caught: part of the file's path and of the words.
const KNOWN: [(&str, &str); 1] = [
    // where overflow is checked; elsewhere it is noise, as the file is
    ("symphonia-codec-adpcm-0.6.1/src/codec_ms.rs", "overflow"),
];

/// Bytes that decoding an image may hold within [`IMAGE`]: 16 bits for each of four channels, their RGB form, a progressive
/// JPEG's coefficients, and working memory.
const IMAGE_PEAK: usize = (8 + 3 + 4 + 6) * (1 << 20) + (16 << 20);
/// Bytes that decoding a clip may hold within [`AUDIO`] at the highest rate: its samples, and twice as many while they grow;
/// and what demuxers and decoders hold.
const AUDIO_PEAK: usize = 3 * 10 * 192_000 * 4 + (16 << 20);

fn known(panicked: Option<&str>) -> bool {
    panicked
        .is_none_or(|panicked| KNOWN.iter().any(|(path, words)| panicked.contains(path) && panicked.contains(words)))
}

fn decode_image(bytes: &[u8], limits: &image::Limits) -> Result<image::Image, image::Error> {
    let told = watch(|| image::decoded_bytes(bytes, limits));
    let seen = watch(|| image::decode(bytes, limits));
    for panicked in [told.panicked, seen.panicked] {
        assert!(known(panicked.as_deref()), "panicked: {panicked:?}");
    }
    assert!(told.peak < IMAGE_PEAK && seen.peak < IMAGE_PEAK, "{} bytes held", told.peak.max(seen.peak));
    if seen.result.is_ok() {
        let told = usize::try_from(told.result.unwrap()).unwrap();
        // tables and rows, and the file itself, which is copied
        let room = told + bytes.len() + (1 << 20);
        assert!(seen.peak <= room, "{} bytes held, {told} told", seen.peak);
    }
    seen.result
}

fn decode_clip(bytes: &[u8]) -> Result<audio::Clip, audio::Error> {
    let told = watch(|| audio::length(bytes, &AUDIO));
    let seen = watch(|| audio::decode(bytes, &AUDIO));
    for panicked in [told.panicked, seen.panicked] {
        assert!(known(panicked.as_deref()), "panicked: {panicked:?}");
    }
    assert!(told.peak < AUDIO_PEAK && seen.peak < AUDIO_PEAK, "{} bytes held", told.peak.max(seen.peak));
    seen.result
}

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
fn a_tiff_whose_directory_counts_millions() {
    let mut bytes = fixture("rgb.tiff");
    let directory = usize::try_from(u32::from_le_bytes(bytes[4..8].try_into().unwrap())).unwrap();
    let offsets =
        (0..40).map(|entry| directory + 2 + 12 * entry).find(|at| bytes[*at..].starts_with(&[0x11, 1])).unwrap();
    for count in [1_u32 << 19, 8_000_000, u32::MAX] {
        bytes[offsets + 4..offsets + 8].copy_from_slice(&count.to_le_bytes());
        let seen = watch(|| image::decode(&bytes, &IMAGE).unwrap_err());
        assert!(seen.result.to_string().contains("its directory counts"), "{}", seen.result);
        assert!(seen.peak < 1 << 16, "{} bytes held", seen.peak);
    }
}

#[test]
fn audio_headers_that_overflow() {
    let caf = fixture("s16-8k.caf");
    for (at, value) in [(36, u32::MAX), (40, u32::MAX), (44, 0), (44, 1 << 31), (48, 0), (48, 7), (48, u32::MAX)] {
        let mut caf = caf.clone();
        caf[at..at + 4].copy_from_slice(&value.to_be_bytes());
        assert!(decode_clip(&caf).is_err(), "{value} at {at}");
    }
    // nor where a container lies in the middle of another file, which is not that container
    let mut inner = caf.clone();
    inner[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(decode_clip(&[b"#!/bin/sh\n", &inner[..]].concat()).is_err());
    let mut twice = caf[..52].to_vec();
    twice.extend(&inner[8..]);
    assert!(decode_clip(&twice).is_err());
    let aiff = fixture("s16-8k.aiff");
    let common = aiff.windows(4).position(|name| name == b"COMM").unwrap();
    for (at, value) in [(8, 0_u16), (8, 33), (8, u16::MAX), (14, u16::MAX), (14, 65)] {
        let mut aiff = aiff.clone();
        aiff[common + at..common + at + 2].copy_from_slice(&value.to_be_bytes());
        assert!(decode_clip(&aiff).is_err(), "{value} at {at}");
    }
    for channels in [0, 33, 2000, u16::MAX] {
        assert!(decode_clip(&wav(1, channels & 0x7ff, 16_000, 16, 0, &[0; 3200])).is_err(), "{channels} channels");
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
        b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01",
        b"FORM\0\0\x10\0AIFC",
        b"caff\0\x01\0\0desc",
        b"\0\0\0\x1cftypheic",
        b"RF64\xff\xff\xff\xffWAVEds64",
    ];
    (prop::sample::select(starts), prop::collection::vec(any::<u8>(), 0..3000))
        .prop_map(|(start, rest)| [start, &rest].concat())
}

/// Time is judged by how much more mutated files take than the files they were made of, on the same machine at the same
/// time: a loop that runs wild takes thousands of times as long.
#[test]
fn mutated_files_take_no_longer_than_their_originals() {
    let mut state = 1_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let images = IMAGES.iter().map(|name| (*name, false));
    let (mut plain, mut mutated, mut slowest) = (Duration::ZERO, Duration::ZERO, (Duration::ZERO, ""));
    for (name, is_clip) in images.chain(CLIPS.iter().map(|name| (*name, true))) {
        let bytes = fixture(name);
        let timed = |bytes: &[u8]| {
            let start = Instant::now();
            if is_clip {
                let _ = audio::decode(bytes, &AUDIO);
            } else {
                let _ = image::decode(bytes, &IMAGE);
            }
            start.elapsed()
        };
        for _ in 0..10 {
            plain += timed(&bytes);
            let mut changed = bytes.clone();
            for _ in 0..=random(4) {
                let within = if random(2) == 0 { changed.len() } else { changed.len().min(100) };
                let at = random(within);
                changed[at] = u8::try_from(random(256)).unwrap();
            }
            let time = timed(&changed);
            mutated += time;
            slowest = slowest.max((time, name));
        }
    }
    assert!(mutated < 20 * plain, "{mutated:?} instead of {plain:?}, the slowest: {slowest:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in arbitrary()) {
        // Most are errors, and which one does not matter here.
        let _ = decode_image(&bytes, &IMAGE);
        let _ = decode_clip(&bytes);
    }

    #[test]
    fn mutated_images_stay_within_limits(bytes in mutated(&IMAGES), allow_truncated: bool) {
        let limits = image::Limits { allow_truncated, ..IMAGE };
        if let Ok(image) = decode_image(&bytes, &limits) {
            let pixels = u64::from(image.width) * u64::from(image.height);
            prop_assert!(pixels > 0 && pixels <= IMAGE.max_pixels);
            prop_assert_eq!(image.pixels.len() as u64, pixels * 3);
        }
    }

    #[test]
    fn mutated_clips_stay_within_limits(bytes in mutated(&CLIPS)) {
        if let Ok(clip) = decode_clip(&bytes) {
            prop_assert!(!clip.samples.is_empty() && clip.seconds <= AUDIO.max_seconds);
            prop_assert!(clip.samples.iter().all(|sample| sample.is_finite() && sample.abs() <= 1.0));
        }
    }
}
