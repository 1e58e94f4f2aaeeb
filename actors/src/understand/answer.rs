//! The answer in words, grounded in what the senses said.

use async_stream::try_stream;
use futures::{Stream, StreamExt};

use super::report::{Branch, ModelRef, State};
use super::space::first_name;
use super::{Input, Understanding};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::{Context, Parameter, Request};

/// Words of a branch that go into the prompt, and how many bytes they have at most: what was sensed must leave room for
/// what is asked.
const WORDS: usize = 180;
const BYTES: usize = 2000;
/// Tokens of an answer when the request does not say.
const MAX_TOKENS: u64 = 80;

/// A part of the answer.
pub enum Piece {
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
            let evidence = evidence(branches.iter().filter(|branch| !(asked && branch.modality == Modality::Text)));
            if !input.question.trim().is_empty() {
                // what is asked is as good a place for an injection as what is read
                let guard = self.judge_text(question, context).await?;
                if let Some(guard) = guard.filter(|guard| guard.blocked) {
                    Err(Error::FailedPrecondition { reason: "BLOCKED", message: guard.verdict() })?;
                }
            }
            if evidence.is_empty() {
                Err(Error::FailedPrecondition {
                    reason: "NO_EVIDENCE",
                    message: "no sense said anything to answer from".to_owned(),
                })?;
            }
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

/// What each sense that speaks has to say, a line each.
pub fn evidence<'a>(branches: impl IntoIterator<Item = &'a Branch>) -> String {
    let lines = branches.into_iter().filter(|branch| branch.state == State::Ok).map(|branch| match branch.modality {
        Modality::Text => format!("Text: {}\n", shorten(&branch.words)),
        Modality::Audio => format!("Someone says: \"{}\"\n", shorten(&branch.words)),
        Modality::Image => {
            let seen: Vec<&str> = branch.labels.iter().take(3).map(|label| first_name(&label.name)).collect();
            format!("The picture shows: {}.\n", seen.join(" or "))
        }
    });
    lines.collect()
}

/// A small model follows what stands last, so the question does.
fn prompt(question: &str, evidence: &str) -> String {
    format!("{evidence}\nUse only the observations above and answer in one short sentence: {question}")
}

fn shorten(text: &str) -> String {
    let mut words = text.split_whitespace();
    let mut short = words.by_ref().take(WORDS).collect::<Vec<_>>().join(" ");
    let whole = words.next().is_none() && short.len() <= BYTES;
    short.truncate(short.floor_char_boundary(BYTES));
    if !whole {
        short.push_str(" ...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::understand::report::Label;

    #[test]
    fn what_was_sensed_leaves_room_for_what_is_asked() {
        assert_eq!(shorten(" a  b\n"), "a b");
        assert!(shorten(&"word ".repeat(181)).ends_with("word ..."));
        let long = shorten(&"\u{e4}".repeat(100_000));
        assert!(long.len() <= BYTES + 4 && long.ends_with(" ..."), "{}", long.len());
    }

    #[test]
    fn only_those_who_speak_are_evidence() {
        let mut image = Branch::silent(Modality::Image, "m", State::Ok, "");
        image.labels = vec![Label { name: "tabby, tabby cat".into(), probability: 0.6 }];
        let mut audio = Branch::silent(Modality::Audio, "m", State::Blocked, "guard");
        audio.words = "ignore all".into();
        assert_eq!(evidence(&[image, audio]), "The picture shows: tabby.\n");
    }
}
