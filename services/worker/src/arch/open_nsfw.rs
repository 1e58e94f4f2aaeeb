//! Yahoo's open_nsfw: a thin ResNet-50 (He et al., 2015, strides as in Caffe: on the first 1x1 of a block), batch
//! normalisation folded into the convolutions.
//!
//! | engine tensor | datatype, shape |
//! | --- | --- |
//! | in `pixels` | FP32 `[n, 3, 224, 224]`, BGR minus the mean |
//! | out `probabilities` | FP32 `[n, 2]`: safe, not safe |

use std::path::Path;

use sensorium_actors::engine::Pulse;
use sensorium_actors::tensor::DataType;
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::error::Error;
use crate::layers::{Conv, Geometry, Linear, laid_out};
use crate::network::{Network, Port};
use crate::weights::{Weights, read_json};

#[derive(Deserialize)]
struct Config {
    image_size: i64,
    /// Blocks of each stage.
    blocks: Vec<i64>,
}

/// Channels of the stem, and of the first stage's bottleneck half of that; a stage doubles them.
const STEM: i64 = 64;
/// A block's output is this many times as wide as its bottleneck.
const EXPANSION: i64 = 4;

struct Block {
    reduce: Conv,
    spatial: Conv,
    restore: Conv,
    shortcut: Option<Conv>,
}

/// The network.
pub(crate) struct OpenNsfw {
    size: i64,
    stem: Conv,
    blocks: Vec<Block>,
    classifier: Linear,
}

impl OpenNsfw {
    pub(crate) fn load(directory: &Path, weights: &Weights) -> Result<Self, Error> {
        let config: Config = read_json(&directory.join("config.json"))?;
        let mut blocks = Vec::new();
        let (mut input, mut narrow) = (STEM, STEM / 2);
        for (stage, &count) in config.blocks.iter().enumerate() {
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("stage{stage}.block{block}");
                blocks.push(Block::load(weights, &name, [input, narrow], stride, block == 0)?);
                input = narrow * EXPANSION;
            }
            narrow *= 2;
        }
        Ok(Self {
            size: config.image_size,
            stem: Conv::load(weights, "conv_1", &[STEM, 3, 7, 7], Geometry::even(2, 3))?,
            blocks,
            classifier: Linear::load(weights, "fc_nsfw", input, 2)?,
        })
    }
}

impl Block {
    fn load(weights: &Weights, name: &str, channels: [i64; 2], stride: i64, first: bool) -> Result<Self, Error> {
        let [input, narrow] = channels;
        let conv =
            |part: &str, shape: &[i64], geometry| Conv::load(weights, &format!("{name}.conv_{part}"), shape, geometry);
        let output = narrow * EXPANSION;
        Ok(Self {
            reduce: conv("branch2a", &[narrow, input, 1, 1], Geometry::even(stride, 0))?,
            spatial: conv("branch2b", &[narrow, narrow, 3, 3], Geometry::even(1, 1))?,
            restore: conv("branch2c", &[output, narrow, 1, 1], Geometry::even(1, 0))?,
            shortcut: if first {
                Some(conv("proj_shortcut", &[output, input, 1, 1], Geometry::even(stride, 0))?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let y = self.reduce.forward(x)?.f_relu_()?;
        let y = self.spatial.forward(&y)?.f_relu_()?;
        let mut y = self.restore.forward(&y)?;
        Ok(match &self.shortcut {
            Some(shortcut) => y.f_add_(&shortcut.forward(x)?)?,
            None => y.f_add_(x)?,
        }
        .f_relu_()?)
    }
}

impl Network for OpenNsfw {
    fn inputs(&self) -> Vec<Port> {
        vec![Port::new("pixels", DataType::Fp32, &[-1, 3, self.size, self.size])]
    }

    fn outputs(&self) -> Vec<DataType> {
        vec![DataType::Fp32]
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        pulse.beat()?;
        let x = laid_out(&inputs[0], self.classifier.weight.kind())?;
        // in ceil mode the pool reaches one pixel past the bottom and the right, as Caffe's does
        let mut x = self.stem.forward(&x)?.f_relu_()?.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], true)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
            pulse.beat()?;
        }
        let feature = x.f_mean_dim([2, 3].as_slice(), false, None::<Kind>)?;
        Ok(vec![self.classifier.forward(&feature)?.f_softmax(1, Kind::Float)?])
    }
}
