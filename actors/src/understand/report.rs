//! What an understanding says, in the form in which it is kept and shown.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::fusion::Fusion;
use crate::batching::entry::Finish;
use crate::error::Error;
use crate::manifest::Modality;

/// How much a modality counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Emphasis {
    /// Weight of the fusion, 0 or more.
    pub weight: f64,
    /// Never computed.
    pub mute: bool,
    /// Time that its branch may take; nothing: what its model and the deadline give.
    pub budget: Option<Duration>,
}

impl Default for Emphasis {
    fn default() -> Self {
        Self { weight: 1.0, mute: false, budget: None }
    }
}

/// How a branch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It speaks.
    Ok,
    /// The caller does not want it.
    Muted,
    /// It missed its budget.
    Late,
    /// A model failed.
    Failed,
    /// A guard contained it.
    Blocked,
    /// There is nothing in it: no speech, no text.
    Empty,
}

/// Which version of which model spoke.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ModelRef {
    pub name: String,
    pub version: String,
}

/// A class and its probability.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Label {
    pub name: String,
    pub probability: f32,
}

/// Words and when they were said, in seconds; how sure the recogniser is of the window that they were heard in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Segment {
    pub start: f64,
    pub end: f64,
    pub text: String,
    #[serde(default)]
    pub avg_logprob: f32,
    #[serde(default)]
    pub no_speech_prob: f32,
    #[serde(default)]
    pub compression_ratio: f32,
    #[serde(default)]
    pub language: String,
}

/// A guard's judgement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guard {
    /// Who judged.
    pub model: ModelRef,
    /// Probability that it should act; nothing if it could not judge.
    pub score: Option<f32>,
    /// Why it could not judge.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Score from which it acts.
    pub threshold: f32,
    /// Whether it did.
    pub triggered: bool,
    /// Whether the branch was contained.
    pub blocked: bool,
}

/// What one sense said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Branch {
    /// Which sense.
    pub modality: Modality,
    /// Which model.
    pub model: ModelRef,
    /// How it ended.
    pub state: State,
    /// Why it was left out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where it stands in the shared space, of length 1; empty if it does not speak.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embedding: Vec<f32>,
    /// Top classes of an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    /// Timed speech of a clip.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// What it said, in words.
    pub words: String,
    /// What guards thought of it.
    pub guards: Vec<Guard>,
    /// How long it took.
    pub seconds: f64,
    /// The text was longer than the model reads.
    pub truncated: bool,
}

impl Branch {
    /// A branch that has not spoken.
    pub fn silent(modality: Modality, model: &str, state: State, reason: impl Into<String>) -> Self {
        Self {
            modality,
            model: ModelRef { name: model.to_owned(), version: String::new() },
            state,
            reason: reason.into(),
            embedding: Vec::new(),
            labels: Vec::new(),
            segments: Vec::new(),
            words: String::new(),
            guards: Vec::new(),
            seconds: 0.0,
            truncated: false,
        }
    }
}

/// The answer in words.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// What was written.
    pub text: String,
    /// Who wrote it.
    pub model: ModelRef,
    /// Senses whose words it was written from.
    #[serde(default)]
    pub evidence: Vec<Modality>,
    /// For readers who cannot see the image.
    pub alternative_text: String,
    /// For readers who cannot hear the clip.
    pub transcript: String,
    /// `stop`, `length`, or empty.
    pub finish_reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Why there is no answer, or not all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same, for those who may try again.
    #[serde(skip)]
    pub error: Option<Error>,
}

impl Answer {
    /// What every answer carries: words for what was seen and heard.
    pub fn of(branches: &[Branch]) -> Self {
        let words = |modality| {
            let spoken = branches.iter().find(|branch| branch.modality == modality && branch.state == State::Ok);
            spoken.map(|branch| branch.words.clone()).unwrap_or_default()
        };
        Self { alternative_text: words(Modality::Image), transcript: words(Modality::Audio), ..Self::default() }
    }

    /// The generator has ended.
    pub fn end(&mut self, end: super::answer::End) {
        self.model = end.model;
        self.finish_reason = end.finish_reason;
        self.prompt_tokens = end.prompt_tokens;
        self.completion_tokens = end.completion_tokens;
    }

    /// The caller's own mistake that kept it from being written: a question that nobody can be asked. A text that stands in
    /// for a question has been sensed all the same, and its understanding is worth something without an answer.
    pub(super) fn mistake(&self, question: &str) -> Option<Error> {
        match &self.error {
            Some(Error::InvalidArgument { message, .. }) if !question.trim().is_empty() => {
                Some(Error::invalid("question", message))
            }
            _ => None,
        }
    }

    /// Why it ended, if it did.
    pub fn finish(&self) -> Option<Finish> {
        [Finish::Stop, Finish::Length].into_iter().find(|finish| finish.as_str() == self.finish_reason)
    }
}

/// How long a stage took.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Timing {
    pub stage: String,
    pub seconds: f64,
}

impl Timing {
    /// A stage that ends now.
    pub fn since(stage: &str, started: Instant) -> Self {
        Self { stage: stage.to_owned(), seconds: super::seconds(started) }
    }
}

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What each sense said, in the order text, image, audio.
    pub branches: Vec<Branch>,
    /// What they say together.
    pub fusion: Fusion,
    /// The answer in words.
    pub answer: Answer,
    /// Something that was asked for is missing.
    pub degraded: bool,
    /// How long each stage took.
    pub timings: Vec<Timing>,
}
