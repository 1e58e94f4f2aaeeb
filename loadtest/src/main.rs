//! `loadtest run` makes load; `loadtest bench` fills the table of docs/PERFORMANCE.md.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use sensorium_loadtest::bench::{self, row};
use sensorium_loadtest::{closed, open};

use crate::arguments::{Arguments, Bench, Output, Run, Verb};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Arguments::parse().verb {
        Verb::Run(arguments) => run(&arguments).await,
        Verb::Bench(arguments) => measure(&arguments).await,
    }
}

/// 0 if every request succeeded, 1 if some failed.
async fn run(arguments: &Run) -> Result<ExitCode> {
    let work = arguments.work()?;
    let (warm_up, time) = (seconds(arguments.warm_up)?, seconds(arguments.seconds)?);
    let report = match arguments.rate {
        None => {
            let load = closed::Load { connections: arguments.connections, streams: arguments.streams, warm_up, time };
            closed::run(&arguments.target, &work, load).await?
        }
        Some(rate) if rate.is_finite() && rate > 0.0 => {
            let load = open::Load {
                connections: arguments.connections,
                rate,
                warm_up,
                time,
                count: arguments.count,
                outstanding: arguments.outstanding,
                seed: arguments.seed,
            };
            open::run(&arguments.target, &work, load).await?
        }
        Some(rate) => bail!("--rate {rate}: expected more than 0"),
    };
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{}", show::report(&report)),
    }
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// 0 if nothing that was measured misses its goal, 1 otherwise.
async fn measure(arguments: &Bench) -> Result<ExitCode> {
    let options = bench::Options {
        rows: arguments.rows.clone(),
        target: arguments.target.clone(),
        server: arguments.server.clone(),
        server_arguments: arguments.server_arguments.clone(),
        forward_loop: arguments.forward_loop.clone(),
        clip: arguments.clip.clone(),
        python: arguments.python.clone(),
        baselines: arguments.baselines.clone(),
        models_source: arguments.models_source.clone(),
        rounds: arguments.rounds,
        warm_up: seconds(arguments.warm_up)?,
        time: seconds(arguments.seconds)?,
    };
    // rows take minutes: each is told on stderr as it comes, the table at the end
    let rows = bench::run(&options, |row| eprintln!("{}", show::progress(row))).await?;
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, row::markdown(&rows)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => print!("{}", row::table(&rows, show::colour())),
    }
    Ok(if rows.iter().any(|row| row.reached == Some(false)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn seconds(value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("{value} seconds: expected 0 or more"))
}
