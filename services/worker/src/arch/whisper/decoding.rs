//! What the next token is: the rules of OpenAI's `decoding.py` for decoding with timestamps, on plain slices.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::config::Tokens;

/// The first timestamp is at most this: 1.0 s in steps of 0.02 s.
const MAX_INITIAL_TIMESTAMP: i64 = 50;
/// A phrase of up to this many tokens…
const LOOP_PHRASE: usize = 24;
/// …that is repeated at least this often…
const LOOP_REPEATS: usize = 4;
/// …over at least this many tokens without a timestamp is a loop, which decoding does not leave. What a speaker repeats
/// has timestamps between.
const LOOP_TOKENS: usize = 32;

/// Whether a hypothesis is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The model ended it.
    Stop = 0,
    /// It has as many tokens as it may.
    Length = 1,
    /// It repeated itself.
    Loop = 2,
}

/// A hypothesis: what has been decoded of one window.
#[derive(Debug, Default)]
pub(super) struct Hypothesis {
    /// Text and timestamps, without prompt and end.
    pub(super) tokens: Vec<i64>,
    logprobs: Vec<f32>,
    /// Log-probability of the end, or 0 where the decoding was cut short.
    end: f32,
    /// How it ended; nothing before it has.
    pub(super) ending: Option<Ending>,
}

impl Hypothesis {
    /// Appends the choice. Returns whether the hypothesis is complete: it has ended, has `limit` tokens, or loops.
    pub(super) fn push(&mut self, token: i64, logprob: f32, tokens: &Tokens, limit: usize) -> bool {
        if token == tokens.end_of_text {
            self.end = logprob;
            self.ending = Some(Ending::Stop);
            return true;
        }
        self.tokens.push(token);
        self.logprobs.push(logprob);
        if self.loops(tokens) {
            self.ending = Some(Ending::Loop);
        } else if self.tokens.len() >= limit {
            self.ending = Some(Ending::Length);
        }
        self.ending.is_some()
    }

    /// Mean log-probability per token, the end included, as Whisper's thresholds expect it.
    pub(super) fn average_logprob(&self) -> f32 {
        (self.logprobs.iter().sum::<f32>() + self.end) / (self.logprobs.len() + 1) as f32
    }

    /// Whether the text since the last timestamp ends with one phrase over and over.
    fn loops(&self, tokens: &Tokens) -> bool {
        let since = self.tokens.iter().rposition(|token| *token >= tokens.end_of_text).map_or(0, |last| last + 1);
        let text = &self.tokens[since..];
        (1..=LOOP_PHRASE).any(|period| {
            let repeats = LOOP_REPEATS.max(LOOP_TOKENS.div_ceil(period));
            let Some(start) = text.len().checked_sub(period * repeats) else { return false };
            (start + period..text.len()).all(|at| text[at] == text[at - period])
        })
    }

    /// The next token and its log-probability, from a row of logits over the vocabulary, which is overwritten: the
    /// likeliest one, or one that `dice` choose.
    pub(super) fn choose(&self, logits: &mut [f32], tokens: &Tokens, dice: Option<&mut Dice>) -> (i64, f32) {
        let begin = self.tokens.is_empty();
        for &token in &tokens.suppressed {
            logits[at(token)] = f32::NEG_INFINITY;
        }
        if begin {
            for &token in &tokens.suppressed_first {
                logits[at(token)] = f32::NEG_INFINITY;
            }
        }
        let first = at(tokens.timestamps.start);
        let (text_from, stamps) = self.allowed(tokens);
        let (text_start, text) = (text_from, &logits[text_from..first]);
        let (stamp_start, stamps) = (at(stamps.start), &logits[at(stamps.start)..at(stamps.end)]);
        let (text_at, text_peak) = peak(text);
        let (stamp_at, stamp_peak) = peak(stamps);
        let top = text_peak.max(stamp_peak);
        if !top.is_finite() {
            // nothing is allowed, or the device returned NaN
            return (tokens.end_of_text, 0.0);
        }
        let stamp_sum = sum_exp(stamps, top);
        // a timestamp follows where all timestamps together are likelier than any text token
        let is_stamp = stamp_sum.ln() > text_peak - top;
        let total = if is_stamp { stamp_sum } else { sum_exp(text, top) + stamp_sum }.ln();
        if let Some(dice) = dice {
            let from = if is_stamp { stamp_start } else { text_start };
            let values = if is_stamp { stamps } else { &logits[text_from..] };
            let allowed = |at: usize| at < first || (stamp_start..stamp_start + stamps.len()).contains(&at);
            let chosen = dice.throw(values.iter().enumerate().filter(|(at, _)| allowed(from + at)), top);
            return chosen.map_or((tokens.end_of_text, 0.0), |(at, value)| (index(from + at), value - top - total));
        }
        if is_stamp {
            (index(stamp_start + stamp_at), stamp_peak - top - total)
        } else {
            (index(text_start + text_at), text_peak - top - total)
        }
    }

