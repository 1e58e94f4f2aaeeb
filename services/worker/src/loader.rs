//! From a manifest and a folder to an engine.

use std::path::Path;
use std::sync::Once;

use sensorium_actors::engine::{self, Model};
use sensorium_actors::manifest::{EngineKind, Manifest};
use tch::Device;

use crate::arch::bert::Bert;
use crate::arch::efficientnet_lite::EfficientNetLite;
use crate::arch::llama::Llama;
use crate::arch::mlp::Mlp;
use crate::arch::open_nsfw::OpenNsfw;
use crate::arch::silero_vad::SileroVad;
use crate::arch::whisper::Whisper;
use crate::builtin::{Chaos, Identity};
use crate::device;
use crate::error::Error;
use crate::network::{Network, Served};
use crate::team::Team;
use crate::torchscript::TorchScript;
use crate::weights::Weights;

/// How libtorch uses the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads that one operation of one device thread spreads over. 0: as many as the machine has cores.
    pub intra_op_threads: usize,
}

/// Makes engines out of folders of the model repository: libtorch architectures, TorchScript and built-ins.
#[derive(Debug)]
pub struct TchLoader {
    threads: usize,
}

impl TchLoader {
    /// Sets the process's inter-op threads to one, once: all parallelism is within an operation.
    pub fn new(options: Options) -> Self {
        static INTER_OP: Once = Once::new();
        INTER_OP.call_once(|| tch::set_num_interop_threads(1));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.intra_op_threads == 0 { cores } else { options.intra_op_threads };
        Self { threads }
    }

    fn tch(&self, manifest: &Manifest, directory: &Path, device: Device) -> Result<Model, Error> {
        let kind = device::float_kind(manifest.dtype, device);
        let weights = Weights::open(directory, kind, device)?;
        let model = match manifest.architecture.as_str() {
            "bert" => served(Bert::load(directory, &weights)?, &weights),
            "llama" => Model::Decode(Box::new(Llama::load(directory, &weights, &manifest.generation)?)),
            "efficientnet-lite" => served(EfficientNetLite::load(directory, &weights)?, &weights),
            "whisper" => {
                let whisper = Whisper::load(directory, &weights, &manifest.generation)?;
                let bytes = weights.bytes() + whisper.int8_bytes();
                Model::Forward(Box::new(Served::new(whisper, device, bytes)))
            }
            "silero-vad" => served(SileroVad::load(&weights)?, &weights),
            "open-nsfw" => served(OpenNsfw::load(directory, &weights)?, &weights),
            "mlp" => served(Mlp::load(directory, &weights)?, &weights),
            other => {
                return Err(Error::Load(format!(
                    "architecture = \"{other}\", expected one of bert, llama, efficientnet-lite, whisper, silero-vad, open-nsfw, mlp"
                )));
            }
        };
        let unused = weights.unused();
        tracing::debug!(model = manifest.name, ?device, ?kind, bytes = weights.bytes(), ?unused, "weights loaded");
        Ok(model)
    }
}

fn served(network: impl Network + 'static, weights: &Weights) -> Model {
    Model::Forward(Box::new(Served::new(network, weights.device(), weights.bytes())))
}

impl engine::Loader for TchLoader {
    fn load(&self, manifest: &Manifest, directory: &Path) -> Result<Model, engine::Error> {
        if manifest.engine == EngineKind::Builtin {
            return match manifest.architecture.as_str() {
                "identity" => Ok(Model::Forward(Box::new(Identity))),
                "chaos" => Ok(Model::Forward(Box::new(Chaos { occupies_device: false }))),
                "chaos-device" => Ok(Model::Forward(Box::new(Chaos { occupies_device: true }))),
                other => Err(engine::Error::Load(format!(
                    "architecture = \"{other}\", expected identity, chaos or chaos-device"
                ))),
            };
        }
        // each device thread has an OpenMP team of its own
        let _team = Team::hire(self.threads);
        let _guard = tch::no_grad_guard();
        let load = || {
            let device = device::choose(&manifest.replicas.device)?;
            match manifest.engine {
                EngineKind::Torchscript => {
                    let module = TorchScript::load(manifest, directory, device)?;
                    let bytes = module.bytes()?;
                    Ok(Model::Forward(Box::new(Served::new(module, device, bytes))))
                }
                EngineKind::Tch | EngineKind::Builtin => self.tch(manifest, directory, device),
            }
        };
        load().map_err(|error| match error {
            // whatever libtorch objects to while loading is a matter of the files
            Error::Torch(_) => engine::Error::Load(error.to_string()),
            error => error.into(),
        })
    }
}
