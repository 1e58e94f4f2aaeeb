//! The benchmark: every figure is a ratio to a baseline that ran on the same machine, in the same run, turn by turn.

mod baseline;
mod busy;
mod cluster;
mod loss;
mod memory;
pub mod row;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::server::Server;
use row::{Goal, Row};

/// What is there to measure, and against what. What is missing is said in its row.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only rows whose work holds one of these, in whatever case; none: all.
    pub rows: Vec<String>,
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

impl Options {
    /// Whether a row is to be measured.
    fn wants(&self, work: &str) -> bool {
        let work = work.to_lowercase();
        self.rows.is_empty() || self.rows.iter().any(|wanted| work.contains(&wanted.to_lowercase()))
    }
}

const READY: &str = "ready from a warm cache";
const RESIDENT: &str = "resident memory, whole pack";

/// Measures all rows, or those that are wanted; `told` gets each as soon as it is known.
///
/// # Errors
/// If the server does not start, or nobody answers at the target. A row that fails says so in its note instead.
pub async fn run(options: &Options, mut told: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    let mut keep = |row: Row| {
        told(&row);
        all.push(row);
    };
    if [READY, RESIDENT].iter().chain(&rows::ALL).any(|row| options.wants(row)) {
        one_process(options, &mut keep).await?;
    }
    cluster::run(options, &mut keep).await;
    Ok(all)
}

/// Gateway and worker in one process, all rows of which share it.
async fn one_process(options: &Options, keep: &mut impl FnMut(Row)) -> Result<()> {
    let (server, target) = match &options.target {
        Some(target) => (None, target.clone()),
        None => {
            // the first start fills the page cache: "ready from a warm cache" is the second one's time
            if options.wants(READY) {
                Server::start(&options.server, &options.server_arguments).await?.stop().await?;
            }
            let server = Server::start(&options.server, &options.server_arguments).await?;
            let target = server.target();
            (Some(server), target)
        }
    };
    let ready = Row::alone(READY, "s", Goal::AtMost(10.0));
    let resident = Row::alone(RESIDENT, "GB", Goal::AtMost(2.5));
    let elsewhere = || "not measured: the server was not started here".to_owned();
    let ready = match &server {
        Some(server) => ready.figure(server.ready.as_secs_f64()),
        None => ready.note(elsewhere()),
    };
    if options.wants(READY) {
        keep(ready);
    }
    if options.wants(RESIDENT) {
        keep(match &server {
            Some(server) => match memory::touch(&target, options.clip.as_deref()).await {
                Ok(note) => resident.figure(server.resident()? as f64 / 1e9).note(note),
                Err(error) => resident.note(format!("not measured: {error}")),
            },
            None => resident.note(elsewhere()),
        });
    }
    rows::run(options, &target, keep).await;
    match server {
        Some(server) => server.stop().await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_words_of_theirs() {
        let all = Options::default();
        assert!(all.wants(READY) && rows::ALL.iter().all(|row| all.wants(row)));
        let some = Options { rows: vec!["Redis".to_owned(), "kill".to_owned()], ..Options::default() };
        assert!(some.wants("minilm, hit in Redis") && some.wants(loss::KILLED));
        assert!(!some.wants(READY) && rows::ALL.iter().all(|row| !some.wants(row)));
    }
}
