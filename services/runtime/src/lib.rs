//! Configuration, watched files, telemetry, signals: what every process needs and none of our domain.

pub mod config;
pub mod signal;
pub mod telemetry;
pub mod watched;
