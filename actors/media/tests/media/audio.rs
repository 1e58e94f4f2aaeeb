//! Every container and codec, real speech, limits, and the resampler's quality.

use std::f64::consts::TAU;
use std::path::PathBuf;

use sensorium_media::audio::{Clip, Error, Limits, decode, length, resample};

use crate::{fixture, set_up};

pub(crate) const LIMITS: Limits = Limits { max_bytes: 16 << 20, max_seconds: 600.0 };

/// Speech of the samples.
pub(crate) fn speech() -> PathBuf {
    set_up("SENSORIUM_SAMPLES", "samples").join("speech")
}

/// Amplitude of a frequency in samples, by correlation with it.
pub(crate) fn amplitude(samples: &[f32], rate: u32, hertz: f64) -> f64 {
    let (mut re, mut im) = (0.0, 0.0);
    for (n, sample) in samples.iter().enumerate() {
        let phase = TAU * hertz * n as f64 / f64::from(rate);
        re += f64::from(*sample) * phase.cos();
        im += f64::from(*sample) * phase.sin();
    }
    2.0 * (re * re + im * im).sqrt() / samples.len() as f64
}

#[test]
fn every_container_gives_the_same_tone() {
    let files = [
        ("wav-u8-8k.wav", 8_000, 1, "pcm_u8"),
        ("wav-s16-8k.wav", 8_000, 1, "pcm_s16le"),
        ("wav-s24-6k.wav", 6_000, 1, "pcm_s24le"),
        ("wav-s32-4k.wav", 4_000, 1, "pcm_s32le"),
        ("wav-f32-4k.wav", 4_000, 1, "pcm_f32le"),
        ("wav-mulaw-8k.wav", 8_000, 1, "pcm_mulaw"),
        ("flac-16k.flac", 16_000, 1, "flac"),
        ("flac-stereo-22k.flac", 22_050, 2, "flac"),
        ("mp3-16k.mp3", 16_000, 1, "mp3"),
        ("mp3-stereo-48k.mp3", 48_000, 2, "mp3"),
        ("vorbis-stereo-44k.ogg", 44_100, 2, "vorbis"),
        ("aac-stereo-44k.m4a", 44_100, 2, "aac"),
        ("aac-16k.aac", 16_000, 1, "aac"),
        ("adpcm-ms-8k.wav", 8_000, 1, "adpcm_ms"),
        ("adpcm-ima-8k.wav", 8_000, 1, "adpcm_ima_wav"),
        ("rf64-8k.wav", 8_000, 1, "pcm_s16le"),
        ("s16-8k.aiff", 8_000, 1, "pcm_s16be"),
        ("mulaw-8k.aifc", 8_000, 1, "pcm_mulaw"),
        ("s16-8k.caf", 8_000, 1, "pcm_s16le"),
        ("alaw-8k.caf", 8_000, 1, "pcm_alaw"),
        ("alac-8k.caf", 8_000, 1, "alac"),
        ("alac-8k.m4a", 8_000, 1, "alac"),
        ("mp2-16k.mp2", 16_000, 1, "mp2"),
        ("opus.ogg", 48_000, 1, "opus"),
        ("opus.webm", 48_000, 1, "opus"),
        ("opus-live.webm", 48_000, 1, "opus"),
        ("opus.mp4", 48_000, 1, "opus"),
        ("vorbis-stereo-44k.webm", 44_100, 2, "vorbis"),
    ];
    for (name, rate, channels, codec) in files {
        let clip = decode(&fixture(name), &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((clip.sample_rate, clip.channels, clip.codec), (rate, channels, codec), "{name}");
        // AAC decoders keep the encoder's run-in and the last frame's padding: up to 2 x 2048 samples. Others keep what
        // fills the last block, where the container does not say how much of it is.
        let slack = match codec {
            "aac" => 4096.0 / f64::from(rate),
            "adpcm_ms" | "adpcm_ima_wav" | "mp2" | "vorbis" => 1024.0 / f64::from(rate),
            _ => 0.001,
        };
        assert!((clip.seconds - 1.0).abs() <= slack, "{name}: {} s", clip.seconds);
        assert_eq!(clip.seconds, clip.samples.len() as f64 / f64::from(rate));
        // The other channel of the stereo files is silent, which costs nothing.
        let expected = 0.5;
        let middle = &clip.samples[clip.samples.len() / 4..clip.samples.len() * 3 / 4];
        let got = amplitude(middle, rate, 440.0);
        assert!((got - expected).abs() < 0.05 * expected, "{name}: amplitude {got}, expected {expected}");
    }
}

/// A canonical WAV header over `data`, whatever it claims.
pub(crate) fn wav(format: u16, channels: u16, rate: u32, bits: u16, claimed: u32, data: &[u8]) -> Vec<u8> {
    let block = channels * (bits / 8);
    let mut bytes = b"RIFF".to_vec();
    bytes.extend(claimed.saturating_add(36).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0");
    bytes.extend(format.to_le_bytes());
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate.to_le_bytes());
    bytes.extend((rate * u32::from(block)).to_le_bytes());
    bytes.extend(block.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend(claimed.to_le_bytes());
    bytes.extend(data);
    bytes
}

fn pcm16(channels: u16, rate: u32, samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    wav(1, channels, rate, 16, u32::try_from(data.len()).unwrap(), &data)
}

#[test]
fn float_samples_are_made_finite_and_clamped() {
    let data: Vec<u8> = [f32::NAN, f32::INFINITY, -7.0, 0.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let clip = decode(&wav(3, 1, 16_000, 32, 16, &data), &LIMITS).unwrap();
    assert_eq!(clip.samples, [0.0, 1.0, -1.0, 0.5]);
}

#[test]
fn limits_are_told_apart_from_broken_content() {
    let bytes = pcm16(1, 16_000, &[1000; 32_000]);
    let error = decode(&bytes, &Limits { max_bytes: 100, ..LIMITS }).unwrap_err();
    assert!(matches!(error, Error::TooManyBytes { limit: 100, .. }) && error.is_over_limit(), "{error}");
    let error = decode(&bytes, &Limits { max_seconds: 1.999, ..LIMITS }).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }) && error.is_over_limit(), "{error}");
    assert!(decode(&bytes, &Limits { max_seconds: 2.0, ..LIMITS }).is_ok());

    assert!(matches!(decode(b"", &LIMITS), Err(Error::Empty)));
    let error = decode(&[7; 5000], &LIMITS).unwrap_err();
    assert!(matches!(error, Error::UnknownFormat { bytes: 5000, .. }) && !error.is_over_limit(), "{error}");
    let error = decode(&pcm16(1, 16_000, &[]), &LIMITS).unwrap_err();
    assert!(!error.is_over_limit(), "{error}");
    let error = decode(&pcm16(1, 100, &[0; 1000]), &LIMITS).unwrap_err();
    assert!(matches!(error, Error::SampleRate { rate: 100, .. }), "{error}");
}

