//! `ModelInferRequest` to our request, and our reply to `ModelInferResponse`.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::{NamedTensor, Parameter, Parameters, Reply, Request};
use sensorium_actors::shapes::Claimed;
use sensorium_actors::tensor::{DataType, Tensor, element_count};
use sensorium_plane::parse_version;
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use sensorium_proto::inference::model_infer_response::InferOutputTensor;
use sensorium_proto::inference::{InferParameter, ModelInferRequest, ModelInferResponse};

use super::contents;
use super::shared_memory::{Regions, Window};

/// What a request wants to know about one of its outputs.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The output's name.
    name: String,
    /// Its `count` highest values with class index and label instead of the values; 0: the values.
    classification: usize,
    /// Where to put it instead of the answer.
    window: Option<Window>,
}

impl Wanted {
    /// Whether it is to be copied.
    pub fn has_window(&self) -> bool {
        self.window.is_some()
    }
}

/// A request as it came, in our terms.
pub struct Incoming {
    /// The inference.
    pub request: Request,
    /// The caller's id, given back.
    pub id: String,
    /// The outputs by name; empty: all, as they are.
    pub wanted: Vec<Wanted>,
}

/// Bytes that reading a request will copy, or a few more: raw contents stay where they are.
pub fn bytes_to_copy(message: &ModelInferRequest) -> usize {
    let typed = |input: &InferInputTensor| input.contents.as_ref().map_or(0, Message::encoded_len);
    let typed = message.inputs.iter().map(typed).fold(0, usize::saturating_add);
    typed.saturating_add(usize::try_from(shared_bytes(message)).unwrap_or(usize::MAX))
}

/// Bytes of all windows that a request reads: one that many inputs name counts as often.
fn shared_bytes(message: &ModelInferRequest) -> u64 {
    let of =
        |input: &InferInputTensor| Window::of(&input.parameters, "").ok().flatten().map_or(0, |window| window.size());
    message.inputs.iter().map(of).fold(0, u64::saturating_add)
}

/// The inputs as the message says they are, before their values are looked at.
pub fn claimed(message: &ModelInferRequest) -> impl Iterator<Item = Claimed<'_>> {
    message.inputs.iter().map(|input| Claimed {
        name: &input.name,
        is_bytes: input.datatype == DataType::Bytes.as_str(),
        shape: &input.shape,
    })
}

/// Elements of all BYTES inputs, as far as their shapes are valid.
pub fn elements(message: &ModelInferRequest) -> usize {
    let bytes = claimed(message).filter(|claimed| claimed.is_bytes);
    bytes.map(|claimed| element_count(claimed.shape).unwrap_or(0)).fold(0, usize::saturating_add)
}

/// Reads a request; raw contents stay where they are.
pub fn decode(message: ModelInferRequest, regions: &Regions) -> Result<Incoming> {
    let version = parse_version(&message.model_version, "model_version")?;
    regions.within_a_message(shared_bytes(&message))?;
    let parameters = parameters(&message.parameters);
    parameters.check_finite()?;
    let mut raw = message.raw_input_contents.into_iter();
    let raw_count = raw.len();
    let mut inputs = Vec::with_capacity(message.inputs.len());
    let mut used = 0;
    for (index, input) in message.inputs.into_iter().enumerate() {
        let window = Window::of(&input.parameters, &format!("inputs[{index}].parameters"))?;
        let from_raw = if window.is_none() && raw_count > 0 {
            used += 1;
            let missing = || {
                Error::invalid(
                    "raw_input_contents",
                    format!("{raw_count} given, input {index} has none; expected one per input"),
                )
            };
            Some(raw.next().ok_or_else(missing)?)
        } else {
            None
        };
        inputs.push(decode_input(index, input, from_raw, window.as_ref(), regions)?);
    }
    if used < raw_count {
        return Err(Error::invalid("raw_input_contents", format!("{raw_count} given, expected {used}: one per input")));
    }
    let wanted = message.outputs.into_iter().enumerate().map(|(index, output)| decode_output(index, output));
    let wanted: Vec<Wanted> = wanted.collect::<Result<_>>()?;
    let outputs = wanted.iter().map(|wanted| wanted.name.clone()).collect();
    let model = message.model_name.into();
    let request = Request { model, version, inputs, parameters, outputs, resume: None, namespace: None };
    Ok(Incoming { request, id: message.id, wanted })
}

fn decode_input(
    index: usize,
    input: InferInputTensor,
    raw: Option<Bytes>,
    window: Option<&Window>,
    regions: &Regions,
) -> Result<NamedTensor> {
    let field = || format!("inputs[{index}] '{}'", input.name);
    let dtype: DataType =
        input.datatype.parse().map_err(|error| Error::invalid(format!("inputs[{index}].datatype"), error))?;
    let data = match (raw, input.contents, window) {
        (None, None, Some(window)) => regions.read(window)?,
        (Some(raw), None, None) => raw,
        (None, Some(contents), None) => contents::to_raw(dtype, &contents)
            .map_err(|message| Error::invalid(format!("inputs[{index}].contents"), message))?,
        // a tensor without elements has no contents to send
        (None, None, None) => Bytes::new(),
        _ => {
            let message = "values are given twice, expected one of raw_input_contents, contents and shared memory";
            return Err(Error::invalid(field(), message));
        }
    };
    let tensor = Tensor::new(dtype, input.shape, data).map_err(|error| Error::invalid(field(), error))?;
    Ok(NamedTensor { name: input.name, tensor })
}

