//! The answer in words, grounded in what the senses said.

use async_stream::try_stream;
use futures::{Stream, StreamExt};

use super::evidence::evidence;
use super::report::{Branch, ModelRef};
use super::{Input, Understanding};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::{Context, Parameter, Request};

/// Tokens of an answer when the request does not say.
const MAX_TOKENS: u64 = 80;

/// A part of the answer.
pub enum Piece {
    /// What it is written from; the first.
    Evidence(Vec<Modality>),
    /// More text.
    Text(String),
    /// It has ended.
    End(End),
}

/// How an answer ended.
#[allow(missing_docs)]
pub struct End {
    pub model: ModelRef,
    pub finish_reason: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

impl Understanding {
    /// Writes the answer piece by piece.
    pub(super) fn answer<'a>(
        &'a self,
        input: &'a Input,
        branches: &'a [Branch],
        context: &'a Context,
    ) -> impl Stream<Item = Result<Piece>> + Send + 'a {
        try_stream! {
            // a text that is the question is no evidence for its answer
            let question = input.question(branches);
            let asked = input.question.trim().is_empty() && branches.len() > 1;
            let given = branches.iter().filter(|branch| !(asked && branch.modality == Modality::Text));
            if !input.question.trim().is_empty() {
                // what is asked is as good a place for an injection as what is read
                let guard = self.judge_text(question, context).await?;
                if let Some(guard) = guard.filter(|guard| guard.blocked) {
                    Err(Error::FailedPrecondition { reason: "BLOCKED", message: guard.verdict() })?;
                }
            }
            let used = self.relevant(given, question, context).await;
            if used.is_empty() {
                Err(Error::FailedPrecondition {
                    reason: "NO_EVIDENCE",
                    message: "no sense that the question is about said anything to answer from".to_owned(),
                })?;
            }
            yield Piece::Evidence(used.iter().map(|branch| branch.modality).collect());
            let evidence = evidence(used);
            let mut request = Request::of_bytes(&self.options().generator, "prompt", prompt(question, &evidence));
            request.parameters = input.sampling.clone();
            if !request.parameters.0.contains_key("max_tokens") {
                request.parameters.set("max_tokens", Parameter::Uint(MAX_TOKENS));
            }
            let mut pieces = self.router.stream_within(request, context.clone()).await?;
            while let Some(reply) = pieces.next().await {
                let reply = reply?;
                let text = reply.output("text")?.elements().map_err(|error| Error::Internal(error.to_string()))?;
                for piece in text.iter().filter(|piece| !piece.is_empty()) {
                    yield Piece::Text(String::from_utf8_lossy(piece).into_owned());
                }
                if reply.last {
                    let count = |name| reply.parameters.count(name).ok().flatten().unwrap_or(0);
                    yield Piece::End(End {
                        model: ModelRef { name: reply.model.to_string(), version: reply.version.to_string() },
                        finish_reason: reply.parameters.text("finish_reason")?.unwrap_or_default().to_owned(),
                        prompt_tokens: count("prompt_tokens"),
                        completion_tokens: count("completion_tokens"),
                    });
                }
            }
        }
    }
}

/// A small model follows what stands last, so the question does.
fn prompt(question: &str, evidence: &str) -> String {
    format!("{evidence}\nUse only the observations above and answer in one short sentence: {question}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_stands_last() {
        let prompt = prompt("What is it?", "Text: It rains.\n");
        assert!(prompt.starts_with("Text: It rains.") && prompt.ends_with("What is it?"), "{prompt}");
    }
}
