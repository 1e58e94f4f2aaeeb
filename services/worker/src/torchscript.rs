//! A user's own TorchScript: `model.pt` in the version's folder, its tensors declared in `model.toml`.

use std::path::Path;

use sensorium_actors::engine::Pulse;
use sensorium_actors::manifest::{Manifest, TensorSpec};
use sensorium_actors::tensor::DataType;
use tch::{CModule, Device, IValue, Tensor};

use crate::convert;
use crate::error::Error;
use crate::network::{Network, Port};
use crate::weights::bytes;

/// The module and what `model.toml` says about it. Inputs are the arguments of `forward`, in order; it returns a
/// tensor, or a tuple or list of tensors, the outputs in order.
pub(crate) struct TorchScript {
    module: CModule,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

impl TorchScript {
    pub(crate) fn load(manifest: &Manifest, directory: &Path, device: Device) -> Result<Self, Error> {
        let path = directory.join("model.pt");
        if !path.is_file() {
            return Err(Error::Load(format!(
                "{} is missing; a torchscript model keeps its module there",
                path.display()
            )));
        }
        for (key, spec) in
            manifest.inputs.iter().map(|s| ("inputs", s)).chain(manifest.outputs.iter().map(|s| ("outputs", s)))
        {
            if !convert::exists(spec.datatype) {
                return Err(Error::Load(format!(
                    "{key}: '{}' is {}, and libtorch has no tensors of it; expected any other datatype",
                    spec.name, spec.datatype
                )));
            }
            if spec.optional {
                return Err(Error::Load(format!("{key}: '{}' is optional; forward takes all its tensors", spec.name)));
            }
        }
        let mut module = CModule::load_on_device(&path, device)
            .map_err(|error| Error::Load(format!("{}: {}", path.display(), Error::from(error))))?;
        module.f_set_eval()?;
        Ok(Self { module, inputs: manifest.inputs.clone(), outputs: manifest.outputs.clone() })
    }

    /// Bytes of the module's parameters.
    pub(crate) fn bytes(&self) -> Result<u64, Error> {
        Ok(self.module.named_parameters()?.iter().map(|(_, tensor)| bytes(tensor)).sum())
    }
}

impl Network for TorchScript {
    fn inputs(&self) -> Vec<Port> {
        self.inputs.iter().map(|spec| Port::new(&spec.name, spec.datatype, &spec.shape)).collect()
    }

    fn outputs(&self) -> Vec<DataType> {
        self.outputs.iter().map(|spec| spec.datatype).collect()
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        pulse.beat()?;
        let arguments: Vec<IValue> = inputs.iter().map(|tensor| IValue::Tensor(tensor.shallow_clone())).collect();
        let tensors = flatten(self.module.forward_is(&arguments)?)?;
        if tensors.len() != self.outputs.len() {
            return Err(Error::Output(format!(
                "forward returned {} tensors, but model.toml declares {} outputs",
                tensors.len(),
                self.outputs.len()
            )));
        }
        for (spec, tensor) in self.outputs.iter().zip(&tensors) {
            let shape = tensor.size();
            let fits = shape.len() == spec.shape.len()
                && shape.iter().zip(&spec.shape).all(|(&got, &want)| want == -1 || got == want);
            if !fits {
                return Err(Error::Output(format!(
                    "forward returned '{}' with shape {shape:?}, but model.toml declares {:?}",
                    spec.name, spec.shape
                )));
            }
            if let Ok(kind) = tensor.f_kind()
                && !convert::travels(kind)
            {
                return Err(Error::Load(format!(
                    "forward returned '{}' as {kind:?}, which {} cannot hold",
                    spec.name, spec.datatype
                )));
            }
        }
        Ok(tensors)
    }
}

fn flatten(value: IValue) -> Result<Vec<Tensor>, Error> {
    match value {
        IValue::Tensor(tensor) => Ok(vec![tensor]),
        IValue::TensorList(tensors) => Ok(tensors),
        IValue::Tuple(values) | IValue::GenericList(values) => {
            let mut tensors = Vec::with_capacity(values.len());
            for value in values {
                tensors.extend(flatten(value)?);
            }
            Ok(tensors)
        }
        _ => Err(Error::Output("forward returned something other than a tensor, or a tuple or list of tensors".into())),
    }
}
