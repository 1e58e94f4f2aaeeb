//! End-to-end tests with real processes and real models.
//!
//! Tests enter by the public door: they start the real binary on free ports and talk to it by gRPC and HTTP. This
//! library starts servers ([`Server`]), lays out model repositories ([`Repository`]), writes requests ([`Ask`]) and
//! reads answers.

mod ask;
mod balancer;
mod certificates;
mod client;
mod cluster;
mod collector;
mod doors;
mod etcd;
mod frames;
mod http;
pub mod jobs;
mod load;
mod module;
mod neighbours;
mod netns;
mod outside;
mod process;
mod refusal;
mod repository;
pub mod samples;
mod server;
mod weights;
mod wire;
pub mod words;

use std::time::Duration;

pub use ask::{Ask, Given, chaos};
pub use balancer::Balancer;
pub use certificates::{Authority, Identity};
pub use client::{Client, within};
pub use cluster::{Cluster, Node};
pub use collector::{Collector, Span};
pub use doors::Doors;
pub use etcd::Etcd;
pub use frames::Frames;
pub use http::get;
pub use load::{Load, eventually};
pub use neighbours::Neighbours;
pub use netns::Network;
pub use outside::Outside;
pub use process::{Exit, Process, signal};
pub use refusal::Refusal;
pub use repository::Repository;
pub use server::{Server, ServerOptions, binary};
pub use weights::{Array, Weights};
pub use wire::Link;

/// What no answer may take, on a slow machine under load: past it something hangs.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Cosine of two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of different length");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
