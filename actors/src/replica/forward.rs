//! The device thread of a model that answers in one call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use ractor::ActorRef;

use super::actor::Thread;
use super::device::Heart;
use super::finite;
use super::warm::WarmUp;
use crate::batching::batcher::{Batch, Message};
use crate::batching::collate;
use crate::batching::entry::{Entry, RowReply, Work};
use crate::engine::{self, Engine};
use crate::error::Error;
use crate::manifest::Manifest;
use crate::stats::BatchTiming;
use crate::tensor::Tensor;

/// A device that gave NaN or infinity is examined at most this often: what a caller sends must not keep it from others.
const EXAMINED: Duration = Duration::from_secs(10);

/// Executes batches until the replica is stopped (`Ok`) or the engine fails.
pub(super) fn run(
    thread: &Thread,
    engine: &mut dyn Engine,
    warm_up: &WarmUp,
    closed: &Receiver<()>,
) -> Result<(), String> {
    let mut examined: Option<Instant> = None;
    thread.offer(1, false);
    while let Some(batch) = thread.next_batch(closed) {
        if thread.hands.with(|held| *held = batch).is_none() {
            return Ok(());
        }
        let finite = execute(thread, engine)?;
        if !finite && examined.is_none_or(|at| at.elapsed() > EXAMINED) {
            examined = Some(Instant::now());
            // what it answered soundly once tells whether the request was to blame, or the device's memory
            let sound = warm_up.forward(thread, engine);
            thread.hands.rest();
            sound.map_err(|error| format!("the device is not sound any more: {error}"))?;
        }
        thread.offer(1, false);
    }
    Ok(())
}

/// Whether all that the engine gave was finite.
fn execute(thread: &Thread, engine: &mut dyn Engine) -> Result<bool, String> {
    let started = Instant::now();
    let Some(stacked) = thread.hands.with(stack) else { return Ok(true) };
    let span = thread.hands.with(|held| batch_span(thread, held)).unwrap_or_else(tracing::Span::none);
    let _entered = span.enter();
    let input = started.elapsed();

    let outcome = stacked.and_then(|batch| {
        thread.hands.with(|held| held.iter().for_each(|(_, entry)| begin(entry)));
        let turn = engine.occupies_device().then(|| thread.cores.take());
        let heart = Heart::new(&thread.hands, turn.as_ref(), true);
        catch_unwind(AssertUnwindSafe(|| engine.forward(batch, &heart)))
            .unwrap_or_else(|panic| Err(engine::Error::Device(format!("panicked: {}", panic_text(&*panic)))))
    });
    thread.hands.rest();
    let infer = started.elapsed() - input;
    let Some(held) = thread.hands.empty() else { return Ok(true) };
    let manifest = &thread.manifest;

    match outcome {
        Ok(outputs) => {
            let rows: Vec<usize> = held.iter().map(|(meta, _)| meta.rows).collect();
            let split = collate::split(&outputs.tensors, &rows);
            let timing = BatchTiming { input, infer, output: started.elapsed() - input - infer };
            account(thread, &held, timing);
            match split {
                Ok(split) => Ok(answer(thread, held, split, started, infer)),
                Err(error) => {
                    let error = format!("the engine of {} gave a wrong shape: {error}", manifest.name);
                    held.into_iter().for_each(|(_, entry)| entry.refuse(Error::Internal(error.clone())));
                    Ok(true)
                }
            }
        }
        Err(engine::Error::Interrupted) => Ok(true),
        // nothing is wrong with the engine; in company, find out who it was
        Err(engine::Error::Input(message)) => {
            isolate(manifest, &thread.batcher, held, &Error::invalid("inputs", message));
            Ok(true)
        }
        Err(engine::Error::Output(message)) => {
            isolate(manifest, &thread.batcher, held, &Error::Internal(format!("{} failed: {message}", manifest.name)));
            Ok(true)
        }
        Err(error) => {
            let told = Error::Internal(format!("replica of {} failed: {error}", manifest.name));
            isolate(manifest, &thread.batcher, held, &told);
            Err(error.to_string())
        }
    }
}

