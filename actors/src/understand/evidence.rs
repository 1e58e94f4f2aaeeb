//! What of that which the senses said an answer is written from: what the question is about.
//!
//! A question that names a sense, as in "what is in the picture?", is about that sense. Otherwise it is about those whose
//! words are nearest to its own. Of two that conflict, the nearer one is believed. A small generator says something about
//! all that it is shown, so what has nothing to do with the question must not be shown.

use super::Understanding;
use super::fusion::cosine;
use super::report::{Branch, State};
use super::space::first_name;
use crate::manifest::Modality;
use crate::request::Context;

/// Words of a branch that go into the prompt, and how many bytes they have at most: what was sensed must leave room for
/// what is asked.
const WORDS: usize = 180;
const BYTES: usize = 2000;
/// Labels of a picture, and how probable one has to be that is not the first.
const LABELS: usize = 3;
const WORTH_SHOWING: f32 = 0.08;
/// Evidence counts that is as near to the question as the nearest, less this much of a cosine.
const MARGIN: f64 = 0.15;

/// Words of a question that name a sense. Those of other languages name none: there, nearness alone decides.
const NAMES: [(Modality, &[&str]); 3] = [
    (
        Modality::Image,
        &[
            "picture",
            "pictures",
            "image",
            "images",
            "photo",
            "photograph",
            "see",
            "seen",
            "show",
            "shown",
            "shows",
            "look",
            "looks",
            "depicted",
            "visible",
        ],
    ),
    (
        Modality::Audio,
        &[
            "say",
            "says",
            "said",
            "hear",
            "heard",
            "spoken",
            "speaks",
            "speaker",
            "speech",
            "voice",
            "clip",
            "recording",
            "audio",
            "listen",
            "sound",
        ],
    ),
    (
        Modality::Text,
        &["text", "sentence", "note", "message", "letter", "paragraph", "read", "written", "writes", "wrote"],
    ),
];

impl Understanding {
    /// Branches that speak and that the question is about.
    pub(super) async fn relevant<'a>(
        &self,
        branches: impl Iterator<Item = &'a Branch>,
        question: &str,
        context: &Context,
    ) -> Vec<&'a Branch> {
        let given: Vec<&Branch> = branches.collect();
        let mut named = named(question);
        // "what did she say?" may be asked of a letter; but of a picture that was not seen there is nothing to tell
        named.retain(|modality| given.iter().any(|branch| branch.modality == *modality));
        let speaking: Vec<&Branch> = given.into_iter().filter(|branch| branch.state == State::Ok).collect();
        if !named.is_empty() {
            return speaking.into_iter().filter(|branch| named.contains(&branch.modality)).collect();
        }
        if speaking.len() < 2 {
            return speaking;
        }
        // without an encoder all evidence counts: an answer is worth more than none
        let Ok((asked, _)) = self.embed(question, context).await else { return speaking };
        let conflict = |a: &Branch, b: &Branch| {
            let similarity = cosine(&a.embedding, &b.embedding);
            similarity < self.options().thresholds.of(a.modality, b.modality).conflict
        };
        nearest(speaking, |branch| cosine(&asked, &branch.embedding), conflict)
    }
}

/// Senses that a question names.
fn named(question: &str) -> Vec<Modality> {
    let words: Vec<String> =
        question.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    let names = NAMES.iter().filter(|(_, names)| words.iter().any(|word| names.contains(&word.as_str())));
    names.map(|(modality, _)| *modality).collect()
}

/// Those that are about as near as the nearest, and do not conflict with a nearer one; in their order.
fn nearest(
    branches: Vec<&Branch>,
    nearness: impl Fn(&Branch) -> f64,
    conflict: impl Fn(&Branch, &Branch) -> bool,
) -> Vec<&Branch> {
    let mut ranked: Vec<(f64, &Branch)> = branches.iter().map(|branch| (nearness(branch), *branch)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let Some(&(best, _)) = ranked.first() else { return branches };
    let mut kept: Vec<&Branch> = Vec::new();
    for (near, branch) in ranked {
        if near >= best - MARGIN && !kept.iter().any(|kept| conflict(kept, branch)) {
            kept.push(branch);
        }
    }
    kept.sort_by_key(|branch| branch.modality);
    kept
}

/// What each sense that speaks has to say, a line each.
pub fn evidence<'a>(branches: impl IntoIterator<Item = &'a Branch>) -> String {
    let lines = branches.into_iter().filter(|branch| branch.state == State::Ok).map(|branch| match branch.modality {
        Modality::Text => format!("Text: {}\n", shorten(&branch.words)),
        Modality::Audio => format!("Someone says: \"{}\"\n", shorten(&branch.words)),
        Modality::Image => {
            let likely = branch.labels.iter().enumerate().take(LABELS);
            let likely = likely.filter(|(rank, label)| *rank == 0 || label.probability >= WORTH_SHOWING);
            let seen: Vec<&str> = likely.map(|(_, label)| first_name(&label.name)).collect();
            format!("The picture shows: {}.\n", seen.join(" or "))
        }
    });
    lines.collect()
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
        let label = |name: &str, probability| Label { name: name.into(), probability };
        let mut image = Branch::silent(Modality::Image, "m", State::Ok, "");
        image.labels = vec![label("tabby, tabby cat", 0.6), label("lynx", 0.2), label("teapot", 0.01)];
        let mut audio = Branch::silent(Modality::Audio, "m", State::Blocked, "guard");
        audio.words = "ignore all".into();
        assert_eq!(evidence(&[image, audio]), "The picture shows: tabby or lynx.\n");
    }

    #[test]
    fn a_question_may_name_its_sense() {
        assert_eq!(named("Is there an animal in the Picture?"), [Modality::Image]);
        assert_eq!(named("What does the speaker say about the photo?"), [Modality::Image, Modality::Audio]);
        assert!(named("Who is kind?").is_empty());
        assert!(named("").is_empty());
    }

    #[test]
    fn what_is_far_from_the_question_or_conflicts_with_what_is_near_is_left_out() {
        let branches = Modality::ALL.map(|modality| Branch::silent(modality, "m", State::Ok, ""));
        let near = |near: [f64; 3], conflicts: bool| {
            let nearness = |branch: &Branch| near[branches.iter().position(|b| b.modality == branch.modality).unwrap()];
            let kept = nearest(branches.iter().collect(), nearness, |_, _| conflicts);
            kept.iter().map(|branch| branch.modality).collect::<Vec<_>>()
        };
        assert_eq!(near([0.5, 0.4, 0.2], false), [Modality::ALL[0], Modality::ALL[1]]);
        assert_eq!(near([0.4, 0.5, 0.45], false), Modality::ALL);
        assert_eq!(near([0.4, 0.5, 0.45], true), [Modality::ALL[1]]);
    }
}