    /// First text token and range of timestamps that may come next.
    fn allowed(&self, tokens: &Tokens) -> (usize, std::ops::Range<i64>) {
        let is_stamp = |token: Option<&i64>| token.is_some_and(|token| tokens.timestamps.contains(token));
        let Some(last) = self.tokens.last() else {
            let first = tokens.timestamps.start;
            return (at(first), first..(first + MAX_INITIAL_TIMESTAMP + 1).min(tokens.timestamps.end));
        };
        let after_stamp = is_stamp(Some(last));
        let before = self.tokens.len().checked_sub(2).map(|at| &self.tokens[at]);
        let after_pair = after_stamp && (before.is_none() || is_stamp(before));
        let mut text_from = 0;
        let mut stamps = tokens.timestamps.clone();
        if after_pair {
            stamps = stamps.end..stamps.end;
        } else if after_stamp {
            // the end of a segment: the start of the next, or the end of all
            text_from = at(tokens.end_of_text);
        }
        if let Some(&latest) = self.tokens.iter().rev().find(|token| is_stamp(Some(token))) {
            // time does not run backwards, and a segment is not empty
            let next = if after_stamp && !after_pair { latest } else { latest + 1 };
            stamps.start = stamps.start.max(next.min(stamps.end));
        }
        (text_from, stamps)
    }
}

/// Sampling at a temperature. The same window at the same temperature is heard the same way every time.
pub(super) struct Dice {
    temperature: f32,
    rng: SmallRng,
}

impl Dice {
    /// Nothing at a temperature of 0, where nothing is left to chance.
    pub(super) fn new(temperature: f32) -> Option<Self> {
        (temperature > 0.0)
            .then(|| Self { temperature, rng: SmallRng::seed_from_u64(u64::from(temperature.to_bits())) })
    }

    /// One of the values, each with the weight `exp((value - top) / temperature)`; `top` is the largest.
    fn throw<'a>(&mut self, values: impl Iterator<Item = (usize, &'a f32)> + Clone, top: f32) -> Option<(usize, f32)> {
        let weight = |value: f32| ((value - top) / self.temperature).exp();
        let total: f32 = values.clone().map(|(_, value)| weight(*value)).sum();
        let mut left = self.rng.random::<f32>() * total;
        let mut last = None;
        for (at, &value) in values {
            let weight = weight(value);
            if weight > 0.0 {
                last = Some((at, value));
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }
}

/// Probability of each language, from the logits after the start token.
pub(super) fn language_probabilities(logits: &[f32], tokens: &Tokens) -> Vec<f32> {
    let logits = of_languages(logits, tokens);
    let (_, top) = peak(logits);
    let total = sum_exp(logits, top);
    logits.iter().map(|logit| (logit - top).exp() / total).collect()
}

/// The likeliest of the languages, from the same logits.
pub(super) fn detect_language(logits: &[f32], tokens: &Tokens) -> i64 {
    tokens.languages.start + index(peak(of_languages(logits, tokens)).0)
}

fn of_languages<'a>(logits: &'a [f32], tokens: &Tokens) -> &'a [f32] {
    &logits[at(tokens.languages.start)..at(tokens.languages.end)]
}

/// Softmax probability of one token.
pub(super) fn probability(logits: &[f32], token: i64) -> f32 {
    let (_, top) = peak(logits);
    (logits[at(token)] - top).exp() / sum_exp(logits, top)
}

fn at(token: i64) -> usize {
    usize::try_from(token).unwrap_or(0)
}

fn index(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(0)
}

/// Position and value of the largest; negative infinity for none.
fn peak(values: &[f32]) -> (usize, f32) {
    // two passes that vectorise beat one that does not
    let top = values.iter().fold(f32::NEG_INFINITY, |top, &value| if value > top { value } else { top });
    (values.iter().position(|&value| value == top).unwrap_or(0), top)
}

