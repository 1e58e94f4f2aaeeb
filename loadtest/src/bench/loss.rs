//! What callers feel when one of two workers is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Options;
use super::cluster::{gateway, leave};
use super::row::{Goal, Row};
use crate::cluster::{Cluster, Outside, sees};
use crate::error::{Error, Result};
use crate::work::{Client, Work};

pub(super) const KILLED: &str = "kill -9 of one of two workers";

/// Callers, one request in flight each.
const CALLERS: u64 = 16;
/// Between a caller's requests, so that the machine is not the bottleneck.
const PAUSE: Duration = Duration::from_millis(2);
/// How long callers go on before and after.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(5);

/// The row before it is measured.
pub(super) fn row() -> Row {
    Row::alone(KILLED, "s", Goal::AtMost(1.0))
}

/// A request that was answered, or not.
struct Seen {
    begin: Instant,
    end: Instant,
    failed: Option<String>,
}

/// Kills a worker under load, as many times as there are rounds; the figure is the slowest answer to any request that
/// was under way at the kill or came after it, of all rounds: nobody waits longer for a success.
pub(super) async fn one_of_two(options: &Options, outside: &Outside, row: Row) -> Result<Row> {
    let cluster = Cluster::new(&options.server, outside, "loss");
    let survivor = cluster.worker("survivor", "identity", None).await?;
    let mut victim = cluster.worker("victim-0", "identity", None).await?;
    let gateway = gateway(&cluster, "gateway", &[("register.lease_seconds", "2")], &[&survivor, &victim]).await?;
    let (mut slowest, mut gap, mut failed) = (Duration::ZERO, Duration::ZERO, Vec::new());
    for round in 0..options.rounds.max(1) {
        if round > 0 {
            victim = cluster.worker(&format!("victim-{round}"), "identity", None).await?;
            sees(&gateway, &[&survivor, &victim]).await?;
        }
        let callers = Callers::start(&gateway.target()).await?;
        tokio::time::sleep(BEFORE).await;
        let killed = Instant::now();
        victim.kill().await?;
        tokio::time::sleep(AFTER).await;
        let seen = callers.stop().await?;
        failed.extend(seen.iter().filter_map(|seen| seen.failed.clone()));
        let after: Vec<&Seen> = seen.iter().filter(|seen| seen.failed.is_none() && seen.end >= killed).collect();
        slowest = after.iter().map(|seen| seen.end - seen.begin).fold(slowest, Duration::max);
        let mut last = killed;
        for seen in after {
            gap = gap.max(seen.end - last);
            last = seen.end;
        }
    }
    leave([gateway, survivor]).await?;
    let note = format!(
        "slowest answer from the kill on, of {} kills; {} ms at most between two answers, {} requests failed",
        options.rounds.max(1),
        gap.as_millis(),
        failed.len()
    );
    let row = row.figure(slowest.as_secs_f64());
    Ok(match failed.first() {
        None => row.note(note),
        Some(first) => row.missed().note(format!("{note}, the first with {first}")),
    })
}

/// Callers that go on until they are told to stop.
struct Callers {
    stop: Arc<AtomicBool>,
    running: JoinSet<Vec<Seen>>,
}

impl Callers {
    async fn start(target: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for caller in 0..CALLERS {
            let (mut client, stop) = (Client::connect(target).await?, stop.clone());
            running.spawn(async move {
                let mut seen = Vec::new();
                while !stop.load(Relaxed) {
                    let begin = Instant::now();
                    let answer = Work::Identity.call(&mut client, caller).await;
                    let failed = answer.err().map(|status| format!("{:?}: {}", status.code(), status.message()));
                    seen.push(Seen { begin, end: Instant::now(), failed });
                    tokio::time::sleep(PAUSE).await;
                }
                seen
            });
        }
        Ok(Self { stop, running })
    }

    /// All that they have seen, in the order of the answers.
    async fn stop(mut self) -> Result<Vec<Seen>> {
        self.stop.store(true, Relaxed);
        let mut all = Vec::new();
        while let Some(seen) = self.running.join_next().await {
            all.extend(seen.map_err(|_| Error::Child("a caller panicked".to_owned()))?);
        }
        all.sort_by_key(|seen| seen.end);
        Ok(all)
    }
}
