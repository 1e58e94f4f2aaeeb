//! BERT (Devlin et al., 2018) as a sentence encoder: mean pooling over the tokens, then L2 normalisation
//! (Sentence-BERT, Reimers and Gurevych, 2019).
//!
//! | engine tensor | datatype, shape |
//! | --- | --- |
//! | in `input_ids` | INT64 `[n, l]` |
//! | in `attention_mask` | INT64 `[n, l]`, 1 for tokens, 0 for padding |
//! | out `embedding` | FP32 `[n, d]`, unit length |

use std::path::Path;

use sensorium_actors::engine::Pulse;
use sensorium_actors::tensor::DataType;
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::attention::attend;
use crate::convert;
use crate::error::Error;
use crate::layers::{Activation, LayerNorm, Linear};
use crate::network::{Network, Port};
use crate::weights::{Weights, read_json};

/// `config.json` of a BertModel.
#[derive(Deserialize)]
struct Config {
    vocab_size: i64,
    hidden_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    intermediate_size: i64,
    hidden_act: String,
    max_position_embeddings: i64,
    type_vocab_size: i64,
    layer_norm_eps: f64,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".to_owned()
}

struct Layer {
    qkv: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    output_norm: LayerNorm,
}

/// The encoder.
pub(crate) struct Bert {
    vocabulary: i64,
    max_length: i64,
    heads: i64,
    activation: Activation,
    words: Tensor,
    /// Position embeddings with the embedding of token type 0 added: a single text is all type 0.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Bert {
    pub(crate) fn load(directory: &Path, weights: &Weights) -> Result<Self, Error> {
        let config: Config = read_json(&directory.join("config.json"))?;
        if config.position_embedding_type != "absolute" || config.hidden_size % config.num_attention_heads != 0 {
            return Err(Error::Load(format!(
                "config.json: position_embedding_type {}, hidden_size {}, num_attention_heads {}; expected absolute positions and heads that divide the width",
                config.position_embedding_type, config.hidden_size, config.num_attention_heads
            )));
        }
        // a BertFor… checkpoint keeps the encoder under `bert.`
        let root = if weights.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let (width, epsilon) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = format!("{root}embeddings");
        let table = |name: &str, rows: i64, kind: Kind| {
            weights.tensor_as(&format!("{embeddings}.{name}_embeddings.weight"), &[rows, width], kind)
        };
        let positions = table("position", config.max_position_embeddings, Kind::Float)?;
        let types = table("token_type", config.type_vocab_size, Kind::Float)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(weights, &format!("{root}encoder.layer.{index}"), &config))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            vocabulary: config.vocab_size,
            max_length: config.max_position_embeddings,
            heads: config.num_attention_heads,
            activation: Activation::named(&config.hidden_act)?,
            words: table("word", config.vocab_size, weights.kind())?,
            positions: positions.f_add(&types.f_narrow(0, 0, 1)?)?.f_to_kind(weights.kind())?,
            norm: LayerNorm::load(weights, &format!("{embeddings}.LayerNorm"), width, epsilon)?,
            layers,
        })
    }

    fn check(&self, ids: &Tensor) -> Result<i64, Error> {
        let (rows, length) = ids.size2()?;
        if rows == 0 || length == 0 || length > self.max_length {
            return Err(Error::Input(format!(
                "input_ids is [{rows}, {length}], expected at least one row of 1 to {} tokens",
                self.max_length
            )));
        }
        let (low, high) = (ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?);
        if low < 0 || high >= self.vocabulary {
            return Err(Error::Input(format!(
                "input_ids holds {low} to {high}, expected 0 to {}",
                self.vocabulary - 1
            )));
        }
        Ok(length)
    }
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &Config) -> Result<Self, Error> {
        let (width, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = ["query", "key", "value"].map(|part| (format!("{name}.attention.self.{part}"), width, true));
        let norm = |part: &str| LayerNorm::load(weights, &format!("{name}.{part}.LayerNorm"), width, epsilon);
        Ok(Self {
            qkv: Linear::fused(weights, &attention, width)?,
            attended: Linear::load(weights, &format!("{name}.attention.output.dense"), width, width)?,
            attended_norm: norm("attention.output")?,
            widen: Linear::load(weights, &format!("{name}.intermediate.dense"), width, inner)?,
            narrow: Linear::load(weights, &format!("{name}.output.dense"), inner, width)?,
            output_norm: norm("output")?,
        })
    }

    /// `x`: `[rows, d]`, as `layout` says.
    fn forward(&self, x: &Tensor, layout: &Layout, bert: &Bert) -> Result<Tensor, Error> {
        let (_, d) = x.size2()?;
        let (n, l) = (layout.texts, layout.length);
        let qkv = layout.unpack(&self.qkv.forward(x)?)?.f_view([n, l, 3, bert.heads, d / bert.heads])?;
        let qkv = qkv.f_permute([2, 0, 3, 1, 4])?;
        let attended = attend(&qkv.f_get(0)?, &qkv.f_get(1)?, &qkv.f_get(2)?, layout.mask.as_ref())?;
        let attended = layout.pack(&attended.f_transpose(1, 2)?.f_reshape([n * l, d])?)?;
        let x = self.attended_norm.forward(&self.attended.forward(&attended)?.f_add_(x)?)?;
        let inner = bert.activation.apply(self.widen.forward(&x)?)?;
        self.output_norm.forward(&self.narrow.forward(&inner)?.f_add_(&x)?)
    }
}