/// Sum of `exp(value - top)`, for values of at most `top`; relative error below 1e-5.
///
/// `f32::exp` is a call per value, 51,865 of them per token; this loop vectorises.
fn sum_exp(values: &[f32], top: f32) -> f32 {
    // adding and subtracting 1.5 * 2^23 rounds to an integer, which the low bits then hold
    const ROUND: f32 = 12_582_912.0;
    const LANES: usize = 16;
    let exp = |value: f32| {
        let power = ((value - top) * std::f32::consts::LOG2_E).max(-126.0);
        let rounded = power + ROUND;
        let whole = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
        let part = power - (rounded - ROUND);
        let series = 1.0
            + part
                * (std::f32::consts::LN_2
                    + part * (0.240_226_5 + part * (0.055_504_1 + part * (0.009_618_1 + part * 0.001_333_4))));
        f32::from_bits(whole) * series
    };
    let mut sums = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&value| exp(value)).sum();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += exp(value);
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = 3;

    /// Text 0..3, end 3, start 4, timestamps 10..100.
    fn tokens() -> Tokens {
        Tokens {
            end_of_text: END,
            start: 4,
            languages: 5..7,
            transcribe: 8,
            no_speech: 9,
            timestamps: 10..100,
            multilingual: true,
            suppressed: vec![4, 5, 6, 7, 8, 9],
            suppressed_first: vec![END],
        }
    }

    fn after(history: &[i64], logits: &[(i64, f32)]) -> i64 {
        let hypothesis = Hypothesis { tokens: history.to_vec(), ..Default::default() };
        let mut row = vec![-10.0; 100];
        for &(token, logit) in logits {
            row[at(token)] = logit;
        }
        hypothesis.choose(&mut row, &tokens(), None).0
    }

    #[test]
    fn starts_with_an_early_timestamp() {
        assert_eq!(after(&[], &[(1, 9.0), (99, 8.0), (12, 1.0)]), 12);
    }

    #[test]
    fn timestamps_come_in_pairs_around_text() {
        assert_eq!(after(&[10], &[(20, 9.0), (1, 1.0)]), 1, "text after the first timestamp");
        assert_eq!(after(&[10, 1, 30], &[(1, 9.0), (30, 1.0)]), 30, "a second timestamp after one behind text");
        assert_eq!(after(&[10, 1, 30], &[(1, 9.0), (END, 1.0)]), END, "or the end");
        assert_eq!(after(&[10, 1, 30, 30], &[(40, 9.0), (2, 1.0)]), 2, "text after a pair");
    }

    #[test]
    fn time_does_not_run_backwards() {
        assert_eq!(after(&[10, 1, 30, 30, 2], &[(20, 9.0), (30, 8.0), (31, 7.0)]), 31);
    }

    #[test]
    fn all_timestamps_together_outweigh_one_word() {
        assert_eq!(after(&[10, 1], &[(1, 2.0), (40, 1.8), (41, 1.9)]), 41);
    }

    fn ending(text: impl Iterator<Item = i64>) -> (Option<Ending>, usize) {
        let mut hypothesis = Hypothesis::default();
        for token in text {
            if hypothesis.push(token, -0.1, &tokens(), 224) {
                break;
            }
        }
        (hypothesis.ending, hypothesis.tokens.len())
    }

    #[test]
    fn a_loop_ends() {
        assert_eq!(ending([10].into_iter().chain([0, 1, 2].into_iter().cycle())), (Some(Ending::Loop), 1 + 33));
        assert_eq!(ending([10].into_iter().chain(std::iter::repeat(1))), (Some(Ending::Loop), 1 + 32));
    }

    #[test]
    fn what_a_speaker_repeats_is_no_loop() {
        let sentence = |n: i64| [10 + 2 * n, 0, 1, 2, 1, 0, 2, 11 + 2 * n];
        let repeated = (0..20).flat_map(sentence).chain([END]);
        assert_eq!(ending(repeated), (Some(Ending::Stop), 160));
        assert_eq!(ending((0..40).flat_map(sentence)), (Some(Ending::Length), 224));
        assert_eq!(ending([10].into_iter().chain([0; 20]).chain([11, END])), (Some(Ending::Stop), 22), "no no no");
    }

    #[test]
    fn dice_fall_by_the_temperature_and_alike() {
        let mut row = vec![-10.0; 100];
        (row[1], row[2]) = (3.0, 2.0);
        let hypothesis = Hypothesis { tokens: vec![10], ..Default::default() };
        let count = |temperature: f32| {
            let mut dice = Dice::new(temperature);
            let chosen = (0..2000).map(|_| hypothesis.choose(&mut row.clone(), &tokens(), dice.as_mut()));
            chosen.filter(|(token, logprob)| *token == 1 && (*logprob - -0.3133).abs() < 1e-2).count()
        };
        assert_eq!(count(0.0), 2000);
        let half = count(0.5);
        assert!((1700..1820).contains(&half), "{half}"); // 1 / (1 + exp(-2)) = 0.88
        assert_eq!(count(0.5), half);
        let all = count(1.0);
        assert!((1390..1530).contains(&all), "{all}"); // 0.73
    }

    #[test]
    fn languages_have_probabilities() {
        let mut row = vec![-10.0; 100];
        (row[5], row[6]) = (1.0, 2.0);
        let probabilities = language_probabilities(&row, &tokens());
        assert!((probabilities[1] - 0.731).abs() < 1e-3 && probabilities.len() == 2, "{probabilities:?}");
        assert_eq!(detect_language(&row, &tokens()), 6);
    }

    #[test]
    fn sums_exponentials() {
        let values: Vec<f32> = (0..1000).map(|i| -0.03 * i as f32).chain([f32::NEG_INFINITY]).collect();
        let exact: f64 = values.iter().map(|&value| f64::from(value).exp()).sum();
        assert!((f64::from(sum_exp(&values, 0.0)) / exact - 1.0).abs() < 1e-5);
    }
}
