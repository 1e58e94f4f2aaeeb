//! Tensors as they travel to tensors of libtorch, and back: one copy each way.

use bytes::Bytes;
use sensorium_actors::tensor::{DataType, Tensor as Wire};
use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// The libtorch kind of a datatype; `None` for those that libtorch cannot compute with.
pub(crate) fn kind(dtype: DataType) -> Option<Kind> {
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

fn supported(dtype: DataType) -> Result<Kind, Error> {
    kind(dtype).ok_or_else(|| {
        Error::Input(format!(
            "datatype {dtype} cannot be computed with, expected one of BOOL, UINT8, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64"
        ))
    })
}

/// Copies a tensor that travelled onto the device; datatype and shape stay.
pub(crate) fn to_torch(tensor: &Wire, device: Device) -> Result<Tensor, Error> {
    let kind = supported(tensor.dtype())?;
    let host = Tensor::f_from_data_size(tensor.data(), tensor.shape(), kind)?;
    Ok(if device == Device::Cpu { host } else { host.f_to_device(device)? })
}

/// Copies a tensor off the device as `dtype`, converting where it is of another kind.
pub(crate) fn from_torch(tensor: &Tensor, dtype: DataType) -> Result<Wire, Error> {
    let host = tensor.f_to_device(Device::Cpu)?.f_to_kind(supported(dtype)?)?.f_contiguous()?;
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
