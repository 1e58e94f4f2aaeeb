//! Hysteresis over probabilities: `get_speech_timestamps_from_probs` of silero-vad 6.2 at 16 kHz.

use super::{CHUNK, SAMPLE_RATE, Segment};

/// When speech starts and when it is over. The defaults are silero-vad's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// A chunk of at least this probability starts or continues speech.
    pub threshold: f32,
    /// A chunk below this probability may end speech; what lies between the two does neither.
    pub neg_threshold: f32,
    /// Milliseconds; a segment must be longer.
    pub min_speech_ms: usize,
    /// Milliseconds below `neg_threshold` that end a segment.
    pub min_silence_ms: usize,
    /// Milliseconds added on both sides of a segment, or half of the gap to the next.
    pub pad_ms: usize,
    /// Seconds after which a segment is cut, at its longest pause if it has one. Infinite: never.
    pub max_speech_seconds: f64,
    /// Milliseconds; only a longer pause is such a place to cut.
    pub min_silence_at_max_speech_ms: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            neg_threshold: 0.35,
            min_speech_ms: 250,
            min_silence_ms: 100,
            pad_ms: 30,
            max_speech_seconds: f64::INFINITY,
            min_silence_at_max_speech_ms: 98,
        }
    }
}

/// The segments of speech in a clip of `total_samples`, in order and disjoint.
///
/// `probabilities` holds one value per chunk, the last chunk padded with silence.
pub fn segments(probabilities: &[f32], total_samples: usize, options: &Options) -> Vec<Segment> {
    let mut hysteresis = Hysteresis::new(options);
    for (chunk, &probability) in probabilities.iter().enumerate() {
        hysteresis.step(chunk * CHUNK, probability);
    }
    let mut found = hysteresis.finish(total_samples);
    pad(&mut found, total_samples, samples(options.pad_ms));
    found
}

fn samples(milliseconds: usize) -> usize {
    milliseconds * SAMPLE_RATE / 1000
}

struct Hysteresis<'a> {
    options: &'a Options,
    max_speech: f64,
    /// Where the current segment began.
    start: Option<usize>,
    /// Where it may have ended.
    silent_since: Option<usize>,
    /// Pauses of the current segment that are long enough to cut there: where, and how long.
    pauses: Vec<(usize, usize)>,
    found: Vec<Segment>,
}

impl<'a> Hysteresis<'a> {
    fn new(options: &'a Options) -> Self {
        let reserve = (CHUNK + 2 * samples(options.pad_ms)) as f64;
        Self {
            options,
            max_speech: options.max_speech_seconds * SAMPLE_RATE as f64 - reserve,
            start: None,
            silent_since: None,
            pauses: Vec::new(),
            found: Vec::new(),
        }
    }

    fn step(&mut self, now: usize, probability: f32) {
        let speech = probability >= self.options.threshold;
        if speech && let Some(since) = self.silent_since.take() {
            let pause = now - since;
            if pause > samples(self.options.min_silence_at_max_speech_ms) {
                self.pauses.push((since, pause));
            }
        }
        let Some(start) = self.start else {
            if speech {
                self.start = Some(now);
            }
            return;
        };
        if (now - start) as f64 > self.max_speech && !self.cut(start, now) {
            return;
        }
        if probability < self.options.neg_threshold {
            self.silence(now);
        }
    }

    /// Ends a segment that is too long; whether speech goes on in a new one.
    fn cut(&mut self, start: usize, now: usize) -> bool {
        self.silent_since = None;
        // The longest pause, of equal ones the first.
        let longest = self.pauses.drain(..).rev().max_by_key(|&(_, pause)| pause);
        let (end, next) = match longest {
            Some((since, pause)) => (since, Some(since + pause)),
            None => (now, None),
        };
        self.found.push(Segment { start, end });
        self.start = next;
        next.is_some()
    }

    fn silence(&mut self, now: usize) {
        let since = *self.silent_since.get_or_insert(now);
        if now - since < samples(self.options.min_silence_ms) {
            return;
        }
        self.end(since);
    }

    fn end(&mut self, end: usize) {
        self.silent_since = None;
        self.pauses.clear();
        if let Some(start) = self.start.take()
            && end.saturating_sub(start) > samples(self.options.min_speech_ms)
        {
            self.found.push(Segment { start, end });
        }
    }

    /// Speech that no silence ended lasts to the end of the clip.
    fn finish(mut self, total_samples: usize) -> Vec<Segment> {
        self.end(total_samples);
        self.found
    }
}

