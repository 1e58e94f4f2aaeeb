//! What operators and newcomers type: each verb is a client of the public door, as anybody's is.
//!
//! A verb has `…Args` for clap and `run(args)`, which prints and returns the exit code of [`connect`].
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod actors;
pub mod card;
pub mod connect;
pub mod drain;
mod draw;
pub mod infer;
pub mod jobs;
pub mod key;
pub mod models;
pub mod status;
