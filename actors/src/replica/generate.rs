//! The device thread of a decoder: continuous batching. Sequences join and leave between steps; a long prompt is fed
//! in parts, so that the running sequences do not stall (Sarathi-Serve, Agrawal et al., OSDI 2024).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use sensorium_media::text::{Detokenizer, Tokenizer};

use super::actor::Thread;
use super::device::Heart;
use super::finite;
use super::forward::{isolate, panic_text};
use crate::batching::batcher::Batch;
use crate::batching::entry::{Entry, Finish, Generation, Piece, Work};
use crate::batching::queue::Meta;
use crate::engine::{self, Decoder, Feed, SequenceId};
use crate::error::{Error, Result};
use crate::manifest;
use crate::stats::BatchTiming;

/// What a generator needs besides the decoder.
pub struct Generator {
    /// Token ids to text.
    pub tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub end: Vec<u32>,
}

/// One running sequence. Its entry lies in the thread's hands at the same position.
struct Run {
    sequence: SequenceId,
    /// Tokens that the decoder has not seen yet: the rest of the prompt, or the last sampled token.
    pending: Vec<u32>,
    fed: usize,
    /// Where in `pending` tokens begin that were generated before a replica was lost.
    replay_from: usize,
    text: Text,
    joined: Instant,
    started: bool,
    /// A child of the request's span, as long as the sequence runs.
    _span: tracing::Span,
}

impl Run {
    /// Tokens that are fed at once: a part of the prompt, but what was generated before one by one, as it was then. A
    /// product of several rows rounds otherwise than one of a single row, and the continuation would not be the same.
    fn chunk(&self, generation: &manifest::Generation) -> usize {
        match self.replay_from.checked_sub(self.fed) {
            Some(left) if left > 0 => left.min(generation.prefill_chunk.max(1)),
            _ => 1,
        }
    }
}

/// Decodes until the replica is stopped (`Ok`) or the decoder fails.
pub fn run(
    thread: &Thread,
    decoder: &mut dyn Decoder,
    generator: &Arc<Generator>,
    closed: &Receiver<()>,
) -> std::result::Result<(), String> {
    let mut runs: Vec<Run> = Vec::new();
    thread.offer(decoder.max_sequences(), true);
    loop {
        if runs.is_empty() {
            let Some(batch) = thread.next_batch(closed) else { return Ok(()) };
            join(thread, decoder, generator, &mut runs, batch)?;
        }
        if Thread::is_closed(closed) {
            thread.withdraw(); // the running sequences are finished, others go to the successor
        }
        while let Ok(batch) = thread.intake.try_recv() {
            join(thread, decoder, generator, &mut runs, batch)?;
        }
        drop_finished(thread, decoder, &mut runs);
        if runs.is_empty() {
            continue;
        }
        if step(thread, decoder, generator, &mut runs)?.is_none() {
            return Ok(()); // written off
        }
    }
}

