//! A multilayer perceptron over a vector, such as a sentence embedding.
//!
//! | engine tensor | datatype, shape |
//! | --- | --- |
//! | in `features` | FP32 `[n, sizes.first]` |
//! | out `probability` | FP32 `[n, sizes.last]` |

use std::path::Path;

use sensorium_actors::engine::Pulse;
use sensorium_actors::tensor::DataType;
use serde::Deserialize;
use tch::Tensor;

use crate::error::Error;
use crate::layers::{Activation, Linear};
use crate::network::{Network, Port};
use crate::weights::{Weights, read_json};

#[derive(Deserialize)]
struct Config {
    /// Widths: the input's, then each layer's output.
    sizes: Vec<i64>,
    hidden_activation: String,
    output_activation: String,
}

/// `layers.{i}.weight` `[out, in]` and `layers.{i}.bias`, an activation after each.
pub(crate) struct Mlp {
    input: i64,
    layers: Vec<(Linear, Activation)>,
}

impl Mlp {
    pub(crate) fn load(directory: &Path, weights: &Weights) -> Result<Self, Error> {
        let config: Config = read_json(&directory.join("config.json"))?;
        let hidden = Activation::named(&config.hidden_activation)?;
        let output = Activation::named(&config.output_activation)?;
        let (Some(&input), Some(count)) = (config.sizes.first(), config.sizes.len().checked_sub(1).filter(|&n| n > 0))
        else {
            return Err(Error::Load(format!("config.json: sizes {:?}, expected at least two", config.sizes)));
        };
        let layers = (0..count)
            .map(|index| {
                let linear =
                    Linear::load(weights, &format!("layers.{index}"), config.sizes[index], config.sizes[index + 1])?;
                Ok((linear, if index + 1 == count { output } else { hidden }))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { input, layers })
    }
}

impl Network for Mlp {
    fn inputs(&self) -> Vec<Port> {
        vec![Port::new("features", DataType::Fp32, &[-1, self.input])]
    }

    fn outputs(&self) -> Vec<DataType> {
        vec![DataType::Fp32]
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        pulse.beat()?;
        let mut x = inputs[0].shallow_clone();
        if let Some((first, _)) = self.layers.first() {
            x = x.f_to_kind(first.weight.kind())?;
        }
        for (linear, activation) in &self.layers {
            x = activation.apply(linear.forward(&x)?)?;
        }
        Ok(vec![x])
    }
}
