//! Replicas: a model version on one device thread.

pub mod actor;
pub mod cores;
pub mod device;
mod finite;
pub mod forward;
pub mod generate;
pub mod sampler;
mod warm;
