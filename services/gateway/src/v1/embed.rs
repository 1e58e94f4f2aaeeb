//! Embeddings of parts, in each model's own space or in the shared one.

use futures::future::try_join_all;
use prost::Message;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::manifest::Modality as Sense;
use sensorium_actors::request::{Context, Request, TRUNCATED};
use sensorium_actors::understand::report::State;
use sensorium_actors::understand::{Event, Input};
use sensorium_proto::v1::embed_request::Space;
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{EmbedRequest, EmbedResponse, Embedding, ModelRef, Part};
use tonic::{Extensions, Response};

use super::convert::modality;
use crate::bounds::{charge, held};
use crate::server::Door;

/// Embeds all parts in parallel.
pub async fn embed(
    door: &Door,
    request: EmbedRequest,
    context: &Context,
    extensions: &Extensions,
) -> Result<Response<EmbedResponse>> {
    let (count, most) = (request.parts.len(), door.limits.max_parts);
    if count == 0 {
        return Err(Error::invalid("parts", "empty, expected at least one"));
    }
    if count > most {
        return Err(Error::invalid("parts", format!("{count} parts, the limit is {most}")));
    }
    let permit = door.router.admission().enter(context)?;
    let space = Space::try_from(request.space)
        .map_err(|_| Error::invalid("space", format!("{}, expected SPACE_NATIVE or SPACE_SHARED", request.space)))?;
    let parts = request.parts.into_iter().enumerate().map(|(index, part)| async move {
        let embedded = match space {
            Space::Native => native(door, part, context).await,
            Space::Shared => shared(door, part, context).await,
        };
        embedded.map_err(|error| match error {
            Error::InvalidArgument { message, .. } => Error::invalid(format!("parts[{index}]"), message),
            other => other,
        })
    });
    let answer = EmbedResponse { embeddings: try_join_all(parts).await? };
    let charge = charge(extensions, answer.encoded_len())?;
    Ok(held(answer, permit, charge))
}

async fn native(door: &Door, part: Part, context: &Context) -> Result<Embedding> {
    let options = door.understanding.options();
    let (sense, request) = match part.content {
        None => return Err(Error::invalid("content", "empty, expected text, image or audio")),
        Some(Content::Text(text)) => (Sense::Text, Request::of_bytes(&options.text, "text", text)),
        Some(Content::Image(image)) => (Sense::Image, Request::of_bytes(&options.image, "image", image)),
        Some(Content::Audio(audio)) => (Sense::Audio, Request::of_bytes(&options.audio, "audio", audio)),
    };
    let request = Request { outputs: vec!["embedding".to_owned()], ..request };
    let reply = door.router.infer_within(&request, context).await?;
    let values = reply.numbers("embedding")?;
    Ok(Embedding {
        values,
        modality: modality(sense).into(),
        model: Some(ModelRef { name: reply.model.to_string(), version: reply.version.to_string() }),
        truncated: reply.parameters.0.contains_key(TRUNCATED),
    })
}

/// The branch of an understanding, without the rest.
async fn shared(door: &Door, part: Part, context: &Context) -> Result<Embedding> {
    use futures::StreamExt;
    let mut input = Input { no_answer: true, ..Input::default() };
    match part.content {
        None => return Err(Error::invalid("content", "empty, expected text, image or audio")),
        Some(Content::Text(text)) => input.text = Some(text),
        Some(Content::Image(image)) => input.image = Some(image),
        Some(Content::Audio(audio)) => input.audio = Some(audio),
    }
    let mut events = Box::pin(door.understanding.run_within(input, context.clone())?);
    while let Some(event) = events.next().await {
        let Event::Branch(branch) = event? else { continue };
        return match branch.state {
            State::Ok => Ok(Embedding {
                values: branch.embedding,
                modality: modality(branch.modality).into(),
                model: Some(ModelRef { name: branch.model.name, version: branch.model.version }),
                truncated: branch.truncated,
            }),
            State::Late => Err(Error::DeadlineExceeded { stage: branch.reason }),
            State::Empty => Err(Error::invalid("content", branch.reason)),
            _ => Err(Error::FailedPrecondition { reason: "NOT_EMBEDDED", message: branch.reason }),
        };
    }
    Err(Error::Internal("understanding ended without a branch".to_owned()))
}
