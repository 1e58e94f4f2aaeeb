//! Whether numbers are numbers. NaN or infinity in what a model computes is a failure of its version, and never an answer:
//! kept, compared or averaged, it would spread to all that reads it.

use crate::engine;
use crate::error::Error;
use crate::manifest::{Manifest, Pipeline};
use crate::tensor::{DataType, Tensor};

/// Whether all values are finite; one pass over the bytes. Tensors of integers and bytes are.
fn is_finite(tensor: &Tensor) -> bool {
    // all bits of the exponent are set in infinities and NaN, and in nothing else
    fn none<const N: usize>(data: &[u8], special: impl Fn([u8; N]) -> bool) -> bool {
        !data.as_chunks::<N>().0.iter().any(|bytes| special(*bytes))
    }
    let half = |mask: u16| move |bytes: [u8; 2]| u16::from_le_bytes(bytes) & mask == mask;
    match tensor.dtype() {
        DataType::Fp16 => none(tensor.data(), half(0x7c00)),
        DataType::Bf16 => none(tensor.data(), half(0x7f80)),
        DataType::Fp32 => none(tensor.data(), |bytes: [u8; 4]| u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000),
        DataType::Fp64 => none(tensor.data(), |bytes: [u8; 8]| !f64::from_le_bytes(bytes).is_finite()),
        _ => true,
    }
}

/// Checks what an engine gave for one entry. The tensors of a user's own model are not ours to judge: NaN may be data there.
///
/// # Errors
/// [`engine::Error::Output`].
pub(super) fn check(manifest: &Manifest, outputs: &[Tensor]) -> Result<(), engine::Error> {
    if manifest.pipeline == Pipeline::Tensor || outputs.iter().all(is_finite) {
        return Ok(());
    }
    Err(engine::Error::Output(NOT_FINITE.to_owned()))
}

/// What is wrong with such numbers.
pub(super) const NOT_FINITE: &str = "it computed NaN or infinity";

/// The answer to a request for which a model computed such numbers.
pub(super) fn refusal(manifest: &Manifest) -> Error {
    Error::Internal(format!("{} failed: {NOT_FINITE}", manifest.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_are_found_wherever_they_stand() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..5 {
                let mut values = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, 1e-45];
                assert!(is_finite(&Tensor::from_f32(vec![5], &values).unwrap()));
                values[at] = bad;
                assert!(!is_finite(&Tensor::from_f32(vec![5], &values).unwrap()), "{bad} at {at}");
            }
        }
        let of = |dtype, data: &'static [u8]| Tensor::new(dtype, vec![1], data.into()).unwrap();
        assert!(is_finite(&of(DataType::Fp16, &[0xff, 0x7b])) && !is_finite(&of(DataType::Fp16, &[0, 0xfc])));
        assert!(is_finite(&of(DataType::Bf16, &[0x7f, 0x7f])) && !is_finite(&of(DataType::Bf16, &[0xc0, 0x7f])));
        let of = |value: f64| Tensor::new(DataType::Fp64, vec![1], value.to_le_bytes().to_vec().into()).unwrap();
        assert!(is_finite(&of(f64::MAX)) && !is_finite(&of(f64::NAN)));
        assert!(is_finite(&Tensor::from_i64(vec![1], &[-1]).unwrap()), "all bits set, but a whole number");
    }
}
