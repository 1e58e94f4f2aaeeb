//! Requests of the Open Inference Protocol, and their answers.

use bytes::{BufMut, Bytes, BytesMut};
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use sensorium_proto::inference::{InferParameter, ModelInferRequest, ModelInferResponse};
use tonic::metadata::MetadataValue;

/// A request in the making. Values go raw.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The message so far.
    pub message: ModelInferRequest,
    deadline: Option<String>,
}

/// A request to `chaos` or `identity`: `order` is the first value, `mark` fills the rest of the row.
pub fn chaos(model: &str, order: f32, mark: f32) -> Ask {
    let mut row = [mark; 16];
    row[0] = order;
    Ask::of(model).fp32("INPUT0", &[1, 16], &row)
}

impl Ask {
    /// A request without inputs yet.
    pub fn of(model: &str) -> Self {
        let message = ModelInferRequest { model_name: model.to_owned(), ..Default::default() };
        Self { message, deadline: None }
    }

    /// Embeds one text.
    pub fn text(text: &str) -> Self {
        Self::of("minilm").bytes("text", &[text])
    }

    /// Continues a prompt as it is, without the chat template.
    pub fn prompt(prompt: &str, max_tokens: i64) -> Self {
        Self::of("smollm2-135m").bytes("prompt", &[prompt]).set("raw", true).set("max_tokens", max_tokens)
    }

    /// Adds a tensor by its raw bytes.
    #[must_use]
    pub fn raw(mut self, name: &str, datatype: &str, shape: &[i64], data: impl Into<Bytes>) -> Self {
        let input = InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..Default::default()
        };
        self.message.inputs.push(input);
        self.message.raw_input_contents.push(data.into());
        self
    }

    /// Adds an FP32 tensor.
    #[must_use]
    pub fn fp32(self, name: &str, shape: &[i64], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(name, "FP32", shape, data)
    }

    /// Adds a BYTES vector.
    #[must_use]
    pub fn bytes(self, name: &str, elements: &[impl AsRef<[u8]>]) -> Self {
        let mut data = BytesMut::new();
        for element in elements {
            let element = element.as_ref();
            data.put_u32_le(u32::try_from(element.len()).expect("below 4 GiB"));
            data.put_slice(element);
        }
        let count = i64::try_from(elements.len()).expect("a length");
        self.raw(name, "BYTES", &[count], data)
    }

    /// Sets a parameter.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.message.parameters.insert(name.to_owned(), value.into().0);
        self
    }

    /// Asks for an output.
    #[must_use]
    pub fn output(self, name: &str) -> Self {
        self.output_with(name, &[])
    }

    /// Asks for an output with parameters of its own.
    #[must_use]
    pub fn output_with(mut self, name: &str, parameters: &[(&str, i64)]) -> Self {
        let parameters = parameters.iter().map(|&(name, value)| (name.to_owned(), Value::from(value).0)).collect();
        self.message.outputs.push(InferRequestedOutputTensor { name: name.to_owned(), parameters });
        self
    }

    /// The caller's id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.message.id);
        self
    }

    /// `grpc-timeout`.
    #[must_use]
    pub fn deadline(mut self, milliseconds: u64) -> Self {
        self.deadline = Some(format!("{milliseconds}m"));
        self
    }

    /// The message alone.
    pub fn message(self) -> ModelInferRequest {
        self.message
    }

    /// The message with its metadata.
    pub fn request(self) -> tonic::Request<ModelInferRequest> {
        let mut request = tonic::Request::new(self.message);
        if let Some(deadline) = self.deadline {
            let deadline = MetadataValue::try_from(deadline).expect("ASCII");
            request.metadata_mut().insert("grpc-timeout", deadline);
        }
        request
    }
}

/// A parameter's value.
pub struct Value(InferParameter);

impl From<ParameterChoice> for Value {
    fn from(choice: ParameterChoice) -> Self {
        Self(InferParameter { parameter_choice: Some(choice) })
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        ParameterChoice::BoolParam(value).into()
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        ParameterChoice::Int64Param(value).into()
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        ParameterChoice::DoubleParam(value).into()
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        ParameterChoice::StringParam(value.to_owned()).into()
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Given(pub ModelInferResponse);

impl Given {
    fn output(&self, name: &str) -> (&[i64], &str, Bytes) {
        let names = || self.0.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>().join(", ");
        let at = self.0.outputs.iter().position(|output| output.name == name);
        let at = at.unwrap_or_else(|| panic!("no output '{name}' among {}", names()));
        let output = &self.0.outputs[at];
        (&output.shape, &output.datatype, self.0.raw_output_contents[at].clone())
    }

    /// The shape of an output.
    pub fn shape(&self, name: &str) -> Vec<i64> {
        self.output(name).0.to_vec()
    }

    /// An FP32 output.
    pub fn fp32(&self, name: &str) -> Vec<f32> {
        let (shape, datatype, data) = self.output(name);
        assert_eq!(datatype, "FP32", "{name}");
        let values: Vec<f32> = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(i64::try_from(values.len()).ok(), Some(shape.iter().product()), "{name} of shape {shape:?}");
        values
    }

    /// A BYTES output whose elements are text.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let (shape, datatype, data) = self.output(name);
        assert_eq!(datatype, "BYTES", "{name}");
        let mut rest = &data[..];
        let mut texts = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (element, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            texts.push(String::from_utf8(element.to_vec()).expect("UTF-8"));
            rest = tail;
        }
        assert_eq!(i64::try_from(texts.len()).ok(), Some(shape.iter().product()), "{name} of shape {shape:?}");
        texts
    }

    /// The only text of a BYTES output.
    pub fn one_text(&self, name: &str) -> String {
        let [text] = self.texts(name).try_into().expect("one element");
        text
    }

    /// A parameter.
    pub fn parameter(&self, name: &str) -> Option<&ParameterChoice> {
        self.0.parameters.get(name)?.parameter_choice.as_ref()
    }

    /// A parameter that is text.
    pub fn parameter_text(&self, name: &str) -> &str {
        match self.parameter(name) {
            Some(ParameterChoice::StringParam(text)) => text,
            other => panic!("parameter {name} is {other:?}, expected a string"),
        }
    }

    /// A parameter that is a count.
    pub fn parameter_count(&self, name: &str) -> u64 {
        match self.parameter(name) {
            Some(ParameterChoice::Uint64Param(count)) => *count,
            Some(ParameterChoice::Int64Param(count)) => u64::try_from(*count).expect("a count"),
            other => panic!("parameter {name} is {other:?}, expected a count"),
        }
    }
}
