//! `sensorium card`: what a model is for, where it comes from, and how good it is.

use std::process::ExitCode;

use sensorium_proto::admin::GetModelCardRequest;
use sensorium_proto::admin::admin_client::AdminClient;
use serde_json::json;

use super::connect::{self, Failure, Output, Server};
use super::draw::bold;

/// Arguments of `sensorium card`.
#[derive(clap::Args, Clone, Debug)]
pub struct CardArgs {
    /// The model.
    model: String,
    /// Its version. Left out: the one that is served.
    #[arg(long, default_value = "")]
    version: String,
    #[command(flatten)]
    server: Server,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// If stdout is gone; what the server says is printed.
pub async fn run(args: CardArgs) -> anyhow::Result<ExitCode> {
    connect::finish(show(args).await)
}

async fn show(args: CardArgs) -> Result<(), Failure> {
    let mut client = AdminClient::new(args.server.connect().await?);
    let request = GetModelCardRequest { name: args.model.clone(), version: args.version };
    let card = client.get_model_card(request).await?.into_inner();
    if args.output == Output::Json {
        println!("{}", json!({ "model": args.model, "version": card.version, "markdown": card.markdown }));
        return Ok(());
    }
    for line in card.markdown.lines() {
        if line.starts_with('#') { println!("{}", bold(line)) } else { println!("{line}") }
    }
    Ok(())
}