/// Where the tokens of a batch are. All layers but attention look at one token at a time, so they work on the tokens
/// alone, without the padding.
struct Layout {
    texts: i64,
    /// Of the longest text.
    length: i64,
    /// Places of the tokens among the `texts * length`, the last repeated up to a round number; `None` if that is all
    /// of them.
    places: Option<Tensor>,
    /// Tokens among `places`.
    tokens: i64,
    /// Which places are tokens, `[texts, 1, 1, length]`; `None` if all are.
    mask: Option<Tensor>,
}

/// oneDNN makes a kernel for every number of rows, in about a millisecond. Round numbers keep them few.
const ROUND: usize = 32;

impl Layout {
    fn new(mask: &Tensor) -> Result<Self, Error> {
        let (texts, length) = mask.size2()?;
        let places: Vec<i64> =
            (0..).zip(convert::to_i64(mask)?).filter(|(_, token)| *token != 0).map(|(place, _)| place).collect();
        let (tokens, all) = (places.len(), texts * length);
        let full = i64::try_from(tokens).is_ok_and(|tokens| tokens == all);
        let rounded = if tokens > 2 * ROUND { tokens.div_ceil(ROUND) * ROUND } else { tokens };
        let last = places.last().copied().unwrap_or(0);
        let whole = full && rounded == tokens;
        let places: Vec<i64> = places.into_iter().chain(std::iter::repeat_n(last, rounded - tokens)).collect();
        Ok(Self {
            texts,
            length,
            places: if whole { None } else { Some(Tensor::f_from_slice(&places)?.f_to_device(mask.device())?) },
            tokens: i64::try_from(tokens).unwrap_or(0),
            mask: if full { None } else { Some(mask.f_ne(0)?.f_unsqueeze(1)?.f_unsqueeze(1)?) },
        })
    }

    /// `[texts * length, …]` to the rows that the layers work on.
    fn pack(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(match &self.places {
            Some(places) => x.f_index_select(0, places)?,
            None => x.shallow_clone(),
        })
    }

    /// And back, `[rows, d]` to `[texts * length, d]`, zeros in the padding.
    fn unpack(&self, x: &Tensor) -> Result<Tensor, Error> {
        let Some(places) = &self.places else { return Ok(x.shallow_clone()) };
        let (_, d) = x.size2()?;
        let mut padded = Tensor::f_zeros([self.texts * self.length, d], (x.kind(), x.device()))?;
        Ok(padded.f_index_copy_(0, &places.f_narrow(0, 0, self.tokens)?, &x.f_narrow(0, 0, self.tokens)?)?)
    }
}

impl Network for Bert {
    fn inputs(&self) -> Vec<Port> {
        vec![
            Port::new("input_ids", DataType::Int64, &[-1, -1]),
            Port::new("attention_mask", DataType::Int64, &[-1, -1]),
        ]
    }

    fn outputs(&self) -> Vec<DataType> {
        vec![DataType::Fp32]
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        let (ids, mask) = (&inputs[0], &inputs[1]);
        let length = self.check(ids)?;
        if mask.size() != ids.size() {
            return Err(Error::Input(format!("attention_mask is {:?}, input_ids {:?}", mask.size(), ids.size())));
        }
        let layout = Layout::new(mask)?;
        let positions = Tensor::f_arange(length, (Kind::Int64, ids.device()))?.f_repeat([layout.texts])?;
        let (ids, positions) = (layout.pack(&ids.f_flatten(0, 1)?)?, layout.pack(&positions)?);
        let x = self.words.f_index_select(0, &ids)?.f_add_(&self.positions.f_index_select(0, &positions)?)?;
        let mut x = self.norm.forward(&x)?;
        for layer in &self.layers {
            pulse.beat()?;
            x = layer.forward(&x, &layout, self)?;
        }

        // dividing by the count of tokens is left out: the normalisation undoes any factor
        let x = layout.unpack(&x)?.f_view([layout.texts, length, -1])?;
        let pooled = x.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
        let norm =
            pooled.f_square()?.f_sum_dim_intlist([-1].as_slice(), true, None::<Kind>)?.f_sqrt()?.f_clamp_min(1e-12)?;
        Ok(vec![pooled.f_div(&norm)?])
    }
}