fn decode_output(index: usize, output: InferRequestedOutputTensor) -> Result<Wanted> {
    let field = format!("outputs[{index}].parameters");
    let window = Window::of(&output.parameters, &field)?;
    let own = parameters(&output.parameters);
    let classification = own.count("classification")?.unwrap_or(0);
    if classification > 0 && window.is_some() {
        return Err(Error::invalid(field, "classification together with shared memory, expected one of them"));
    }
    Ok(Wanted { name: output.name, classification: usize::try_from(classification).unwrap_or(usize::MAX), window })
}

/// The protocol's parameters in our terms.
pub fn parameters(message: &HashMap<String, InferParameter>) -> Parameters {
    let values = message.iter().filter_map(|(name, parameter)| {
        let value = match parameter.parameter_choice.as_ref()? {
            ParameterChoice::BoolParam(value) => Parameter::Bool(*value),
            ParameterChoice::Int64Param(value) => Parameter::Int(*value),
            ParameterChoice::Uint64Param(value) => Parameter::Uint(*value),
            ParameterChoice::DoubleParam(value) => Parameter::Float(*value),
            ParameterChoice::StringParam(value) => Parameter::String(value.clone()),
        };
        Some((name.clone(), value))
    });
    Parameters(values.collect())
}

fn parameter(value: Parameter) -> InferParameter {
    let choice = match value {
        Parameter::Bool(value) => ParameterChoice::BoolParam(value),
        Parameter::Int(value) => ParameterChoice::Int64Param(value),
        Parameter::Uint(value) => ParameterChoice::Uint64Param(value),
        Parameter::Float(value) => ParameterChoice::DoubleParam(value),
        Parameter::String(value) => ParameterChoice::StringParam(value),
    };
    InferParameter { parameter_choice: Some(choice) }
}

/// Writes an answer; `labels` names the classes of an output for the classification extension.
pub fn encode(
    reply: Reply,
    id: String,
    wanted: &[Wanted],
    regions: &Regions,
    labels: &[String],
) -> Result<ModelInferResponse> {
    let mut response = ModelInferResponse {
        model_name: reply.model.to_string(),
        model_version: reply.version.to_string(),
        id,
        parameters: reply.parameters.0.into_iter().map(|(name, value)| (name, parameter(value))).collect(),
        outputs: Vec::with_capacity(reply.outputs.len()),
        raw_output_contents: Vec::with_capacity(reply.outputs.len()),
    };
    let mut written = 0;
    for (index, output) in reply.outputs.into_iter().enumerate() {
        let wanted = wanted.iter().find(|wanted| wanted.name == output.name);
        let classification = wanted.map_or(0, |wanted| wanted.classification);
        let tensor = match classification {
            0 => output.tensor,
            count => classify(&output.tensor, count, labels)
                .map_err(|message| Error::invalid(format!("outputs[{index}].parameters.classification"), message))?,
        };
        let mut described = InferOutputTensor {
            name: output.name,
            datatype: tensor.dtype().as_str().to_owned(),
            shape: tensor.shape().to_vec(),
            ..Default::default()
        };
        match wanted.and_then(|wanted| wanted.window.as_ref()) {
            None => response.raw_output_contents.push(tensor.into_data()),
            Some(window) => {
                written += tensor.data().len() as u64;
                regions.within_a_message(written)?;
                described.parameters = window.written(tensor.data().len());
                regions.write(window, tensor.data())?;
                // the position stays taken, as clients count
                response.raw_output_contents.push(Bytes::new());
            }
        }
        response.outputs.push(described);
    }
    if response.raw_output_contents.iter().all(Bytes::is_empty) && wanted.iter().any(|wanted| wanted.window.is_some()) {
        response.raw_output_contents.clear();
    }
    Ok(response)
}

/// Triton's classification extension: the `count` highest values of each row as `value:index[:label]`.
fn classify(tensor: &Tensor, count: usize, labels: &[String]) -> Result<Tensor, String> {
    let values = tensor.to_f32().map_err(|error| format!("{error}: only FP32 outputs can be classified"))?;
    let [rows, width] = *tensor.shape() else {
        return Err(format!("shape {:?}, expected [rows, classes]", tensor.shape()));
    };
    let width = usize::try_from(width).unwrap_or(0);
    if width == 0 {
        return Err("no classes".to_owned());
    }
    let count = count.min(width);
    let mut elements = Vec::new();
    for row in values.chunks_exact(width) {
        for (class, value) in sensorium_actors::pipeline::top(row, count) {
            let label = labels.get(class).filter(|_| labels.len() == width);
            elements.push(
                label.map_or_else(|| format!("{value:.6}:{class}"), |label| format!("{value:.6}:{class}:{label}")),
            );
        }
    }
    let shape = vec![rows, i64::try_from(count).unwrap_or(i64::MAX)];
    Tensor::new(DataType::Bytes, shape, Tensor::from_elements(&elements).into_data()).map_err(|error| error.to_string())
}
