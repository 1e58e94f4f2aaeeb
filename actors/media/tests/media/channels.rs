//! What becomes of several channels.

use std::f64::consts::TAU;

use sensorium_media::audio::{Clip, Error, decode};

use crate::audio::{LIMITS, amplitude, wav};

const RATE: u32 = 16_000;

/// A tone at half of full scale.
fn tone(hertz: f64) -> impl Fn(usize) -> f64 {
    move |n| 0.5 * (TAU * hertz * n as f64 / f64::from(RATE)).sin()
}

/// A clip of one function per channel; extensible, if a mask names the speakers.
fn clip(mask: Option<u32>, frames: usize, channels: &[&dyn Fn(usize) -> f64]) -> Clip {
    let sample = |n: usize, channel: &dyn Fn(usize) -> f64| ((channel(n) * 32767.0) as i16).to_le_bytes();
    let data: Vec<u8> = (0..frames).flat_map(|n| channels.iter().flat_map(move |channel| sample(n, channel))).collect();
    let count = u16::try_from(channels.len()).unwrap();
    let mut bytes = wav(1, count, RATE, 16, u32::try_from(data.len()).unwrap(), &data);
    if let Some(mask) = mask {
        let guid = [1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];
        let extension = [&[22, 0, 16, 0][..], &mask.to_le_bytes(), &guid].concat();
        bytes[16] = 40;
        bytes[20..22].copy_from_slice(&[0xfe, 0xff]);
        bytes.splice(36..36, extension);
    }
    decode(&bytes, &LIMITS).unwrap()
}

/// Amplitudes of two tones in each tenth of a second but the first of a clip.
fn heard(clip: &Clip, hertz: [f64; 2]) -> Vec<[f64; 2]> {
    let tenth = RATE as usize / 10;
    clip.samples.chunks_exact(tenth).skip(1).map(|part| hertz.map(|hertz| amplitude(part, RATE, hertz))).collect()
}

#[track_caller]
fn near(got: f64, expected: f64) {
    assert!((got - expected).abs() < 0.05 * expected, "{got}, expected {expected}");
}

#[test]
fn equal_channels_are_one_of_them() {
    let mono = clip(None, 8_000, &[&tone(440.0)]);
    let dual = clip(None, 8_000, &[&tone(440.0), &tone(440.0)]);
    assert_eq!((dual.channels, &dual.samples), (2, &mono.samples));
}

#[test]
fn opposite_phases_do_not_cancel() {
    let (plain, flipped) = (tone(440.0), |n: usize| -tone(440.0)(n));
    for channels in [[&plain as &dyn Fn(usize) -> f64, &flipped], [&flipped, &plain]] {
        near(amplitude(&clip(None, 16_000, &channels).samples, RATE, 440.0), 0.5);
    }
    // nor if one of them is fainter, or late
    let late = |n: usize| -0.6 * tone(440.0)(n + 3);
    assert!(amplitude(&clip(None, 16_000, &[&plain, &late]).samples, RATE, 440.0) > 0.48);
}

#[test]
fn opposite_phases_in_half_of_a_clip_do_not_cancel() {
    // the change lies within a block
    let turn = 13_130;
    let turning = |n: usize| if n < turn { tone(440.0)(n) } else { -tone(440.0)(n) };
    let mixed = clip(None, 26_000, &[&tone(440.0), &turning]);
    let parts = heard(&mixed, [440.0, 1000.0]);
    let faint = parts.iter().filter(|part| part[0] < 0.48).count();
    assert!(faint <= 1, "only where it turns: {parts:?}");
    // and nothing clicks: no step is larger than the tone's own
    let step = TAU * 440.0 / f64::from(RATE) * 0.5;
    let largest = mixed.samples.windows(2).map(|pair| f64::from((pair[1] - pair[0]).abs())).fold(0.0, f64::max);
    assert!(largest < 1.2 * step || turning_step(&mixed, turn), "{largest}, the tone's {step}");
}

/// Whether the largest step is where the recording itself has one.
fn turning_step(mixed: &Clip, turn: usize) -> bool {
    let step = |at: usize| (mixed.samples[at] - mixed.samples[at - 1]).abs();
    let largest = (1..mixed.samples.len()).max_by(|a, b| step(*a).total_cmp(&step(*b)));
    largest.is_some_and(|at| at.abs_diff(turn) <= 1)
}

