//! The models of the pack with real data, through the public door.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "measured quality belongs to the output of a test")]

mod budgets;
mod crowd;
mod embed;
mod generation;
mod guards;
mod jobs;
mod reloads;
mod senses;
mod speech;
mod text;
mod understanding;
mod vision;

use sensorium_tests::{Client, Repository, Server, ServerOptions};
use tokio::sync::OnceCell;

/// One server with the whole pack for all tests.
async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER.get_or_init(|| Server::start(ServerOptions::new(Repository::pack()))).await
}

async fn client() -> Client {
    server().await.client().await
}