fn join(
    thread: &Thread,
    decoder: &mut dyn Decoder,
    generator: &Arc<Generator>,
    runs: &mut Vec<Run>,
    batch: Batch,
) -> std::result::Result<(), String> {
    for (meta, entry) in batch {
        let Work::Generate(generation) = &entry.work else {
            entry.refuse(Error::Internal(format!("{} only generates", thread.manifest.name)));
            thread.offer(1, true);
            continue;
        };
        if let Err(refusal) = fits(decoder, generation, &thread.manifest) {
            entry.refuse(refusal);
            thread.offer(slots(decoder, &meta), true);
            continue;
        }
        let queue = meta.enqueued.elapsed();
        thread.metrics.queue.record(queue);
        thread.metrics.stats.queue.add(queue);
        let sequence = decoder.open().map_err(|error| error.to_string())?;
        let mut text = Text::new(&generator.tokenizer, generation.sent);
        for &token in &generation.generated {
            // what was said before the replica was lost is not said again
            drop(text.push(token, &generation.sampling.stop));
        }
        let pending = generation.prompt.iter().chain(&generation.generated).copied().collect();
        let span = match &entry.span {
            Some(parent) => tracing::info_span!(parent: parent, "sequence", model = thread.manifest.name),
            None => tracing::Span::none(),
        };
        runs.push(Run {
            sequence,
            pending,
            fed: 0,
            replay_from: generation.prompt.len(),
            text,
            joined: Instant::now(),
            started: false,
            _span: span,
        });
        if thread.hands.with(|held| held.push((meta, entry))).is_none() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the decoder can take a sequence in. It is the caller's mistake if not: neither the replica nor its other
/// sequences are to suffer.
fn fits(decoder: &dyn Decoder, generation: &Generation, manifest: &manifest::Manifest) -> Result<()> {
    let refused = |why: String| {
        let field = manifest.inputs.first().map_or_else(|| "inputs".to_owned(), |spec| format!("inputs.{}", spec.name));
        Err(Error::invalid(field, why))
    };
    let (context, vocabulary) = (decoder.context_length(), decoder.vocabulary());
    let tokens = generation.prompt.len() + generation.generated.len();
    if generation.prompt.is_empty() {
        return refused("no tokens, expected at least one".to_owned());
    }
    if tokens > context {
        return refused(format!("{tokens} tokens, the model's context holds {context}"));
    }
    let mut all = generation.prompt.iter().chain(&generation.generated);
    match all.find(|token| usize::try_from(**token).is_ok_and(|token| token >= vocabulary)) {
        Some(token) => refused(format!("token {token}, expected less than {vocabulary}")),
        None => Ok(()),
    }
}

/// Slots that a sequence was given: one that goes alone has all.
fn slots(decoder: &dyn Decoder, meta: &Meta) -> usize {
    if meta.alone { decoder.max_sequences() } else { 1 }
}

/// Lets go of sequences that nobody reads any more, or whose deadline has passed.
fn drop_finished(thread: &Thread, decoder: &mut dyn Decoder, runs: &mut Vec<Run>) {
    let now = tokio::time::Instant::now();
    for at in (0..runs.len()).rev() {
        let over = thread.hands.with(|held| {
            let (meta, entry) = &held[at];
            let late = meta.deadline.is_some_and(|deadline| deadline <= now);
            (late || entry.abandoned()).then_some(late)
        });
        match over {
            Some(Some(late)) => {
                if let Some(entry) = leave(thread, decoder, runs, at)
                    && late
                {
                    entry
                        .refuse(Error::DeadlineExceeded { stage: format!("generating with {}", thread.manifest.name) });
                }
            }
            Some(None) => {}
            None => return,
        }
    }
}

/// Frees the slot at once and offers it again.
fn leave(thread: &Thread, decoder: &mut dyn Decoder, runs: &mut Vec<Run>, at: usize) -> Option<Entry> {
    let run = runs.swap_remove(at);
    decoder.close(run.sequence);
    let (meta, entry) = thread.hands.with(|held| held.swap_remove(at))?;
    thread.offer(slots(decoder, &meta), true);
    Some(entry)
}

/// One step of every running sequence, and one part of one prompt. `None`: the thread was written off.
fn step(
    thread: &Thread,
    decoder: &mut dyn Decoder,
    generator: &Generator,
    runs: &mut Vec<Run>,
) -> std::result::Result<Option<()>, String> {
    let started = Instant::now();
    let mut prefilling = false;
    let mut fed = Vec::with_capacity(runs.len());
    for (at, run) in runs.iter().enumerate() {
        let left = run.pending.len() - run.fed;
        if left > 1 && std::mem::replace(&mut prefilling, true) {
            continue; // one prompt at a time
        }
        let count = left.min(run.chunk(&thread.manifest.generation));
        fed.push((at, count, left == count));
    }
    let feeds: Vec<Feed<'_>> = fed
        .iter()
        .map(|&(at, count, last)| {
            let run = &runs[at];
            Feed { sequence: run.sequence, tokens: &run.pending[run.fed..run.fed + count], logits: last }
        })
        .collect();
    let outcome = {
        let turn = thread.cores.take();
        let heart = Heart::new(&thread.hands, Some(&turn), false);
        catch_unwind(AssertUnwindSafe(|| decoder.advance(&feeds, &heart)))
            .unwrap_or_else(|panic| Err(engine::Error::Device(format!("panicked: {}", panic_text(&*panic)))))
    };
    thread.hands.rest();
    let logits = match outcome {
        Ok(logits) => logits,
        // nothing is wrong with the decoder: whoever it was fails alone
        Err(engine::Error::Input(message)) => {
            return Ok(part(thread, decoder, runs, &Error::invalid("inputs", message)));
        }
        Err(engine::Error::Output(message)) => {
            let told = Error::Internal(format!("{} failed: {message}", thread.manifest.name));
            return Ok(part(thread, decoder, runs, &told));
        }
        Err(error) => {
            if let Some(held) = thread.hands.empty() {
                let told = Error::Internal(format!("replica of {} failed: {error}", thread.manifest.name));
                isolate(&thread.manifest, &thread.batcher, held, &told);
            }
            return Err(error.to_string());
        }
    };
    let infer = started.elapsed();

    let stepped = fed.len();
    let mut rows = logits.iter();
    let mut said = Vec::with_capacity(stepped);
    for (at, count, last) in fed {
        runs[at].fed += count;
        if !last {
            continue;
        }
        let Some(row) = rows.next() else { return Err("the decoder gave too few rows of logits".to_owned()) };
        let run = &mut runs[at];
        let context = decoder.context_length();
        let finite = row.iter().all(|logit| logit.is_finite());
        if !finite {
            thread.metrics.non_finite.increment(1);
        }
        let piece = thread.hands.with(|held| match &mut held[at].1.work {
            Work::Generate(_) if !finite => Err(finite::refusal(&thread.manifest)),
            Work::Generate(generation) => advance(run, generation, generator, row, context),
            Work::Forward { .. } => Err(Error::Internal("rows of a call among sequences".to_owned())),
        });
        let Some(piece) = piece else { return Ok(None) };
        if !std::mem::replace(&mut runs[at].started, true) {
            thread.metrics.first_token.record(runs[at].joined.elapsed());
        }
        thread.metrics.generated_tokens.increment(1);
        said.push((at, piece));
    }
    // counted before it is told: who has an answer finds it in the figures
    let over = |piece: &Result<Piece>| piece.as_ref().map_or(true, |piece| piece.finish.is_some());
    let finished = said.iter().filter(|(_, piece)| over(piece)).count();
    thread.metrics.step(stepped, finished, BatchTiming { infer, ..BatchTiming::default() });
    for (at, piece) in said.into_iter().rev() {
        let over = over(&piece);
        if tell(thread, at, piece).is_none() {
            return Ok(None);
        }
        if over {
            leave(thread, decoder, runs, at);
        }
    }
    Ok(Some(()))
}

/// Ends all sequences, so that each goes on alone. `None`: the thread was written off.
fn part(thread: &Thread, decoder: &mut dyn Decoder, runs: &mut Vec<Run>, error: &Error) -> Option<()> {
    let held = thread.hands.empty()?;
    runs.drain(..).for_each(|run| decoder.close(run.sequence));
    let free = held.iter().map(|(meta, _)| slots(decoder, meta)).sum();
    isolate(&thread.manifest, &thread.batcher, held, error);
    thread.offer(free, true);
    Some(())
}

/// Sends a piece to whoever reads the sequence. `None`: the thread was written off.
fn tell(thread: &Thread, at: usize, piece: Result<Piece>) -> Option<()> {
    if matches!(&piece, Ok(piece) if piece.text.is_empty() && piece.finish.is_none()) {
        return Some(());
    }
    thread.hands.with(|held| {
        if let Work::Generate(generation) = &mut held[at].1.work {
            if let Ok(piece) = &piece {
                generation.sent += piece.text.len();
                generation.told = piece.tokens;
            }
            // a reader that has gone is noticed before the next step
            let _ = generation.sink.send(piece);
        }
    })
}

/// Chooses the next token and what has become certain with it; the last piece says why the sequence is over.
fn advance(
    run: &mut Run,
    generation: &mut Generation,
    generator: &Generator,
    logits: &[f32],
    context: usize,
) -> Result<Piece> {
    let sampling = &generation.sampling;
    let token = sampling.pick(logits, generation.generated.len());
    run.pending = vec![token];
    run.fed = 0;
    run.replay_from = 0;
    let mut finish = None;
    let mut text = String::new();
    if generator.end.contains(&token) {
        finish = Some(Finish::Stop);
    } else {
        generation.generated.push(token);
        let (certain, stopped) = run.text.push(token, &sampling.stop)?;
        text = certain;
        let length = generation.prompt.len() + generation.generated.len();
        if stopped {
            finish = Some(Finish::Stop);
        } else if generation.generated.len() >= sampling.max_tokens || length >= context {
            finish = Some(Finish::Length);
        }
    }
    if finish.is_some() {
        text += &run.text.rest(&sampling.stop)?;
    }
    let fresh = generation.generated[generation.told..].to_vec();
    Ok(Piece { text, finish, tokens: generation.generated.len(), fresh })
}

/// Tokens to text, holding back what may still become a stop string.
struct Text {
    detokenizer: Option<Detokenizer>,
    /// Decoded, not yet said.
    held: String,
    /// Bytes still to be swallowed, since they were said before a restart.
    said: usize,
    stopped: bool,
}

impl Text {
    fn new(tokenizer: &Tokenizer, said: usize) -> Self {
        Self { detokenizer: Some(Detokenizer::new(tokenizer, true)), held: String::new(), said, stopped: false }
    }

    /// What can be said now, and whether a stop string has come.
    fn push(&mut self, token: u32, stop: &[String]) -> Result<(String, bool)> {
        if let Some(detokenizer) = &mut self.detokenizer
            && let Some(text) = detokenizer.push(token).map_err(|error| Error::Internal(error.to_string()))?
        {
            self.held.push_str(&text);
        }
        Ok((self.release(stop, false), self.stopped))
    }

    /// What is left at the end.
    fn rest(&mut self, stop: &[String]) -> Result<String> {
        if let Some(detokenizer) = self.detokenizer.take()
            && let Some(text) = detokenizer.finish().map_err(|error| Error::Internal(error.to_string()))?
            && !self.stopped
        {
            self.held.push_str(&text);
        }
        Ok(self.release(stop, true))
    }

    fn release(&mut self, stop: &[String], all: bool) -> String {
        let stops = || stop.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.stopped = true;
        }
        let keep =
            if all || self.stopped { 0 } else { stops().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0) };
        let mut text: String = self.held.drain(..self.held.len() - keep).collect();
        let again = self.said.min(text.len());
        self.said -= again;
        text.drain(..again);
        text
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&length| stop.is_char_boundary(length) && text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stop_string_is_held_back() {
        assert_eq!(overlap("hello wor", "world"), 3);
        assert_eq!(overlap("hello", "world"), 0);
        assert_eq!(overlap("", "world"), 0);
        assert_eq!(overlap("wéé", "éx"), 2);

        let mut text = Text { detokenizer: None, held: "one END".into(), said: 0, stopped: false };
        assert_eq!(text.release(&["END.".into()], false), "one ");
        text.held.push_str("ING");
        assert_eq!(text.release(&["END.".into()], false), "ENDING");
        text.held.push_str(" END. more");
        assert_eq!(text.release(&["END.".into()], false), " ");
        assert!(text.stopped);
    }

    #[test]
    fn what_was_said_before_is_not_said_again() {
        let mut text = Text { detokenizer: None, held: "abcdef".into(), said: 4, stopped: false };
        assert_eq!(text.release(&[], true), "ef");
    }
}
