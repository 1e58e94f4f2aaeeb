//! Llama (Touvron et al., 2023) and the models built like it, decoding many sequences side by side.
//!
//! Tokens of all sequences share the linear layers; attention runs per sequence over its own cache, so nothing is
//! ever padded. Grouped-query attention (Ainslie et al., 2023) folds the heads of a group into the query's rows, so
//! keys and values are never repeated.

mod cache;
mod config;

use std::collections::BTreeMap;
use std::path::Path;

use sensorium_actors::engine::{self, Decoder, Feed, Pulse, SequenceId};
use sensorium_actors::manifest::Generation;
use tch::{Device, Kind, Tensor};

use self::cache::Cache;
use self::config::Config;
use crate::attention;
use crate::convert;
use crate::error::Error;
use crate::layers::Linear;
use crate::team::Team;
use crate::weights::{Weights, bytes, read_json};

/// Steps with more tokens than this beat between layers too.
const LONG_STEP: usize = 16;

struct Layer {
    norm: Tensor,
    qkv: Linear,
    attended: Linear,
    ffn_norm: Tensor,
    gate_up: Linear,
    down: Linear,
}

/// The decoder.
pub(crate) struct Llama {
    config: Config,
    /// Tokens that a sequence can hold.
    context: usize,
    max_sequences: usize,
    int8_max_rows: usize,
    device: Device,
    kind: Kind,
    /// Kind of the caches, and of all that happens between the projections of attention.
    cache_kind: Kind,
    embeddings: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    /// Cosines and sines of every position, `[context, head_dim]`; see [`rotate`].
    cosines: Tensor,
    sines: Tensor,
    sequences: BTreeMap<SequenceId, Cache>,
    next: u64,
    weight_bytes: u64,
}

/// One feed, as the layers see it.
struct Span {
    sequence: SequenceId,
    /// First of its rows among the rows of the step.
    row: i64,
    tokens: i64,
    /// Tokens that the sequence held before.
    past: i64,
    /// Which keys each row may see; `None` for a single token, which sees all.
    mask: Option<Tensor>,
}

impl Llama {
    pub(crate) fn load(directory: &Path, weights: &Weights, generation: &Generation) -> Result<Self, Error> {
        let config: Config = read_json(&directory.join("config.json"))?;
        config.check()?;
        let int8 = generation.int8_max_sequences > 0 && weights.device() == Device::Cpu;
        let (d, hd) = (config.hidden_size, config.head_dim());
        let embeddings = weights.tensor("model.embed_tokens.weight", &[config.vocab_size, d])?;
        let head = if config.tie_word_embeddings {
            embeddings.shallow_clone()
        } else {
            weights.tensor("lm_head.weight", &[config.vocab_size, d])?
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(weights, &format!("model.layers.{index}"), &config, int8))
            .collect::<Result<Vec<_>, _>>()?;
        let head = projection(head, int8)?;
        let narrow: u64 = layers.iter().flat_map(Layer::projections).chain([&head]).map(Linear::int8_bytes).sum();
        let context = match generation.context_length {
            0 => config.max_position_embeddings,
            limit => limit.min(config.max_position_embeddings),
        };
        let angles = Tensor::f_outer(
            &Tensor::f_arange(i64::try_from(context).unwrap_or(i64::MAX), (Kind::Float, Device::Cpu))?,
            &Tensor::f_from_slice(&config.frequencies())?,
        )?;
        let cache_kind = attention::memory_kind(weights.kind(), weights.device());
        let (cosines, sines) = (angles.f_cos()?, angles.f_sin()?);
        let place = |halves: [&Tensor; 2]| -> Result<Tensor, Error> {
            Ok(Tensor::f_cat(&halves, 1)?.f_view([-1, 1, hd])?.f_to_device(weights.device())?.f_to_kind(cache_kind)?)
        };
        Ok(Self {
            cosines: place([&cosines, &cosines])?,
            sines: place([&sines.f_neg()?, &sines])?,
            context,
            max_sequences: generation.max_sequences,
            int8_max_rows: if int8 { generation.int8_max_sequences } else { 0 },
            device: weights.device(),
            kind: weights.kind(),
            cache_kind,
            norm: weights.tensor("model.norm.weight", &[d])?,
            weight_bytes: weights.bytes() + narrow,
            embeddings,
            layers,
            head,
            config,
            sequences: BTreeMap::new(),
            next: 0,
        })
    }

