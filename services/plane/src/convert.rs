//! Requests and replies as messages, and back. Payloads are shared, never copied.

use std::collections::HashMap;
use std::time::Duration;

use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::{Context, NamedTensor, Parameter, Parameters, Reply, Request, Resume};
use sensorium_actors::tensor::{DataType, Tensor};
use sensorium_proto::worker;
use sensorium_proto::worker::parameter::Value;

/// `""` is any version.
pub fn version(text: &str, field: &str) -> Result<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed =
        text.parse().map_err(|_| Error::invalid(field, format!("'{text}', expected a whole number or nothing")));
    parsed.map(Some)
}

pub fn request_to(request: &Request, context: &Context) -> worker::InferRequest {
    worker::InferRequest {
        model: request.model.to_string(),
        version: request.version.unwrap_or(0),
        inputs: tensors_to(&request.inputs),
        parameters: parameters_to(&request.parameters),
        outputs: request.outputs.clone(),
        priority: context.priority,
        queue_timeout_us: context.queue_timeout.map_or(0, |timeout| u64::try_from(timeout.as_micros()).unwrap_or(0)),
        resume: request
            .resume
            .as_ref()
            .map(|resume| worker::Resume { tokens: resume.tokens.clone(), sent: resume.sent as u64 }),
        tenant: context.tenant.to_string(),
        namespace: request.namespace.as_deref().unwrap_or_default().to_owned(),
    }
}

/// Deadline and span of the context are the transport's to add.
pub fn request_from(message: worker::InferRequest) -> Result<(Request, Context)> {
    let context = Context {
        priority: message.priority,
        queue_timeout: Some(message.queue_timeout_us).filter(|&timeout| timeout > 0).map(Duration::from_micros),
        tenant: message.tenant.into(),
        ..Context::default()
    };
    let request = Request {
        model: message.model.into(),
        version: Some(message.version).filter(|&version| version > 0),
        inputs: tensors_from(message.inputs, "inputs")?,
        parameters: parameters_from(message.parameters)?,
        outputs: message.outputs,
        resume: message
            .resume
            .map(|resume| Resume { tokens: resume.tokens, sent: usize::try_from(resume.sent).unwrap_or(usize::MAX) }),
        namespace: Some(message.namespace).filter(|namespace| !namespace.is_empty()).map(Into::into),
    };
    Ok((request, context))
}

pub fn reply_to(reply: Reply) -> worker::InferResponse {
    worker::InferResponse {
        model: reply.model.to_string(),
        version: reply.version,
        outputs: tensors_to(&reply.outputs),
        parameters: parameters_to(&reply.parameters),
        last: reply.last,
        tokens: reply.tokens,
    }
}

pub fn reply_from(message: worker::InferResponse) -> Result<Reply> {
    let outputs = tensors_from(message.outputs, "outputs").map_err(|error| Error::Internal(error.to_string()))?;
    Ok(Reply {
        model: message.model.into(),
        version: message.version,
        outputs,
        parameters: parameters_from(message.parameters)?,
        last: message.last,
        tokens: message.tokens,
    })
}

fn tensors_to(tensors: &[NamedTensor]) -> Vec<worker::Tensor> {
    let message = |NamedTensor { name, tensor }: &NamedTensor| worker::Tensor {
        name: name.clone(),
        datatype: tensor.dtype().as_str().to_owned(),
        shape: tensor.shape().to_vec(),
        data: tensor.data().clone(),
    };
    tensors.iter().map(message).collect()
}

fn tensors_from(messages: Vec<worker::Tensor>, field: &str) -> Result<Vec<NamedTensor>> {
    let tensor = |message: worker::Tensor| {
        let made = message.datatype.parse::<DataType>();
        let made = made.and_then(|dtype| Tensor::new(dtype, message.shape, message.data));
        let tensor = made.map_err(|error| Error::invalid(format!("{field}.{}", message.name), error))?;
        Ok(NamedTensor { name: message.name, tensor })
    };
    messages.into_iter().map(tensor).collect()
}

fn parameters_to(parameters: &Parameters) -> HashMap<String, worker::Parameter> {
    let message = |parameter: &Parameter| worker::Parameter {
        value: Some(match parameter {
            Parameter::Bool(value) => Value::BoolValue(*value),
            Parameter::Int(value) => Value::IntValue(*value),
            Parameter::Uint(value) => Value::UintValue(*value),
            Parameter::Float(value) => Value::FloatValue(*value),
            Parameter::String(value) => Value::StringValue(value.clone()),
        }),
    };
    parameters.0.iter().map(|(name, parameter)| (name.clone(), message(parameter))).collect()
}

fn parameters_from(messages: HashMap<String, worker::Parameter>) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for (name, message) in messages {
        let value = match message.value {
            Some(Value::BoolValue(value)) => Parameter::Bool(value),
            Some(Value::IntValue(value)) => Parameter::Int(value),
            Some(Value::UintValue(value)) => Parameter::Uint(value),
            Some(Value::FloatValue(value)) => Parameter::Float(value),
            Some(Value::StringValue(value)) => Parameter::String(value),
            None => return Err(Error::invalid(format!("parameters.{name}"), "no value")),
        };
        parameters.set(&name, value);
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parameter() -> impl Strategy<Value = Parameter> {
        prop_oneof![
            any::<bool>().prop_map(Parameter::Bool),
            any::<i64>().prop_map(Parameter::Int),
            any::<u64>().prop_map(Parameter::Uint),
            (-1e9..1e9f64).prop_map(Parameter::Float),
            ".*".prop_map(Parameter::String),
        ]
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(
            texts in prop::collection::vec(".*", 0..4),
            parameters in prop::collection::btree_map("[a-z]{1,8}", parameter(), 0..4),
            version in 0..5u64,
            tokens in prop::collection::vec(any::<u32>(), 0..4),
        ) {
            let request = Request {
                version: Some(version).filter(|&version| version > 0),
                parameters: Parameters(parameters),
                inputs: vec![NamedTensor { name: "text".into(), tensor: Tensor::from_elements(&texts) }],
                outputs: vec!["embedding".into()],
                resume: Some(Resume { tokens, sent: texts.len() }),
                ..Request::of_bytes("minilm", "", "")
            };
            let context = Context { priority: 2, tenant: "acme".into(), ..Context::default() };
            let (again, context) = request_from(request_to(&request, &context)).unwrap();
            prop_assert_eq!(format!("{request:?}"), format!("{again:?}"));
            prop_assert_eq!((context.priority, &*context.tenant), (2, "acme"));
        }

        #[test]
        fn a_tensor_that_lies_is_refused(datatype in "[A-Z0-9]{0,6}", shape in prop::collection::vec(-2..4i64, 0..4), data in prop::collection::vec(any::<u8>(), 0..64)) {
            let message = worker::Tensor { name: "x".into(), datatype, shape, data: data.into() };
            if let Ok(tensors) = tensors_from(vec![message.clone()], "inputs") {
                prop_assert_eq!(&tensors_to(&tensors)[0], &message);
            }
        }
    }
}
