//! Understanding as a model of the Open Inference Protocol: `understand`, for clients that speak nothing else.

use std::path::Path;

use futures::{Stream, StreamExt};

use super::{Event, Input, Understanding};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Modality};
use crate::pipeline;
use crate::request::{Context, NamedTensor, Parameter, Parameters, Reply, ReplyStream, Request};
use crate::tensor::Tensor;

/// The name under which it is served.
pub const NAME: &str = "understand";

const MANIFEST: &str = r#"
name = "understand"
description = "Text, image and audio together: a report as JSON, the fused embedding, and an answer in words"
modality = "text"
engine = "builtin"
architecture = "ensemble"
pipeline = "tensor"
inputs = [
    { name = "text", datatype = "BYTES", shape = [-1], optional = true },
    { name = "image", datatype = "BYTES", shape = [-1], optional = true },
    { name = "audio", datatype = "BYTES", shape = [-1], optional = true },
]
outputs = [
    { name = "answer", datatype = "BYTES", shape = [-1] },
    { name = "report", datatype = "BYTES", shape = [-1] },
    { name = "embedding", datatype = "FP32", shape = [-1, 384] },
]
limits = { max_elements = 1 }
"#;

pub(super) fn manifest() -> Result<Manifest> {
    Manifest::parse(MANIFEST, Path::new(NAME)).map_err(|error| Error::Internal(error.to_string()))
}

impl Understanding {
    /// This, if `model` is its name.
    pub fn named(&self, model: &str) -> Option<&Self> {
        (model == NAME).then_some(self)
    }

    /// What it takes and gives.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// One request that has been admitted, one answer.
    pub async fn infer_within(&self, request: &Request, context: &Context) -> Result<Reply> {
        let mut parts = replies(request.clone(), self.run_within(input(request)?, context.clone())?);
        while let Some(part) = parts.next().await {
            let part = part?;
            if part.last {
                return Ok(part);
            }
        }
        Err(Error::Internal("understanding ended without a report".to_owned()))
    }

    /// Pieces of the answer as `answer`, then everything.
    pub async fn stream(&self, request: Request, context: Context) -> Result<ReplyStream> {
        let events = self.run(input(&request)?, context)?;
        Ok(replies(request, events))
    }
}

/// Pieces of the answer as `answer`, then everything.
fn replies(request: Request, events: impl Stream<Item = Result<Event>> + Send + 'static) -> ReplyStream {
    let model = request.model.clone();
    let reply = move |outputs, last| Reply {
        model: model.clone(),
        version: 1,
        outputs,
        parameters: Parameters::default(),
        last,
        tokens: Vec::new(),
    };
    let named = |name: &str, tensor| NamedTensor { name: name.to_owned(), tensor };
    Box::pin(events.filter_map(move |event| {
        let told = match event {
            Err(error) => Some(Err(error)),
            Ok(Event::Delta(text)) => Some(Ok(reply(vec![named("answer", Tensor::from_elements(&[text]))], false))),
            Ok(Event::Branch(_) | Event::Fusion(_)) => None,
            Ok(Event::Done(report)) => {
                let json = serde_json::to_string(&report).map_err(|error| Error::Internal(error.to_string()));
                Some(json.and_then(|json| {
                    let width = i64::try_from(report.fusion.embedding.len()).unwrap_or(i64::MAX);
                    let embedding = Tensor::from_f32(vec![1, width], &report.fusion.embedding)
                        .map_err(|error| Error::Internal(error.to_string()))?;
                    let outputs = [
                        named("answer", Tensor::from_elements(&[&report.answer.text])),
                        named("report", Tensor::from_elements(&[json])),
                        named("embedding", embedding),
                    ];
                    let wanted = outputs.into_iter().filter(|output| request.wants(&output.name)).collect();
                    Ok(reply(wanted, true))
                }))
            }
        };
        std::future::ready(told)
    }))
}

/// Parameters of the answer, by the generator's names.
const SAMPLING: [&str; 6] = ["max_tokens", "temperature", "top_p", "top_k", "seed", "stop"];

