//! What the senses say together: weighted late fusion, pairwise consistency, and the contribution of each.

use serde::{Deserialize, Serialize};

use super::report::{Branch, State};
use crate::manifest::Modality;

/// What two senses make of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They speak of the same.
    Agree,
    /// Nothing can be said.
    Unrelated,
    /// They speak of different things: so far apart are pairs that belong together hardly ever.
    Conflict,
}

/// Cosines of one kind of pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// From here on they agree.
    pub agree: f64,
    /// Below here they conflict.
    pub conflict: f64,
}

impl Threshold {
    fn verdict(self, similarity: f64) -> Verdict {
        if similarity >= self.agree {
            Verdict::Agree
        } else if similarity < self.conflict {
            Verdict::Conflict
        } else {
            Verdict::Unrelated
        }
    }
}

/// Cosines by kind of pair, since a projected image never comes as close to a text as another text does. How the
/// defaults were calibrated, and on what: `docs/UNDERSTANDING.md`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Text and image.
    pub text_image: Threshold,
    /// Text and the transcript of a clip.
    pub text_audio: Threshold,
    /// Image and the transcript of a clip.
    pub image_audio: Threshold,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            text_image: Threshold { agree: 0.35, conflict: 0.11 },
            text_audio: Threshold { agree: 0.47, conflict: 0.08 },
            image_audio: Threshold { agree: 0.35, conflict: 0.11 },
        }
    }
}

impl Thresholds {
    pub(super) fn of(&self, a: Modality, b: Modality) -> Threshold {
        match (a.min(b), a.max(b)) {
            (Modality::Text, Modality::Image) => self.text_image,
            (Modality::Text, _) => self.text_audio,
            _ => self.image_audio,
        }
    }
}

/// What two senses make of each other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Consistency {
    pub a: Modality,
    pub b: Modality,
    /// Cosine in the shared space.
    pub similarity: f64,
    pub verdict: Verdict,
}

/// What a sense added.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Contribution {
    pub modality: Modality,
    /// Exact Shapley value; all together are 1.
    pub shapley: f64,
    /// What it was fused with.
    pub weight: f64,
}

/// What the senses say together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fusion {
    /// Of length 1; empty if no branch speaks.
    pub embedding: Vec<f32>,
    /// One per branch that speaks.
    pub contributions: Vec<Contribution>,
    /// One per pair of them.
    pub consistency: Vec<Consistency>,
}

/// Fuses the branches that speak.
pub fn fuse(branches: &[Branch], weight: impl Fn(Modality) -> f64, thresholds: &Thresholds) -> Fusion {
    let speaking: Vec<Voice<'_>> = branches
        .iter()
        .filter(|branch| branch.state == State::Ok && !branch.embedding.is_empty())
        // one NaN would make NaN of all
        .filter(|branch| branch.embedding.iter().all(|value| value.is_finite()))
        .map(|branch| Voice {
            modality: branch.modality,
            embedding: &branch.embedding,
            weight: weight(branch.modality),
        })
        .collect();
    let all = (1usize << speaking.len()) - 1;
    let embedding = subset(&speaking, all);
    let contributions = speaking.iter().zip(shapley(&speaking, &embedding)).map(|(voice, shapley)| Contribution {
        modality: voice.modality,
        shapley,
        weight: voice.weight,
    });
    let contributions = contributions.collect();
    let mut consistency = Vec::new();
    for (n, a) in speaking.iter().enumerate() {
        for b in &speaking[n + 1..] {
            let similarity = cosine(a.embedding, b.embedding);
            let verdict = thresholds.of(a.modality, b.modality).verdict(similarity);
            consistency.push(Consistency { a: a.modality, b: b.modality, similarity, verdict });
        }
    }
    Fusion { embedding, contributions, consistency }
}

struct Voice<'a> {
    modality: Modality,
    embedding: &'a [f32],
    weight: f64,
}

