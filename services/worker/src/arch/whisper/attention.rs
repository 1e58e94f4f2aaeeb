//! Attention of encoder and decoder: `softmax(q k^T / sqrt(d)) v` per head.

use tch::Tensor;

use crate::attention::attend;
use crate::error::Error;
use crate::layers::Linear;
use crate::weights::Weights;

/// Self-attention with its three input projections fused.
pub(super) struct SelfAttention {
    qkv: Linear,
    output: Linear,
    heads: i64,
}

impl SelfAttention {
    pub(super) fn load(weights: &Weights, name: &str, width: i64, heads: i64) -> Result<Self, Error> {
        // Whisper's keys have no bias
        let parts = [("q", true), ("k", false), ("v", true)].map(|(p, bias)| (format!("{name}.{p}_proj"), width, bias));
        Ok(Self {
            qkv: Linear::fused(weights, &parts, width)?,
            output: Linear::load(weights, &format!("{name}.out_proj"), width, width)?,
            heads,
        })
    }

    /// Adds int8 copies of the weights.
    pub(super) fn with_int8(self) -> Result<Self, Error> {
        Ok(Self { qkv: self.qkv.with_int8()?, output: self.output.with_int8()?, heads: self.heads })
    }

    /// Bytes of the int8 copies.
    pub(super) fn int8_bytes(&self) -> u64 {
        self.qkv.int8_bytes() + self.output.int8_bytes()
    }

    /// Queries, keys and values of `[n, t, d]`, each `[n, heads, t, d / heads]`, views of one tensor.
    pub(super) fn project(&self, x: &Tensor, int8: bool) -> Result<[Tensor; 3], Error> {
        let (n, t, d) = x.size3()?;
        let qkv = self.qkv.forward_in(x, int8)?.f_view([n, t, 3, self.heads, d / self.heads])?;
        let qkv = qkv.f_permute([2, 0, 3, 1, 4])?;
        Ok([qkv.f_get(0)?, qkv.f_get(1)?, qkv.f_get(2)?])
    }

    /// Attends and projects back: `[n, t, d]`.
    pub(super) fn attend(&self, qkv: [&Tensor; 3], mask: Option<&Tensor>, int8: bool) -> Result<Tensor, Error> {
        let [q, k, v] = qkv;
        let attended = merged(q, k, v, mask)?.f_to_kind(self.output.weight.kind())?;
        self.output.forward_in(&attended, int8)
    }
}

/// Attention over the encoder's output, whose keys and values are computed once per window.
pub(super) struct CrossAttention {
    query: Linear,
    keys_values: Linear,
    output: Linear,
    heads: i64,
}

impl CrossAttention {
    pub(super) fn load(weights: &Weights, name: &str, width: i64, heads: i64) -> Result<Self, Error> {
        let parts = [("k", false), ("v", true)].map(|(p, bias)| (format!("{name}.{p}_proj"), width, bias));
        Ok(Self {
            query: Linear::load(weights, &format!("{name}.q_proj"), width, width)?,
            keys_values: Linear::fused(weights, &parts, width)?,
            output: Linear::load(weights, &format!("{name}.out_proj"), width, width)?,
            heads,
        })
    }

    /// Adds int8 copies of the weights that every step reads.
    pub(super) fn with_int8(self) -> Result<Self, Error> {
        Ok(Self { query: self.query.with_int8()?, output: self.output.with_int8()?, ..self })
    }

    /// Bytes of the int8 copies.
    pub(super) fn int8_bytes(&self) -> u64 {
        self.query.int8_bytes() + self.output.int8_bytes()
    }

    /// Keys and values of the encoder's output `[n, t, d]`: `[2, n, heads, t, d / heads]`, contiguous, for they are
    /// read at every step.
    pub(super) fn memory(&self, encoded: &Tensor) -> Result<Tensor, Error> {
        let (n, t, d) = encoded.size3()?;
        let memory = self.keys_values.forward(encoded)?.f_view([n, t, 2, self.heads, d / self.heads])?;
        Ok(memory.f_permute([2, 0, 3, 1, 4])?.f_contiguous()?)
    }

    /// `x` `[n, t, d]` attends to `memory`, whose row `rows[i]` belongs to row `i` of `x`.
    pub(super) fn forward(&self, x: &Tensor, memory: &Tensor, rows: &[i64], int8: bool) -> Result<Tensor, Error> {
        let (n, t, d) = x.size3()?;
        let q = self.query.forward_in(x, int8)?.f_view([n, t, self.heads, d / self.heads])?.f_transpose(1, 2)?;
        let (keys, values) = (memory.f_get(0)?, memory.f_get(1)?);
        if keys.size().first() == Some(&n) {
            return self.output.forward_in(&merged(&q, &keys, &values, None)?, int8);
        }
        // some windows are finished: row by row, for gathering the rest would copy more than it saves
        let attended = rows
            .iter()
            .enumerate()
            .map(|(at, &row)| {
                let q = q.f_narrow(0, i64::try_from(at).unwrap_or(0), 1)?;
                merged(&q, &keys.f_narrow(0, row, 1)?, &values.f_narrow(0, row, 1)?, None)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        self.output.forward_in(&Tensor::f_cat(&attended, 0)?, int8)
    }
}

/// Attends, and lays the heads side by side: `[n, t, d]`.
fn merged(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, Error> {
    let (n, heads, t, size) = q.size4()?;
    let attended = attend(q, k, v, mask)?;
    Ok(attended.f_transpose(1, 2)?.f_reshape([n, t, heads * size])?)
}
