//! `sensorium card`: what a model is for, where it comes from, and how good it is.

use sensorium_proto::admin::GetModelCardRequest;
use sensorium_proto::admin::admin_client::AdminClient;
use serde_json::json;

use super::connect::{With, quick};
use super::draw::bold;
use super::failure::Failure;
use super::output::{self, Output, clean};

/// Arguments of `sensorium card`.
#[derive(clap::Args, Clone, Debug)]
pub struct CardArgs {
    /// The model.
    model: String,
    /// Its version. Left out: the one that is served.
    #[arg(long, default_value = "")]
    version: String,
    #[command(flatten)]
    with: With,
}

/// Runs the verb.
///
/// # Errors
/// If it could not be done.
pub async fn run(args: CardArgs) -> Result<(), Failure> {
    let mut client = AdminClient::new(args.with.server.connect().await?);
    let request = GetModelCardRequest { name: args.model.clone(), version: args.version };
    let card = client.get_model_card(quick(request)).await?.into_inner();
    if args.with.output == Output::Json {
        return output::json_line(&json!({ "model": args.model, "version": card.version, "markdown": card.markdown }));
    }
    for line in card.markdown.lines() {
        output::line(if line.starts_with('#') { bold(line) } else { clean(line) })?;
    }
    Ok(())
}
