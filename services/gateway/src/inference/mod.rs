//! `inference.GRPCInferenceService`: the Open Inference Protocol v2, as Triton and KServe clients speak it.

mod codec;
mod contents;
mod convert;
mod metadata;
mod order;
mod service;
mod settings;
mod shared_memory;

pub use service::InferenceService;
pub use settings::{SetFilter, Settings};
