//! Silero VAD, 16 kHz: the probability of speech in every 32 ms.
//!
//! | engine tensor | datatype, shape |
//! | --- | --- |
//! | in `samples` | FP32 `[n, 512 k]`, 16 kHz, -1 to 1 |
//! | out `probability` | FP32 `[n, k]`, one per 512 samples |
//!
//! The published model is called chunk by chunk. Only its LSTM needs the order, so the spectrum and the convolutions
//! of a whole clip are one call here, and the LSTM another.

use sensorium_actors::engine::Pulse;
use sensorium_actors::tensor::DataType;
use tch::{Kind, Tensor};

use crate::error::Error;
use crate::layers::{Conv, Geometry};
use crate::network::{Network, Port};
use crate::weights::Weights;

/// Samples of a chunk.
const CHUNK: i64 = 512;
/// Samples of the chunk before that each chunk is preceded by; zeros before the first.
const CONTEXT: i64 = 64;
/// Samples of reflection behind each chunk.
const PAD: i64 = 64;
const STFT_STRIDE: i64 = 128;
const BINS: i64 = 129;
const WIDTH: i64 = 128;
/// Output channels, input channels and stride of the convolutions, all 3 wide.
const CONVOLUTIONS: [(i64, i64, i64); 4] = [(128, BINS, 1), (64, 128, 2), (64, 64, 2), (WIDTH, 64, 1)];

/// The network.
pub(crate) struct SileroVad {
    /// Real and imaginary parts of a windowed Fourier transform, as a convolution.
    stft: Tensor,
    convolutions: Vec<Conv>,
    lstm: [Tensor; 4],
    output: Tensor,
    output_bias: Tensor,
}

impl SileroVad {
    pub(crate) fn load(weights: &Weights) -> Result<Self, Error> {
        let convolutions = CONVOLUTIONS
            .iter()
            .enumerate()
            .map(|(index, &(out, input, stride))| {
                Conv::load(weights, &format!("conv{}", index + 1), &[out, input, 3], Geometry::even(stride, 1))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            stft: weights.tensor("stft_conv.weight", &[2 * BINS, 1, 256])?,
            convolutions,
            lstm: [
                weights.tensor("lstm_cell.weight_ih", &[4 * WIDTH, WIDTH])?,
                weights.tensor("lstm_cell.weight_hh", &[4 * WIDTH, WIDTH])?,
                weights.tensor("lstm_cell.bias_ih", &[4 * WIDTH])?,
                weights.tensor("lstm_cell.bias_hh", &[4 * WIDTH])?,
            ],
            output: weights.tensor("final_conv.weight", &[1, WIDTH, 1])?.f_squeeze_dim(2)?,
            output_bias: weights.tensor("final_conv.bias", &[1])?,
        })
    }

    /// `[n, 512 k]` to `[n, k, 128]`.
    fn encode(&self, samples: &Tensor) -> Result<Tensor, Error> {
        let (rows, length) = samples.size2()?;
        let chunks = samples
            .f_constant_pad_nd([CONTEXT, 0])?
            .f_unfold(1, CONTEXT + CHUNK, CHUNK)?
            .f_reshape([-1, CONTEXT + CHUNK])?
            .f_reflection_pad1d([0, PAD])?
            .f_unsqueeze(1)?;
        let spectrum = chunks.f_conv1d(&self.stft, None::<&Tensor>, [STFT_STRIDE], [0], [1], 1)?.f_square_()?;
        let mut x = spectrum.f_narrow(1, 0, BINS)?.f_add(&spectrum.f_narrow(1, BINS, BINS)?)?.f_sqrt_()?;
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?.f_relu_()?;
        }
        Ok(x.f_view([rows, length / CHUNK, WIDTH])?)
    }
}

impl Network for SileroVad {
    fn inputs(&self) -> Vec<Port> {
        vec![Port::new("samples", DataType::Fp32, &[-1, -1])]
    }

    fn outputs(&self) -> Vec<DataType> {
        vec![DataType::Fp32]
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        let samples = &inputs[0];
        let (rows, length) = samples.size2()?;
        if rows == 0 || length == 0 || length % CHUNK != 0 {
            return Err(Error::Input(format!("samples is [{rows}, {length}], expected rows of a multiple of {CHUNK}")));
        }
        pulse.beat()?;
        let x = self.encode(&samples.f_to_kind(self.stft.kind())?)?;
        pulse.beat()?;
        let state = Tensor::f_zeros([1, rows, WIDTH], (x.kind(), x.device()))?;
        let parameters: Vec<&Tensor> = self.lstm.iter().collect();
        let (hidden, _, _) = x.f_lstm(&[&state, &state], &parameters, true, 1, 0.0, false, false, true)?;
        let logits = hidden.f_relu()?.f_linear(&self.output, Some(&self.output_bias))?;
        Ok(vec![logits.f_squeeze_dim(2)?.f_to_kind(Kind::Float)?.f_sigmoid()?])
    }
}
