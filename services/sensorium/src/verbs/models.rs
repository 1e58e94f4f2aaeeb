//! `sensorium models`: what lies in the repository, and which of it is loaded.

use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::{RepositoryIndexRequest, RepositoryModelLoadRequest, RepositoryModelUnloadRequest};
use serde_json::json;

use super::connect::{With, quick};
use super::draw::{bold, table};
use super::failure::Failure;
use super::output::{self, Output, clean};

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
/// If it could not be done.
pub async fn run(args: ModelsArgs) -> Result<(), Failure> {
    match args.verb {
        Verb::List { ready, with } => list(ready, &with).await,
        Verb::Load { name, with } => {
            let mut client = GrpcInferenceServiceClient::new(with.server.connect().await?);
            let request = RepositoryModelLoadRequest { model_name: name.clone(), ..Default::default() };
            client.repository_model_load(request).await?;
            done("loaded", &name, with.output)
        }
        Verb::Unload { name, with } => {
            let mut client = GrpcInferenceServiceClient::new(with.server.connect().await?);
            let request = RepositoryModelUnloadRequest { model_name: name.clone(), ..Default::default() };
            client.repository_model_unload(request).await?;
            done("unloaded", &name, with.output)
        }
    }
}

fn done(what: &str, name: &str, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => output::json_line(&json!({ what: name })),
        Output::Text => output::line(format!("{what} {}", bold(name))),
    }
}

async fn list(ready: bool, with: &With) -> Result<(), Failure> {
    let mut client = GrpcInferenceServiceClient::new(with.server.connect().await?);
    let request = RepositoryIndexRequest { ready, ..Default::default() };
    let models = client.repository_index(quick(request)).await?.into_inner().models;
    if with.output == Output::Json {
        let models = models.iter().map(|model| {
            json!({ "name": model.name, "version": model.version, "state": model.state, "reason": model.reason })
        });
        return output::json(&models.collect::<Vec<_>>());
    }
    let mut table = table(&["model", "version", "state", "reason"]);
    for model in models {
        table.add_row([model.name, model.version, model.state, model.reason].map(|cell| clean(&cell)));
    }
    output::line(table)
}
