//! One branch per sense: the model, its way into the shared space, and its guard.

use tokio::time::Instant;

use super::budget::Chosen;
use super::report::{Branch, Label, ModelRef, Segment, State};
use super::space::first_name;
use super::{Input, Understanding, seconds};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::{Context, Reply, Request, TRUNCATED};

/// Labels shown per image.
const LABELS: usize = 5;
/// Labels below this are left out of an image's words.
const WORTH_SAYING: f32 = 0.05;

impl Understanding {
    /// Runs a branch within its budget. Errors are the caller's mistakes; everything else is a branch left out.
    pub(super) async fn branch(
        &self,
        modality: Modality,
        input: &Input,
        context: &Context,
        deadline: Option<Instant>,
    ) -> Result<Branch> {
        let model = self.model(modality);
        if input.emphasis(modality).mute {
            return Ok(Branch::silent(modality, model, State::Muted, "muted by the request"));
        }
        let started = Instant::now();
        let policy = self.policy(model);
        let (deadline, budget) = Self::budget(&policy, input.emphasis(modality).budget, deadline);
        let chosen = match self.choose(model, &policy, input.size(modality), budget) {
            Ok(chosen) => chosen,
            Err(reason) => {
                tracing::warn!(%modality, model, reason, "branch left out");
                return Ok(Branch::silent(modality, model, State::Late, reason));
            }
        };
        let context = Context { deadline, budget, ..context.clone() };
        let mut branch = match self.sense(modality, &chosen, input, &context).await {
            Ok(branch) => branch,
            Err(Error::InvalidArgument { message, .. }) => {
                return Err(Error::invalid(format!("parts.{modality}"), message));
            }
            Err(error @ (Error::DeadlineExceeded { .. } | Error::Exhausted { reason: "DEADLINE_UNMEETABLE", .. })) => {
                let reason = format!("missed its budget: {error}");
                Branch::silent(modality, model, State::Late, reason)
            }
            Err(error) => Branch::silent(modality, model, State::Failed, error.to_string()),
        };
        branch.seconds = seconds(started);
        if matches!(branch.state, State::Late | State::Failed) {
            tracing::warn!(%modality, model, reason = branch.reason, "branch left out");
        }
        Ok(branch)
    }

    /// The model of a sense.
    pub fn model(&self, modality: Modality) -> &str {
        match modality {
            Modality::Text => &self.options().text,
            Modality::Image => &self.options().image,
            Modality::Audio => &self.options().audio,
        }
    }

    /// What one sense says, by the model that was chosen, until the deadline.
    ///
    /// # Errors
    /// Whatever the models have.
    pub async fn sense(&self, modality: Modality, chosen: &Chosen, input: &Input, context: &Context) -> Result<Branch> {
        let sensed = async {
            match modality {
                Modality::Text => self.text(input.text.as_deref().unwrap_or_default(), context).await,
                Modality::Image => self.image(chosen, input, context).await,
                Modality::Audio => self.audio(chosen, input, context).await,
            }
        };
        context.bound("waiting for the branch", sensed).await
    }

    /// A reply of the model that was chosen, or of its stand-in if nobody takes requests for the model; and why it is not
    /// the one that was asked for.
    async fn ask(&self, chosen: &Chosen, request: Request, context: &Context) -> Result<(Reply, String)> {
        let request = Request { model: chosen.model.as_str().into(), ..request };
        let (refused, stand_in) = match (self.router.infer_within(&request, context).await, &chosen.stand_in) {
            (Err(refused), Some(stand_in)) if has_no_taker(&refused) => (refused, stand_in),
            (reply, _) => return Ok((reply?, chosen.reason.clone())),
        };
        let request = Request { model: stand_in.as_str().into(), ..request };
        match self.router.infer_within(&request, context).await {
            Ok(reply) => Ok((reply, format!("answered by {stand_in}: {refused}"))),
            Err(error) => {
                tracing::debug!(model = chosen.model, stand_in, %error, "no help from the stand-in");
                Err(refused)
            }
        }
    }

    async fn text(&self, text: &str, context: &Context) -> Result<Branch> {
        if text.trim().is_empty() {
            return Ok(Branch::silent(Modality::Text, &self.options().text, State::Empty, "no text in it"));
        }
        let (embedded, guard) = tokio::join!(self.embed(text, context), self.judge_text(text, context));
        let (embedding, reply) = embedded?;
        let mut branch = spoken(Modality::Text, &reply);
        branch.embedding = embedding;
        branch.words = text.to_owned();
        branch.truncated = reply.parameters.0.contains_key(TRUNCATED);
        Ok(branch.guarded(guard?))
    }

