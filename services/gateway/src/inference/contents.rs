//! Tensor values in the protocol's typed form, `InferTensorContents`.

use bytes::{BufMut, Bytes, BytesMut};
use sensorium_actors::tensor::{DataType, Tensor};
use sensorium_proto::inference::InferTensorContents;

/// Typed values to raw little-endian bytes. The error says which field should have been used.
pub fn to_raw(dtype: DataType, contents: &InferTensorContents) -> Result<Bytes, String> {
    let narrow = |value: i64, low: i64, high: i64| {
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            Err(format!("value {value} does not fit {dtype}, expected {low} to {high}"))
        }
    };
    let mut raw = BytesMut::new();
    let field = match dtype {
        DataType::Bool => {
            contents.bool_contents.iter().for_each(|&value| raw.put_u8(u8::from(value)));
            "bool_contents"
        }
        DataType::Int8 => {
            for &value in &contents.int_contents {
                raw.put_slice(&narrow(value.into(), -128, 127)?.to_le_bytes()[..1]);
            }
            "int_contents"
        }
        DataType::Int16 => {
            for &value in &contents.int_contents {
                raw.put_slice(&narrow(value.into(), -32768, 32767)?.to_le_bytes()[..2]);
            }
            "int_contents"
        }
        DataType::Int32 => {
            contents.int_contents.iter().for_each(|&value| raw.put_i32_le(value));
            "int_contents"
        }
        DataType::Int64 => {
            contents.int64_contents.iter().for_each(|&value| raw.put_i64_le(value));
            "int64_contents"
        }
        DataType::Uint8 => {
            for &value in &contents.uint_contents {
                raw.put_slice(&narrow(value.into(), 0, 255)?.to_le_bytes()[..1]);
            }
            "uint_contents"
        }
        DataType::Uint16 => {
            for &value in &contents.uint_contents {
                raw.put_slice(&narrow(value.into(), 0, 65535)?.to_le_bytes()[..2]);
            }
            "uint_contents"
        }
        DataType::Uint32 => {
            contents.uint_contents.iter().for_each(|&value| raw.put_u32_le(value));
            "uint_contents"
        }
        DataType::Uint64 => {
            contents.uint64_contents.iter().for_each(|&value| raw.put_u64_le(value));
            "uint64_contents"
        }
        DataType::Fp32 => {
            contents.fp32_contents.iter().for_each(|&value| raw.put_f32_le(value));
            "fp32_contents"
        }
        DataType::Fp64 => {
            contents.fp64_contents.iter().for_each(|&value| raw.put_f64_le(value));
            "fp64_contents"
        }
        DataType::Bytes => {
            return Ok(Tensor::from_elements(&contents.bytes_contents).into_data());
        }
        DataType::Fp16 | DataType::Bf16 => {
            return Err(format!("{dtype} has no typed form, expected raw_input_contents"));
        }
    };
    if raw.is_empty() && *contents != InferTensorContents::default() {
        return Err(format!("values are in another field, expected {field} for {dtype}"));
    }
    Ok(raw.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_values_become_the_same_bytes_as_raw_ones() {
        let contents = InferTensorContents { int_contents: vec![-1, 127], ..Default::default() };
        assert_eq!(&to_raw(DataType::Int8, &contents).unwrap()[..], [0xff, 0x7f]);
        assert_eq!(to_raw(DataType::Int32, &contents).unwrap().len(), 8);
        let contents = InferTensorContents { bytes_contents: vec!["ab".into()], ..Default::default() };
        assert_eq!(&to_raw(DataType::Bytes, &contents).unwrap()[..], [2, 0, 0, 0, b'a', b'b']);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let contents = InferTensorContents { int_contents: vec![300], ..Default::default() };
        assert!(to_raw(DataType::Int8, &contents).unwrap_err().contains("300"));
        assert!(to_raw(DataType::Fp32, &contents).unwrap_err().contains("fp32_contents"));
        assert!(to_raw(DataType::Fp16, &contents).unwrap_err().contains("raw_input_contents"));
    }
}
