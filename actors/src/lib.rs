//! The product: everything between the front door and the device.
//!
//! A request enters through [`route::Router`], which plans a worker for it; [`worker::Worker`] runs the model's
//! [`pipeline`], whose rows meet those of others in the version's [`batching`] queue, and a [`replica`]'s device thread
//! executes them through the [`engine::Engine`] trait. [`supervision`] holds the trees together.

pub mod admission;
pub mod batching;
pub mod engine;
pub mod error;
pub mod jobs;
pub mod manifest;
pub mod metrics;
pub mod pipeline;
pub mod replica;
pub mod request;
pub mod route;
pub mod shapes;
pub mod stats;
pub mod supervision;
pub mod tensor;
pub mod understand;
pub mod worker;