#[test]
fn a_clip_that_is_cut_off_is_decoded_up_to_there() {
    for name in ["wav-s16-8k.wav", "flac-16k.flac", "mp3-16k.mp3", "aac-16k.aac"] {
        let bytes = fixture(name);
        let clip = decode(&bytes[..bytes.len() * 3 / 4], &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(clip.seconds > 0.4 && clip.seconds < 1.0, "{name}: {} s", clip.seconds);
    }
}

#[test]
fn a_hole_in_the_middle_is_skipped() {
    let mut bytes = fixture("mp3-stereo-48k.mp3");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 300].fill(0);
    let clip = decode(&bytes, &LIMITS).unwrap();
    assert!(clip.seconds > 0.8, "{} s", clip.seconds);
}

#[test]
fn real_speech() {
    let mut clips = 0;
    for file in std::fs::read_dir(speech())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "wav"))
    {
        let clip = decode(&std::fs::read(&file).unwrap(), &LIMITS).unwrap();
        assert_eq!((clip.sample_rate, clip.channels, clip.codec), (16_000, 1, "pcm_s16le"), "{file:?}");
        assert!((1.0..60.0).contains(&clip.seconds), "{file:?}");
        let loudest = clip.samples.iter().fold(0.0_f32, |loudest, sample| loudest.max(sample.abs()));
        assert!((0.05..=1.0).contains(&loudest), "{file:?}: {loudest}");
        assert_eq!(resample(&clip, 16_000).unwrap(), clip.samples);
        clips += 1;
    }
    assert_eq!(clips, 5);
}

