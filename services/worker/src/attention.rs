//! Which of libtorch's ways to compute `softmax(q k^T / sqrt(d)) v` is fastest where.
//!
//! libtorch's fused attention is the best choice nearly everywhere. On a CPU it multiplies bf16 with kernels that MKL
//! tunes for Intel only: on an AMD Zen 4, one query over 1500 keys takes 1.8 ms that way, and 0.24 ms as two batched
//! products, which go to oneDNN. Many short rows are three times as fast that way too. So are 1500 queries over 1500
//! keys, by a third, if the scores that are written in between fit into the cache: a head and a third of its rows at a
//! time. Between these, the fused kernel wins, for it never writes the scores.
//!
//! On a GPU libtorch prefers cuDNN, which makes a plan for each new shape: 35 to 770 ms on an H100, for every length of a
//! text and every token of a generation. CUTLASS's kernels need none, and take half the time of a planned call.

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
        return fused(q, k, v, mask);
    }
    let scores = scaled(q, size)?.f_matmul(&k.f_transpose(2, 3)?)?;
    // the softmax over short rows is faster in f32, with the conversions
    let kind = if rows > 1 { Kind::Float } else { Kind::BFloat16 };
    Ok(scores.f_softmax(-1, kind)?.f_to_kind(q.kind())?.f_matmul(v)?)
}

/// The same in one kernel, whatever the device.
pub(crate) fn fused(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, Error> {
    if !q.device().is_cuda() {
        return Ok(Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, false, None, false)?);
    }
    let (n, heads, rows, _) = q.size4()?;
    let bias = mask.map(|mask| bias(mask, [n, heads, rows, k.size()[2]], q.kind())).transpose()?;
    Ok(Tensor::f_internal_scaled_dot_product_efficient_attention(q, k, v, bias, false, 0.0, false, None)?.0)
}

/// A mask as CUTLASS's kernels want it: numbers to add, of the whole shape, in memory whose rows begin at multiples of
/// sixteen.
fn bias(mask: &Tensor, shape: [i64; 4], kind: Kind) -> Result<Tensor, Error> {
    let added = if mask.kind() == Kind::Bool {
        let allowed = Tensor::f_zeros(mask.size(), (kind, mask.device()))?;
        allowed.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?
    } else {
        mask.f_to_kind(kind)?
    };
    let keys = shape[3];
    let padding = (keys + 15) / 16 * 16 - keys;
    let aligned = if padding == 0 { added } else { added.f_constant_pad_nd([0, padding])?.f_narrow(-1, 0, keys)? };
    Ok(aligned.f_expand(shape, false)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_what_is_added_and_its_rows_are_aligned() {
        for keys in [1, 7, 16, 23] {
            let numbers = Tensor::arange(2 * keys, (Kind::Int64, Device::Cpu)).remainder(3).not_equal(0);
            let allows = numbers.view([2, 1, 1, keys]);
            let added = bias(&allows, [2, 4, 5, keys], Kind::Float).unwrap();
            assert_eq!(added.size(), [2, 4, 5, keys]);
            assert!(added.stride()[..3].iter().all(|stride| stride % 16 == 0), "{:?}", added.stride());
            let whole = allows.expand([2, 4, 5, keys], false);
            assert!(added.equal(&Tensor::zeros_like(&added).masked_fill(&whole.logical_not(), f64::NEG_INFINITY)));
            let numbers = Tensor::randn([5, keys], (Kind::Float, Device::Cpu));
            let added = bias(&numbers, [2, 4, 5, keys], Kind::Float).unwrap();
            assert!(added.equal(&numbers.expand([2, 4, 5, keys], false)));
            assert!(added.stride()[..3].iter().all(|stride| stride % 16 == 0), "{:?}", added.stride());
        }
    }
}
