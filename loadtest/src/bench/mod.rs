//! The benchmark: every figure is a ratio to a baseline that ran on the same machine, in the same run, turn by turn.

mod baseline;
mod memory;
pub mod row;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::server::Server;
use row::{Goal, Row};

/// What is there to measure, and against what. What is missing is said in its row.
#[derive(Clone, Debug)]
pub struct Options {
    /// A server that runs; nothing: `server` is started.
    pub target: Option<String>,
    /// The binary `sensorium`.
    pub server: PathBuf,
    /// Further arguments of its `serve`.
    pub server_arguments: Vec<String>,
    /// The worker's example `forward_loop`.
    pub forward_loop: Option<PathBuf>,
    /// Speech of about ten seconds.
    pub clip: Option<PathBuf>,
    /// A Python with the packages of `baselines/requirements.txt`.
    pub python: Option<PathBuf>,
    /// Where `faster_whisper_clip.py` and `llama_tokens.py` are.
    pub baselines: PathBuf,
    /// The original model files, as `baselines/unpack.py` lays them out.
    pub models_source: Option<PathBuf>,
    /// Turns of baseline and ours.
    pub rounds: usize,
    /// Before each measurement.
    pub warm_up: Duration,
    /// Of each measurement.
    pub time: Duration,
}

/// Measures all rows; `told` gets each as soon as it is known.
///
/// # Errors
/// If the server does not start, or nobody answers at the target. A row that fails says so in its note instead.
pub async fn run(options: &Options, mut told: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    let mut keep = |row: Row| {
        told(&row);
        all.push(row);
    };
    let (server, target) = match &options.target {
        Some(target) => (None, target.clone()),
        None => {
            // the first start fills the page cache: "ready from a warm cache" is the second one's time
            Server::start(&options.server, &options.server_arguments).await?.stop().await?;
            let server = Server::start(&options.server, &options.server_arguments).await?;
            let target = server.target();
            (Some(server), target)
        }
    };
    let ready = Row::alone("ready from a warm cache", "s", Goal::AtMost(10.0));
    let resident = Row::alone("resident memory, whole pack", "GB", Goal::AtMost(2.5));
    match &server {
        Some(server) => {
            keep(ready.figure(server.ready.as_secs_f64()));
            keep(match memory::touch(&target, options.clip.as_deref()).await {
                Ok(note) => resident.figure(server.resident()? as f64 / 1e9).note(note),
                Err(error) => resident.note(format!("not measured: {error}")),
            });
        }
        None => {
            keep(ready.note("not measured: the server was not started here".to_owned()));
            keep(resident.note("not measured: the server was not started here".to_owned()));
        }
    }
    rows::run(options, &target, &mut keep).await;
    if let Some(server) = server {
        server.stop().await?;
    }
    Ok(all)
}
