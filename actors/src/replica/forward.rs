//! The device thread of a model that answers in one call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::actor::Thread;
use super::device::Heart;
use crate::batching::batcher::{Batch, Message};
use crate::batching::collate;
use crate::batching::entry::{Entry, RowReply, Work};
use crate::engine::{self, Engine};
use crate::error::Error;
use crate::stats::BatchTiming;
use crate::tensor::Tensor;

/// Executes batches until the replica is stopped (`Ok`) or the engine fails.
pub fn run(thread: &Thread, engine: &mut dyn Engine, closed: &Receiver<()>) -> Result<(), String> {
    thread.offer(1, false);
    while let Some(batch) = thread.next_batch(closed) {
        if thread.hands.with(|held| *held = batch).is_none() {
            return Ok(());
        }
        execute(thread, engine)?;
        thread.offer(1, false);
    }
    Ok(())
}

fn execute(thread: &Thread, engine: &mut dyn Engine) -> Result<(), String> {
    let started = Instant::now();
    let Some(stacked) = thread.hands.with(stack) else { return Ok(()) };
    let span = thread.hands.with(|held| batch_span(thread, held)).unwrap_or_else(tracing::Span::none);
    let _entered = span.enter();
    let input = started.elapsed();

    let outcome = stacked.and_then(|batch| {
        let turn = engine.occupies_device().then(|| thread.cores.take());
        let heart = Heart::new(&thread.hands, turn.as_ref(), true);
        catch_unwind(AssertUnwindSafe(|| engine.forward(batch, &heart)))
            .unwrap_or_else(|panic| Err(engine::Error::Device(format!("panicked: {}", panic_text(&*panic)))))
    });
    thread.hands.rest();
    let infer = started.elapsed() - input;
    let Some(held) = thread.hands.empty() else { return Ok(()) };

    match outcome {
        Ok(outputs) => {
            let rows: Vec<usize> = held.iter().map(|(meta, _)| meta.rows).collect();
            let split = collate::split(&outputs.tensors, &rows);
            let timing = BatchTiming { input, infer, output: started.elapsed() - input - infer };
            account(thread, &held, timing);
            match split {
                Ok(split) => answer(thread, held, split, started, infer),
                Err(error) => {
                    let error = format!("the engine of {} gave a wrong shape: {error}", thread.manifest.name);
                    held.into_iter().for_each(|(_, entry)| entry.refuse(Error::Internal(error.clone())));
                }
            }
            Ok(())
        }
        Err(engine::Error::Interrupted) => Ok(()),
        // nothing is wrong with the engine; in company, find out who it was
        Err(engine::Error::Input(message)) => {
            isolate(thread, held, &Error::invalid("inputs", message));
            Ok(())
        }
        Err(error) => {
            isolate(thread, held, &Error::Internal(format!("replica of {} failed: {error}", thread.manifest.name)));
            Err(error.to_string())
        }
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

fn answer(thread: &Thread, held: Batch, split: Vec<Vec<Tensor>>, started: Instant, compute: Duration) {
    for ((meta, entry), tensors) in held.into_iter().zip(split) {
        let queue = started.saturating_duration_since(meta.enqueued.into_std());
        thread.metrics.stats.queue.add_many(meta.rows as u64, queue);
        thread.metrics.queue.record(queue);
        if let Work::Forward { reply, .. } = entry.work {
            // a receiver that has gone away is a request that was cancelled meanwhile
            let _ = reply.send(Ok(RowReply { tensors, queue, compute }));
        }
    }
}

/// Refuses an entry that failed alone. Those that failed in company are given back, to go alone: only the one that is
/// to blame will fail again.
pub(super) fn isolate(thread: &Thread, held: Batch, error: &Error) {
    let company = held.len() > 1;
    let mut again = Vec::new();
    for (mut meta, entry) in held {
        if company && entry.attempts == 0 {
            meta.alone = true;
            again.push((meta, Entry { attempts: 1, ..entry }));
        } else {
            entry.refuse(error.clone());
        }
    }
    if !again.is_empty() {
        // if the batcher is gone too, its callers learn it from their closed channels
        let _ = thread.batcher.cast(Message::Return(again));
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("")
}
