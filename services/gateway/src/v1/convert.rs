//! Our reports in the protocol's terms, and its requests in ours.

use std::time::Duration;

use sensorium_actors::batching::entry::Finish;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::manifest::Modality as Sense;
use sensorium_actors::request::Parameters;
use sensorium_actors::understand::fusion::{self, Verdict};
use sensorium_actors::understand::report::{self, Emphasis as Weight, State};
use sensorium_actors::understand::{Event, Input, ensemble};
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::understand_event::Event as Told;
use sensorium_proto::v1::*;

/// Ours to theirs.
pub fn modality(sense: Sense) -> Modality {
    match sense {
        Sense::Text => Modality::Text,
        Sense::Image => Modality::Image,
        Sense::Audio => Modality::Audio,
    }
}

/// A request for understanding.
pub fn input(request: UnderstandRequest) -> Result<Input> {
    let mut input = Input {
        question: request.question,
        no_answer: request.no_answer,
        sampling: sampling(request.sampling.unwrap_or_default()),
        ..Input::default()
    };
    for (index, part) in request.parts.into_iter().enumerate() {
        let twice = |modality| {
            Error::invalid(format!("parts[{index}]"), format!("a second {modality} part, expected at most one"))
        };
        match part.content {
            None => return Err(Error::invalid(format!("parts[{index}]"), "empty, expected text, image or audio")),
            Some(Content::Text(text)) => {
                if input.text.replace(text).is_some() {
                    return Err(twice("text"));
                }
            }
            Some(Content::Image(image)) => {
                if input.image.replace(image).is_some() {
                    return Err(twice("image"));
                }
            }
            Some(Content::Audio(audio)) => {
                if input.audio.replace(audio).is_some() {
                    return Err(twice("audio"));
                }
            }
        }
    }
    for (index, emphasis) in request.emphasis.into_iter().enumerate() {
        let sense = match emphasis.modality() {
            Modality::Text => Sense::Text,
            Modality::Image => Sense::Image,
            Modality::Audio => Sense::Audio,
            Modality::Unspecified => {
                let field = format!("emphasis[{index}].modality");
                return Err(Error::invalid(field, "unspecified, expected text, image or audio"));
            }
        };
        let weight = emphasis.weight.unwrap_or(1.0);
        let budget = emphasis.budget_ms.map(|budget| Duration::from_millis(budget.into()));
        input.emphasis.insert(sense, Weight { weight, mute: emphasis.mute, budget });
    }
    input.check()?;
    Ok(input)
}

/// Sampling as the generator's parameters.
pub fn sampling(sampling: Sampling) -> Parameters {
    let numbers = [("temperature", sampling.temperature), ("top_p", sampling.top_p)];
    ensemble::sampling(sampling.max_tokens, numbers, sampling.top_k, sampling.seed, &sampling.stop)
}

/// An event.
pub fn event(event: Event) -> UnderstandEvent {
    let told = match event {
        Event::Branch(told) => Told::Branch(branch(told)),
        Event::Fusion(told) => Told::Fusion(fused(told)),
        Event::Delta(text) => Told::AnswerDelta(text),
        Event::Done(report) => Told::Result(result(*report)),
    };
    UnderstandEvent { event: Some(told) }
}

/// A report.
pub fn result(report: report::Report) -> UnderstandResult {
    let answer = report.answer;
    let finish = match answer.finish() {
        Some(Finish::Stop) => FinishReason::Stop,
        Some(Finish::Length) => FinishReason::Length,
        None => FinishReason::Unspecified,
    };
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let timings = report.timings.into_iter().map(|timing| Timing { stage: timing.stage, seconds: timing.seconds });
    UnderstandResult {
        branches: report.branches.into_iter().map(branch).collect(),
        fusion: Some(fused(report.fusion)),
        answer: Some(Answer {
            text: answer.text,
            model: Some(model(answer.model)),
            alternative_text: answer.alternative_text,
            transcript: answer.transcript,
            finish_reason: finish.into(),
            prompt_tokens: count(answer.prompt_tokens),
            completion_tokens: count(answer.completion_tokens),
            reason: answer.reason,
            evidence: answer.evidence.into_iter().map(|sense| modality(sense).into()).collect(),
        }),
        degraded: report.degraded,
        timings: timings.collect(),
    }
}

fn model(model: report::ModelRef) -> ModelRef {
    ModelRef { name: model.name, version: model.version }
}

fn branch(branch: report::Branch) -> Branch {
    let state = match branch.state {
        State::Ok => branch::State::Ok,
        State::Muted => branch::State::Muted,
        State::Late => branch::State::Late,
        State::Failed => branch::State::Failed,
        State::Blocked => branch::State::Blocked,
        State::Empty => branch::State::Empty,
    };
    let labels = branch.labels.into_iter().map(|label| Label { name: label.name, probability: label.probability });
    let segments = branch.segments.into_iter().map(|segment| Segment {
        start_seconds: segment.start,
        end_seconds: segment.end,
        text: segment.text,
        avg_logprob: segment.avg_logprob,
        no_speech_prob: segment.no_speech_prob,
        compression_ratio: segment.compression_ratio,
        language: segment.language,
    });
    let guards = branch.guards.into_iter().map(|guard| Guard {
        model: Some(model(guard.model)),
        score: guard.score,
        threshold: guard.threshold,
        triggered: guard.triggered,
        blocked: guard.blocked,
        reason: guard.reason,
    });
    Branch {
        modality: modality(branch.modality).into(),
        model: Some(model(branch.model)),
        state: state.into(),
        reason: branch.reason,
        embedding: branch.embedding,
        labels: labels.collect(),
        segments: segments.collect(),
        words: branch.words,
        guards: guards.collect(),
        seconds: branch.seconds,
        truncated: branch.truncated,
    }
}

fn fused(fusion: fusion::Fusion) -> Fusion {
    let contributions = fusion.contributions.into_iter().map(|contribution| Contribution {
        modality: modality(contribution.modality).into(),
        shapley: contribution.shapley,
        weight: contribution.weight,
    });
    let consistency = fusion.consistency.into_iter().map(|pair| {
        let verdict = match pair.verdict {
            Verdict::Agree => consistency::Verdict::Agree,
            Verdict::Unrelated => consistency::Verdict::Unrelated,
            Verdict::Conflict => consistency::Verdict::Conflict,
        };
        Consistency {
            a: modality(pair.a).into(),
            b: modality(pair.b).into(),
            similarity: pair.similarity,
            verdict: verdict.into(),
        }
    });
    Fusion { contributions: contributions.collect(), consistency: consistency.collect(), embedding: fusion.embedding }
}
