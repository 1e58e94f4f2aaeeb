//! Nothing that a caller sends hurts anybody else: every kind of hostile or clumsy input, beside a steady load of
//! well-behaved callers. `docs/HARDENING.md` lists the kinds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connections;
mod messages;
mod readers;
mod rows;

use sensorium_tests::{Repository, Server, ServerOptions};

/// A server with quick models, and `wide`, which gives back rows of any length.
async fn server(settings: &[(&str, &str)]) -> Server {
    let wide = r#"[{ name = "INPUT0", datatype = "FP32", shape = [-1, -1] }]"#;
    let repository = Repository::new()
        .with(&["identity", "minilm"])
        .copy("identity", "wide", &[("inputs", wide), ("outputs", &wide.replace("INPUT0", "OUTPUT0"))])
        .chaos("chaos", &[]);
    let options = settings.iter().fold(ServerOptions::new(repository), |options, (key, value)| options.set(key, value));
    Server::start(options).await
}
