//! Keys and values of one sequence.

use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::weights::bytes;

/// Tokens by which a cache grows.
const BLOCK: usize = 256;

/// One tensor per layer, `[capacity, 2 kv_heads, head_dim]`: of each token the heads of the keys, then those of the
/// values, so that both are written in one copy.
pub(super) struct Cache {
    layers: Vec<Tensor>,
    length: usize,
    capacity: usize,
    heads: i64,
    head_dim: i64,
    kind: Kind,
    device: Device,
    count: usize,
}

impl Cache {
    /// An empty cache; it takes no memory before the first token. `shape`: key-value heads and their size.
    pub(super) fn new(layers: usize, shape: [i64; 2], kind: Kind, device: Device) -> Self {
        let [heads, head_dim] = shape;
        Self { layers: Vec::new(), length: 0, capacity: 0, heads, head_dim, kind, device, count: layers }
    }

    /// Tokens that it holds.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Makes room for `tokens` in all.
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<(), Error> {
        if tokens <= self.capacity {
            return Ok(());
        }
        let capacity = tokens.div_ceil(BLOCK) * BLOCK;
        let size = [i64::try_from(capacity).unwrap_or(i64::MAX), 2 * self.heads, self.head_dim];
        let length = i64::try_from(self.length).unwrap_or(0);
        let mut grown = Vec::with_capacity(self.count);
        for index in 0..self.count {
            let layer = Tensor::f_empty(size, (self.kind, self.device))?;
            if let Some(old) = self.layers.get(index) {
                layer.f_narrow(0, 0, length)?.f_copy_(&old.f_narrow(0, 0, length)?)?;
            }
            grown.push(layer);
        }
        self.layers = grown;
        self.capacity = capacity;
        Ok(())
    }

    /// Writes `[tokens, 2 kv_heads, head_dim]` behind `past` tokens of a layer, for which [`reserve`](Self::reserve)
    /// has made room. Returns all keys and all values, `[1, kv_heads, past + tokens, head_dim]` each.
    pub(super) fn append(&self, layer: usize, past: i64, new: &Tensor) -> Result<(Tensor, Tensor), Error> {
        let tokens = new.size().first().copied().unwrap_or(0);
        let cache = &self.layers[layer];
        cache.f_narrow(0, past, tokens)?.f_copy_(new)?;
        let (size, width) = ([1, self.heads, past + tokens, self.head_dim], self.heads * self.head_dim);
        let view = |offset| cache.f_as_strided(size, [0, self.head_dim, 2 * width, 1], offset);
        Ok((view(0)?, view(width)?))
    }

    /// Counts tokens that every layer has appended.
    pub(super) fn commit(&mut self, tokens: usize) {
        self.length += tokens;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.layers.iter().map(bytes).sum()
    }
}
