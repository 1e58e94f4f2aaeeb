//! `sensorium drain`: takes a worker out, with no error to anyone.

use std::time::Duration;

use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{DrainRequest, GetClusterRequest};
use serde_json::json;
use tonic::{Code, Status};

use super::connect::{With, duration, quick};
use super::draw::bold;
use super::failure::Failure;
use super::output::{self, Output};

/// How often the register is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Arguments of `sensorium drain`.
#[derive(clap::Args, Clone, Debug)]
pub struct DrainArgs {
    /// The worker's name, as `sensorium status` shows it.
    worker: String,
    /// How long to wait until it has left; it goes on draining after that.
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    with: With,
}

/// Runs the verb.
///
/// # Errors
/// If it could not be done.
pub async fn run(args: DrainArgs) -> Result<(), Failure> {
    let mut connection = args.with.server.open().await?;
    let mut client = AdminClient::new(connection.channel());
    let before = client.get_cluster(quick(GetClusterRequest {})).await?.into_inner();
    // a worker in the process that answers takes the connection with it when it ends
    let within = before.nodes.iter().any(|node| node.name == args.worker && node.address.is_empty());
    client.drain(quick(DrainRequest { node: args.worker.clone() })).await?;
    let gone = tokio::time::timeout(args.timeout, async {
        loop {
            match client.get_cluster(quick(GetClusterRequest {})).await {
                Err(status) if within && has_ended(&status) => return Ok(()),
                Err(status) => {
                    connection.recover(status.into()).await?;
                    client = AdminClient::new(connection.channel());
                }
                Ok(cluster) => {
                    connection.heard();
                    if !cluster.into_inner().nodes.iter().any(|node| node.name == args.worker) {
                        return Ok::<_, Failure>(());
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    });
    match gone.await {
        Ok(left) => left?,
        Err(_) => {
            let message = format!("{} still drains after {:?}", args.worker, args.timeout);
            return Err(Status::deadline_exceeded(message).into());
        }
    }
    match args.with.output {
        Output::Json => output::json_line(&json!({ "drained": args.worker })),
        Output::Text => output::line(format!("{} has left", bold(&args.worker))),
    }
}

/// Whether the process at the other end is on its way out, or gone.
fn has_ended(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}