/// All parameters by name.
fn known() -> Vec<String> {
    let emphasis = |modality| ["weight", "mute", "budget_ms"].map(|what| format!("modality.{modality}.{what}"));
    let others = ["question", "no_answer"].into_iter().chain(SAMPLING).map(str::to_owned);
    Modality::ALL.into_iter().flat_map(emphasis).chain(others).collect()
}

fn input(request: &Request) -> Result<Input> {
    let one = |name: &str| -> Result<Option<bytes::Bytes>> {
        let Some(tensor) = request.input(name) else { return Ok(None) };
        let field = format!("inputs.{name}");
        let mut elements = tensor.elements().map_err(|error| Error::invalid(&field, error))?;
        if elements.len() != 1 {
            return Err(Error::invalid(field, format!("{} elements, expected 1", elements.len())));
        }
        Ok(elements.pop())
    };
    if let Some(other) = request.inputs.iter().find(|input| !["text", "image", "audio"].contains(&input.name.as_str()))
    {
        return Err(Error::invalid(format!("inputs.{}", other.name), "unknown, expected text, image or audio"));
    }
    let text = one("text")?.map(|text| {
        String::from_utf8(text.to_vec()).map_err(|error| Error::invalid("inputs.text", format!("not UTF-8: {error}")))
    });
    let mut input = Input { text: text.transpose()?, image: one("image")?, audio: one("audio")?, ..Input::default() };
    let parameters = &request.parameters;
    let known = known();
    parameters.check_names(&known.iter().map(String::as_str).collect::<Vec<_>>())?;
    pipeline::sampling(parameters, 1)?;
    for modality in Modality::ALL {
        let mut emphasis = super::report::Emphasis::default();
        let name = format!("modality.{modality}.weight");
        if let Some(weight) = parameters.number(&name)? {
            if weight < 0.0 {
                return Err(Error::invalid(format!("parameters.{name}"), format!("{weight}, expected 0 or more")));
            }
            emphasis.weight = weight;
        }
        emphasis.mute = parameters.flag(&format!("modality.{modality}.mute"))?.unwrap_or(false);
        emphasis.budget =
            parameters.count(&format!("modality.{modality}.budget_ms"))?.map(std::time::Duration::from_millis);
        input.emphasis.insert(modality, emphasis);
    }
    parameters.text("question")?.unwrap_or_default().clone_into(&mut input.question);
    input.no_answer = parameters.flag("no_answer")?.unwrap_or(false);
    for name in SAMPLING {
        if let Some(value) = parameters.0.get(name) {
            input.sampling.set(name, value.clone());
        }
    }
    Ok(input)
}

/// Sampling of a typed request is in its ranges.
///
/// # Errors
/// `InvalidArgument` with the field.
pub fn check_sampling(parameters: &Parameters) -> Result<()> {
    match pipeline::sampling(parameters, 1) {
        Err(Error::InvalidArgument { field, message }) => {
            Err(Error::invalid(field.replacen("parameters.", "sampling.", 1), message))
        }
        outcome => outcome.map(drop),
    }
}

/// Sampling parameters of a typed request, by the generator's names; 0 and missing leave the model's default.
pub fn sampling(
    max_tokens: u32,
    numbers: [(&str, Option<f64>); 2],
    top_k: u32,
    seed: Option<u64>,
    stop: &[String],
) -> Parameters {
    let mut parameters = Parameters::default();
    if max_tokens > 0 {
        parameters.set("max_tokens", Parameter::Uint(max_tokens.into()));
    }
    for (name, value) in numbers {
        if let Some(value) = value {
            parameters.set(name, Parameter::Float(value));
        }
    }
    if top_k > 0 {
        parameters.set("top_k", Parameter::Uint(top_k.into()));
    }
    if let Some(seed) = seed {
        parameters.set("seed", Parameter::Uint(seed));
    }
    if !stop.is_empty() {
        parameters.set("stop", Parameter::String(serde_json::Value::from(stop.to_vec()).to_string()));
    }
    parameters
}
