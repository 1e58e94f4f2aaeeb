//! Closed loop: so many callers, each with one request in flight. What it measures is capacity.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::error::Result;
use crate::record::{Mode, Record, Report, Window};
use crate::work::{CALLER, Doors, Work, first_number};

/// How many callers, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// HTTP/2 connections.
    pub connections: usize,
    /// Callers on each.
    pub streams: usize,
    /// Not measured: connections, caches and batches settle.
    pub warm_up: Duration,
    /// Measured.
    pub time: Duration,
}

/// Runs `work` against `target`: a gateway, or several with commas between them.
///
/// # Errors
/// If nobody answers at `target`. Requests that fail are counted in the report.
pub async fn run(target: &str, work: &Work, load: Load) -> Result<Report> {
    let mut clients = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        clients.push(Doors::connect(target).await?);
    }
    let start = Instant::now() + load.warm_up;
    let window = Window { start, end: start + load.time };
    let mut callers = JoinSet::new();
    let first = first_number();
    for (connection, client) in clients.into_iter().enumerate() {
        for stream in 0..load.streams {
            let caller = (connection * load.streams + stream) as u64;
            callers.spawn(call(client.clone(), work.clone(), window, first + (caller << CALLER)));
        }
    }
    let mut all = Record::default();
    while let Some(record) = callers.join_next().await {
        match record {
            Ok(record) => all.merge(&record),
            Err(_) => all.fail("Panicked"),
        }
    }
    let mode = Mode::Closed { connections: load.connections, streams: load.streams };
    Ok(all.report(work.name(), mode, load.time.as_secs_f64()))
}

/// One caller. The request that is in flight at the end is waited for, and counts by its share.
async fn call(mut doors: Doors, work: Work, window: Window, mut number: u64) -> Record {
    let mut record = Record::default();
    loop {
        let begin = Instant::now();
        if begin >= window.end {
            return record;
        }
        let result = doors.call(&work, number).await.map_err(|status| status.code());
        let failed = result.is_err();
        record.note(&window, begin, Instant::now(), result);
        number += 1;
        if failed {
            // a refused caller that asks again at once measures nothing but refusals
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
