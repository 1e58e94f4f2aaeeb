//! The encoder: 30 s of mel spectrogram to 1500 frames.

use sensorium_actors::engine::Pulse;
use tch::Tensor;

use super::attention::SelfAttention;
use super::config::Config;
use crate::error::Error;
use crate::layers::{Activation, Conv, Geometry, LayerNorm, Linear};
use crate::weights::Weights;

/// The configurations carry no epsilon: it is PyTorch's default.
pub(super) const EPSILON: f64 = 1e-5;

pub(super) struct Encoder {
    narrow: Conv,
    halve: Conv,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    activation: Activation,
}

struct Layer {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    ffn: FeedForward,
}

/// Norm, widen, activation, narrow: the second half of every layer.
pub(super) struct FeedForward {
    norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    activation: Activation,
}

impl FeedForward {
    pub(super) fn load(weights: &Weights, name: &str, widths: [i64; 2], activation: Activation) -> Result<Self, Error> {
        let [width, inner] = widths;
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{name}.final_layer_norm"), width, EPSILON)?,
            widen: Linear::load(weights, &format!("{name}.fc1"), width, inner)?,
            narrow: Linear::load(weights, &format!("{name}.fc2"), inner, width)?,
            activation,
        })
    }

    /// Adds int8 copies of the weights.
    pub(super) fn with_int8(self) -> Result<Self, Error> {
        Ok(Self { widen: self.widen.with_int8()?, narrow: self.narrow.with_int8()?, ..self })
    }

    /// Bytes of the int8 copies.
    pub(super) fn int8_bytes(&self) -> u64 {
        self.widen.int8_bytes() + self.narrow.int8_bytes()
    }

    /// `x` plus what the layer adds to it.
    pub(super) fn forward(&self, x: &Tensor, int8: bool) -> Result<Tensor, Error> {
        let inner = self.activation.apply(self.widen.forward_in(&self.norm.forward(x)?, int8)?)?;
        Ok(self.narrow.forward_in(&inner, int8)?.f_add_(x)?)
    }
}

impl Encoder {
    pub(super) fn load(weights: &Weights, config: &Config) -> Result<Self, Error> {
        let (d, mels) = (config.d_model, config.num_mel_bins);
        let activation = Activation::named(&config.activation_function)?;
        let layers = (0..config.encoder_layers)
            .map(|index| {
                let name = format!("model.encoder.layers.{index}");
                Ok(Layer {
                    attention_norm: LayerNorm::load(weights, &format!("{name}.self_attn_layer_norm"), d, EPSILON)?,
                    attention: SelfAttention::load(
                        weights,
                        &format!("{name}.self_attn"),
                        d,
                        config.encoder_attention_heads,
                    )?,
                    ffn: FeedForward::load(weights, &name, [d, config.encoder_ffn_dim], activation)?,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            narrow: Conv::load(weights, "model.encoder.conv1", &[d, mels, 3], Geometry::even(1, 1))?,
            halve: Conv::load(weights, "model.encoder.conv2", &[d, d, 3], Geometry::even(2, 1))?,
            positions: weights.tensor("model.encoder.embed_positions.weight", &[config.max_source_positions, d])?,
            layers,
            norm: LayerNorm::load(weights, "model.encoder.layer_norm", d, EPSILON)?,
            activation,
        })
    }

    /// `[n, mels, 2 t]` to `[n, t, d]`, t = 1500.
    pub(super) fn forward(&self, mel: &Tensor, pulse: &dyn Pulse) -> Result<Tensor, Error> {
        pulse.beat()?;
        let x = self.activation.apply(self.narrow.forward(mel)?)?;
        let x = self.activation.apply(self.halve.forward(&x)?)?;
        let mut x = x.f_transpose(1, 2)?.f_add(&self.positions)?.f_contiguous()?;
        for layer in &self.layers {
            pulse.beat()?;
            let [q, k, v] = layer.attention.project(&layer.attention_norm.forward(&x)?, false)?;
            x = layer.attention.attend([&q, &k, &v], None, false)?.f_add_(&x)?;
            x = layer.ffn.forward(&x, false)?;
        }
        self.norm.forward(&x)
    }
}
