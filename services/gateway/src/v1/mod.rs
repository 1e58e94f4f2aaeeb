//! `sensorium.v1`: embeddings, understanding and generation for parts of text, image and audio, and jobs of many.

mod convert;
mod embed;
mod generate;
mod jobs;
mod service;

pub use jobs::JobsService;
pub use service::SensoriumService;
