//! The rows that need a server.

use bytes::Bytes;

use super::Options;
use super::baseline::{self, Script};
use super::row::{Goal, Round, Row};
use crate::closed::{self, Load};
use crate::echo::Echo;
use crate::error::{Error, Result};
use crate::record::Report;
use crate::work::Work;

/// Measures them, one after the other.
pub(super) async fn run(options: &Options, target: &str, keep: &mut impl FnMut(Row)) {
    for row in identity(options, target).await {
        keep(row);
    }
    keep(minilm(options, target).await);
    keep(minilm_mixed(options, target).await);
    keep(whisper(options, target).await);
    for (streams, goal) in [(1, 0.5), (8, 1.5)] {
        keep(generation(options, target, streams, goal).await);
    }
}

/// Baseline, ours, baseline, ours: a machine that slows down half-way slows both.
async fn interleave(
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

fn finish(row: Row, rounds: Result<Vec<Round>>) -> Row {
    match rounds {
        Ok(rounds) => row.rounds(rounds),
        Err(error) => row.note(format!("not measured: {error}")),
    }
}

/// One closed loop in which every request must succeed: failures are fast, and would count as speed.
async fn load(options: &Options, target: &str, work: &Work, connections: usize, streams: usize) -> Result<Report> {
    let load = Load { connections, streams, warm_up: options.warm_up, time: options.time };
    let report = closed::run(target, work, load).await?;
    if !report.errors.is_empty() || report.finished == 0 {
        let (finished, errors) = (report.finished, report.errors);
        return Err(Error::Child(format!("{}: {finished} requests succeeded, failed: {errors:?}", report.work)));
    }
    Ok(report)
}

async fn identity(options: &Options, target: &str) -> [Row; 2] {
    let work = Work::Identity;
    let many = Row::against("identity, 4 connections × 16 streams", "bare tonic echo", "req/s", Goal::AtLeast(0.5));
    let one = Row::against("identity, one stream, p50", "bare tonic echo", "ms", Goal::AtMost(2.5));
    let server = match Echo::start().await {
        Ok(echo) => echo,
        Err(error) => return [many, one].map(|row| row.note(format!("not measured: {error}"))),
    };
    let echo = server.target();
    let rate = async |target: &str| -> Result<f64> { Ok(load(options, target, &work, 4, 16).await?.requests_per_s) };
    let latency = async |target: &str| -> Result<f64> {
        let report = load(options, target, &work, 1, 1).await?;
        report.latency_ms.map(|latency| latency.p50).ok_or_else(|| Error::Child("no latencies".to_owned()))
    };
    let rates = interleave(options, async || rate(&echo).await, async || rate(target).await).await;
    let latencies = interleave(options, async || latency(&echo).await, async || latency(target).await).await;
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

async fn minilm(options: &Options, target: &str) -> Row {
    let row = Row::against("minilm, 64 callers, 23 tokens", "plain loop, batch 64", "texts/s", Goal::AtLeast(0.9));
    let arguments = ["--model", "minilm", "--batch", "64", "--tokens", "23"];
    let ours = async || -> Result<f64> { Ok(load(options, target, &Work::Minilm(23), 4, 16).await?.requests_per_s) };
    finish(row, interleave(options, async || forward_loop(options, &arguments).await, ours).await)
}

/// More callers than a batch has rows: otherwise there would be nothing to sort, and the figure would be that of
/// the callers.
async fn minilm_mixed(options: &Options, target: &str) -> Row {
    let goal = Goal::AtLeast(0.85);
    let row = Row::against("minilm, 256 callers, 8–256 tokens", "plain loop, ideal batches", "texts/s", goal);
    let arguments = ["--model", "minilm", "--lengths", "mixed"];
    let ours = async || -> Result<f64> { Ok(load(options, target, &Work::MinilmMixed, 4, 64).await?.requests_per_s) };
    finish(row, interleave(options, async || forward_loop(options, &arguments).await, ours).await)
}

async fn whisper(options: &Options, target: &str) -> Row {
    let row = Row::against("whisper-base, one clip", "faster-whisper, float32", "s", Goal::AtMost(1.0));
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
    let ours = async || -> Result<f64> {
        let report = load(options, target, &work, 1, 1).await?;
        let latency = report.latency_ms.map(|latency| latency.p50 / 1e3);
        latency.ok_or_else(|| Error::Child("no latencies".to_owned()))
    };
    let baseline = async || script.figure("seconds").await;
    finish(
        row.note("median of requests; decoding and speech detection included".to_owned()),
        interleave(options, baseline, ours).await,
    )
}

async fn generation(options: &Options, target: &str, streams: usize, goal: f64) -> Row {
    let together = streams > 1;
    let work = if together { "smollm2-135m, 8 streams together" } else { "smollm2-135m, one stream" };
    let row = Row::against(work, "llama.cpp Q4_1, one stream", "tokens/s", Goal::AtLeast(goal));
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
