//! Configuration, open and watched files, telemetry, signals, threads: what every process needs and none of our domain.

pub mod config;
pub mod files;
pub mod lanes;
pub mod signal;
pub mod telemetry;
pub mod watched;
