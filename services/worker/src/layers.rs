//! The layers that several architectures share. Every `forward` is one or two calls into libtorch.

use tch::{Kind, Tensor};

use crate::error::Error;
use crate::weights::{Weights, bytes};

/// `y = x W^T + b`, W `[out, in]`, perhaps in two widths.
///
/// A product with few rows is bound by reading the weights, so int8 ones are faster; one with many rows is bound by
/// multiplying, where the wide ones are. The caller says which, per call.
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    bias: Option<Tensor>,
    int8: Option<Int8>,
}

/// Symmetric int8 with a scale per output channel.
struct Int8 {
    weight: Tensor,
    scales: Tensor,
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, int8: None }
    }

    /// `{name}.weight` and `{name}.bias`.
    pub(crate) fn load(weights: &Weights, name: &str, input: i64, output: i64) -> Result<Self, Error> {
        let weight = weights.tensor(&format!("{name}.weight"), &[output, input])?;
        Ok(Self::new(weight, Some(weights.tensor(&format!("{name}.bias"), &[output])?)))
    }

    /// Several layers over the same input as one: their outputs lie side by side. One wide product is faster than
    /// several narrow ones. A layer without a bias (`false`) gets zeros where another has one.
    pub(crate) fn fused(weights: &Weights, parts: &[(String, i64, bool)], input: i64) -> Result<Self, Error> {
        let mut matrices = Vec::with_capacity(parts.len());
        let mut biases = Vec::with_capacity(parts.len());
        for (name, output, biased) in parts {
            matrices.push(weights.tensor(&format!("{name}.weight"), &[*output, input])?);
            biases.push(if *biased {
                weights.tensor(&format!("{name}.bias"), &[*output])?
            } else {
                Tensor::f_zeros([*output], (weights.kind(), weights.device()))?
            });
        }
        let bias = if parts.iter().any(|(_, _, biased)| *biased) { Some(Tensor::f_cat(&biases, 0)?) } else { None };
        Ok(Self::new(Tensor::f_cat(&matrices, 0)?, bias))
    }

    /// Adds an int8 copy of the weights.
    pub(crate) fn with_int8(mut self) -> Result<Self, Error> {
        let rows = self.weight.f_to_kind(Kind::Float)?;
        let peak = rows.f_abs()?.f_amax([1].as_slice(), true)?.f_clamp_min(1e-12)?;
        // the scale is stored as the activations are; dividing by what is stored keeps its rounding out of the weights
        let scales = peak.f_div_scalar(127.0)?.f_to_kind(self.weight.kind())?;
        let scaled = rows.f_div(&scales.f_to_kind(Kind::Float)?)?;
        let weight = scaled.f_round()?.f_clamp(-127.0, 127.0)?.f_to_kind(Kind::Int8)?;
        self.int8 = Some(Int8 { weight, scales: scales.f_squeeze_dim(1)? });
        Ok(self)
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }

    /// With the int8 weights if `int8` says so and there are any.
    pub(crate) fn forward_in(&self, x: &Tensor, int8: bool) -> Result<Tensor, Error> {
        let Some(narrow) = self.int8.as_ref().filter(|_| int8) else {
            return self.forward(x);
        };
        let mut shape = x.size();
        let mut y = x.f_flatten(0, -2)?.f_internal_weight_int8pack_mm(&narrow.weight, &narrow.scales)?;
        if let Some(bias) = &self.bias {
            y = y.f_add_(bias)?;
        }
        if shape.len() == 2 {
            return Ok(y);
        }
        shape.pop();
        shape.push(-1);
        Ok(y.f_view(shape.as_slice())?)
    }

    /// Bytes of the int8 copy.
    pub(crate) fn int8_bytes(&self) -> u64 {
        self.int8.as_ref().map_or(0, |int8| bytes(&int8.weight) + bytes(&int8.scales))
    }
}

/// Layer normalisation (Ba et al., 2016) over the last axis.
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
    epsilon: f64,
}

impl LayerNorm {
    /// `{name}.weight` and `{name}.bias`.
    pub(crate) fn load(weights: &Weights, name: &str, width: i64, epsilon: f64) -> Result<Self, Error> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[width])?,
            bias: weights.tensor(&format!("{name}.bias"), &[width])?,
            width,
            epsilon,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_layer_norm([self.width], Some(&self.weight), Some(&self.bias), self.epsilon, false)?)
    }
}

