//! `sensorium models`: what lies in the repository, and which of it is loaded.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::{RepositoryIndexRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest};
use serde_json::json;

use super::connect::{self, Failure, Output, With};
use super::draw::bold;

/// Arguments of `sensorium models`.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelsArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    /// Lists the repository.
    List {
        /// Only what is ready.
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        with: With,
    },
    /// Loads or reloads a model; returns when it is warm.
    Load {
        /// The model.
        name: String,
        #[command(flatten)]
        with: With,
    },
    /// Drains a model and unloads it.
    Unload {
        /// The model.
        name: String,
        #[command(flatten)]
        with: With,
    },
}

/// Runs the verb.
///
/// # Errors
/// If stdout is gone; what the server says is printed.
pub async fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    connect::finish(act(args.verb).await)
}

async fn act(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { ready, with } => list(ready, &with).await,
        Verb::Load { name, with } => {
            let mut client = GrpcInferenceServiceClient::new(with.server.connect().await?);
            let request = RepositoryModelLoadRequest { model_name: name.clone(), ..Default::default() };
            client.repository_model_load(request).await?;
            done("loaded", &name, with.output);
            Ok(())
        }
        Verb::Unload { name, with } => {
            let mut client = GrpcInferenceServiceClient::new(with.server.connect().await?);
            let request = RepositoryModelUnloadRequest { model_name: name.clone(), ..Default::default() };
            client.repository_model_unload(request).await?;
            done("unloaded", &name, with.output);
            Ok(())
        }
    }
}

fn done(what: &str, name: &str, output: Output) {
    match output {
        Output::Json => println!("{}", json!({ what: name })),
        Output::Text => println!("{what} {}", bold(name)),
    }
}

async fn list(ready: bool, with: &With) -> Result<(), Failure> {
    let mut client = GrpcInferenceServiceClient::new(with.server.connect().await?);
    let request = RepositoryIndexRequest { ready, ..Default::default() };
    let models = client.repository_index(request).await?.into_inner().models;
    if with.output == Output::Json {
        let models = models.iter().map(|model| {
            json!({ "name": model.name, "version": model.version, "state": model.state, "reason": model.reason })
        });
        println!("{}", serde_json::to_string_pretty(&models.collect::<Vec<_>>())?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["model", "version", "state", "reason"]);
    for model in models {
        table.add_row([model.name, model.version, model.state, model.reason]);
    }
    println!("{table}");
    Ok(())
}
