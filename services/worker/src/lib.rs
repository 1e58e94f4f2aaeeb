//! The engine: architectures in libtorch, TorchScript, and the built-ins.
//!
//! This is the only crate that knows libtorch. What leaves it is a [`TchLoader`], which makes the engines and decoders
//! of [`sensorium_actors::engine`] out of a folder of the model repository; tensors of `tch` stay inside.

mod arch;
mod attention;
mod builtin;
mod convert;
mod device;
mod error;
mod layers;
mod loader;
mod network;
mod team;
mod torchscript;
mod weights;

pub use device::multiplies_bf16;
pub use loader::{Options, TchLoader};
