//! Where a model runs and in which numeric type.

use sensorium_actors::manifest::Dtype;
use tch::{Cuda, Device, Kind};

use crate::error::Error;

/// The device that `replicas.device` names: `auto` is the first GPU if there is one, else the CPU.
pub(crate) fn choose(name: &str) -> Result<Device, Error> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    if name == "auto" {
        return Ok(Device::cuda_if_available());
    }
    let index = name
        .strip_prefix("cuda:")
        .and_then(|index| index.parse::<usize>().ok())
        .ok_or_else(|| Error::Load(format!("replicas.device = \"{name}\", expected auto, cpu or cuda:N")))?;
    let found = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if !Cuda::is_available() || index >= found {
        return Err(Error::Load(format!(
            "replicas.device = \"{name}\", but libtorch sees {found} CUDA devices; use auto or cpu, or a libtorch with CUDA"
        )));
    }
    Ok(Device::Cuda(index))
}

/// The kind of weights and activations that `dtype` asks for on `device`.
pub(crate) fn float_kind(dtype: Dtype, device: Device) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::Auto if device.is_cuda() || multiplies_bf16() => Kind::BFloat16,
        Dtype::Auto => Kind::Float,
    }
}

/// Whether the CPU has instructions for bf16 products; without them bf16 is emulated and slower than f32.
#[cfg(target_arch = "x86_64")]
pub fn multiplies_bf16() -> bool {
    // every CPU with AMX-BF16 has AVX512-BF16 as well
    std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Whether the CPU has instructions for bf16 products.
#[cfg(not(target_arch = "x86_64"))]
pub fn multiplies_bf16() -> bool {
    false
}
