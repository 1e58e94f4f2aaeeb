//! The decoder: a few tokens at a time, over the encoder's frames and its own past.

use tch::{Device, Kind, Tensor};

use super::attention::{CrossAttention, SelfAttention};
use super::config::Config;
use super::encoder::{EPSILON, FeedForward};
use crate::attention::memory_kind;
use crate::error::Error;
use crate::layers::{Activation, LayerNorm, Linear};
use crate::weights::Weights;

pub(super) struct Decoder {
    embeddings: Tensor,
    /// The embeddings once more, as the last layer.
    head: Linear,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    heads: i64,
    /// Rows up to which a step uses the int8 weights.
    int8_max_rows: usize,
}

struct Layer {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    cross_norm: LayerNorm,
    cross: CrossAttention,
    ffn: FeedForward,
}

/// What the decoder remembers of a batch of windows.
pub(super) struct State {
    /// Per layer, keys and values over the encoder's frames, of all windows: `[2, windows, heads, 1500, d / heads]`.
    memory: Vec<Tensor>,
    /// Per layer, keys and values of the tokens so far, of the live windows: `[2, rows, heads, capacity, d / heads]`.
    past: Vec<Tensor>,
    /// Tokens so far.
    length: i64,
    /// The window of each live row.
    pub(super) rows: Vec<i64>,
}

impl State {
    /// Goes on with these of the live rows only, given by their places in `rows`.
    pub(super) fn keep(&mut self, places: &[i64]) -> Result<(), Error> {
        self.rows = places.iter().filter_map(|&place| self.rows.get(usize::try_from(place).ok()?).copied()).collect();
        let Some(device) = self.past.first().map(Tensor::device) else { return Ok(()) };
        let places = Tensor::f_from_slice(places)?.f_to_device(device)?;
        for past in &mut self.past {
            *past = past.f_index_select(1, &places)?;
        }
        Ok(())
    }
}

impl Layer {
    fn with_int8(self) -> Result<Self, Error> {
        let Self { attention, cross, ffn, .. } = self;
        let (attention, cross, ffn) = (attention.with_int8()?, cross.with_int8()?, ffn.with_int8()?);
        Ok(Self { attention, cross, ffn, ..self })
    }

    fn int8_bytes(&self) -> u64 {
        self.attention.int8_bytes() + self.cross.int8_bytes() + self.ffn.int8_bytes()
    }
}

impl Decoder {
    /// With `int8_max_rows` above 0, steps of up to so many rows use int8 weights.
    pub(super) fn load(weights: &Weights, config: &Config, int8_max_rows: usize) -> Result<Self, Error> {
        let (d, heads) = (config.d_model, config.decoder_attention_heads);
        let activation = Activation::named(&config.activation_function)?;
        let layers = (0..config.decoder_layers)
            .map(|index| {
                let name = format!("model.decoder.layers.{index}");
                let norm = |part: &str| LayerNorm::load(weights, &format!("{name}.{part}_layer_norm"), d, EPSILON);
                let layer = Layer {
                    attention_norm: norm("self_attn")?,
                    attention: SelfAttention::load(weights, &format!("{name}.self_attn"), d, heads)?,
                    cross_norm: norm("encoder_attn")?,
                    cross: CrossAttention::load(weights, &format!("{name}.encoder_attn"), d, heads)?,
                    ffn: FeedForward::load(weights, &name, [d, config.decoder_ffn_dim], activation)?,
                };
                if int8_max_rows > 0 { layer.with_int8() } else { Ok(layer) }
            })
            .collect::<Result<_, Error>>()?;
        let embeddings = weights.tensor("model.decoder.embed_tokens.weight", &[config.vocab_size, d])?;
        let head = Linear::new(embeddings.shallow_clone(), None);
        Ok(Self {
            embeddings,
            head: if int8_max_rows > 0 { head.with_int8()? } else { head },
            int8_max_rows,
            positions: weights.tensor("model.decoder.embed_positions.weight", &[config.max_target_positions, d])?,
            layers,
            norm: LayerNorm::load(weights, "model.decoder.layer_norm", d, EPSILON)?,
            heads,
        })
    }

    pub(super) fn device(&self) -> Device {
        self.embeddings.device()
    }

    /// Bytes of the int8 copies.
    pub(super) fn int8_bytes(&self) -> u64 {
        self.head.int8_bytes() + self.layers.iter().map(Layer::int8_bytes).sum::<u64>()
    }

    /// Prepares to decode the windows `encoded` `[n, 1500, d]`, up to `capacity` tokens with the prompt.
    pub(super) fn start(&self, encoded: &Tensor, capacity: i64) -> Result<State, Error> {
        let (n, _, d) = encoded.size3()?;
        let options = (memory_kind(encoded.kind(), encoded.device()), encoded.device());
        let past = || Tensor::f_empty([2, n, self.heads, capacity, d / self.heads], options);
        Ok(State {
            memory: self.layers.iter().map(|layer| layer.cross.memory(encoded)).collect::<Result<_, _>>()?,
            past: self.layers.iter().map(|_| past()).collect::<Result<_, _>>()?,
            length: 0,
            rows: (0..n).collect(),
        })
    }

    /// Appends `tokens` `[rows, t]` to the live rows; returns their hidden states `[rows, t, d]`.
    pub(super) fn advance(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor, Error> {
        let (n, t) = tokens.size2()?;
        let int8 = usize::try_from(n * t).is_ok_and(|rows| rows <= self.int8_max_rows);
        let mut x = Tensor::f_embedding(&self.embeddings, tokens, -1, false, false)?
            .f_add_(&self.positions.f_narrow(0, state.length, t)?)?;
        let mask = if t > 1 {
            let kind = memory_kind(x.kind(), x.device());
            let mask = Tensor::f_full([t, state.length + t], f64::NEG_INFINITY, (kind, x.device()))?;
            Some(mask.f_triu(state.length + 1)?)
        } else {
            None
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let [q, k, v] = layer.attention.project(&layer.attention_norm.forward(&x)?, int8)?;
            let past = &state.past[index];
            let (keys, values) = (past.f_get(0)?, past.f_get(1)?);
            keys.f_narrow(2, state.length, t)?.f_copy_(&k)?;
            values.f_narrow(2, state.length, t)?.f_copy_(&v)?;
            let (keys, values) = (keys.f_narrow(2, 0, state.length + t)?, values.f_narrow(2, 0, state.length + t)?);
            let q = q.f_to_kind(keys.kind())?;
            x = layer.attention.attend([&q, &keys, &values], mask.as_ref(), int8)?.f_add_(&x)?;
            let queries = layer.cross_norm.forward(&x)?;
            let crossed = layer.cross.forward(&queries, &state.memory[index], &state.rows, int8)?;
            x = layer.ffn.forward(&x.f_add_(&crossed)?, int8)?;
        }
        state.length += t;
        Ok(x)
    }

    /// Logits `[rows, vocabulary]` of hidden states `[rows, d]`, FP32.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor, Error> {
        let int8 = hidden.size().first().is_some_and(|&rows| rows <= self.int8_max_rows as i64);
        Ok(self.head.forward_in(&self.norm.forward(hidden)?, int8)?.f_to_kind(Kind::Float)?)
    }
}