    async fn image(&self, chosen: &Chosen, input: &Input, context: &Context) -> Result<Branch> {
        let image = input.image.clone().unwrap_or_default();
        let request = Request::of_bytes(&chosen.model, "image", &image);
        let request = Request { outputs: vec!["probabilities".to_owned()], ..request };
        let (seen, guard, space) =
            tokio::join!(self.ask(chosen, request, context), self.judge_image(&image, context), self.space());
        let ((reply, reason), space) = (seen?, space?);
        let probabilities = reply.numbers("probabilities")?;
        let labels = space.labels(&probabilities, LABELS);
        let mut branch = spoken(Modality::Image, &reply);
        branch.reason = reason;
        branch.embedding = space.project(&probabilities);
        branch.words = alternative_text(&labels);
        branch.labels =
            labels.into_iter().map(|(name, probability)| Label { name: name.to_owned(), probability }).collect();
        Ok(branch.guarded(guard?))
    }

    async fn audio(&self, chosen: &Chosen, input: &Input, context: &Context) -> Result<Branch> {
        let request = Request::of_bytes(&chosen.model, "audio", input.audio.clone().unwrap_or_default());
        let (reply, reason) = self.ask(chosen, request, context).await?;
        let transcript = element(&reply, "transcript")?;
        let segments: Vec<Segment> = serde_json::from_str(&element(&reply, "segments")?)
            .map_err(|error| Error::Internal(format!("segments of {}: {error}", reply.model)))?;
        let mut branch = spoken(Modality::Audio, &reply);
        if transcript.is_empty() {
            branch.state = State::Empty;
            branch.reason = "no speech in it".to_owned();
            return Ok(branch);
        }
        // what is heard is as good a place for an injection as what is read
        let (embedded, guard) = tokio::join!(self.embed(&transcript, context), self.judge_text(&transcript, context));
        branch.embedding = embedded?.0;
        branch.words = transcript;
        branch.segments = segments;
        branch.reason = reason;
        Ok(branch.guarded(guard?))
    }

    /// The embedding of a text in the shared space.
    pub(super) async fn embed(&self, text: &str, context: &Context) -> Result<(Vec<f32>, Reply)> {
        let request = Request::of_bytes(&self.options().text, "text", text);
        let reply = self.router.infer_within(&request, context).await?;
        Ok((reply.numbers("embedding")?, reply))
    }
}

/// Whether nobody takes requests for a model at the moment: nobody holds it, or all who do refuse.
fn has_no_taker(error: &Error) -> bool {
    use Error::{Exhausted, FailedPrecondition, NotFound, Unavailable};
    matches!(error, NotFound { .. } | Unavailable { .. } | Exhausted { .. } | FailedPrecondition { .. })
}

fn spoken(modality: Modality, reply: &Reply) -> Branch {
    let mut branch = Branch::silent(modality, &reply.model, State::Ok, "");
    branch.model = ModelRef { name: reply.model.to_string(), version: reply.version.to_string() };
    branch
}

fn element(reply: &Reply, output: &str) -> Result<String> {
    let elements = reply.output(output)?.elements().map_err(|error| Error::Internal(error.to_string()))?;
    Ok(elements.first().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default())
}

/// A sentence for those who cannot see the image.
fn alternative_text(labels: &[(&str, f32)]) -> String {
    let worth: Vec<String> = labels
        .iter()
        .filter(|(_, probability)| *probability >= WORTH_SAYING)
        .map(|(name, probability)| format!("{} ({:.0} %)", first_name(name), probability * 100.0))
        .collect();
    match worth.split_first() {
        None => "A picture; what it shows is unclear.".to_owned(),
        Some((only, [])) => format!("A picture, probably of: {only}."),
        Some((first, others)) => format!("A picture, probably of: {first}; or perhaps {}.", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternative_texts_say_how_sure_they_are() {
        assert_eq!(
            alternative_text(&[("tabby, tabby cat", 0.62), ("lynx", 0.01)]),
            "A picture, probably of: tabby (62 %)."
        );
        assert!(alternative_text(&[("a", 0.01)]).contains("unclear"));
        assert!(alternative_text(&[("a", 0.5), ("b", 0.3)]).ends_with("or perhaps b (30 %)."));
    }
}
