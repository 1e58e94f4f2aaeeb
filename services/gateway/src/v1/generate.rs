//! Generation, with what parts say before the prompt.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::{Context, Parameter, Request};
use sensorium_actors::understand::{Event, ensemble, evidence};
use sensorium_proto::v1::{FinishReason, GenerateRequest, GenerateResponse, ModelRef, UnderstandRequest};

use super::convert;
use crate::server::Door;

/// Starts a generation; the pieces come through the stream.
pub async fn generate(
    door: Arc<Door>,
    request: GenerateRequest,
    context: Context,
) -> Result<impl Stream<Item = Result<GenerateResponse>> + Send + use<>> {
    if request.prompt.is_empty() {
        return Err(Error::invalid("prompt", "empty, expected text"));
    }
    if request.raw && !request.parts.is_empty() {
        return Err(Error::invalid("raw", "true together with parts, whose words need the chat template"));
    }
    // before the parts are sensed for nothing
    let sampling = convert::sampling(request.sampling.unwrap_or_default());
    ensemble::check_sampling(&sampling)?;
    let prompt = if request.parts.is_empty() {
        request.prompt
    } else {
        let evidence = listen(&door, request.parts, &context).await?;
        format!("{evidence}\nUse only the observations above. {}", request.prompt)
    };
    let options = door.understanding.options();
    let model = if request.model.is_empty() { &options.generator } else { &request.model };
    let mut inference = Request::of_bytes(model, "prompt", prompt);
    inference.parameters = sampling;
    if request.raw {
        inference.parameters.set("raw", Parameter::Bool(true));
    }
    let pieces = door.router.stream(inference, context).await?;
    Ok(pieces.map(|reply| {
        let reply = reply?;
        let text = reply.output("text")?.elements().map_err(|error| Error::Internal(error.to_string()))?;
        let count =
            |name| Ok::<_, Error>(u32::try_from(reply.parameters.count(name)?.unwrap_or(0)).unwrap_or(u32::MAX));
        let finish = match reply.parameters.text("finish_reason")? {
            Some("stop") => FinishReason::Stop,
            Some(_) => FinishReason::Length,
            None => FinishReason::Unspecified,
        };
        Ok(GenerateResponse {
            text: text.iter().map(|piece| String::from_utf8_lossy(piece)).collect(),
            finish_reason: finish.into(),
            prompt_tokens: count("prompt_tokens")?,
            completion_tokens: count("completion_tokens")?,
            model: Some(ModelRef { name: reply.model.to_string(), version: reply.version.to_string() }),
        })
    }))
}

/// What the parts say, in words.
async fn listen(door: &Door, parts: Vec<sensorium_proto::v1::Part>, context: &Context) -> Result<String> {
    let input = convert::input(UnderstandRequest { parts, no_answer: true, ..UnderstandRequest::default() })?;
    let mut events = Box::pin(door.understanding.run(input, context.clone())?);
    while let Some(event) = events.next().await {
        if let Event::Done(report) = event? {
            let evidence = evidence::evidence(&report.branches);
            if evidence.is_empty() {
                let silent = report.branches.iter().map(|branch| format!("{}: {}", branch.modality, branch.reason));
                let message = format!("no part says anything: {}", silent.collect::<Vec<_>>().join("; "));
                return Err(Error::FailedPrecondition { reason: "NO_EVIDENCE", message });
            }
            return Ok(evidence);
        }
    }
    Err(Error::Internal("understanding ended without a report".to_owned()))
}
