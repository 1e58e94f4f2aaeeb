//! What the door promises: protocol, status codes, health, settings, shutdown, the HTTP side and the verbs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod audit;
mod bulk;
mod contents;
mod environment;
mod health;
mod http;
mod keys;
mod limits;
mod mistakes;
mod outputs;
mod overload;
mod reflection;
mod repository;
mod settings;
mod shutdown;
mod statistics;
mod streams;
mod telemetry;
mod tls;
mod tokens;
mod verbs;

use sensorium_tests::{Client, Repository, Server, ServerOptions};
use tokio::sync::OnceCell;

/// One server with the quick models for all tests that change nothing.
async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let start = || {
        let models = ["identity", "minilm", "efficientnet-lite0", "silero-vad"];
        let repository = Repository::new()
            .with(&models)
            .copy("minilm", "minilm-strict", &[("limits.truncate", "false"), ("limits.max_bytes", "4096")])
            .copy(
                "efficientnet-lite0",
                "small-pictures",
                &[("limits.max_pixels", "100000"), ("limits.max_bytes", "600000")],
            )
            .copy("silero-vad", "short-clips", &[("limits.max_seconds", "2.0"), ("limits.max_bytes", "150000")])
            .chaos("chaos", &[]);
        Server::start(ServerOptions::new(repository).set("limits.max_message_bytes", "4000000"))
    };
    SERVER.get_or_init(start).await
}

async fn client() -> Client {
    server().await.client().await
}
