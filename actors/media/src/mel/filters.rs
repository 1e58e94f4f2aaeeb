//! The mel filterbank, as `librosa.filters.mel` computes it by default.

use super::{SAMPLE_RATE, WINDOW};

/// Bins of the power spectrum.
const BINS: usize = WINDOW / 2 + 1;

/// A filterbank that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a spectrum of {BINS} bins has no {bands} mel bands, expected 1 to 128")]
pub struct Error {
    /// Bands asked for.
    pub bands: usize,
}

/// Triangles over the spectrum's bins, each stored as its non-zero part.
pub(super) struct Filters {
    /// First bin and weights, per band.
    triangles: Vec<(usize, Vec<f32>)>,
}

impl Filters {
    /// `bands` triangles from 0 Hz to the Nyquist frequency, equally spaced in mel, each of area 1 (Slaney).
    pub(super) fn slaney(bands: usize) -> Result<Self, Error> {
        if !(1..=128).contains(&bands) {
            return Err(Error { bands });
        }
        let top = to_mel(SAMPLE_RATE as f64 / 2.0);
        let corner = |n: usize| to_hertz(top * n as f64 / (bands + 1) as f64);
        let triangles = (0..bands).map(|band| triangle(corner(band), corner(band + 1), corner(band + 2))).collect();
        Ok(Self { triangles })
    }

    /// Energy of `power` (one value per bin) in a band.
    pub(super) fn apply(&self, band: usize, power: &[f32]) -> f32 {
        let (first, weights) = &self.triangles[band];
        power[*first..].iter().zip(weights).map(|(power, weight)| power * weight).sum()
    }
}

fn triangle(low: f64, centre: f64, high: f64) -> (usize, Vec<f32>) {
    let weight = |bin: usize| {
        let hertz = bin as f64 * SAMPLE_RATE as f64 / WINDOW as f64;
        let rising = (hertz - low) / (centre - low);
        let falling = (high - hertz) / (high - centre);
        (rising.min(falling).max(0.0) * 2.0 / (high - low)) as f32
    };
    let first = (0..BINS).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
    let weights = (first..BINS).map(weight).take_while(|&weight| weight > 0.0).collect();
    (first, weights)
}

/// Mels per hertz below [`BREAK_HERTZ`], where the scale is linear; above it is logarithmic.
const LINEAR: f64 = 3.0 / 200.0;
const BREAK_HERTZ: f64 = 1000.0;
/// Frequency ratio of 27 mels above the break.
const RATIO: f64 = 6.4;
const RATIO_MELS: f64 = 27.0;

fn to_mel(hertz: f64) -> f64 {
    if hertz < BREAK_HERTZ {
        hertz * LINEAR
    } else {
        BREAK_HERTZ * LINEAR + (hertz / BREAK_HERTZ).ln() / RATIO.ln() * RATIO_MELS
    }
}

fn to_hertz(mel: f64) -> f64 {
    let break_mel = BREAK_HERTZ * LINEAR;
    if mel < break_mel { mel / LINEAR } else { BREAK_HERTZ * ((mel - break_mel) / RATIO_MELS * RATIO.ln()).exp() }
}
