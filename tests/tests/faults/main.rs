//! What breaks, and who notices: panics, device errors, hangs, restarts, cancellations, and reloading over and over.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "measured figures belong to the output of a test")]

mod cancellation;
mod hangs;
mod quarantine;
mod reload;
mod replicas;
mod restarts;

use sensorium_tests::{Repository, Server, ServerOptions};

/// A server with `identity` and a `chaos` whose `model.toml` has these keys.
async fn server(settings: &[(&str, &str)]) -> Server {
    Server::start(ServerOptions::new(Repository::new().with(&["identity"]).chaos("chaos", settings))).await
}