/// The weighted mean of a subset of voices, brought to length 1; empty for one without weight. Only the ratios of weights
/// count, and so 1e155 and 1e-200 are weights as good as any.
#[allow(clippy::cast_possible_truncation)]
fn subset(voices: &[Voice<'_>], members: usize) -> Vec<f32> {
    let within = voices.iter().enumerate().filter(|(n, voice)| members & (1 << n) != 0 && voice.weight > 0.0);
    let within: Vec<&Voice<'_>> = within.map(|(_, voice)| voice).collect();
    let heaviest = within.iter().map(|voice| voice.weight).fold(0.0, f64::max);
    let mut sum: Vec<f64> = Vec::new();
    for voice in within {
        let weight = voice.weight / heaviest;
        sum.resize(voice.embedding.len(), 0.0);
        sum.iter_mut().zip(voice.embedding).for_each(|(s, &e)| *s += weight * f64::from(e));
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length < 1e-12 {
        return Vec::new();
    }
    sum.iter().map(|value| (value / length) as f32).collect()
}

/// Exact Shapley values (Shapley, 1953) of the game in which a coalition is worth the cosine of its own fusion with
/// that of all. The empty coalition is worth 0 and the whole 1, so the values add up to 1; where nobody has weight all
/// are 0.
fn shapley(voices: &[Voice<'_>], all: &[f32]) -> Vec<f64> {
    let count = voices.len();
    let worth: Vec<f64> = (0..1usize << count).map(|members| cosine(&subset(voices, members), all)).collect();
    // |S|! (n - |S| - 1)! / n!
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    (0..count)
        .map(|player| {
            let without = (0..1usize << count).filter(|members| members & (1 << player) == 0);
            let gains = without.map(|members| {
                let size = members.count_ones() as usize;
                let share = factorial(size) * factorial(count - size - 1) / factorial(count);
                share * (worth[members | 1 << player] - worth[members])
            });
            gains.sum()
        })
        .collect()
}

/// Cosine; 0 where one of them is missing.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    let length = |v: &[f32]| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let lengths = length(a) * length(b);
    if lengths < 1e-12 { 0.0 } else { dot / lengths }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn branch(modality: Modality, embedding: &[f32]) -> Branch {
        Branch { embedding: embedding.to_vec(), ..Branch::silent(modality, "m", State::Ok, "") }
    }

    #[test]
    fn equal_voices_share_equally_and_a_muted_one_does_not_speak() {
        let branches = [
            branch(Modality::Text, &[1.0, 0.0]),
            branch(Modality::Image, &[1.0, 0.0]),
            Branch { state: State::Muted, ..branch(Modality::Audio, &[0.0, 1.0]) },
        ];
        let fusion = fuse(&branches, |_| 1.0, &Thresholds::default());
        assert_eq!(fusion.contributions.len(), 2);
        for contribution in &fusion.contributions {
            assert!((contribution.shapley - 0.5).abs() < 1e-9);
        }
        assert_eq!(fusion.consistency[0].verdict, Verdict::Agree);
        assert_eq!(fusion.embedding, [1.0, 0.0]);
    }

    #[test]
    fn weight_shifts_the_contribution_and_none_takes_it_away() {
        let branches = [branch(Modality::Text, &[1.0, 0.0]), branch(Modality::Image, &[0.0, 1.0])];
        let heavy = |modality| if modality == Modality::Image { 3.0 } else { 1.0 };
        let fusion = fuse(&branches, heavy, &Thresholds::default());
        assert!(fusion.contributions[1].shapley > fusion.contributions[0].shapley);
        assert_eq!(fusion.consistency[0].verdict, Verdict::Conflict);
        let silent = |modality| if modality == Modality::Image { 0.0 } else { 1.0 };
        let fusion = fuse(&branches, silent, &Thresholds::default());
        assert!(fusion.contributions[1].shapley.abs() < 1e-9);
    }

    #[test]
    fn only_ratios_of_weights_count() {
        let branches = [branch(Modality::Text, &[1.0, 0.0]), branch(Modality::Image, &[0.6, 0.8])];
        let plain = fuse(&branches, |_| 1.0, &Thresholds::default());
        for weight in [5e-324, 1e-200, 1e-12, 1e155, 1e300, f64::MAX] {
            let fusion = fuse(&branches, |_| weight, &Thresholds::default());
            assert_eq!(fusion.embedding, plain.embedding, "{weight}");
            for (one, other) in fusion.contributions.iter().zip(&plain.contributions) {
                assert!((one.shapley - other.shapley).abs() < 1e-9, "{weight}: {one:?}, {other:?}");
            }
        }
        // beside a weight of 1, one of 1e155 leaves nothing to the other
        let heavy = |modality| if modality == Modality::Text { 1e155 } else { 1.0 };
        let fusion = fuse(&branches, heavy, &Thresholds::default());
        assert_eq!(fusion.embedding, [1.0, 0.0]);
        let total: f64 = fusion.contributions.iter().map(|contribution| contribution.shapley).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
    }

    #[test]
    fn what_is_no_number_is_not_averaged() {
        let branches = [branch(Modality::Text, &[1.0, 0.0]), branch(Modality::Image, &[f32::NAN, 0.8])];
        let fusion = fuse(&branches, |_| 1.0, &Thresholds::default());
        assert_eq!(fusion.embedding, [1.0, 0.0]);
        assert_eq!((fusion.contributions.len(), fusion.consistency.len()), (1, 0));
    }

    #[test]
    fn nobody_speaking_is_no_fusion() {
        let fusion = fuse(&[], |_| 1.0, &Thresholds::default());
        assert!(fusion.embedding.is_empty() && fusion.contributions.is_empty());
    }

    proptest! {
        #[test]
        fn contributions_add_up_to_one(values in prop::collection::vec(-1.0f32..1.0, 12), weights in prop::array::uniform3(0.1f64..5.0)) {
            let branches: Vec<Branch> =
                Modality::ALL.iter().enumerate().map(|(n, &m)| branch(m, &values[n * 4..n * 4 + 4])).collect();
            let fusion = fuse(&branches, |m| weights[m as usize], &Thresholds::default());
            prop_assume!(!fusion.embedding.is_empty());
            let total: f64 = fusion.contributions.iter().map(|c| c.shapley).sum();
            prop_assert!((total - 1.0).abs() < 1e-4, "{total}");
        }
    }
}
