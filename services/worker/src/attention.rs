//! Which of libtorch's ways to compute `softmax(q k^T / sqrt(d)) v` is fastest where.
//!
//! libtorch's fused attention is the best choice nearly everywhere. On a CPU it multiplies bf16 with kernels that MKL
//! tunes for Intel only: on an AMD Zen 4, one query over 1500 keys takes 1.8 ms that way, and 0.24 ms as two batched
//! products, which go to oneDNN. Many short rows are three times as fast that way too. So are 1500 queries over 1500
//! keys, by a third, if the scores that are written in between fit into the cache: a head and a third of its rows at a
//! time. Between these, the fused kernel wins, for it never writes the scores.

use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// Rows of up to this many keys are multiplied unfused.
const SHORT: i64 = 48;
/// As are at least this many rows, and so many at a time at most.
const LONG: i64 = 512;

/// Attention per head: q `[n, heads, t, d]` over k and v `[n, heads, s, d]`, to `[n, heads, t, d]`. `mask` is added to
/// the scores, or false where it forbids.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, Error> {
    let (_, _, rows, size) = q.size4()?;
    let (_, _, keys, _) = k.size4()?;
    let narrow = q.kind() == Kind::BFloat16 && q.device() == Device::Cpu && mask.is_none();
    if narrow && rows >= LONG && keys >= LONG {
        return in_tiles(q, k, v);
    }
    if !narrow || (rows > 1 && keys > SHORT) {
        return Ok(Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, false, None, false)?);
    }
    let scores = scaled(q, size)?.f_matmul(&k.f_transpose(2, 3)?)?;
    // the softmax over short rows is faster in f32, with the conversions
    let kind = if rows > 1 { Kind::Float } else { Kind::BFloat16 };
    Ok(scores.f_softmax(-1, kind)?.f_to_kind(q.kind())?.f_matmul(v)?)
}

/// Head by head, and of a head a few rows after the other.
fn in_tiles(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, Error> {
    let (n, heads, rows, size) = q.size4()?;
    let tile = (rows + (rows - 1) / LONG) / ((rows - 1) / LONG + 1);
    let (q, k, v) = (scaled(q, size)?, k.f_flatten(0, 1)?, v.f_flatten(0, 1)?);
    let q = q.f_flatten(0, 1)?;
    let mut tiles = Vec::new();
    for head in 0..n * heads {
        let (q, keys, v) = (q.f_get(head)?, k.f_get(head)?.f_transpose(0, 1)?, v.f_get(head)?);
        for start in (0..rows).step_by(usize::try_from(tile).unwrap_or(1)) {
            let q = q.f_narrow(0, start, tile.min(rows - start))?;
            tiles.push(q.f_mm(&keys)?.f_softmax(-1, None::<Kind>)?.f_mm(&v)?);
        }
    }
    Ok(Tensor::f_cat(&tiles, 0)?.f_view([n, heads, rows, size])?)
}

fn scaled(q: &Tensor, size: i64) -> Result<Tensor, Error> {
    Ok(q.f_mul_scalar(1.0 / (size as f64).sqrt())?)
}

/// The kind in which keys and values of tokens are remembered that are attended to again and again while their number
/// grows: f32 on a CPU, for there the fused attention is fastest in it, and no shape needs a kernel of its own.
pub(crate) fn memory_kind(kind: Kind, device: Device) -> Kind {
    if device == Device::Cpu { Kind::Float } else { kind }
}
