//! The gRPC front door and the HTTP side.
//!
//! Transport types stop here: `inference` and `v1` turn messages into requests of `sensorium-actors`, and
//! `status` is the one file that turns its errors into gRPC status.

// the modules themselves are private: `pub` in them means "for the rest of this crate"
#![allow(unreachable_pub)]

pub mod auth;
mod bounds;
pub mod cluster;
mod context;
pub mod health;
pub mod http;
mod inference;
pub mod server;
mod trace;
mod v1;

pub use inference::{SetFilter, Settings};
