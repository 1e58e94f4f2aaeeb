//! What every batch-in, outputs-out architecture shares: checks at the door, conversion, no gradients.

use sensorium_actors::engine::{self, Batch, Engine, Outputs, Pulse};
use sensorium_actors::tensor::DataType;
use tch::{Device, Tensor};

use crate::convert;
use crate::error::Error;
use crate::team::Team;

/// An input or output of a network: a name for messages, a datatype, and a shape in which -1 is any size.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) dtype: DataType,
    pub(crate) shape: Vec<i64>,
}

impl Port {
    pub(crate) fn new(name: &str, dtype: DataType, shape: &[i64]) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec() }
    }
}

/// An architecture with its weights.
pub(crate) trait Network: Send {
    /// The inputs, in order. Axis 0 is the batch.
    fn inputs(&self) -> Vec<Port>;

    /// Datatypes of the outputs, in order.
    fn outputs(&self) -> Vec<DataType>;

    /// Runs the network on tensors that are as [`inputs`](Self::inputs) says and on the network's device.
    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error>;
}

/// A network as the replica drives it.
pub(crate) struct Served<N> {
    network: N,
    inputs: Vec<Port>,
    outputs: Vec<DataType>,
    device: Device,
    bytes: u64,
}

impl<N: Network> Served<N> {
    /// `bytes`: of the network's weights and buffers.
    pub(crate) fn new(network: N, device: Device, bytes: u64) -> Self {
        let (inputs, outputs) = (network.inputs(), network.outputs());
        Self { network, inputs, outputs, device, bytes }
    }

    fn run(&self, batch: &Batch, pulse: &dyn Pulse) -> Result<Outputs, Error> {
        if batch.tensors.len() != self.inputs.len() {
            let names: Vec<&str> = self.inputs.iter().map(|port| port.name.as_str()).collect();
            return Err(Error::Input(format!("{} tensors given, expected {}", batch.tensors.len(), names.join(", "))));
        }
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (port, tensor) in self.inputs.iter().zip(&batch.tensors) {
            let fits = tensor.shape().len() == port.shape.len()
                && tensor.shape().iter().zip(&port.shape).all(|(&got, &want)| want == -1 || got == want);
            if tensor.dtype() != port.dtype || !fits || tensor.rows() != batch.rows {
                return Err(Error::Input(format!(
                    "{} is {} {:?}, expected {} {:?} with {} rows",
                    port.name,
                    tensor.dtype(),
                    tensor.shape(),
                    port.dtype,
                    port.shape,
                    batch.rows
                )));
            }
            inputs.push(convert::to_torch(tensor, self.device)?);
        }
        let outputs = self.network.forward(&inputs, pulse)?;
        let tensors = outputs
            .iter()
            .zip(&self.outputs)
            .map(|(tensor, &dtype)| convert::from_torch(tensor, dtype))
            .collect::<Result<_, _>>()?;
        Ok(Outputs { tensors })
    }
}

impl<N: Network> Engine for Served<N> {
    fn forward(&mut self, batch: Batch, pulse: &dyn Pulse) -> Result<Outputs, engine::Error> {
        let _team = Team::gather();
        let _guard = tch::no_grad_guard();
        Ok(self.run(&batch, pulse)?)
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes
    }
}
