//! `sensorium drain`: takes a worker out, with no error to anyone.

use std::process::ExitCode;
use std::time::Duration;

use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{DrainRequest, GetClusterRequest};
use serde_json::json;
use tonic::Code;

use super::connect::{self, Failure, Output, Server, duration};
use super::draw::bold;

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
    server: Server,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs the verb.
///
/// # Errors
/// If stdout is gone; what the server says is printed.
pub async fn run(args: DrainArgs) -> anyhow::Result<ExitCode> {
    connect::finish(drain(args).await)
}

async fn drain(args: DrainArgs) -> Result<(), Failure> {
    let mut client = AdminClient::new(args.server.connect().await?);
    let before = client.get_cluster(GetClusterRequest {}).await?.into_inner();
    // a worker in the process that answers takes the connection with it when it ends
    let within = before.nodes.iter().any(|node| node.name == args.worker && node.address.is_empty());
    client.drain(DrainRequest { node: args.worker.clone() }).await?;
    let gone = tokio::time::timeout(args.timeout, async {
        loop {
            let cluster = match client.get_cluster(GetClusterRequest {}).await {
                Err(status) if within && status.code() == Code::Unavailable => return Ok(()),
                cluster => cluster?.into_inner(),
            };
            if !cluster.nodes.iter().any(|node| node.name == args.worker) {
                return Ok::<_, Failure>(());
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    match gone.await {
        Ok(left) => left?,
        Err(_) => return Err(Failure::Other(anyhow::anyhow!("{} still drains after {:?}", args.worker, args.timeout))),
    }
    match args.output {
        Output::Json => println!("{}", json!({ "drained": args.worker })),
        Output::Text => println!("{} has left", bold(&args.worker)),
    }
    Ok(())
}
