//! The report as JSON: the fields of `sensorium.v1.UnderstandResult`, enumerations as short lower-case names.

use sensorium_proto::v1;
use serde::Serialize;

/// `MODALITY_TEXT` as `text`, `STATE_OK` as `ok`.
pub(in crate::verbs) fn short(name: &str) -> String {
    ["MODALITY_", "STATE_", "VERDICT_", "FINISH_REASON_"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
        .to_lowercase()
}

#[derive(Serialize)]
pub(in crate::verbs) struct Report {
    branches: Vec<Branch>,
    fusion: Option<Fusion>,
    answer: Option<Answer>,
    degraded: bool,
    timings: Vec<Timing>,
}

#[derive(Serialize)]
struct Branch {
    modality: String,
    model: Option<Model>,
    state: String,
    reason: String,
    embedding: Vec<f32>,
    labels: Vec<Label>,
    segments: Vec<Segment>,
    words: String,
    guards: Vec<Guard>,
    seconds: f64,
    truncated: bool,
}

#[derive(Serialize)]
struct Model {
    name: String,
    version: String,
}

#[derive(Serialize)]
struct Label {
    name: String,
    probability: f32,
}

#[derive(Serialize)]
struct Segment {
    start_seconds: f64,
    end_seconds: f64,
    text: String,
    avg_logprob: f32,
    no_speech_prob: f32,
    compression_ratio: f32,
    language: String,
}

#[derive(Serialize)]
struct Guard {
    model: Option<Model>,
    score: Option<f32>,
    threshold: f32,
    triggered: bool,
    blocked: bool,
    reason: String,
}

#[derive(Serialize)]
struct Fusion {
    embedding: Vec<f32>,
    contributions: Vec<Contribution>,
    consistency: Vec<Consistency>,
}

#[derive(Serialize)]
struct Contribution {
    modality: String,
    shapley: f64,
    weight: f64,
}

#[derive(Serialize)]
struct Consistency {
    a: String,
    b: String,
    similarity: f64,
    verdict: String,
}

#[derive(Serialize)]
struct Answer {
    text: String,
    model: Option<Model>,
    alternative_text: String,
    transcript: String,
    finish_reason: String,
    prompt_tokens: u32,
    completion_tokens: u32,
    reason: String,
    evidence: Vec<String>,
}

#[derive(Serialize)]
struct Timing {
    stage: String,
    seconds: f64,
}

fn model(model: v1::ModelRef) -> Model {
    Model { name: model.name, version: model.version }
}

impl From<v1::UnderstandResult> for Report {
    fn from(result: v1::UnderstandResult) -> Self {
        let timing = |timing: v1::Timing| Timing { stage: timing.stage, seconds: timing.seconds };
        Self {
            branches: result.branches.into_iter().map(branch).collect(),
            fusion: result.fusion.map(fusion),
            answer: result.answer.map(answer),
            degraded: result.degraded,
            timings: result.timings.into_iter().map(timing).collect(),
        }
    }
}

fn branch(branch: v1::Branch) -> Branch {
    let (modality, state) = (short(branch.modality().as_str_name()), short(branch.state().as_str_name()));
    let label = |label: v1::Label| Label { name: label.name, probability: label.probability };
    let segment = |segment: v1::Segment| Segment {
        start_seconds: segment.start_seconds,
        end_seconds: segment.end_seconds,
        text: segment.text,
        avg_logprob: segment.avg_logprob,
        no_speech_prob: segment.no_speech_prob,
        compression_ratio: segment.compression_ratio,
        language: segment.language,
    };
    let guard = |guard: v1::Guard| Guard {
        model: guard.model.map(model),
        score: guard.score,
        threshold: guard.threshold,
        triggered: guard.triggered,
        blocked: guard.blocked,
        reason: guard.reason,
    };
    Branch {
        modality,
        model: branch.model.map(model),
        state,
        reason: branch.reason,
        embedding: branch.embedding,
        labels: branch.labels.into_iter().map(label).collect(),
        segments: branch.segments.into_iter().map(segment).collect(),
        words: branch.words,
        guards: branch.guards.into_iter().map(guard).collect(),
        seconds: branch.seconds,
        truncated: branch.truncated,
    }
}

fn fusion(fusion: v1::Fusion) -> Fusion {
    let contribution = |part: v1::Contribution| Contribution {
        modality: short(part.modality().as_str_name()),
        shapley: part.shapley,
        weight: part.weight,
    };
    let consistency = |pair: v1::Consistency| Consistency {
        a: short(pair.a().as_str_name()),
        b: short(pair.b().as_str_name()),
        similarity: pair.similarity,
        verdict: short(pair.verdict().as_str_name()),
    };
    Fusion {
        embedding: fusion.embedding,
        contributions: fusion.contributions.into_iter().map(contribution).collect(),
        consistency: fusion.consistency.into_iter().map(consistency).collect(),
    }
}

fn answer(answer: v1::Answer) -> Answer {
    let finish_reason = short(answer.finish_reason().as_str_name());
    let evidence = answer.evidence().map(|sense| short(sense.as_str_name())).collect();
    Answer {
        text: answer.text,
        model: answer.model.map(model),
        alternative_text: answer.alternative_text,
        transcript: answer.transcript,
        finish_reason,
        prompt_tokens: answer.prompt_tokens,
        completion_tokens: answer.completion_tokens,
        reason: answer.reason,
        evidence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerations_are_short() {
        let pair = v1::Consistency { a: 1, b: 2, similarity: 0.5, verdict: v1::consistency::Verdict::Agree.into() };
        let fused = v1::Fusion { consistency: vec![pair], embedding: vec![1.0], ..Default::default() };
        let result = v1::UnderstandResult { fusion: Some(fused), degraded: true, ..Default::default() };
        let json = serde_json::to_value(Report::from(result)).unwrap();
        assert_eq!(json["fusion"]["consistency"][0]["a"], "text");
        assert_eq!(json["fusion"]["consistency"][0]["verdict"], "agree");
        assert_eq!((&json["degraded"], &json["answer"]), (&serde_json::json!(true), &serde_json::Value::Null));
    }
}
