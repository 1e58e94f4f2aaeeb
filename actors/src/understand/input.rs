//! What is to be understood.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::ensemble;
use super::report::{Branch, Emphasis, State};
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::Parameters;

/// What is to be understood.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// UTF-8 text.
    pub text: Option<String>,
    /// An encoded image.
    pub image: Option<Bytes>,
    /// An encoded clip.
    pub audio: Option<Bytes>,
    /// How much each modality counts.
    pub emphasis: BTreeMap<Modality, Emphasis>,
    /// What to answer; empty: the text, or a general question.
    pub question: String,
    /// No answer is wanted.
    pub no_answer: bool,
    /// Sampling of the answer, by the names of the generator's parameters.
    pub sampling: Parameters,
}

/// Weights and sampling are in their ranges.
///
/// # Errors
/// `InvalidArgument` with the field.
pub(crate) fn check(emphases: &BTreeMap<Modality, Emphasis>, sampling: &Parameters) -> Result<()> {
    for (modality, emphasis) in emphases {
        if !(emphasis.weight.is_finite() && emphasis.weight >= 0.0) {
            let field = format!("emphasis.{modality}.weight");
            return Err(Error::invalid(field, format!("{}, expected a finite number, 0 or more", emphasis.weight)));
        }
    }
    ensemble::check_sampling(sampling)
}

impl Input {
    /// What can be told without any model: weights and sampling are in their ranges. What is kept before it is done is
    /// checked before it is kept.
    ///
    /// # Errors
    /// `InvalidArgument` with the field.
    pub fn check(&self) -> Result<()> {
        check(&self.emphasis, &self.sampling)
    }

    pub(super) fn modalities(&self) -> Vec<Modality> {
        let given = [self.text.is_some(), self.image.is_some(), self.audio.is_some()];
        Modality::ALL.into_iter().zip(given).filter_map(|(modality, given)| given.then_some(modality)).collect()
    }

    /// What to answer: what was asked, or else the text if it speaks, or else a general question. A text that is muted
    /// or contained asks nothing either.
    pub(super) fn question(&self, branches: &[Branch]) -> &str {
        let speaks = branches.iter().any(|branch| branch.modality == Modality::Text && branch.state == State::Ok);
        let asked = [Some(self.question.as_str()), self.text.as_deref().filter(|_| speaks)];
        let asked = asked.into_iter().flatten().map(str::trim).find(|question| !question.is_empty());
        asked.unwrap_or("What is going on here?")
    }

    /// How big the part of a modality is, as a request's [`size`](crate::request::Request::size).
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn size(&self, modality: Modality) -> f64 {
        let bytes = match modality {
            Modality::Text => self.text.as_ref().map_or(0, String::len),
            Modality::Image => self.image.as_ref().map_or(0, Bytes::len),
            Modality::Audio => self.audio.as_ref().map_or(0, Bytes::len),
        };
        (bytes as f64 / 1024.0).max(1.0)
    }

    pub(super) fn emphasis(&self, modality: Modality) -> Emphasis {
        self.emphasis.get(&modality).copied().unwrap_or_default()
    }
}