#[test]
fn a_silent_channel_does_not_halve_the_other() {
    let silence = |_: usize| 0.0;
    near(amplitude(&clip(None, 16_000, &[&tone(440.0), &silence]).samples, RATE, 440.0), 0.5);
    near(amplitude(&clip(None, 16_000, &[&silence, &silence, &silence, &tone(440.0)]).samples, RATE, 440.0), 0.5);
    // it may begin to speak
    let later = |n: usize| if n < 8_000 { 0.0 } else { tone(440.0)(n) };
    for part in heard(&clip(None, 16_000, &[&later, &tone(440.0)]), [440.0, 1000.0]) {
        assert!((0.48..0.56).contains(&part[0]), "{part:?}: louder only for a moment");
    }
    assert!(clip(None, 16_000, &[&silence, &silence]).samples.iter().all(|sample| *sample == 0.0));
}

#[test]
fn speakers_left_and_right_are_both_heard() {
    // in turns
    let left = |n: usize| if n < 8_000 { tone(440.0)(n) } else { 0.0 };
    let right = |n: usize| if n < 8_000 { 0.0 } else { tone(1_000.0)(n) };
    let parts = heard(&clip(None, 16_000, &[&left, &right]), [440.0, 1_000.0]);
    parts[..4].iter().for_each(|part| near(part[0], 0.5));
    parts[4..].iter().skip(1).for_each(|part| near(part[1], 0.5));
    // and at the same time, one of them far fainter
    for faintness in [1.0, 0.2] {
        let right = |n: usize| faintness * tone(1_000.0)(n);
        for part in heard(&clip(None, 16_000, &[&tone(440.0), &right]), [440.0, 1_000.0]) {
            assert!(part[0] > 0.34 && part[1] > 0.67 * 0.5 * faintness, "{part:?}");
        }
    }
}

#[test]
fn a_centre_keeps_its_level_and_bass_is_left_out() {
    let surround = Some(0x3f);
    let silence = |_: usize| 0.0;
    let centre = tone(440.0);
    let rumble = |n: usize| 1.9 * tone(60.0)(n);
    let only = clip(surround, 16_000, &[&silence, &silence, &centre, &rumble, &silence, &silence]);
    near(amplitude(&only.samples, RATE, 440.0), 0.5);
    assert!(amplitude(&only.samples, RATE, 60.0) < 0.001);
    // music around it, as loud in four channels as the voice is
    let music = tone(1_000.0);
    let film = clip(surround, 16_000, &[&music, &music, &centre, &silence, &music, &music]);
    let [voice, around] = [440.0, 1_000.0].map(|hertz| amplitude(&film.samples, RATE, hertz));
    assert!(voice > 0.15, "{voice} beside {around}: far more than the sixth part of an average");
    // six channels without places may be six microphones
    let six = clip(None, 16_000, &[&silence, &silence, &silence, &centre, &silence, &silence]);
    near(amplitude(&six.samples, RATE, 440.0), 0.5);
}

#[test]
fn loud_mixes_are_not_clipped() {
    let loud = |hertz: f64| move |n: usize| 1.99 * tone(hertz)(n);
    let mixed = clip(None, 16_000, &[&loud(440.0), &loud(1_000.0)]);
    let parts = heard(&mixed, [440.0, 1_000.0]);
    parts.iter().flatten().for_each(|tone| near(*tone, 0.5));
    assert!(amplitude(&mixed.samples, RATE, 440.0 + 2.0 * 1_000.0) < 0.001, "no harmonics");
}

#[test]
fn channels_beyond_all_reason_are_refused() {
    for channels in [33_u16, 200] {
        let data = vec![0; usize::from(channels) * 200];
        let error = decode(&wav(1, channels, RATE, 16, 6600, &data), &LIMITS).unwrap_err();
        assert!(matches!(error, Error::UnknownFormat { .. } | Error::Unsupported { .. }), "{error}");
    }
    let data = vec![0; 26 * 200];
    assert_eq!(decode(&wav(1, 26, RATE, 16, 5200, &data), &LIMITS).unwrap().channels, 26);
}
