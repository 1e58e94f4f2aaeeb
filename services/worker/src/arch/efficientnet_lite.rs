//! EfficientNet-Lite (Tan and Le, 2019, without squeeze-and-excitation and with ReLU6), batch normalisation folded
//! into the convolutions. `config.json` lists the blocks, so that all of Lite0 to Lite4 load.
//!
//! | engine tensor | datatype, shape |
//! | --- | --- |
//! | in `pixels` | FP32 `[n, 3, h, w]`, normalised |
//! | out `feature` | FP32 `[n, 1280]`, mean over the last feature map |
//! | out `probabilities` | FP32 `[n, 1000]` |

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
    num_classes: i64,
    hidden_size: i64,
    stem: StemConfig,
    blocks: Vec<BlockConfig>,
}

#[derive(Deserialize)]
struct StemConfig {
    kernel: i64,
    stride: i64,
    out_channels: i64,
}

#[derive(Deserialize)]
struct BlockConfig {
    name: String,
    kernel: i64,
    stride: i64,
    expand: i64,
    in_channels: i64,
    out_channels: i64,
    residual: bool,
}

/// An inverted residual block (MobileNetV2, Sandler et al., 2018).
struct Block {
    expand: Option<Conv>,
    depthwise: Conv,
    project: Conv,
    residual: bool,
}

/// The network.
pub(crate) struct EfficientNetLite {
    stem: Conv,
    blocks: Vec<Block>,
    head: Conv,
    classifier: Linear,
}

impl EfficientNetLite {
    pub(crate) fn load(directory: &Path, weights: &Weights) -> Result<Self, Error> {
        let config: Config = read_json(&directory.join("config.json"))?;
        let (stem, hidden) = (&config.stem, config.hidden_size);
        let last = config.blocks.last().map_or(stem.out_channels, |block| block.out_channels);
        Ok(Self {
            stem: Conv::load(
                weights,
                "stem.conv",
                &[stem.out_channels, 3, stem.kernel, stem.kernel],
                Geometry::same(stem.kernel, stem.stride),
            )?,
            blocks: config.blocks.iter().map(|block| Block::load(weights, block)).collect::<Result<_, _>>()?,
            head: Conv::load(weights, "head.conv", &[hidden, last, 1, 1], Geometry::even(1, 0))?,
            classifier: Linear::load(weights, "classifier", hidden, config.num_classes)?,
        })
    }
}

impl Block {
    fn load(weights: &Weights, config: &BlockConfig) -> Result<Self, Error> {
        let (name, wide) = (&config.name, config.in_channels * config.expand);
        let pointwise = |part: &str, output: i64, input: i64| {
            Conv::load(weights, &format!("{name}.{part}"), &[output, input, 1, 1], Geometry::even(1, 0))
        };
        Ok(Self {
            expand: if config.expand == 1 { None } else { Some(pointwise("expand", wide, config.in_channels)?) },
            depthwise: Conv::load(
                weights,
                &format!("{name}.depthwise"),
                &[wide, 1, config.kernel, config.kernel],
                Geometry { groups: wide, ..Geometry::same(config.kernel, config.stride) },
            )?,
            project: pointwise("project", config.out_channels, wide)?,
            residual: config.residual,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let wide = match &self.expand {
            Some(expand) => relu6(expand.forward(x)?)?,
            None => x.shallow_clone(),
        };
        let mut y = self.project.forward(&relu6(self.depthwise.forward(&wide)?)?)?;
        if self.residual {
            y = y.f_add_(x)?;
        }
        Ok(y)
    }
}

fn relu6(mut x: Tensor) -> Result<Tensor, Error> {
    Ok(x.f_clamp_(0.0, 6.0)?)
}

impl Network for EfficientNetLite {
    fn inputs(&self) -> Vec<Port> {
        vec![Port::new("pixels", DataType::Fp32, &[-1, 3, -1, -1])]
    }

    fn outputs(&self) -> Vec<DataType> {
        vec![DataType::Fp32; 2]
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        let (_, _, height, width) = inputs[0].size4()?;
        if height < 32 || width < 32 {
            return Err(Error::Input(format!("pixels is {height}x{width}, expected at least 32x32")));
        }
        pulse.beat()?;
        let mut x = relu6(self.stem.forward(&laid_out(&inputs[0], self.classifier.weight.kind())?)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
            pulse.beat()?;
        }
        let x = relu6(self.head.forward(&x)?)?;
        let feature = x.f_mean_dim([2, 3].as_slice(), false, Kind::Float)?;
        let logits = self.classifier.forward(&feature.f_to_kind(x.kind())?)?;
        Ok(vec![feature, logits.f_softmax(1, Kind::Float)?])
    }
}
