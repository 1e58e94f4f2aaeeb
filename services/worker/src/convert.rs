//! Tensors as they travel to tensors of libtorch, and back: one copy each way.

mod unsigned;

use std::borrow::Cow;

use bytes::Bytes;
use sensorium_actors::tensor::{DataType, Tensor as Wire};
use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// The kind of a datatype in the binding; `None` for those that it does not know.
fn kind(dtype: DataType) -> Option<Kind> {
    Some(match dtype {
        DataType::Bool => Kind::Bool,
        DataType::Uint8 => Kind::Uint8,
        DataType::Int8 => Kind::Int8,
        DataType::Int16 => Kind::Int16,
        DataType::Int32 => Kind::Int,
        DataType::Int64 => Kind::Int64,
        DataType::Fp16 => Kind::Half,
        DataType::Bf16 => Kind::BFloat16,
        DataType::Fp32 => Kind::Float,
        DataType::Fp64 => Kind::Double,
        DataType::Uint16 | DataType::Uint32 | DataType::Uint64 | DataType::Bytes => return None,
    })
}

/// Whether libtorch has tensors of this datatype.
pub(crate) fn exists(dtype: DataType) -> bool {
    kind(dtype).is_some() || unsigned::Unsigned::of(dtype).is_some()
}

/// Whether values of this kind may be given as some datatype: complex numbers would lose half of themselves.
pub(crate) fn travels(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::ComplexHalf | Kind::ComplexFloat | Kind::ComplexDouble | Kind::QInt8 | Kind::QUInt8 | Kind::QInt32
    )
}

fn no_tensor(dtype: DataType) -> Error {
    Error::Input(format!("libtorch has no tensors of {dtype}, expected any other datatype"))
}

/// Copies a tensor that travelled onto the device; datatype and shape stay.
pub(crate) fn to_torch(tensor: &Wire, device: Device) -> Result<Tensor, Error> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let host = if let Some(unsigned) = unsigned::Unsigned::of(dtype) {
        unsigned.tensor(tensor.data(), shape)?
    } else {
        let kind = kind(dtype).ok_or_else(|| no_tensor(dtype))?;
        Tensor::f_from_data_size(&truth(dtype, tensor.data()), shape, kind)?
    };
    Ok(if device == Device::Cpu { host } else { host.f_to_device(device)? })
}

/// BOOL as libtorch has to have it: a byte of C++'s `bool` that is neither 0 nor 1 is undefined behaviour.
fn truth(dtype: DataType, data: &[u8]) -> Cow<'_, [u8]> {
    if dtype != DataType::Bool || data.iter().all(|&byte| byte <= 1) {
        return Cow::Borrowed(data);
    }
    Cow::Owned(data.iter().map(|&byte| u8::from(byte != 0)).collect())
}

/// Copies a tensor off the device as `dtype`, converting where it is of another kind.
pub(crate) fn from_torch(tensor: &Tensor, dtype: DataType) -> Result<Wire, Error> {
    let host = tensor.f_to_device(Device::Cpu)?;
    let host = match unsigned::Unsigned::of(dtype) {
        Some(unsigned) => unsigned.bits(&host)?,
        None => host.f_to_kind(kind(dtype).ok_or_else(|| no_tensor(dtype))?)?,
    };
    let host = host.f_contiguous()?;
    let elements = host.numel();
    let mut data = vec![0; elements * dtype.size().unwrap_or(0)];
    host.f_copy_data_u8(&mut data, elements)?;
    Wire::new(dtype, host.size(), Bytes::from(data)).map_err(|error| Error::Input(error.to_string()))
}

/// The values of a tensor of any floating kind, row-major.
pub(crate) fn to_f32(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let host = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0; host.numel()];
    let elements = values.len();
    host.f_copy_data(&mut values, elements)?;
    Ok(values)
}

