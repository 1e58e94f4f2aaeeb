//! `sensorium jobs dead`: what failed too often, and another try.

use comfy_table::Table;
use sensorium_proto::v1::{DeadTask, ListDeadTasksRequest, ReplayDeadTaskRequest};
use serde_json::json;

use super::super::connect::{With, quick};
use super::super::draw;
use super::super::failure::Failure;
use super::super::output::{self, Output, clean};
use super::{Client, client};

/// Tasks that are asked for at a time.
const PAGE: u32 = 1000;

#[derive(clap::Subcommand, Clone, Debug)]
pub(super) enum Verb {
    /// Lists them.
    List {
        #[command(flatten)]
        with: With,
    },
    /// Tries them once more; their jobs run again until they are done.
    Replay {
        /// Their places, as `list` shows them.
        #[arg(required_unless_present = "all")]
        sequences: Vec<u64>,
        /// All there are.
        #[arg(long, conflicts_with = "sequences")]
        all: bool,
        #[command(flatten)]
        with: With,
    },
}

pub(super) async fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { with } => {
            let tasks = all(&mut client(&with.server).await?).await?;
            match with.output {
                Output::Json => output::json(&tasks.iter().map(told).collect::<Vec<_>>()),
                Output::Text => output::line(table(&tasks)),
            }
        }
        Verb::Replay { sequences, all: every, with } => {
            let mut client = client(&with.server).await?;
            let sequences = match every {
                true => all(&mut client).await?.iter().map(|task| task.sequence).collect(),
                false => sequences,
            };
            for sequence in sequences {
                let request = quick(ReplayDeadTaskRequest { sequence });
                let job = client.replay_dead_task(request).await?.into_inner().job_id;
                match with.output {
                    Output::Json => output::json_line(&json!({ "sequence": sequence, "job": job }))?,
                    Output::Text => output::line(format!("{sequence} of job {} is tried again", clean(&job)))?,
                }
            }
            Ok(())
        }
    }
}

async fn all(client: &mut Client) -> Result<Vec<DeadTask>, Failure> {
    let mut tasks: Vec<DeadTask> = Vec::new();
    loop {
        let first_sequence = tasks.last().map_or(0, |last| last.sequence + 1);
        let request = ListDeadTasksRequest { page_size: PAGE, first_sequence };
        let page = client.list_dead_tasks(quick(request)).await?.into_inner().tasks;
        let last = page.len() < PAGE as usize;
        tasks.extend(page);
        if last {
            return Ok(tasks);
        }
    }
}

fn told(task: &DeadTask) -> serde_json::Value {
    json!({
        "sequence": task.sequence, "job": task.job_id, "tenant": task.tenant, "item": task.item,
        "item_name": task.item_name, "queue": task.queue, "error": task.error, "deliveries": task.deliveries,
        "buried": task.buried.map(|time| time.to_string()),
    })
}

fn table(tasks: &[DeadTask]) -> Table {
    let mut table = draw::table(&["place", "job", "item", "queue", "deliveries", "buried", "error"]);
    for task in tasks {
        let item =
            if task.item_name.is_empty() { task.item.to_string() } else { format!("{} {}", task.item, task.item_name) };
        table.add_row([
            task.sequence.to_string(),
            clean(&task.job_id),
            clean(&item),
            clean(&task.queue),
            task.deliveries.to_string(),
            task.buried.map(|time| time.to_string()).unwrap_or_default(),
            clean(&task.error),
        ]);
    }
    table
}
