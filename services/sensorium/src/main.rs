//! The `sensorium` binary: it serves, and it is the operator's hand.

// a binary exports nothing: `pub` in its modules means "for the rest of it"
#![allow(unreachable_pub)]

mod config;
mod gateway;
mod node;
#[cfg(feature = "worker")]
mod parent;
#[cfg(feature = "worker")]
mod serve;
mod tls;
mod verbs;
#[cfg(feature = "worker")]
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

use crate::verbs::failure::Failure;

/// A request allocates and frees some kilobytes on every thread that it comes by, which glibc's arenas are slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A distributed, actor-based serving cluster for AI that sees, hears and reads.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve everything in one process: gateway, worker, and embedded twins of etcd, NATS and Redis.
    #[cfg(feature = "worker")]
    Serve(config::ConfigArgs),
    /// The front door of a cluster: takes requests and plans which worker answers.
    Gateway(config::ConfigArgs),
    /// Holds models, for the gateways of a cluster.
    #[cfg(feature = "worker")]
    Worker(config::ConfigArgs),
    /// Take a worker out: it finishes what it has, leaves the cluster and ends.
    Drain(verbs::drain::DrainArgs),
    /// Ask the server about a picture, a sound and a sentence.
    Infer(verbs::infer::InferArgs),
    /// Many items at once, when there is time.
    Jobs(verbs::jobs::JobsArgs),
    /// What the server does.
    Status(verbs::status::StatusArgs),
    /// Models of the server's repository.
    Models(verbs::models::ModelsArgs),
    /// The live supervision tree.
    Actors(verbs::actors::ActorsArgs),
    /// The model card of a served version.
    Card(verbs::card::CardArgs),
    /// Make an API key: its entry for the file `auth.keys` on stdout, the key itself on stderr.
    Key(verbs::key::KeyArgs),
    /// Configuration files.
    #[command(subcommand)]
    Config(verbs::config::ConfigVerb),
}

#[tokio::main]
async fn main() -> ExitCode {
    let (cli, output) = match verbs::command_line::read::<Cli>() {
        Ok(read) => read,
        Err(code) => return code,
    };
    run(cli.verb).await.unwrap_or_else(|failure| failure.tell(output))
}

async fn run(verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        #[cfg(feature = "worker")]
        Verb::Serve(args) => return Ok(serve::run(args).await?),
        Verb::Gateway(args) => return Ok(gateway::run(args).await?),
        #[cfg(feature = "worker")]
        Verb::Worker(args) => return Ok(worker::run(args).await?),
        Verb::Drain(args) => verbs::drain::run(args).await,
        Verb::Infer(args) => verbs::infer::run(args).await,
        Verb::Jobs(args) => verbs::jobs::run(args).await,
        Verb::Status(args) => verbs::status::run(args).await,
        Verb::Models(args) => verbs::models::run(args).await,
        Verb::Actors(args) => verbs::actors::run(args).await,
        Verb::Card(args) => verbs::card::run(args).await,
        Verb::Key(args) => verbs::key::run(args),
        Verb::Config(verb) => verbs::config::run(&verb),
    }
    .map(|()| ExitCode::SUCCESS)
}