/// The values of a tensor of any integer kind, row-major.
pub(crate) fn to_i64(tensor: &Tensor) -> Result<Vec<i64>, Error> {
    let host = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_contiguous()?;
    let mut values = vec![0; host.numel()];
    let elements = values.len();
    host.f_copy_data(&mut values, elements)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of six elements of every datatype that libtorch has, as they travel.
    fn six(dtype: DataType) -> Wire {
        let size = dtype.size().unwrap();
        let data: Vec<u8> = match dtype {
            DataType::Bool => vec![0, 1, 1, 0, 1, 0],
            // bits that are no NaN, whose payload may change on the way
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => {
                let one: &[u8] = match dtype {
                    DataType::Fp16 => &[0x00, 0x3c],
                    DataType::Bf16 => &[0x80, 0x3f],
                    DataType::Fp32 => &[0, 0, 0x80, 0xbf],
                    _ => &[1, 0, 0, 0, 0, 0, 0xf0, 0x3f],
                };
                one.repeat(6)
            }
            // the highest values as well: what is read as signed, or by way of a float, would lose them
            _ => (0..6 * size).map(|at| if at < 2 * size { 0xff } else { u8::try_from(at).unwrap() }).collect(),
        };
        Wire::new(dtype, vec![2, 3], data.into()).unwrap()
    }

    #[test]
    fn every_datatype_that_libtorch_has_goes_and_comes() {
        let names = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 BF16 FP32 FP64";
        for name in names.split(' ') {
            let dtype: DataType = name.parse().unwrap();
            assert!(exists(dtype), "{name}");
            let sent = six(dtype);
            let tensor = to_torch(&sent, Device::Cpu).unwrap();
            assert_eq!(tensor.size(), [2, 3], "{name}");
            assert_eq!(from_torch(&tensor, dtype).unwrap(), sent, "{name}");
            // as a model gives it that does not compute with the datatype itself
            let numbers = Tensor::from_slice(&[0i64, 1, 1, 0, 1, 0]).reshape([2, 3]);
            assert_eq!(from_torch(&numbers, dtype).unwrap().shape(), [2, 3], "{name}");
            let none = to_torch(&Wire::new(dtype, vec![0, 3], Bytes::new()).unwrap(), Device::Cpu).unwrap();
            assert_eq!(from_torch(&none, dtype).unwrap().shape(), [0, 3], "{name}");
        }
        assert!(!exists(DataType::Bytes));
        let texts = Wire::from_elements(&["a"]);
        assert!(to_torch(&texts, Device::Cpu).unwrap_err().to_string().contains("BYTES"));
    }

    #[test]
    fn unsigned_values_stay_what_they_are() {
        for (dtype, highest) in
            [(DataType::Uint16, i64::from(u16::MAX)), (DataType::Uint32, i64::from(u32::MAX)), (DataType::Uint64, -1)]
        {
            let tensor = to_torch(&six(dtype), Device::Cpu).unwrap();
            let first = tensor.f_to_kind(Kind::Int64).unwrap().f_view([-1]).unwrap().int64_value(&[0]);
            assert_eq!(first, highest, "{dtype}");
        }
        let negative = Tensor::from_slice(&[-1i64, 70_000]);
        assert_eq!(&from_torch(&negative, DataType::Uint32).unwrap().data()[..], [255, 255, 255, 255, 112, 17, 1, 0]);
    }

    #[test]
    fn any_byte_but_zero_is_true() {
        let odd = Wire::new(DataType::Bool, vec![4], Bytes::from_static(&[0, 2, 128, 255])).unwrap();
        let tensor = to_torch(&odd, Device::Cpu).unwrap();
        assert_eq!(tensor.kind(), Kind::Bool);
        assert_eq!(&from_torch(&tensor, DataType::Bool).unwrap().data()[..], [0, 1, 1, 1]);
        assert_eq!(tensor.f_to_kind(Kind::Int64).unwrap().f_sum(Kind::Int64).unwrap().int64_value(&[]), 3);
    }
}
