//! What operators and newcomers type: each verb is a client of the public door, as anybody's is.
//!
//! A verb has `…Args` for clap and `run(args)`. It prints through [`output`] alone, and says by a [`failure::Failure`]
//! why it did not do what it was told; `main` tells that, and ends with its exit code.

pub mod actors;
pub mod card;
pub mod command_line;
pub mod config;
pub mod connect;
pub mod drain;
mod draw;
pub mod failure;
pub mod infer;
pub mod jobs;
pub mod key;
pub mod models;
pub mod output;
pub mod status;
