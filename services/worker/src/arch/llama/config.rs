//! `config.json` of a LlamaForCausalLM.

use serde::Deserialize;

use crate::error::Error;

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    #[serde(default = "base")]
    rope_theta: f64,
    rope_scaling: Option<Scaling>,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "silu")]
    hidden_act: String,
}

/// Rotary frequencies stretched for contexts longer than the pretraining's.
#[derive(Debug, Deserialize)]
struct Scaling {
    #[serde(alias = "type")]
    rope_type: String,
    factor: f64,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn base() -> f64 {
    10_000.0
}

fn silu() -> String {
    "silu".to_owned()
}

impl Config {
    pub(super) fn check(&self) -> Result<(), Error> {
        let bad = |message: String| Err(Error::Load(format!("config.json: {message}")));
        if self.num_attention_heads % self.kv_heads() != 0 || self.head_dim() % 2 != 0 {
            return bad(format!(
                "{} heads over {} key-value heads of {}, expected a multiple and an even size",
                self.num_attention_heads,
                self.kv_heads(),
                self.head_dim()
            ));
        }
        if self.attention_bias || self.mlp_bias || self.hidden_act != "silu" {
            return bad(format!(
                "attention_bias {}, mlp_bias {}, hidden_act {}; expected no biases and silu",
                self.attention_bias, self.mlp_bias, self.hidden_act
            ));
        }
        match self.rope_scaling.as_ref().map(|scaling| scaling.rope_type.as_str()) {
            None | Some("default" | "linear" | "llama3") => Ok(()),
            Some(other) => bad(format!("rope_scaling type {other}, expected linear or llama3")),
        }
    }

    pub(super) fn kv_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Query heads that share a key-value head.
    pub(super) fn group(&self) -> i64 {
        self.num_attention_heads / self.kv_heads()
    }

    pub(super) fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Radians per position of each pair of dimensions, `head_dim / 2` of them.
    pub(super) fn frequencies(&self) -> Vec<f32> {
        let size = self.head_dim();
        (0..size / 2)
            .map(|pair| {
                let frequency = self.rope_theta.powf(-2.0 * pair as f64 / size as f64);
                self.rope_scaling.as_ref().map_or(frequency, |scaling| scaling.apply(frequency)) as f32
            })
            .collect()
    }
}

impl Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        match self.rope_type.as_str() {
            "linear" => frequency / self.factor,
            // Llama 3.1: long wavelengths are stretched, short ones kept, those between blended
            "llama3" => {
                let (low, high) = (self.low_freq_factor.unwrap_or(1.0), self.high_freq_factor.unwrap_or(4.0));
                let turns = self.original_max_position_embeddings.unwrap_or(8192.0) * frequency / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                keep * frequency + (1.0 - keep) * frequency / self.factor
            }
            _ => frequency,
        }
    }
}
