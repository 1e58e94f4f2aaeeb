//! Unsigned integers wider than a byte. libtorch has them since 2.3, the binding does not know their numbers yet: such a
//! tensor is made as a signed one of the same bits, and seen as an unsigned one.
#![allow(unsafe_code, reason = "the binding has no safe function that takes a kind that it does not know")]

use std::ffi::{CStr, c_int, c_void};

use sensorium_actors::tensor::DataType;
use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;
use torch_sys::c_generated::{atg_to_dtype, atg_view_dtype};

use crate::error::Error;

unsafe extern "C" {
    fn free(pointer: *mut c_void);
}

/// A datatype by its number in `c10/core/ScalarType.h`, and the signed kind of the same size.
#[derive(Clone, Copy)]
pub(super) struct Unsigned {
    number: c_int,
    signed: Kind,
}

impl Unsigned {
    /// Nothing for datatypes that the binding knows, and for BYTES.
    pub(super) fn of(dtype: DataType) -> Option<Self> {
        let (number, signed) = match dtype {
            DataType::Uint16 => (27, Kind::Int16),
            DataType::Uint32 => (28, Kind::Int),
            DataType::Uint64 => (29, Kind::Int64),
            _ => return None,
        };
        Some(Self { number, signed })
    }

    /// An unsigned tensor of these little-endian bytes, which are as many as `shape` takes.
    pub(super) fn tensor(self, data: &[u8], shape: &[i64]) -> Result<Tensor, Error> {
        let signed = Tensor::f_from_data_size(data, shape, self.signed)?;
        // SAFETY: both pointers are valid for the call, and the function writes a tensor of its own to the first.
        made(|out| unsafe { atg_view_dtype(out, signed.as_ptr().cast_mut(), self.number) })
    }

    /// The values of a tensor of any kind as unsigned ones, seen as the signed kind of the same bits.
    pub(super) fn bits(self, tensor: &Tensor) -> Result<Tensor, Error> {
        // SAFETY: as above.
        let unsigned = made(|out| unsafe { atg_to_dtype(out, tensor.as_ptr().cast_mut(), self.number, 0, 0) })?;
        Ok(unsigned.f_contiguous()?.f_view_dtype(self.signed)?)
    }
}

/// The tensor that a function of libtorch makes, or what it objects to.
fn made(call: impl FnOnce(*mut *mut C_tensor)) -> Result<Tensor, Error> {
    let mut out = [std::ptr::null_mut()];
    call(out.as_mut_ptr());
    // SAFETY: the message, if there is one, is ours to free, and is copied before.
    let message = unsafe {
        let message = torch_sys::get_and_reset_last_err();
        if message.is_null() {
            None
        } else {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            free(message.cast());
            Some(text)
        }
    };
    match message {
        Some(message) => Err(TchError::Torch(message).into()),
        // SAFETY: without a message there is a tensor, which nobody else owns.
        None => Ok(unsafe { Tensor::from_ptr(out[0]) }),
    }
}