/// From now on the entry counts as executed.
fn begin(entry: &Entry) {
    if let Work::Forward { begun: Some(begun), .. } = &entry.work {
        begun.set();
    }
}

fn stack(held: &mut Batch) -> Result<engine::Batch, engine::Error> {
    let inputs: Vec<&Vec<Tensor>> = held
        .iter()
        .filter_map(|(_, entry)| match &entry.work {
            Work::Forward { tensors, .. } => Some(tensors),
            Work::Generate(_) => None,
        })
        .collect();
    let rows = held.iter().map(|(meta, _)| meta.rows).sum();
    let Some(first) = inputs.first() else {
        return Err(engine::Error::Input("the model does not generate".to_owned()));
    };
    let tensors = (0..first.len())
        .map(|n| {
            let column: Vec<&Tensor> = inputs.iter().filter_map(|tensors| tensors.get(n)).collect();
            collate::stack(&column).map_err(|error| engine::Error::Input(error.to_string()))
        })
        .collect::<Result<_, _>>()?;
    Ok(engine::Batch { tensors, rows })
}

/// The batch's span: a child of its first request's, following from the others'.
fn batch_span(thread: &Thread, held: &mut Batch) -> tracing::Span {
    let spans: Vec<_> = held.iter().filter_map(|(_, entry)| entry.span.clone()).collect();
    let Some(first) = spans.first() else { return tracing::Span::none() };
    let span = tracing::info_span!(parent: first, "batch", model = thread.manifest.name, rows = held.len());
    for other in &spans[1..] {
        span.follows_from(other);
    }
    span
}

fn account(thread: &Thread, held: &Batch, timing: BatchTiming) {
    let rows: usize = held.iter().map(|(meta, _)| meta.rows).sum();
    let useful: usize = held.iter().map(|(meta, _)| meta.rows * meta.length.max(1)).sum();
    let longest = held.iter().map(|(meta, _)| meta.length.max(1)).max().unwrap_or(1);
    thread.metrics.batch(rows, useful, rows * longest, timing);
}

/// Whether all that was to be answered was finite.
fn answer(thread: &Thread, held: Batch, split: Vec<Vec<Tensor>>, started: Instant, compute: Duration) -> bool {
    let mut all = true;
    for ((meta, entry), tensors) in held.into_iter().zip(split) {
        let queue = started.saturating_duration_since(meta.enqueued.into_std());
        thread.metrics.stats.queue.add_many(meta.rows as u64, queue);
        thread.metrics.queue.record(queue);
        if finite::check(&thread.manifest, &tensors).is_err() {
            all = false;
            thread.metrics.non_finite.increment(1);
            entry.refuse(finite::refusal(&thread.manifest));
        } else if let Work::Forward { reply, .. } = entry.work {
            // a receiver that has gone away is a request that was cancelled meanwhile
            let _ = reply.send(Ok(RowReply { tensors, queue, compute }));
        }
    }
    all
}

/// Refuses an entry that failed alone. Those that failed in company are given back, to go alone: only the one that is
/// to blame will fail again. What must not be executed twice is refused.
pub(super) fn isolate(manifest: &Manifest, batcher: &ActorRef<Message>, held: Batch, error: &Error) {
    let company = held.len() > 1;
    let mut again = Vec::new();
    for (mut meta, entry) in held {
        if !company || entry.attempts > 0 {
            entry.refuse(error.clone());
        } else if entry.must_not_be_repeated(manifest.routing.idempotent) {
            entry.refuse(Error::begun(&manifest.name, &format!("its batch failed ({error})")));
        } else {
            meta.alone = true;
            again.push((meta, Entry { attempts: 1, ..entry }));
        }
    }
    if !again.is_empty() {
        // if the batcher is gone too, its callers learn it from their closed channels
        let _ = batcher.cast(Message::Return(again));
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("")
}
