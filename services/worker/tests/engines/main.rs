//! The engines over the real models of the repository: fidelity to references, determinism, batches and sequences
//! that do not disturb each other, and errors that name what is wrong.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod audio;
mod builtin;
mod generation;
mod loading;
mod support;
mod text;
mod torchscript;
mod vision;
