//! What a device does for us, and nothing about how: batches in, outputs out, one thread per context.
//!
//! The engine is synchronous on purpose. It is owned by one OS thread (a replica's device thread), so it needs no
//! locks, and a call that hangs or panics takes that thread alone with it.

use std::path::Path;

use crate::manifest::Manifest;
use crate::tensor::Tensor;

/// Why an engine could not do its work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be loaded: a file is missing, or a tensor has another shape than the architecture asks for.
    #[error("cannot load: {0}")]
    Load(String),
    /// The batch is not what the model takes, or its own code refuses it. The caller's fault; the engine is fine.
    #[error("bad input: {0}")]
    Input(String),
    /// The model gave what its manifest does not allow, or NaN or infinity. The version's fault; loading it again would
    /// not help.
    #[error("bad output: {0}")]
    Output(String),
    /// The device failed. The replica is restarted.
    #[error("device failed: {0}")]
    Device(String),
    /// [`Pulse::beat`] asked to stop: nobody waits for the result any more.
    #[error("interrupted")]
    Interrupted,
}

/// Nobody waits for the result any more.
#[derive(Debug)]
pub struct Interrupted;

impl From<Interrupted> for Error {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

/// The thread's line to its replica.
///
/// An engine calls [`beat`](Pulse::beat) between layers or decoding steps, at least every 100 ms of work where it can.
/// A beat tells the watchdog that the device is alive, lets another replica of the same device have its turn, and
/// says whether anybody still waits.
pub trait Pulse {
    /// `Err` means: stop, nobody waits.
    fn beat(&self) -> Result<(), Interrupted>;
}

/// One call's worth of work: the tensors of the engine's inputs, in their declared order, rows along axis 0.
#[derive(Debug)]
pub struct Batch {
    /// One tensor per engine input.
    pub tensors: Vec<Tensor>,
    /// Rows in each of them.
    pub rows: usize,
}

/// What comes back: the tensors of the engine's outputs, in their declared order, rows along axis 0.
#[derive(Debug)]
pub struct Outputs {
    /// One tensor per engine output, each with as many rows as the batch.
    pub tensors: Vec<Tensor>,
}

/// A model that answers a batch in one call.
pub trait Engine: Send {
    /// Runs the batch. After [`Error::Device`] the engine is dropped and loaded anew.
    fn forward(&mut self, batch: Batch, pulse: &dyn Pulse) -> Result<Outputs, Error>;

    /// Bytes of weights and buffers that this engine holds.
    fn memory_bytes(&self) -> u64;

    /// Whether calls occupy the device's cores. A built-in that only moves bytes says no and is never made to wait.
    fn occupies_device(&self) -> bool {
        true
    }
}

/// A sequence being decoded, as the decoder knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Tokens to append to one sequence.
#[derive(Debug)]
pub struct Feed<'a> {
    /// The sequence, from [`Decoder::open`].
    pub sequence: SequenceId,
    /// The tokens: a part of the prompt, or the one token that was sampled last.
    pub tokens: &'a [u32],
    /// Whether the logits after the last of them are wanted. Not so for all but the last part of a long prompt.
    pub logits: bool,
}

/// An autoregressive language model with a KV cache per sequence, driven step by step (continuous batching, as in
/// Orca, Yu et al., OSDI 2022).
pub trait Decoder: Send {
    /// Sequences that can be open at once.
    fn max_sequences(&self) -> usize;

    /// Tokens that a sequence can hold, prompt and continuation together.
    fn context_length(&self) -> usize;

    /// Size of the vocabulary: the length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Opens an empty sequence.
    fn open(&mut self) -> Result<SequenceId, Error>;

    /// Appends each feed's tokens to its sequence. Returns a row of FP32 logits `[vocabulary]` for each feed that
    /// wants them, in order. Feeds name distinct sequences.
    fn advance(&mut self, feeds: &[Feed<'_>], pulse: &dyn Pulse) -> Result<Vec<Vec<f32>>, Error>;

    /// Frees the sequence and its cache.
    fn close(&mut self, sequence: SequenceId);

    /// Bytes of weights and caches that this decoder holds.
    fn memory_bytes(&self) -> u64;
}

/// A loaded model: it answers in one call, or token by token.
pub enum Model {
    /// Batch in, outputs out.
    Forward(Box<dyn Engine>),
    /// Token by token.
    Decode(Box<dyn Decoder>),
}

/// Makes engines. Called on the device thread that will own the result.
pub trait Loader: Send + Sync + 'static {
    /// Loads the version that lies in `directory` as `manifest` describes it.
    fn load(&self, manifest: &Manifest, directory: &Path) -> Result<Model, Error>;
}
