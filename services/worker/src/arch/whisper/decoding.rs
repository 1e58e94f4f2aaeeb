//! What the next token is: the rules of OpenAI's `decoding.py` for greedy decoding with timestamps, on plain slices.

use super::config::Tokens;

/// The first timestamp is at most this: 1.0 s in steps of 0.02 s.
const MAX_INITIAL_TIMESTAMP: i64 = 50;
/// A phrase of up to this many tokens…
const LOOP_PHRASE: usize = 24;
/// …that is repeated at least this often…
const LOOP_REPEATS: usize = 4;
/// …over at least this many tokens ends the decoding. Greedy decoding never leaves such a loop. OpenAI's remedy, a
/// retry at a higher temperature when the text compresses too well, costs several decodings and is random.
const LOOP_TOKENS: usize = 16;

/// A hypothesis: what has been decoded of one window.
#[derive(Debug, Default)]
pub(super) struct Hypothesis {
    /// Text and timestamps, without prompt and end.
    pub(super) tokens: Vec<i64>,
    logprobs: Vec<f32>,
    /// Log-probability of the end, or 0 where the decoding was cut short.
    end: f32,
}

impl Hypothesis {
    /// Appends the choice. Returns whether the hypothesis is complete: it has ended, has `limit` tokens, or loops.
    pub(super) fn push(&mut self, token: i64, logprob: f32, tokens: &Tokens, limit: usize) -> bool {
        if token == tokens.end_of_text {
            self.end = logprob;
            return true;
        }
        self.tokens.push(token);
        self.logprobs.push(logprob);
        if let Some(keep) = self.loop_start(tokens) {
            self.tokens.truncate(keep);
            self.logprobs.truncate(keep);
            return true;
        }
        self.tokens.len() >= limit
    }

    /// Mean log-probability per token, the end included, as Whisper's thresholds expect it.
    pub(super) fn average_logprob(&self) -> f32 {
        (self.logprobs.iter().sum::<f32>() + self.end) / (self.logprobs.len() + 1) as f32
    }

    /// Length that leaves one copy of the phrase that the text ends with over and over.
    fn loop_start(&self, tokens: &Tokens) -> Option<usize> {
        let text: Vec<(usize, i64)> =
            self.tokens.iter().copied().enumerate().filter(|(_, token)| *token < tokens.end_of_text).collect();
        (1..=LOOP_PHRASE).find_map(|period| {
            let repeats = LOOP_REPEATS.max(LOOP_TOKENS.div_ceil(period));
            let start = text.len().checked_sub(period * repeats)?;
            let looped = (start + period..text.len()).all(|at| text[at].1 == text[at - period].1);
            looped.then(|| text[start + period - 1].0 + 1)
        })
    }

    /// The next token and its log-probability, from a row of logits over the vocabulary, which is overwritten.
    pub(super) fn choose(&self, logits: &mut [f32], tokens: &Tokens) -> (i64, f32) {
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
        if stamp_sum.ln() > text_peak - top {
            (index(stamp_start + stamp_at), stamp_peak - top - stamp_sum.ln())
        } else {
            (index(text_start + text_at), text_peak - top - (sum_exp(text, top) + stamp_sum).ln())
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

/// The likeliest of the languages, from the logits after the start token.
pub(super) fn detect_language(logits: &[f32], tokens: &Tokens) -> i64 {
    let range = at(tokens.languages.start)..at(tokens.languages.end);
    index(range.start + peak(&logits[range.clone()]).0)
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
        hypothesis.choose(&mut row, &tokens()).0
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

    #[test]
    fn a_loop_ends_and_leaves_one_phrase() {
        let mut hypothesis = Hypothesis::default();
        let mut fed = 0;
        for token in [10].into_iter().chain([0, 1, 2].into_iter().cycle()) {
            fed += 1;
            if hypothesis.push(token, -0.1, &tokens(), 224) {
                break;
            }
        }
        assert_eq!(hypothesis.tokens, [10, 0, 1, 2]);
        assert_eq!(fed, 1 + 18);
    }

    #[test]
    fn sums_exponentials() {
        let values: Vec<f32> = (0..1000).map(|i| -0.03 * i as f32).chain([f32::NEG_INFINITY]).collect();
        let exact: f64 = values.iter().map(|&value| f64::from(value).exp()).sum();
        assert!((f64::from(sum_exp(&values, 0.0)) / exact - 1.0).abs() < 1e-5);
    }
}
