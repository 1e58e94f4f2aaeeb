//! Log-mel spectrograms as Whisper was trained on.
//!
//! Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), and `whisper/audio.py` of
//! its implementation: 16 kHz, 25 ms windows every 10 ms, power spectrum, Slaney's mel scale, base-10 logarithm.

mod filters;

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

pub use filters::Error;
use filters::Filters;

/// Samples per second of the input.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples of one transform.
pub const WINDOW: usize = 400;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Samples of the input, after padding or trimming: 30 s.
pub const SAMPLES: usize = 30 * SAMPLE_RATE;
/// Frames of the output.
pub const FRAMES: usize = SAMPLES / HOP;

/// Below this the power is silence; its logarithm is -10.
const FLOOR: f32 = 1e-10;

/// A transform with its plan, window and filters, made once and shared by all threads.
pub struct Mel {
    bands: usize,
    plan: Arc<dyn RealToComplex<f32>>,
    window: [f32; WINDOW],
    filters: Filters,
}

impl Mel {
    /// A transform to `bands` mel bands: 80, or 128 as large-v3 has.
    ///
    /// # Errors
    ///
    /// [`Error`] if the spectrum has not as many bands.
    pub fn new(bands: usize) -> Result<Self, Error> {
        let filters = Filters::slaney(bands)?;
        let plan = RealFftPlanner::new().plan_fft_forward(WINDOW);
        // Periodic Hann, as torch.hann_window.
        let window = std::array::from_fn(|n| {
            let phase = std::f64::consts::TAU * n as f64 / WINDOW as f64;
            (0.5 - 0.5 * phase.cos()) as f32
        });
        Ok(Self { bands, plan, window, filters })
    }

    /// Rows of [`Mel::log_mel`].
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// Log-mel spectrogram `[bands, 3000]`, row-major f32, of the first 30 s of `samples` (mono, 16 kHz).
    ///
    /// Shorter input is padded with silence at its end. Values are scaled as the model expects: 8 decades below the
    /// loudest are kept, then `(log10 + 4) / 4`.
    pub fn log_mel(&self, samples: &[f32]) -> Vec<f32> {
        let samples = &samples[..samples.len().min(SAMPLES)];
        let mut frame = vec![0.0; WINDOW];
        let mut spectrum = self.plan.make_output_vec();
        let mut scratch = self.plan.make_scratch_vec();
        let mut power = vec![0.0; spectrum.len()];
        let mut mel = vec![FLOOR.log10(); self.bands * FRAMES];

        let mut loudest = FLOOR.log10();
        for index in 0..FRAMES {
            if !self.fill(samples, index, &mut frame) {
                // Only zeros: the power is 0 and every band at the floor, which it already is.
                continue;
            }
            self.transform(&mut frame, &mut spectrum, &mut scratch);
            for (power, bin) in power.iter_mut().zip(&spectrum) {
                *power = bin.norm_sqr();
            }
            for band in 0..self.bands {
                let value = self.filters.apply(band, &power).max(FLOOR).log10();
                loudest = loudest.max(value);
                mel[band * FRAMES + index] = value;
            }
        }
        for value in &mut mel {
            *value = (value.max(loudest - 8.0) + 4.0) / 4.0;
        }
        mel
    }

    /// Windowed samples around `index * HOP`; whether any of them can differ from 0.
    ///
    /// As `torch.stft(center=True)`: frame 0 is centred on sample 0, and what lies before is mirrored there, without
    /// the edge sample. After the end are zeros; a clip of 30 s is mirrored there too, but then the padded length is
    /// [`SAMPLES`] and the mirror starts from it.
    fn fill(&self, samples: &[f32], index: usize, frame: &mut [f32]) -> bool {
        let start = index * HOP;
        let before = WINDOW / 2;
        if start >= samples.len() + before && start + before <= SAMPLES {
            return false;
        }
        if start >= before && start + before <= samples.len() {
            let inside = &samples[start - before..start + before];
            for ((to, from), weight) in frame.iter_mut().zip(inside).zip(&self.window) {
                *to = from * weight;
            }
            return true;
        }
        for (n, (to, weight)) in frame.iter_mut().zip(&self.window).enumerate() {
            let at = mirror(start + n, before);
            *to = samples.get(at).map_or(0.0, |sample| sample * weight);
        }
        true
    }

    fn transform(&self, frame: &mut [f32], spectrum: &mut [Complex<f32>], scratch: &mut [Complex<f32>]) {
        let done = self.plan.process_with_scratch(frame, spectrum, scratch);
        // It fails on lengths other than the plan's only, and all three come from the plan.
        debug_assert!(done.is_ok(), "the buffers are the plan's own");
    }
}

/// Index into the padded clip of position `at - before`, mirrored at both of its ends.
fn mirror(at: usize, before: usize) -> usize {
    let inside = at.abs_diff(before);
    if inside < SAMPLES { inside } else { 2 * (SAMPLES - 1) - inside }
}