/// The element-wise functions that configurations name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Relu,
    Silu,
    Sigmoid,
    Tanh,
    Identity,
}

impl Activation {
    /// The function that Hugging Face configurations call `name`.
    pub(crate) fn named(name: &str) -> Result<Self, Error> {
        Ok(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "sigmoid" => Self::Sigmoid,
            "tanh" => Self::Tanh,
            "identity" | "linear" => Self::Identity,
            other => {
                return Err(Error::Load(format!(
                    "activation \"{other}\", expected one of gelu, gelu_new, gelu_pytorch_tanh, relu, silu, sigmoid, tanh, identity"
                )));
            }
        })
    }

    /// Applies it, in place where libtorch can. `x` must not be used again.
    pub(crate) fn apply(self, mut x: Tensor) -> Result<Tensor, Error> {
        Ok(match self {
            Self::Gelu => x.f_gelu_("none")?,
            Self::GeluTanh => x.f_gelu_("tanh")?,
            Self::Relu => x.f_relu_()?,
            Self::Silu => x.f_silu_()?,
            Self::Sigmoid => x.f_sigmoid_()?,
            Self::Tanh => x.f_tanh_()?,
            Self::Identity => x,
        })
    }
}

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) stride: i64,
    /// Zeros before and after each spatial axis.
    pub(crate) padding: Padding,
    pub(crate) groups: i64,
}

/// Zeros around the input of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Padding {
    /// As many on each side.
    Even(i64),
    /// TensorFlow's SAME for a kernel of this size: the output has `ceil(n / stride)` positions, and of an odd number
    /// of zeros the larger half comes after.
    Same(i64),
}

impl Geometry {
    pub(crate) fn even(stride: i64, padding: i64) -> Self {
        Self { stride, padding: Padding::Even(padding), groups: 1 }
    }

    pub(crate) fn same(kernel: i64, stride: i64) -> Self {
        Self { stride, padding: Padding::Same(kernel), groups: 1 }
    }
}

/// A convolution with a bias over one or two spatial axes.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Tensor,
    geometry: Geometry,
}

impl Conv {
    /// `{name}.weight`, of `shape` `[out, in / groups, kernel…]`, and `{name}.bias`.
    pub(crate) fn load(weights: &Weights, name: &str, shape: &[i64], geometry: Geometry) -> Result<Self, Error> {
        let mut weight = weights.tensor(&format!("{name}.weight"), shape)?;
        if shape.len() == 4 {
            weight = laid_out(&weight, weights.kind())?;
        }
        let bias = weights.tensor(&format!("{name}.bias"), &shape[..1])?;
        Ok(Self { weight, bias, geometry })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let Geometry { stride, padding, groups } = self.geometry;
        let size = x.size();
        if size.len() == 3 {
            let padding = if let Padding::Even(padding) = padding { padding } else { 0 };
            return Ok(x.f_conv1d(&self.weight, Some(&self.bias), [stride], [padding], [1], groups)?);
        }
        let convolve = |x: &Tensor, padding: [i64; 2]| {
            x.f_conv2d(&self.weight, Some(&self.bias), [stride, stride], padding, [1, 1], groups)
        };
        let kernel = match padding {
            Padding::Even(padding) => return Ok(convolve(x, [padding, padding])?),
            Padding::Same(kernel) => kernel,
        };
        let total = |n: i64| ((n + stride - 1) / stride - 1) * stride + kernel - n;
        let (high, wide) = (total(size[2]).max(0), total(size[3]).max(0));
        if high % 2 == 0 && wide % 2 == 0 {
            return Ok(convolve(x, [high / 2, wide / 2])?);
        }
        let around = [wide / 2, wide - wide / 2, high / 2, high - high / 2];
        Ok(convolve(&x.f_constant_pad_nd(around)?, [0, 0])?)
    }
}

/// `[n, c, h, w]` as convolutions are fastest with it in memory: on a CPU with the channels innermost. On a GPU that is no
/// faster, and for each new number of images cuDNN plans two seconds long rather than a tenth of one.
pub(crate) fn laid_out(x: &Tensor, kind: Kind) -> Result<Tensor, Error> {
    let x = x.f_to_kind(kind)?;
    if x.device().is_cuda() {
        return Ok(x.f_contiguous()?);
    }
    Ok(x.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}
