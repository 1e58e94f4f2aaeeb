//! Nothing that a caller sends hurts anybody else: every kind of hostile or clumsy input, beside a steady load of
//! well-behaved callers. `docs/HARDENING.md` lists the kinds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod equals;
mod rows;

use sensorium_tests::{Repository, Server, ServerOptions};

/// A server with the quick models.
async fn server(settings: &[(&str, &str)]) -> Server {
    let repository = Repository::new().with(&["identity", "minilm"]).chaos("chaos", &[]);
    let options = settings.iter().fold(ServerOptions::new(repository), |options, (key, value)| options.set(key, value));
    Server::start(options).await
}
