//! Recordings, and Whisper's front end once more, independent of the one that serves: log-mel over libtorch's STFT.

use std::path::{Path, PathBuf};

use sensorium_actors::tensor::Tensor as Wire;
use tch::{Device, Kind, Tensor};

const SAMPLE_RATE: usize = 16_000;
const SAMPLES: usize = 30 * SAMPLE_RATE;

/// A recording of the samples that the set-up script lays out, a reading of Sense and Sensibility: 16 kHz, mono, -1
/// to 1.
pub fn recording(number: &str) -> Vec<f32> {
    let folder = std::env::var_os("SENSORIUM_SAMPLES").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/sensorium/samples"),
        PathBuf::from,
    );
    read_wav(&folder.join(format!("speech/sense_and_sensibility_01_austen_64kb-{number}.wav")))
}

fn read_wav(path: &Path) -> Vec<f32> {
    let data = std::fs::read(path)
        .unwrap_or_else(|error| panic!("{}: {error}: run the set-up script, or set SENSORIUM_SAMPLES", path.display()));
    let start = data.windows(4).position(|tag| tag == b"data").expect("a wav file has a data chunk") + 8;
    data[start..].chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0).collect()
}

/// FP32 `[1, bands, 3000]` of up to 30 s, padded with silence.
pub fn log_mel(samples: &[f32], bands: usize) -> Wire {
    let mut padded = samples[..samples.len().min(SAMPLES)].to_vec();
    padded.resize(SAMPLES, 0.0);
    let audio = Tensor::from_slice(&padded).unsqueeze(0).reflection_pad1d([200, 200]);
    let window = Tensor::hann_window(400, (Kind::Float, Device::Cpu));
    let spectrum = audio.stft(400, 160, 400, Some(&window), false, true, true, false);
    let power = spectrum.abs().square().narrow(2, 0, 3000);
    let filters = Tensor::from_slice(&filters(bands)).view([bands as i64, 201]);
    let log = filters.matmul(&power).clamp_min(1e-10).log10();
    let log = (log.maximum(&(log.max() - 8.0)) + 4.0) / 4.0;
    let values: Vec<f32> = log.flatten(0, -1).try_into().expect("a vector of f32");
    Wire::from_f32(vec![1, bands as i64, 3000], &values).expect("the shape fits")
}

/// Slaney's mel filters: triangles of equal area, linear in frequency up to 1 kHz, logarithmic above.
fn filters(bands: usize) -> Vec<f32> {
    const STEP: f64 = 200.0 / 3.0;
    let log_step = 6.4f64.ln() / 27.0;
    let to_hz = |mel: f64| if mel < 15.0 { mel * STEP } else { 1000.0 * (log_step * (mel - 15.0)).exp() };
    let top = 15.0 + (8.0f64).ln() / log_step;
    let edges: Vec<f64> = (0..bands + 2).map(|i| to_hz(top * i as f64 / (bands + 1) as f64)).collect();
    let mut filters = Vec::with_capacity(bands * 201);
    for band in edges.windows(3) {
        for bin in 0..201 {
            let hz = 40.0 * f64::from(bin);
            let rise = (hz - band[0]) / (band[1] - band[0]);
            let fall = (band[2] - hz) / (band[2] - band[1]);
            filters.push((rise.min(fall).max(0.0) * 2.0 / (band[2] - band[0])) as f32);
        }
    }
    filters
}
