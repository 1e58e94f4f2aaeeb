//! Nothing that a caller sends hurts anybody else: every kind of hostile or clumsy input, beside a steady load of
//! well-behaved callers. `docs/HARDENING.md` lists the kinds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broken;
mod connections;
mod decoding;
mod equals;
mod errors;
mod jobs;
mod loads;
mod messages;
mod modules;
mod numbers;
mod queues;
mod readers;
mod replicas;
mod rows;
mod shared_memory;
mod unscraped;
mod weights;

use std::collections::BTreeMap;

use sensorium_proto::inference::RepositoryIndexRequest;
use sensorium_tests::{Client, Repository, Server, ServerOptions};

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

/// State and reason of each model, as the repository index says.
async fn index(client: &Client) -> BTreeMap<String, (String, String)> {
    let answer = client.inference.clone().repository_index(RepositoryIndexRequest::default()).await.unwrap();
    answer.into_inner().models.into_iter().map(|model| (model.name, (model.state, model.reason))).collect()
}
