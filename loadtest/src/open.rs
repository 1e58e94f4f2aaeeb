//! Open loop: requests come at a rate, as they do from the world, whether or not the server keeps up.
//!
//! Latency counts from the moment a request was due. A driver that counts from the moment it got around to sending
//! hides exactly the waits that callers complain of ("coordinated omission", Gil Tene).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::record::{Mode, Record, Report, Window};
use crate::work::{Doors, Outcome, Work, first_number};

/// Arrivals, and their bounds.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// HTTP/2 connections; requests take turns.
    pub connections: usize,
    /// Requests per second, as a Poisson process.
    pub rate: f64,
    /// Not measured.
    pub warm_up: Duration,
    /// Measured.
    pub time: Duration,
    /// Requests at most, warm-up included; 0: as many as the time brings.
    pub count: u64,
    /// Requests that may be unanswered at once; those beyond are not sent, and are counted.
    pub outstanding: usize,
    /// Of the arrivals, so that two runs can be alike.
    pub seed: u64,
}

/// Runs `work` against `target`: a gateway, or several with commas between them.
///
/// # Errors
/// If nobody answers at `target`. Requests that fail are counted in the report.
pub async fn run(target: &str, work: &Work, load: Load) -> Result<Report> {
    let mut clients = Vec::with_capacity(load.connections.max(1));
    for _ in 0..load.connections.max(1) {
        clients.push(Doors::connect(target).await?);
    }
    let permits = Arc::new(Semaphore::new(load.outstanding.min(Semaphore::MAX_PERMITS)));
    let begin = Instant::now();
    let start = begin + load.warm_up;
    let window = Window { start, end: start + load.time };
    let mut all = Record::default();
    let mut calls: JoinSet<(Instant, Result<Outcome, tonic::Code>, Instant)> = JoinSet::new();
    let (first, mut number) = (first_number(), 0);
    let mut last = begin;
    let mut arrivals = arrivals(Moments::new(begin, load.rate, load.seed), load.count, window.end);
    while let Some(due) = arrivals.recv().await {
        last = due;
        // answers are taken while there is time, so that finished calls do not pile up
        while let Some(done) = calls.try_join_next() {
            settle(&mut all, &window, done);
        }
        match permits.clone().try_acquire_owned() {
            Err(_) if due >= window.start => all.fail("NotSent"),
            Err(_) => {}
            Ok(permit) => {
                let which = usize::try_from(number).unwrap_or(0) % clients.len();
                let (mut doors, work) = (clients[which].clone(), work.clone());
                calls.spawn(async move {
                    let result = doors.call(&work, first + number).await.map_err(|status| status.code());
                    drop(permit);
                    (due, result, Instant::now())
                });
            }
        }
        number += 1;
    }
    while let Some(done) = calls.join_next().await {
        settle(&mut all, &window, done);
    }
    let end = if load.count > 0 && number >= load.count { last } else { window.end };
    let seconds = end.saturating_duration_since(window.start).as_secs_f64().max(f64::EPSILON);
    Ok(all.report(work.name(), Mode::Open { rate: load.rate }, seconds))
}

/// The same on one thread of its own. Up to some ten thousand requests per second that is enough, and takes less of the
/// cores than threads that wake each other: what is measured beside them has more of what is left.
///
/// # Errors
/// As [`run`], or if there is no such thread.
pub async fn run_quietly(target: &str, work: &Work, load: Load) -> Result<Report> {
    let (target, work) = (target.to_owned(), work.clone());
    let ran = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(Error::io("cannot start a runtime"))?.block_on(run(&target, &work, load))
    });
    ran.await.map_err(|error| Error::Child(format!("the generator has panicked: {error}")))?
}

type Done = Result<(Instant, Result<Outcome, tonic::Code>, Instant), tokio::task::JoinError>;

fn settle(all: &mut Record, window: &Window, done: Done) {
    match done {
        Ok((due, result, end)) => all.note(window, due, end, result),
        Err(_) => all.fail("Panicked"),
    }
}

/// Tells of each moment when it has come. From a thread of its own, whose sleep is exact to some tens of microseconds:
/// the runtime's timers are to a millisecond, and would make bursts of what comes apart.
#[expect(clippy::disallowed_methods, reason = "on a thread of its own")]
fn arrivals(mut moments: Moments, count: u64, end: Instant) -> UnboundedReceiver<Instant> {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || {
        for number in 0.. {
            let due = moments.next();
            if due >= end || (count > 0 && number >= count) {
                return;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if tell.send(due).is_err() {
                return; // the run is over
            }
        }
    });
    told
}

/// A gap that outlasts every run, for rates next to nothing.
const NEVER: Duration = Duration::from_secs(86_400);

/// The moments of a Poisson process.
struct Moments {
    at: Instant,
    rate: f64,
    random: StdRng,
}

impl Moments {
    fn new(start: Instant, rate: f64, seed: u64) -> Self {
        Self { at: start, rate, random: StdRng::seed_from_u64(seed) }
    }

    fn next(&mut self) -> Instant {
        // 1 - u lies in (0, 1], where the logarithm is finite
        let apart = -(1.0 - self.random.random::<f64>()).ln() / self.rate;
        self.at += Duration::try_from_secs_f64(apart).unwrap_or(NEVER).min(NEVER);
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_keep_their_rate_and_are_not_even() {
        let start = Instant::now();
        let mut moments = Moments::new(start, 1000.0, 7);
        let times: Vec<Instant> = (0..10_000).map(|_| moments.next()).collect();
        let seconds = times[9999].duration_since(start).as_secs_f64();
        assert!((seconds - 10.0).abs() < 0.5, "{seconds}");
        let gaps = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64());
        // the deviation of exponential gaps is their mean
        let deviation = (gaps.map(|gap| (gap - 0.001).powi(2)).sum::<f64>() / 9999.0).sqrt();
        assert!((deviation - 0.001).abs() < 0.0001, "{deviation}");
    }
}
