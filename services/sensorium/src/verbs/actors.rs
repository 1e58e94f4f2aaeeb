//! `sensorium actors`: the live supervision tree, and a hand on it.

use owo_colors::Style;
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{Actor, GetActorTreeRequest, RestartActorRequest};
use serde_json::json;

use super::connect::{MAX_ANSWER, With, quick};
use super::draw::{bold, branches, dim, paint, uptime};
use super::failure::Failure;
use super::output::{self, Output};

/// Arguments of `sensorium actors`.
#[derive(clap::Args, Clone, Debug)]
pub struct ActorsArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    /// Prints the live supervision tree: state, restarts, queue, uptime and the last failure.
    Tree {
        /// Only what is under this path.
        #[arg(default_value = "")]
        path: String,
        #[command(flatten)]
        with: With,
    },
    /// Restarts the actor at a path, as its supervisor would after a failure.
    Restart {
        /// Such as `worker-1/audio/whisper-base/1/replica-0`.
        path: String,
        #[command(flatten)]
        with: With,
    },
}

/// Runs the verb.
///
/// # Errors
/// If it could not be done.
pub async fn run(args: ActorsArgs) -> Result<(), Failure> {
    match args.verb {
        Verb::Tree { path, with } => {
            let mut client = AdminClient::new(with.server.connect().await?).max_decoding_message_size(MAX_ANSWER);
            let actors = client.get_actor_tree(quick(GetActorTreeRequest { path })).await?.into_inner().actors;
            match with.output {
                Output::Json => output::json(&actors.iter().map(json).collect::<Vec<_>>()),
                Output::Text => print(&actors),
            }
        }
        Verb::Restart { path, with } => {
            let mut client = AdminClient::new(with.server.connect().await?);
            client.restart_actor(RestartActorRequest { path: path.clone() }).await?;
            match with.output {
                Output::Json => output::json_line(&json!({ "restarted": path })),
                Output::Text => output::line(format!("restarted {}", bold(path))),
            }
        }
    }
}

fn json(actor: &Actor) -> serde_json::Value {
    json!({
        "path": actor.path, "kind": actor.kind, "state": actor.state, "restarts": actor.restarts,
        "queue_depth": actor.queue_depth, "uptime_seconds": actor.uptime_seconds, "last_failure": actor.last_failure,
    })
}

fn print(actors: &[Actor]) -> Result<(), Failure> {
    let paths: Vec<&str> = actors.iter().map(|actor| actor.path.as_str()).collect();
    for (actor, branch) in actors.iter().zip(branches(&paths)) {
        let name = below_ancestor(&actor.path, &paths);
        let mut line = format!("{}{} {}", dim(branch), bold(name), dim(&actor.kind));
        line.push_str(&format!("  {}", paint(&actor.state, style(&actor.state))));
        line.push_str(&dim(format!("  up {}", uptime(actor.uptime_seconds))));
        if actor.queue_depth > 0 {
            line.push_str(&format!("  queue {}", actor.queue_depth));
        }
        if actor.restarts > 0 {
            line.push_str(&paint(format!("  restarts {}", actor.restarts), Style::new().yellow()));
        }
        if !actor.last_failure.is_empty() {
            line.push_str(&paint(format!("  last failure: {}", actor.last_failure), Style::new().red()));
        }
        output::line(line)?;
    }
    Ok(())
}

/// What a path adds to the nearest one above it that is listed: a version is shown with its model, which is no actor.
fn below_ancestor<'a>(path: &'a str, paths: &[&str]) -> &'a str {
    let above = paths.iter().filter_map(|other| path.strip_prefix(other)?.strip_prefix('/'));
    above.min_by_key(|rest| rest.len()).unwrap_or(path)
}

fn style(state: &str) -> Style {
    match state {
        "running" => Style::new().green(),
        "starting" | "restarting" => Style::new().yellow(),
        "hung" | "quarantined" => Style::new().red().bold(),
        _ => Style::new().dimmed(),
    }
}
