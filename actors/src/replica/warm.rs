//! What a replica computes before its first request, and again when it is in doubt whether its device is sound.

use std::sync::Arc;

use super::actor::Thread;
use super::device::Heart;
use super::finite;
use crate::engine::{self, Decoder, Engine, Feed, Model};
use crate::manifest::EngineKind;
use crate::tensor::Tensor;
use crate::worker::served::Served;

/// Inputs that any sound model of a version has an answer to.
pub(super) struct WarmUp {
    served: Arc<Served>,
    inputs: Vec<Vec<Tensor>>,
}

impl WarmUp {
    /// Those of a version.
    pub(super) fn of(served: &Arc<Served>) -> Self {
        let upstream = served.upstream().ok();
        let inputs = served.assets.warm_up(&served.manifest, upstream.as_ref().map(|upstream| &*upstream.manifest));
        Self { served: served.clone(), inputs }
    }

    /// Runs them.
    ///
    /// # Errors
    /// The engine's; [`engine::Error::Output`] if it gives NaN, infinity, or what the pipeline cannot read.
    pub(super) fn run(&self, thread: &Thread, model: &mut Model) -> Result<(), engine::Error> {
        match model {
            Model::Forward(engine) => self.forward(thread, engine.as_mut()),
            Model::Decode(decoder) => self.decode(thread, decoder.as_mut()),
        }
    }

    /// The same with an engine that answers in one call.
    pub(super) fn forward(&self, thread: &Thread, engine: &mut dyn Engine) -> Result<(), engine::Error> {
        let turn = engine.occupies_device().then(|| thread.cores.take());
        let heart = Heart::new(&thread.hands, turn.as_ref(), false);
        for tensors in &self.inputs {
            let rows = tensors.first().map_or(0, Tensor::rows);
            let outputs = match engine.forward(engine::Batch { tensors: tensors.clone(), rows }, &heart) {
                Ok(outputs) => outputs,
                // a user's own code may refuse zeros
                Err(engine::Error::Input(why)) if self.served.manifest.engine == EngineKind::Torchscript => {
                    tracing::info!(model = self.served.manifest.name, why, "the model refuses a row of zeros");
                    continue;
                }
                Err(error) => return Err(error),
            };
            finite::check(&self.served.manifest, &outputs.tensors)?;
            self.served.assets.check(&outputs.tensors).map_err(engine::Error::Output)?;
        }
        Ok(())
    }

    fn decode(&self, thread: &Thread, decoder: &mut dyn Decoder) -> Result<(), engine::Error> {
        let turn = thread.cores.take();
        let heart = Heart::new(&thread.hands, Some(&turn), false);
        let sequence = decoder.open()?;
        for tokens in [&[1u32, 2, 3, 4][..], &[5]] {
            let logits = decoder.advance(&[Feed { sequence, tokens, logits: true }], &heart)?;
            if !logits.iter().flatten().all(|logit| logit.is_finite()) {
                return Err(engine::Error::Output(finite::NOT_FINITE.to_owned()));
            }
        }
        decoder.close(sequence);
        Ok(())
    }
}