/// Widens segments by `by` samples on both sides; segments nearer than that share the gap.
fn pad(found: &mut [Segment], total_samples: usize, by: usize) {
    if let Some(first) = found.first_mut() {
        first.start = first.start.saturating_sub(by);
    }
    for index in 1..found.len() {
        let gap = found[index].start - found[index - 1].end;
        let by = by.min(gap / 2);
        found[index - 1].end += by;
        found[index].start -= by;
    }
    if let Some(last) = found.last_mut() {
        last.end = (last.end + by).min(total_samples);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities from runs of (value, chunks).
    fn runs(runs: &[(f32, usize)]) -> (Vec<f32>, usize) {
        let all: Vec<f32> = runs.iter().flat_map(|&(value, chunks)| std::iter::repeat_n(value, chunks)).collect();
        let total = all.len() * CHUNK;
        (all, total)
    }

    fn found(list: &[(f32, usize)], options: &Options) -> Vec<(usize, usize)> {
        let (all, total) = runs(list);
        segments(&all, total, options).iter().map(|segment| (segment.start, segment.end)).collect()
    }

    #[test]
    fn silence_has_no_speech() {
        assert_eq!(found(&[(0.1, 100)], &Options::default()), []);
        assert_eq!(segments(&[], 0, &Options::default()), []);
    }

    #[test]
    fn a_segment_is_padded_by_30_ms() {
        let got = found(&[(0.0, 10), (0.9, 20), (0.0, 10)], &Options::default());
        assert_eq!(got, [(10 * CHUNK - 480, 30 * CHUNK + 480)]);
    }

    #[test]
    fn short_speech_is_dropped_and_short_silence_bridged() {
        // 7 chunks are 224 ms, 3 chunks 96 ms.
        assert_eq!(found(&[(0.0, 10), (0.9, 7), (0.0, 10)], &Options::default()), []);
        let got = found(&[(0.0, 10), (0.9, 10), (0.0, 3), (0.9, 10), (0.0, 10)], &Options::default());
        assert_eq!(got, [(10 * CHUNK - 480, 33 * CHUNK + 480)]);
    }

    #[test]
    fn what_lies_between_the_thresholds_continues_speech() {
        let got = found(&[(0.0, 10), (0.9, 10), (0.4, 20), (0.0, 10)], &Options::default());
        assert_eq!(got, [(10 * CHUNK - 480, 40 * CHUNK + 480)]);
        assert_eq!(found(&[(0.4, 100)], &Options::default()), []);
    }

    #[test]
    fn speech_to_the_end_of_the_clip() {
        let (all, _) = runs(&[(0.0, 10), (0.9, 20)]);
        let total = 30 * CHUNK - 100;
        assert_eq!(segments(&all, total, &Options::default()), [Segment { start: 10 * CHUNK - 480, end: total }]);
    }

    #[test]
    fn near_segments_share_their_gap() {
        let options = Options { pad_ms: 200, ..Options::default() };
        let got = found(&[(0.9, 20), (0.0, 5), (0.9, 20)], &options);
        assert_eq!(got, [(0, 22 * CHUNK + 256), (22 * CHUNK + 256, 45 * CHUNK)]);
    }

    #[test]
    fn long_speech_is_cut_at_its_longest_pause() {
        // A pause of 4 chunks (128 ms) would end a segment by itself, were the patience not raised.
        let options = Options { max_speech_seconds: 5.0, min_silence_ms: 2000, ..Options::default() };
        let got = found(&[(0.9, 50), (0.0, 6), (0.9, 40), (0.0, 4), (0.9, 80)], &options);
        assert_eq!(got[0], (0, 50 * CHUNK + 480));
        assert_eq!(got[1].0, 56 * CHUNK - 480);
        assert_eq!(got.last().map(|last| last.1), Some(180 * CHUNK));
    }

    #[test]
    fn long_speech_without_a_pause_is_cut_at_the_limit() {
        let options = Options { max_speech_seconds: 2.0, ..Options::default() };
        let got = found(&[(0.9, 200)], &options);
        assert!(got.iter().all(|(start, end)| end - start <= 2 * SAMPLE_RATE), "{got:?}");
        assert_eq!(got.first().map(|first| first.0), Some(0));
        assert_eq!(got.last().map(|last| last.1), Some(200 * CHUNK));
    }
}
