//! What waits in a queue: work, who waits for it, and until when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::replica::sampler::Sampling;
use crate::tensor::Tensor;

/// A row's outputs and how it fared.
#[derive(Debug)]
pub struct RowReply {
    /// One tensor per engine output, with the entry's rows.
    pub tensors: Vec<Tensor>,
    /// How long it waited.
    pub queue: Duration,
    /// How long its batch took on the device.
    pub compute: Duration,
}

/// A piece of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Text that has become certain; may be empty in the last piece.
    pub text: String,
    /// Set in the last piece.
    pub finish: Option<Finish>,
    /// Tokens generated so far.
    pub tokens: usize,
    /// Those of them that no piece before has told.
    pub fresh: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended, or a stop string came.
    Stop,
    /// The tokens asked for, or the context, are used up.
    Length,
}

impl Finish {
    /// Lower-case, as in the `finish_reason` parameter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A sequence to continue.
#[derive(Debug)]
pub struct Generation {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens that were generated before a replica was lost; the continuation goes on behind them.
    pub generated: Vec<u32>,
    /// Bytes of text that were sent before a replica was lost.
    pub sent: usize,
    /// How many of `generated` were told with them.
    pub told: usize,
    /// How to choose the next token, and when to stop.
    pub sampling: Sampling,
    /// Who reads. Bounded by construction: never more than `sampling.max_tokens` + 1 pieces.
    pub sink: mpsc::UnboundedSender<Result<Piece>>,
}

/// Whether the execution of a request has begun.
#[derive(Clone, Debug, Default)]
pub struct Begun(Arc<AtomicBool>);

impl Begun {
    /// It has.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Work {
    /// Rows for one call.
    Forward {
        /// One tensor per engine input.
        tensors: Vec<Tensor>,
        /// Who waits.
        reply: oneshot::Sender<Result<RowReply>>,
        /// Set when it is begun, where a request must not be executed twice.
        begun: Option<Begun>,
    },
    /// A sequence, token by token.
    Generate(Generation),
}

/// Work in the queue or on the device.
#[derive(Debug)]
pub struct Entry {
    /// What is to be done.
    pub work: Work,
    /// How often a replica failed with it.
    pub attempts: u32,
    /// The request's trace.
    pub span: Option<tracing::Span>,
}

impl Entry {
    /// Whether nobody waits any more.
    pub fn abandoned(&self) -> bool {
        match &self.work {
            Work::Forward { reply, .. } => reply.is_closed(),
            Work::Generate(generation) => generation.sink.is_closed(),
        }
    }

    /// Whether it has been begun, and its model must not do anything twice.
    pub fn must_not_be_repeated(&self, idempotent: bool) -> bool {
        match &self.work {
            Work::Forward { begun, .. } => begun.as_ref().is_some_and(Begun::is_set),
            Work::Generate(_) => !idempotent,
        }
    }

    /// Answers with an error.
    pub fn refuse(self, error: Error) {
        // nobody listening is fine: that is what `abandoned` means
        match self.work {
            Work::Forward { reply, .. } => drop(reply.send(Err(error))),
            Work::Generate(generation) => drop(generation.sink.send(Err(error))),
        }
    }
}