fn sine(rate: u32, hertz: f64, length: usize) -> Clip {
    let samples: Vec<f32> =
        (0..length).map(|n| (0.5 * (TAU * hertz * n as f64 / f64::from(rate)).sin()) as f32).collect();
    Clip { seconds: length as f64 / f64::from(rate), samples, sample_rate: rate, channels: 1, codec: "test" }
}

#[test]
fn resampling_keeps_tones_in_place_and_removes_what_does_not_fit() {
    for rate in [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000] {
        for hertz in [100.0, 440.0, 1000.0, 3000.0, 6000.0] {
            if hertz > 0.4 * f64::from(rate) {
                continue;
            }
            let clip = sine(rate, hertz, rate as usize);
            let got = resample(&clip, 16_000).unwrap();
            assert_eq!(got.len(), 16_000);
            // Against the sine itself, so that a delay is an error too; the ends lack their other half.
            let (mut signal, mut noise) = (0.0, 0.0);
            for (n, sample) in got.iter().enumerate().skip(1600).take(12_800) {
                let expected = 0.5 * (TAU * hertz * n as f64 / 16_000.0).sin();
                signal += expected * expected;
                noise += (f64::from(*sample) - expected).powi(2);
            }
            let decibels = 10.0 * (signal / noise).log10();
            assert!(decibels > 80.0, "{rate} Hz, {hertz} Hz: {decibels:.1} dB");
        }
        if rate > 20_000 {
            let above = resample(&sine(rate, 9_000.0, rate as usize), 16_000).unwrap();
            let loudest = above[1600..14_400].iter().fold(0.0_f32, |loudest, sample| loudest.max(sample.abs()));
            assert!(loudest < 1e-3, "{rate} Hz: 9 kHz is folded back at {loudest}");
        }
    }
}

#[test]
fn the_resampled_length_is_exact() {
    for rate in [4_000, 7_919, 8_000, 44_100, 48_000, 192_000] {
        for length in [1, 2, 3, 160, 1023, 1024, 1025, 44_099] {
            let got = resample(&sine(rate, 50.0, length), 16_000).unwrap();
            let expected = (length as f64 * 16_000.0 / f64::from(rate)).round() as usize;
            assert_eq!(got.len(), expected, "{length} samples at {rate} Hz");
        }
    }
    assert!(resample(&sine(8_000, 50.0, 100), 0).is_err());
}

#[test]
fn the_length_of_a_clip_is_told_from_its_header_or_guessed() {
    let plain =
        ["wav-u8-8k.wav", "wav-f32-4k.wav", "flac-16k.flac", "mp3-16k.mp3", "vorbis-stereo-44k.ogg", "aac-16k.aac"];
    let boxed = ["opus.ogg", "opus.mp4", "opus.webm", "opus-live.webm", "alac-8k.caf", "alac-8k.m4a", "s16-8k.aiff"];
    for name in plain.into_iter().chain(boxed).chain(["adpcm-ms-8k.wav", "rf64-8k.wav", "vorbis-stereo-44k.webm"]) {
        let told = length(&fixture(name), &LIMITS).unwrap();
        let clip = decode(&fixture(name), &LIMITS).unwrap();
        assert_eq!(told.sample_rate, clip.sample_rate, "{name}");
        assert!(told.seconds >= clip.seconds && told.seconds < 10.0 * clip.seconds + 2.0, "{name}: {told:?}");
    }
    assert!(matches!(length(b"", &LIMITS), Err(Error::Empty)));
    assert!(matches!(length(b"no clip at all, but some text", &LIMITS), Err(Error::Unsupported { .. })));
}
