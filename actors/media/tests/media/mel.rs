//! The transform against its definition, computed slowly and in f64.

use std::f64::consts::PI;

use sensorium_media::mel::{FRAMES, HOP, Mel, SAMPLES, WINDOW};

/// Slaney's mel scale from its constants, and a triangle per band, over all bins.
fn filterbank(bands: usize) -> Vec<Vec<f64>> {
    let step = 6.4_f64.ln() / 27.0;
    let hertz = |mel: f64| {
        if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * (step * (mel - 15.0)).exp() }
    };
    let top = 15.0 + (8.0_f64).ln() / step;
    let corners: Vec<f64> = (0..bands + 2).map(|n| hertz(top * n as f64 / (bands + 1) as f64)).collect();
    let weight = |band: usize, bin: usize| {
        let (low, mid, high) = (corners[band], corners[band + 1], corners[band + 2]);
        let at = bin as f64 * 40.0;
        ((at - low) / (mid - low)).min((high - at) / (high - mid)).max(0.0) * 2.0 / (high - low)
    };
    (0..bands).map(|band| (0..=WINDOW / 2).map(|bin| weight(band, bin)).collect()).collect()
}

/// log10 of the clamped mel power of one frame.
fn frame(samples: &[f32], index: usize, filters: &[Vec<f64>]) -> Vec<f64> {
    let padded = |at: isize| {
        let last = SAMPLES as isize - 1;
        let at = if at < 0 {
            -at
        } else if at > last {
            2 * last - at
        } else {
            at
        };
        samples.get(at as usize).copied().map_or(0.0, f64::from)
    };
    let windowed: Vec<f64> = (0..WINDOW)
        .map(|n| {
            let hann = 0.5 * (1.0 - (2.0 * PI * n as f64 / WINDOW as f64).cos());
            hann * padded((index * HOP + n) as isize - (WINDOW / 2) as isize)
        })
        .collect();
    let power: Vec<f64> = (0..=WINDOW / 2)
        .map(|bin| {
            let (mut re, mut im) = (0.0, 0.0);
            for (n, value) in windowed.iter().enumerate() {
                let phase = 2.0 * PI * ((bin * n) % WINDOW) as f64 / WINDOW as f64;
                re += value * phase.cos();
                im -= value * phase.sin();
            }
            re * re + im * im
        })
        .collect();
    filters.iter().map(|filter| filter.iter().zip(&power).map(|(w, p)| w * p).sum::<f64>().max(1e-10).log10()).collect()
}

/// Tones and noise, loud enough everywhere that nothing is decided by rounding.
fn sound(length: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..length)
        .map(|n| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = f64::from(state >> 8) / f64::from(1 << 24) - 0.5;
            let t = n as f64 / 16_000.0;
            (0.3 * (2.0 * PI * 440.0 * t).sin() + 0.1 * (2.0 * PI * (200.0 + 900.0 * t) * t).sin() + 0.05 * noise)
                as f32
        })
        .collect()
}

#[test]
fn it_is_what_the_definition_says() {
    for (bands, length) in [(80, SAMPLES), (128, SAMPLES), (80, 50_000), (80, 160), (80, 90), (80, SAMPLES - 100)] {
        let samples = sound(length);
        let got = Mel::new(bands).unwrap().log_mel(&samples);
        assert_eq!(got.len(), bands * FRAMES);
        let filters = filterbank(bands);
        let frames: Vec<usize> =
            (0..3).chain((3..FRAMES - 3).step_by(97)).chain(310..316).chain(FRAMES - 3..FRAMES).collect();
        // The loudest value belongs to any frame, so it is taken from the output: its maximum is (loudest + 4) / 4.
        let loudest = f64::from(got.iter().fold(f32::MIN, |a, b| a.max(*b))) * 4.0 - 4.0;
        let mut seen = f64::MIN;
        for index in frames {
            for (band, value) in frame(&samples, index, &filters).into_iter().enumerate() {
                seen = seen.max(value);
                let expected = (value.max(loudest - 8.0) + 4.0) / 4.0;
                let value = f64::from(got[band * FRAMES + index]);
                assert!(
                    (value - expected).abs() < 2e-4,
                    "{length} samples, frame {index}, band {band}: {value}, {expected}"
                );
            }
        }
        assert!(seen <= loudest + 1e-3);
    }
}

#[test]
fn silence_and_excess() {
    let mel = Mel::new(80).unwrap();
    assert!(mel.log_mel(&[]).iter().all(|value| *value == -1.5));
    assert_eq!(mel.log_mel(&vec![0.0; 1000]), mel.log_mel(&[]));
    let long = sound(SAMPLES + 5000);
    assert_eq!(mel.log_mel(&long), mel.log_mel(&long[..SAMPLES]));
    let mut padded = sound(20_000);
    let short = mel.log_mel(&padded);
    padded.resize(SAMPLES, 0.0);
    assert_eq!(short, mel.log_mel(&padded));
    assert!(Mel::new(0).is_err() && Mel::new(500).is_err());
}
