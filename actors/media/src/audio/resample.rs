//! Samples at one rate to samples at another.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

use super::{Clip, Error};

/// Samples of the input that one transform covers, about. The anti-aliasing filter is as long, so a longer one
/// keeps more of the band below the Nyquist frequency; at 1024 and 48 kHz to 16 kHz it is flat to about 7.5 kHz.
const TRANSFORM: usize = 1024;

/// Resamples a clip to `rate` Hz by windowed-sinc filtering in the frequency domain.
///
/// The output has `round(n * rate / clip.sample_rate)` samples and no delay: sample `i` is at `i / rate` seconds.
///
/// # Errors
///
/// [`Error::Resample`] if one of the rates is 0.
pub fn resample(clip: &Clip, rate: u32) -> Result<Vec<f32>, Error> {
    if clip.sample_rate == rate {
        return Ok(clip.samples.clone());
    }
    let refused = |reason: String| Error::Resample { from: clip.sample_rate, to: rate, reason };
    let (from, to) = (clip.sample_rate as usize, rate as usize);
    let window = WindowFunction::BlackmanHarris2;
    let chunk = chunk(from, to);
    let mut resampler = Fft::<f32>::new_custom(from, to, chunk, 1, 1, window, FixedSync::Input)
        .map_err(|error| refused(error.to_string()))?;
    let length = clip.samples.len();
    let input = InterleavedSlice::new(&clip.samples, 1, length).map_err(|error| refused(error.to_string()))?;
    let output = resampler.process_all(&input, length, None).map_err(|error| refused(error.to_string()))?;
    let mut samples = output.take_data();
    samples.truncate((length as f64 * to as f64 / from as f64).round() as usize);
    Ok(samples)
}

/// Samples per transform: the fewest that both rates divide, times an even number. Of an odd length the filter's
/// centre lies between two samples, and the output is half a sample late.
fn chunk(from: usize, to: usize) -> usize {
    let (mut a, mut b) = (from, to);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let least = (from / a.max(1)).max(1);
    TRANSFORM.div_ceil(least).next_multiple_of(2) * least
}
