//! `sensorium.v1.Sensorium`: embeddings, understanding and generation for parts of text, image and audio.

mod convert;
mod embed;
mod generate;
mod service;

pub use service::SensoriumService;
