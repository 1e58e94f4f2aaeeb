//! The rows that need a server.

use bytes::Bytes;

use super::Options;
use super::baseline::{self, Script};
use super::busy::Busy;
use super::cluster::TEXTS;
use super::row::{Goal, Round, Row};
use crate::closed::{self, Load};
use crate::echo::Echo;
use crate::error::{Error, Result};
use crate::record::{Latency, Report};
use crate::work::{Client, Work};

const MANY: &str = "identity, 4 connections × 16 streams";
const ONE: &str = "identity, one stream, p50";
const NEAR_HIT: &str = "minilm, hit in the near-cache";
const MINILM: &str = "minilm, 64 callers, 23 tokens";
const MIXED: &str = "minilm, 256 callers, 8–256 tokens";
const WHISPER: &str = "whisper-base, one clip";
const STREAM: &str = "smollm2-135m, one stream";
const STREAMS: &str = "smollm2-135m, 8 streams together";
const BESIDE: &str = "smollm2-135m, one stream beside two busy neighbours";

const LLAMA: &str = "llama.cpp Q4_1, one stream";

/// Callers that fill a cache.
const FILLING: u64 = 16;

/// What is measured here.
pub(super) const ALL: [&str; 9] = [MANY, ONE, NEAR_HIT, MINILM, MIXED, WHISPER, STREAM, STREAMS, BESIDE];

/// Measures them, one after the other.
pub(super) async fn run(options: &Options, target: &str, keep: &mut impl FnMut(Row)) {
    if options.wants(MANY) || options.wants(ONE) {
        identity(options, target).await.into_iter().filter(|row| options.wants(&row.work)).for_each(&mut *keep);
    }
    if options.wants(NEAR_HIT) {
        keep(near_hit(options, target).await);
    }
    if options.wants(MINILM) {
        keep(minilm(options, target).await);
    }
    if options.wants(MIXED) {
        keep(minilm_mixed(options, target).await);
    }
    if options.wants(WHISPER) {
        keep(whisper(options, target).await);
    }
    for (work, streams, goal) in [(STREAM, 1, 0.5), (STREAMS, 8, 1.5)] {
        if options.wants(work) {
            keep(generation(options, target, work, streams, goal).await);
        }
    }
    if options.wants(BESIDE) {
        keep(beside_busy_neighbours(options, target).await);
    }
}

/// Baseline, ours, baseline, ours: a machine that slows down half-way slows both.
pub(super) async fn interleave(
    options: &Options,
    baseline: impl AsyncFn() -> Result<f64>,
    ours: impl AsyncFn() -> Result<f64>,
) -> Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for _ in 0..options.rounds.max(1) {
        rounds.push(Round { baseline: baseline().await?, ours: ours().await? });
    }
    Ok(rounds)
}

pub(super) fn finish(row: Row, rounds: Result<Vec<Round>>) -> Row {
    match rounds {
        Ok(rounds) => row.rounds(rounds),
        Err(error) => row.note(format!("not measured: {error}")),
    }
}

/// One closed loop in which every request must succeed: failures are fast, and would count as speed.
pub(super) async fn load(
    options: &Options,
    target: &str,
    work: &Work,
    connections: usize,
    streams: usize,
) -> Result<Report> {
    let load = Load { connections, streams, warm_up: options.warm_up, time: options.time };
    let report = closed::run(target, work, load).await?;
    if !report.errors.is_empty() || report.finished == 0 {
        let (finished, errors) = (report.finished, report.errors);
        return Err(Error::Child(format!("{}: {finished} requests succeeded, failed: {errors:?}", report.work)));
    }
    Ok(report)
}

/// Requests per second of such a loop.
pub(super) async fn rate(
    options: &Options,
    target: &str,
    work: &Work,
    connections: usize,
    streams: usize,
) -> Result<f64> {
    Ok(load(options, target, work, connections, streams).await?.requests_per_s)
}

/// Asks for each of `TEXTS` once: a cache that is still filling is not what is measured.
pub(super) async fn fill(target: &str, work: &Work) -> Result<()> {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..FILLING {
        let (mut client, work) = (Client::connect(target).await?, work.clone());
        callers.spawn(async move {
            for number in (caller..TEXTS).step_by(FILLING as usize) {
                work.call(&mut client, number).await?;
            }
            Ok(())
        });
    }
    while let Some(filled) = callers.join_next().await {
        let filled: Result<(), tonic::Status> = filled.map_err(|_| Error::Child("a caller panicked".to_owned()))?;
        filled.map_err(Error::refused("a first request for a text"))?;
    }
    Ok(())
}

/// A latency of a run, in milliseconds.
pub(super) fn latency(report: &Report, of: impl FnOnce(&Latency) -> f64) -> Result<f64> {
    report.latency_ms.as_ref().map(of).ok_or_else(|| Error::Child("no latencies".to_owned()))
}

