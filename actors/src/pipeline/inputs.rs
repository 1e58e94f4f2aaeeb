//! A request's inputs against the manifest: names, datatypes, shapes, and one batch size for all.

use crate::error::{Error, Result};
use crate::manifest::{Manifest, Pipeline, TensorSpec};
use crate::request::Request;
use crate::shapes;
use crate::tensor::{DataType, Tensor};

/// Parameters that a pipeline reads; nothing for one that hands everything to somebody else's network.
fn parameters(pipeline: Pipeline) -> Option<&'static [&'static str]> {
    match pipeline {
        Pipeline::Tensor => None,
        Pipeline::TextGeneration => Some(&super::generation::PARAMETERS),
        Pipeline::SpeechRecognition => Some(&["language"]),
        Pipeline::TextEmbedding
        | Pipeline::ImageClassification
        | Pipeline::ImageGuard
        | Pipeline::TextGuard
        | Pipeline::VoiceActivity => Some(&[]),
    }
}

/// Checks everything that can be said without looking at the values. Returns the batch size.
pub(super) fn check(manifest: &Manifest, request: &Request) -> Result<usize> {
    if let Some(known) = parameters(manifest.pipeline) {
        request.parameters.check_names(known)?;
    }
    for (index, input) in request.inputs.iter().enumerate() {
        let Some(spec) = manifest.inputs.iter().find(|spec| spec.name == input.name) else {
            let known: Vec<_> = manifest.inputs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(Error::invalid(
                format!("inputs[{index}].name"),
                format!(
                    "'{}' is not an input of {}, expected {}",
                    input.name,
                    manifest.name,
                    crate::error::names(&known)
                ),
            ));
        };
        check_tensor(spec, &input.tensor)?;
        if request.inputs[..index].iter().any(|other| other.name == input.name) {
            return Err(Error::invalid(format!("inputs[{index}].name"), format!("'{}' is given twice", input.name)));
        }
    }
    for spec in &manifest.inputs {
        if !spec.optional && request.input(&spec.name).is_none() {
            return Err(Error::invalid(
                format!("inputs.{}", spec.name),
                format!("missing, {} takes {} of shape {:?}", manifest.name, spec.datatype, spec.shape),
            ));
        }
    }
    for (index, output) in request.outputs.iter().enumerate() {
        if !manifest.outputs.iter().any(|spec| spec.name == *output) {
            let known: Vec<_> = manifest.outputs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(Error::invalid(
                format!("outputs[{index}].name"),
                format!("'{output}' is not an output of {}, expected {}", manifest.name, crate::error::names(&known)),
            ));
        }
    }
    let rows = request.inputs.first().map_or(0, |input| input.tensor.rows());
    if let Some(other) = request.inputs.iter().find(|input| input.tensor.rows() != rows) {
        return Err(Error::invalid(
            format!("inputs.{}.shape", other.name),
            format!(
                "{} rows, but {} has {rows}; all inputs need the same",
                other.tensor.rows(),
                request.inputs[0].name
            ),
        ));
    }
    for input in &request.inputs {
        let is_bytes = input.tensor.dtype() == DataType::Bytes;
        shapes::must_be_bounded(&input.name, is_bytes, input.tensor.shape(), manifest.max_elements() as u64)?;
    }
    Ok(rows)
}

fn check_tensor(spec: &TensorSpec, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() != spec.datatype {
        return Err(Error::invalid(
            format!("inputs.{}.datatype", spec.name),
            format!("{}, expected {}", tensor.dtype(), spec.datatype),
        ));
    }
    shapes::must_fit(&spec.name, &spec.shape, tensor.shape())
}