    /// Checks the feeds and lays them out as rows.
    fn plan(&mut self, feeds: &[Feed<'_>]) -> Result<Vec<Span>, Error> {
        let mut spans: Vec<Span> = Vec::with_capacity(feeds.len());
        let mut row = 0;
        for feed in feeds {
            if spans.iter().any(|span| span.sequence == feed.sequence) {
                return Err(Error::Input(format!("sequence {} is fed twice", feed.sequence.0)));
            }
            let cache = self
                .sequences
                .get_mut(&feed.sequence)
                .ok_or_else(|| Error::Input(format!("sequence {} is not open", feed.sequence.0)))?;
            let (past, tokens) = (cache.length(), feed.tokens.len());
            if tokens == 0 || past + tokens > self.context {
                return Err(Error::Input(format!(
                    "sequence {} holds {past} tokens and is fed {tokens}; expected at least one, and {} in all at most",
                    feed.sequence.0, self.context
                )));
            }
            if let Some(token) = feed.tokens.iter().find(|&&token| i64::from(token) >= self.config.vocab_size) {
                return Err(Error::Input(format!("token {token}, expected less than {}", self.config.vocab_size)));
            }
            cache.reserve(past + tokens)?;
            let (past, tokens) = (i64::try_from(past).unwrap_or(0), i64::try_from(tokens).unwrap_or(0));
            let mask = if tokens > 1 { Some(self.causal_mask(past, tokens)?) } else { None };
            spans.push(Span { sequence: feed.sequence, row, tokens, past, mask });
            row += tokens;
        }
        Ok(spans)
    }

    /// 0 where a row may look, -inf where it may not: `[1, 1, group * tokens, past + tokens]`, rows of a group's heads
    /// one after the other.
    fn causal_mask(&self, past: i64, tokens: i64) -> Result<Tensor, Error> {
        let group = self.config.group();
        let mask = Tensor::f_full([tokens, past + tokens], f64::NEG_INFINITY, (self.cache_kind, self.device))?;
        Ok(mask.f_triu(past + 1)?.f_repeat([group, 1])?.f_unsqueeze(0)?.f_unsqueeze(0)?)
    }

    fn step(&mut self, feeds: &[Feed<'_>], pulse: &dyn Pulse) -> Result<Vec<Vec<f32>>, Error> {
        pulse.beat()?;
        if feeds.is_empty() {
            return Ok(Vec::new());
        }
        let spans = self.plan(feeds)?;
        let ids: Vec<i64> = feeds.iter().flat_map(|feed| feed.tokens).map(|&token| i64::from(token)).collect();
        let positions: Vec<i64> = spans.iter().flat_map(|span| span.past..span.past + span.tokens).collect();
        let int8 = ids.len() <= self.int8_max_rows;
        let positions = Tensor::f_from_slice(&positions)?.f_to_device(self.device)?;
        let (cosines, sines) = (self.cosines.f_index_select(0, &positions)?, self.sines.f_index_select(0, &positions)?);
        let mut x = self.embeddings.f_index_select(0, &Tensor::f_from_slice(&ids)?.f_to_device(self.device)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 && ids.len() > LONG_STEP {
                pulse.beat()?;
            }
            let qkv = layer.qkv.forward_in(&self.normalise(&x, &layer.norm)?, int8)?;
            let attended = self.attend(index, &qkv, &spans, &cosines, &sines)?;
            x = layer.attended.forward_in(&attended, int8)?.f_add_(&x)?;
            let inner = layer.gate_up.forward_in(&self.normalise(&x, &layer.ffn_norm)?, int8)?;
            let width = self.config.intermediate_size;
            let gated = inner.f_narrow(1, 0, width)?.f_silu()?.f_mul_(&inner.f_narrow(1, width, width)?)?;
            x = layer.down.forward_in(&gated, int8)?.f_add_(&x)?;
        }
        for (span, feed) in spans.iter().zip(feeds) {
            // only now: an interrupted step leaves the sequences as they were
            if let Some(cache) = self.sequences.get_mut(&span.sequence) {
                cache.commit(feed.tokens.len());
            }
        }
        self.logits(&x, &spans, feeds)
    }

    fn normalise(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_rms_norm([self.config.hidden_size], Some(weight), self.config.rms_norm_eps)?)
    }

    /// Rotates queries and keys in place, appends keys and values to the caches, and attends, sequence by sequence.
    /// `qkv`: `[rows, (heads + 2 kv_heads) * head_dim]`; the result `[rows, heads * head_dim]`.
    fn attend(
        &self,
        layer: usize,
        qkv: &Tensor,
        spans: &[Span],
        cosines: &Tensor,
        sines: &Tensor,
    ) -> Result<Tensor, Error> {
        let (heads, kv, group, hd) =
            (self.config.num_attention_heads, self.config.kv_heads(), self.config.group(), self.config.head_dim());
        let qkv = qkv.f_to_kind(self.cache_kind)?.f_view([-1, heads + 2 * kv, hd])?;
        rotate(&mut qkv.f_narrow(1, 0, heads + kv)?, cosines, sines)?;
        // the loop runs for every sequence in every layer: a strided view is one call where narrowing takes three
        let row = (heads + 2 * kv) * hd;
        let mut outputs = Vec::with_capacity(spans.len());
        for span in spans {
            let (tokens, offset) = (span.tokens, span.row * row);
            let cache = self
                .sequences
                .get(&span.sequence)
                .ok_or_else(|| Error::Input(format!("sequence {} is not open", span.sequence.0)))?;
            let new = qkv.f_as_strided([tokens, 2 * kv, hd], [row, hd, 1], offset + heads * hd)?;
            let (k, v) = cache.append(layer, span.past, &new)?;
            let q = qkv.f_as_strided([kv, group, tokens, hd], [group * hd, hd, row, 1], offset)?;
            let q = q.f_reshape([1, kv, group * tokens, hd])?;
            let mask = span.mask.as_ref();
            let out = attention::fused(&q, &k, &v, mask)?;
            outputs.push(if tokens == 1 {
                out
            } else {
                out.f_reshape([kv, group, tokens, hd])?.f_permute([2, 0, 1, 3])?
            });
        }
        // [rows, kv_heads, group, head_dim]
        Ok(Tensor::f_cat(&outputs, 0)?.f_view([-1, heads * hd])?.f_to_kind(self.kind)?)
    }

    /// The vocabulary is wide: only the rows that somebody wants go through the head.
    fn logits(&self, x: &Tensor, spans: &[Span], feeds: &[Feed<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        let wanted: Vec<i64> = spans
            .iter()
            .zip(feeds)
            .filter(|(_, feed)| feed.logits)
            .map(|(span, _)| span.row + span.tokens - 1)
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let rows = x.f_index_select(0, &Tensor::f_from_slice(&wanted)?.f_to_device(self.device)?)?;
        let int8 = wanted.len() <= self.int8_max_rows;
        let logits = self.head.forward_in(&self.normalise(&rows, &self.norm)?, int8)?;
        (0..wanted.len()).map(|row| convert::to_f32(&logits.f_get(i64::try_from(row).unwrap_or(0))?)).collect()
    }
}

/// Rotary position embedding (Su et al., 2021) in the half-rotation layout of Hugging Face, in place:
/// `x cos + roll(x, head_dim / 2) sin`, where the first half of `sines` carries the minus sign of the rotation.
fn rotate(x: &mut Tensor, cosines: &Tensor, sines: &Tensor) -> Result<(), Error> {
    let half = x.size().last().copied().unwrap_or(0) / 2;
    let rolled = x.f_roll([half], [-1])?;
    let _ = x.f_mul_(cosines)?.f_addcmul_(&rolled, sines)?;
    Ok(())
}

fn projection(weight: Tensor, int8: bool) -> Result<Linear, Error> {
    let linear = Linear::new(weight, None);
    if int8 { linear.with_int8() } else { Ok(linear) }
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &Config, int8: bool) -> Result<Self, Error> {
        let (d, inner, hd) = (config.hidden_size, config.intermediate_size, config.head_dim());
        let matrix = |parts: &[(&str, i64)], input: i64| -> Result<Linear, Error> {
            let matrices = parts
                .iter()
                .map(|(part, output)| weights.tensor(&format!("{name}.{part}.weight"), &[*output, input]))
                .collect::<Result<Vec<_>, _>>()?;
            projection(Tensor::f_cat(&matrices, 0)?, int8)
        };
        let (queries, keys) = (config.num_attention_heads * hd, config.kv_heads() * hd);
        Ok(Self {
            norm: weights.tensor(&format!("{name}.input_layernorm.weight"), &[d])?,
            qkv: matrix(&[("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)], d)?,
            attended: matrix(&[("self_attn.o_proj", d)], queries)?,
            ffn_norm: weights.tensor(&format!("{name}.post_attention_layernorm.weight"), &[d])?,
            gate_up: matrix(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], d)?,
            down: matrix(&[("mlp.down_proj", d)], inner)?,
        })
    }

    fn projections(&self) -> [&Linear; 4] {
        [&self.qkv, &self.attended, &self.gate_up, &self.down]
    }
}

impl Decoder for Llama {
    fn max_sequences(&self) -> usize {
        self.max_sequences
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn vocabulary(&self) -> usize {
        usize::try_from(self.config.vocab_size).unwrap_or(0)
    }

    fn open(&mut self) -> Result<SequenceId, engine::Error> {
        if self.sequences.len() >= self.max_sequences {
            return Err(engine::Error::Input(format!("{} sequences are open, the limit", self.max_sequences)));
        }
        let id = SequenceId(self.next);
        self.next += 1;
        let shape = [self.config.kv_heads(), self.config.head_dim()];
        self.sequences.insert(id, Cache::new(self.layers.len(), shape, self.cache_kind, self.device));
        Ok(id)
    }

    fn advance(&mut self, feeds: &[Feed<'_>], pulse: &dyn Pulse) -> Result<Vec<Vec<f32>>, engine::Error> {
        let _team = Team::gather();
        let _guard = tch::no_grad_guard();
        Ok(self.step(feeds, pulse)?)
    }

    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn memory_bytes(&self) -> u64 {
        let tables = bytes(&self.cosines) + bytes(&self.sines);
        self.weight_bytes + tables + self.sequences.values().map(Cache::bytes).sum::<u64>()
    }
}