async fn identity(options: &Options, target: &str) -> [Row; 2] {
    let work = Work::Identity;
    let many = Row::against(MANY, "bare tonic echo", "req/s", Goal::AtLeast(0.5));
    let one = Row::against(ONE, "bare tonic echo", "ms", Goal::AtMost(2.5));
    let server = match Echo::start().await {
        Ok(echo) => echo,
        Err(error) => return [many, one].map(|row| row.note(format!("not measured: {error}"))),
    };
    let echo = server.target();
    let rate = async |target: &str| rate(options, target, &work, 4, 16).await;
    let p50 = async |target: &str| latency(&load(options, target, &work, 1, 1).await?, |latency| latency.p50);
    let rates = interleave(options, async || rate(&echo).await, async || rate(target).await).await;
    let latencies = interleave(options, async || p50(&echo).await, async || p50(target).await).await;
    [finish(many, rates), finish(one, latencies)]
}

/// Texts per second of the plain loop.
async fn forward_loop(options: &Options, arguments: &[&str]) -> Result<f64> {
    let program = options.forward_loop.as_deref();
    let program = program.ok_or_else(|| Error::Child("no --forward-loop was given".to_owned()))?;
    let seconds = options.time.as_secs_f64().to_string();
    let arguments: Vec<String> =
        arguments.iter().chain(&["--seconds", seconds.as_str()]).map(|&text| text.to_owned()).collect();
    baseline::figure(program, &arguments, "texts_per_s").await
}

/// Against a model that does nothing: what is left of a request is the door's work, and that of the look-up.
async fn near_hit(options: &Options, target: &str) -> Row {
    let row = Row::against(NEAR_HIT, "identity in the same process", "req/s", Goal::AtLeast(0.8));
    let again = Work::MinilmAgain(23, TEXTS);
    if let Err(error) = fill(target, &again).await {
        return row.note(format!("not measured: {error}"));
    }
    let baseline = async || rate(options, target, &Work::Identity, 4, 16).await;
    let rounds = interleave(options, baseline, async || rate(options, target, &again, 4, 16).await).await;
    finish(row.note(format!("{TEXTS} texts of 23 tokens again and again")), rounds)
}

async fn minilm(options: &Options, target: &str) -> Row {
    let row = Row::against(MINILM, "plain loop, batch 64", "texts/s", Goal::AtLeast(0.9));
    let arguments = ["--model", "minilm", "--batch", "64", "--tokens", "23"];
    let ours = async || rate(options, target, &Work::Minilm(23), 4, 16).await;
    finish(row, interleave(options, async || forward_loop(options, &arguments).await, ours).await)
}

/// More callers than a batch has rows: otherwise there would be nothing to sort, and the figure would be that of
/// the callers.
async fn minilm_mixed(options: &Options, target: &str) -> Row {
    let goal = Goal::AtLeast(0.85);
    let row = Row::against(MIXED, "plain loop, ideal batches", "texts/s", goal);
    let arguments = ["--model", "minilm", "--lengths", "mixed"];
    let ours = async || rate(options, target, &Work::MinilmMixed, 4, 64).await;
    finish(row, interleave(options, async || forward_loop(options, &arguments).await, ours).await)
}

async fn whisper(options: &Options, target: &str) -> Row {
    let row = Row::against(WHISPER, "faster-whisper, float32", "s", Goal::AtMost(1.0));
    let Some(path) = &options.clip else { return row.note("not measured: no --clip was given".to_owned()) };
    let clip = match std::fs::read(path) {
        Ok(clip) => Bytes::from(clip),
        Err(error) => return row.note(format!("not measured: cannot read {}: {error}", path.display())),
    };
    let script = match Script::new(options, "faster_whisper_clip.py", "whisper-base") {
        Ok(script) => script.with(path),
        Err(why) => return row.note(format!("not measured: {why}")),
    };
    let work = Work::Audio("whisper-base", clip);
    let ours =
        async || -> Result<f64> { latency(&load(options, target, &work, 1, 1).await?, |latency| latency.p50 / 1e3) };
    let baseline = async || script.figure("seconds").await;
    finish(
        row.note("median of requests; decoding and speech detection included".to_owned()),
        interleave(options, baseline, ours).await,
    )
}

async fn generation(options: &Options, target: &str, work: &str, streams: usize, goal: f64) -> Row {
    let together = streams > 1;
    let row = Row::against(work, LLAMA, "tokens/s", Goal::AtLeast(goal));
    let script = match Script::new(options, "llama_tokens.py", "smollm2-135m.gguf") {
        Ok(script) => script,
        Err(why) => return row.note(format!("not measured: {why}")),
    };
    let ours = async || -> Result<f64> {
        let report = load(options, target, &Work::Generate(64), 1, streams).await?;
        let rate = if together { report.tokens_per_s } else { report.decode_tokens_per_s };
        rate.ok_or_else(|| Error::Child("no tokens".to_owned()))
    };
    let note = if together { "our prompts are in the time" } else { "without the prompt, on both sides" };
    finish(row.note(note.to_owned()), interleave(options, async || script.figure("tokens_per_s").await, ours).await)
}

/// One stream of either side, while two processes take what cores they are given.
async fn beside_busy_neighbours(options: &Options, target: &str) -> Row {
    match Busy::start(2) {
        Ok(_busy) => generation(options, target, BESIDE, 1, 1.0).await,
        Err(error) => {
            Row::against(BESIDE, LLAMA, "tokens/s", Goal::AtLeast(1.0)).note(format!("not measured: {error}"))
        }
    }
}
