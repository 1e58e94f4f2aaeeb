//! What Whisper hears in one clip: window by window, again where it is in doubt, in one language.
//!
//! The rules are those of its authors (Radford et al., 2022, section 4.5, and `transcribe.py`): a text that compresses
//! too well or that the model is not sure of is decoded again at a higher temperature, and a window goes on from the
//! last time that was closed. Two things are added. A confident text that repeats itself is believed if a mouth can say
//! it in the time that somebody speaks. And a window that ends in a loop is heard in halves, so that what follows the
//! loop is heard, too.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use sensorium_media::transcript::{Heard, Transcript, closed, compression_ratio, transcript, without_copies};
use sensorium_media::vad;

use super::super::{Pool, unexpected};
use super::{Clip, Speech, bytes_of, decode, probabilities, samples_at, seconds};
use crate::batching::entry::RowReply;
use crate::error::Result;
use crate::request::Context;
use crate::worker::served::Served;

/// Samples of speech for which Whisper is asked again: half a second.
const WORTH_HEARING: usize = 8_000;
/// A window that ends in a loop is not heard in halves if it is shorter: four seconds.
const WORTH_HALVING: usize = 64_000;
/// Tried one after the other, until a text is believed.
const TEMPERATURES: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// A text that compresses better may be a loop.
const MAX_COMPRESSION: f32 = 2.4;
/// A text of a lower mean log-probability is a guess.
const MIN_LOGPROB: f32 = -1.0;
/// Above this, a guess stands where nobody speaks.
const MAX_NO_SPEECH: f32 = 0.6;
/// A text that repeats itself has to be as sure as this…
const SURE_LOGPROB: f32 = -0.5;
/// …and to have no more characters than so many in a second of speech.
const FASTEST_SPEECH: f64 = 20.0;
/// A window keeps a language of its own if it is as sure of it as this.
const SURE_OF_LANGUAGE: f32 = 0.9;

/// What was heard in one clip.
pub(super) struct Hearing {
    /// What was heard, in order.
    pub(super) parts: Vec<Part>,
    /// All that was said.
    pub(super) text: String,
    /// The encoder's mean over all windows; empty where nobody speaks.
    pub(super) feature: Vec<f32>,
    /// The language of most of it.
    pub(super) language: Option<String>,
    pub(super) speech_seconds: f64,
    pub(super) seconds: f64,
}

/// What was heard at one go.
pub(super) struct Part {
    pub(super) transcript: Transcript,
    pub(super) language: String,
    pub(super) avg_logprob: f32,
    pub(super) no_speech_prob: f32,
    pub(super) compression_ratio: f32,
    pub(super) temperature: f32,
    feature: Vec<f32>,
    languages: Vec<f32>,
}

/// How the decoder ended, as the engine says it.
const STOP: i64 = 0;
const LOOP: i64 = 2;

/// A decoded window.
struct Hypothesis {
    ids: Vec<u32>,
    ending: i64,
    /// The language's token, -1 where there is but one.
    language: i64,
    part: Part,
}

impl Hypothesis {
    /// Engine outputs: tokens INT64 `[1, t]` (-1: none), mean log-probability, no-speech probability, language, feature,
    /// probabilities of languages, ending.
    fn read(speech: &Speech, window: vad::Window, temperature: f32, reply: &RowReply) -> Result<Self> {
        let [tokens, logprob, no_speech, language, feature, languages, ending] = reply.tensors.as_slice() else {
            return Err(unexpected(format!("{} outputs, expected 7", reply.tensors.len())));
        };
        let ids = tokens.to_i64().map_err(unexpected)?.into_iter().filter_map(|id| u32::try_from(id).ok());
        let ids = ids.filter(|&id| id < speech.config.eot || id >= speech.config.timestamp_begin).collect();
        let first = |values: Vec<f32>| values.first().copied().ok_or_else(|| unexpected("an empty output"));
        let whole = |values: Vec<i64>| values.first().copied().ok_or_else(|| unexpected("an empty output"));
        let language = whole(language.to_i64().map_err(unexpected)?)?;
        let part = Part {
            transcript: Transcript::default(),
            language: speech.language_code(language).to_owned(),
            avg_logprob: first(logprob.to_f32().map_err(unexpected)?)?,
            no_speech_prob: first(no_speech.to_f32().map_err(unexpected)?)?,
            compression_ratio: 0.0,
            temperature,
            feature: feature.to_f32().map_err(unexpected)?,
            languages: languages.to_f32().map_err(unexpected)?,
        };
        let ending = whole(ending.to_i64().map_err(unexpected)?)?;
        let mut hypothesis = Self { ids, ending, language, part };
        hypothesis.part.transcript = hypothesis.transcript(speech, window, &hypothesis.ids)?;
        hypothesis.part.compression_ratio = compression_ratio(hypothesis.part.transcript.text());
        Ok(hypothesis)
    }

    fn transcript(&self, speech: &Speech, window: vad::Window, ids: &[u32]) -> Result<Transcript> {
        let heard = Heard { offset: seconds(window.start), seconds: seconds(window.end - window.start) };
        transcript(ids, speech.config.timestamp_begin, heard, &speech.tokenizer).map_err(unexpected)
    }

    fn is_silence(&self) -> bool {
        self.part.no_speech_prob > MAX_NO_SPEECH && self.part.avg_logprob < MIN_LOGPROB
    }

    /// Whether it is what was said, where somebody speaks for so many seconds.
    fn is_believed(&self, speech_seconds: f64) -> bool {
        if self.ending == LOOP || self.part.avg_logprob < MIN_LOGPROB {
            return false;
        }
        let text = self.part.transcript.text();
        let sure = self.part.avg_logprob >= SURE_LOGPROB;
        self.part.compression_ratio <= MAX_COMPRESSION || (sure && can_be_said(text, speech_seconds))
    }

    /// Of hypotheses that are all in doubt the one that is worth most: no loop if there is one, then the surest.
    fn is_better_than(&self, other: &Self) -> bool {
        let rank =
            |one: &Self| (one.ending != LOOP && one.part.compression_ratio <= MAX_COMPRESSION, one.part.avg_logprob);
        rank(self) > rank(other)
    }
}

/// A listener of one clip.
struct Listener<'a> {
    served: &'a Arc<Served>,
    samples: Arc<Vec<f32>>,
    speech: Vec<vad::Segment>,
    probabilities: Vec<f32>,
    context: &'a Context,
    pool: &'a Pool,
}

impl Listener<'_> {
    /// Samples of speech between two places of the clip.
    fn speech_between(&self, from: usize, to: usize) -> usize {
        self.speech.iter().map(|s| s.end.min(to).saturating_sub(s.start.max(from))).sum()
    }

    /// The window at one temperature after the other, until it is believed.
    async fn decode(&self, window: vad::Window, mut language: i64) -> Result<Hypothesis> {
        let spoken = seconds(self.speech_between(window.start, window.end));
        let mel = {
            let (owner, samples) = (self.served.clone(), self.samples.clone());
            self.pool.run(move || {
                Ok::<_, crate::error::Error>(owner.speech()?.mel.log_mel(&samples[window.start..window.end]))
            })
        };
        let mel = mel.await??;
        let speech = self.served.speech()?;
        let mut best: Option<Hypothesis> = None;
        for temperature in TEMPERATURES {
            let row = speech.row(&mel, language, temperature).map_err(unexpected)?;
            let reply = self.served.forward(row, self.context).await?;
            let hypothesis = Hypothesis::read(speech, window, temperature, &reply)?;
            if hypothesis.is_silence() || hypothesis.is_believed(spoken) {
                return Ok(hypothesis);
            }
            language = hypothesis.language;
            if best.as_ref().is_none_or(|best| hypothesis.is_better_than(best)) {
                best = Some(hypothesis);
            }
        }
        best.ok_or_else(|| unexpected("no hypothesis"))
    }

    /// Whisper may end before its window does. Then it is asked again from where it ended, as its authors' own loop
    /// does, for as long as there is speech left and it gets on.
    async fn hear(&self, window: vad::Window, mut language: i64) -> Result<Vec<Part>> {
        let speech = self.served.speech()?;
        let mut parts = Vec::new();
        let mut left = vec![window];
        while let Some(window) = left.pop() {
            let mut hypothesis = self.decode(window, language).await?;
            language = hypothesis.language;
            if hypothesis.is_silence() {
                hypothesis.part.transcript = Transcript::default();
                parts.push(hypothesis.part);
                continue;
            }
            if hypothesis.ending != STOP {
                match closed(&hypothesis.ids, speech.config.timestamp_begin) {
                    Some(sure) => hypothesis.part.transcript = hypothesis.transcript(speech, window, sure)?,
                    None if hypothesis.ending == LOOP && window.end - window.start >= WORTH_HALVING => {
                        let middle = vad::middle(window, &self.probabilities);
                        left.push(vad::Window { start: middle, ..window });
                        left.push(vad::Window { end: middle, ..window });
                        continue;
                    }
                    None => {
                        let once = without_copies(&hypothesis.ids);
                        hypothesis.part.transcript = hypothesis.transcript(speech, window, once)?;
                    }
                }
            }
            let end = hypothesis.part.transcript.segments.last().map_or(window.end, |last| samples_at(last.end));
            parts.push(hypothesis.part);
            if end > window.start && self.speech_between(end, window.end) >= WORTH_HEARING {
                left.push(vad::Window { start: end, ..window });
            }
        }
        Ok(parts)
    }

    /// All windows, side by side. Where no language is asked for, it is the one that all windows together take for the
    /// likeliest; a window that is sure of another one keeps that.
    async fn hear_all(&self, windows: &[vad::Window], language: i64) -> Result<Vec<Vec<Part>>> {
        let mut heard = try_join_all(windows.iter().map(|&window| self.hear(window, language))).await?;
        let speech = self.served.speech()?;
        if language != -1 || heard.len() < 2 {
            return Ok(heard);
        }
        let guesses: Vec<&[f32]> = heard.iter().filter_map(|parts| Some(parts.first()?.languages.as_slice())).collect();
        let Some(token) = speech.agreed(&guesses) else { return Ok(heard) };
        let code = speech.language_code(token).to_owned();
        let again = heard.iter_mut().zip(windows).filter(|(parts, _)| {
            parts.first().is_some_and(|first| {
                let sure = first.languages.iter().any(|probability| *probability >= SURE_OF_LANGUAGE);
                first.language != code && !sure
            })
        });
        let again = again.map(|(parts, &window)| async move {
            *parts = self.hear(window, token).await?;
            Ok::<_, crate::error::Error>(())
        });
        try_join_all(again).await?;
        Ok(heard)
    }
}

/// Hears a clip.
pub(super) async fn hear(
    served: &Arc<Served>,
    field: String,
    clip: Bytes,
    language: i64,
    context: &Context,
    pool: &Pool,
) -> Result<Hearing> {
    let detector = served.upstream()?;
    let Clip { samples, mut room } = decode(served, &field, &clip, context, pool).await?;
    let probabilities = probabilities(&detector, &samples, context).await?;
    room.shrink(bytes_of(&samples, 1));
    let segments = vad::segments(&probabilities, samples.len(), &vad::Options::default());
    let windows = if samples.len() <= vad::MAX_WINDOW && !segments.is_empty() {
        // what fits is heard whole: a start that is cut close costs Whisper the first word
        vec![vad::Window { start: 0, end: samples.len() }]
    } else {
        vad::windows(&segments, &probabilities, samples.len())
    };
    let speech_samples: usize = segments.iter().map(|s| s.end - s.start).sum();
    let total = samples.len();
    let listener = Listener { served, samples: Arc::new(samples), speech: segments, probabilities, context, pool };
    let parts: Vec<Part> = listener.hear_all(&windows, language).await?.into_iter().flatten().collect();

    let count = f32::from(u16::try_from(parts.len().max(1)).unwrap_or(u16::MAX));
    let mut feature = Vec::new();
    let mut whole = Transcript::default();
    for part in &parts {
        feature.resize(part.feature.len(), 0.0);
        feature.iter_mut().zip(&part.feature).for_each(|(sum, value)| *sum += value / count);
        whole.append(part.transcript.clone());
    }
    Ok(Hearing {
        language: language_of(&parts),
        text: whole.text().to_owned(),
        parts,
        feature,
        speech_seconds: seconds(speech_samples),
        seconds: seconds(total),
    })
}

/// Whether a mouth can say it in so many seconds.
fn can_be_said(text: &str, seconds: f64) -> bool {
    #[allow(clippy::cast_precision_loss)]
    let characters = text.chars().count() as f64;
    characters <= FASTEST_SPEECH * seconds
}

/// The language that is spoken longest; of equals the first.
fn language_of(parts: &[Part]) -> Option<String> {
    let mut spoken: Vec<(&String, f64)> = Vec::new();
    for part in parts {
        let seconds: f64 = part.transcript.segments.iter().map(|segment| segment.end - segment.start).sum();
        match spoken.iter_mut().find(|(known, _)| **known == part.language) {
            Some((_, sum)) => *sum += seconds,
            None => spoken.push((&part.language, seconds)),
        }
    }
    let longest = spoken.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1));
    longest.map(|(language, _)| (*language).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(language: &str, seconds: f64) -> Part {
        let mut transcript = Transcript::default();
        transcript.segments.push(sensorium_media::transcript::Segment {
            start: 1.0,
            end: 1.0 + seconds,
            text: "t".into(),
        });
        Part {
            transcript,
            language: language.to_owned(),
            avg_logprob: -0.2,
            no_speech_prob: 0.0,
            compression_ratio: 1.0,
            temperature: 0.0,
            feature: Vec::new(),
            languages: Vec::new(),
        }
    }

    fn hypothesis(ending: i64, avg_logprob: f32, compression_ratio: f32) -> Hypothesis {
        let part = Part { avg_logprob, compression_ratio, ..part("en", 1.0) };
        Hypothesis { ids: Vec::new(), ending, language: -1, part }
    }

    #[test]
    fn the_language_of_a_clip_is_the_one_that_is_spoken_longest() {
        let parts = [part("en", 2.0), part("de", 5.0), part("en", 4.0)];
        assert_eq!(language_of(&parts).as_deref(), Some("en"));
        assert_eq!(language_of(&[part("fr", 0.0), part("it", 0.0)]).as_deref(), Some("fr"));
        assert_eq!(language_of(&[]), None);
    }

    #[test]
    fn a_text_is_believed_by_the_rules_of_the_authors() {
        assert!(hypothesis(STOP, -0.9, 2.3).is_believed(5.0));
        assert!(!hypothesis(STOP, -1.1, 1.0).is_believed(5.0), "a guess");
        assert!(!hypothesis(STOP, -0.6, 2.5).is_believed(5.0), "a loop, perhaps");
        assert!(hypothesis(STOP, -0.3, 2.5).is_believed(5.0), "said again and again, and the model is sure of it");
        assert!(!hypothesis(LOOP, -0.1, 1.0).is_believed(5.0));
        assert!(hypothesis(STOP, -1.5, 2.0).is_better_than(&hypothesis(LOOP, -0.1, 1.0)));
        assert!(hypothesis(STOP, -1.2, 2.0).is_better_than(&hypothesis(STOP, -1.5, 1.0)));
    }

    #[test]
    fn what_is_said_takes_its_time() {
        let said = "Never tried. ".repeat(6);
        assert!(can_be_said(&said, 6.0));
        assert!(!can_be_said(&said, 2.0));
        assert!(!can_be_said("a", 0.0));
        assert!(can_be_said("", 0.0));
    }

    #[test]
    fn nobody_speaks_where_the_model_doubts_it_and_guesses() {
        let mut silent = hypothesis(STOP, -1.1, 1.0);
        assert!(!silent.is_silence());
        silent.part.no_speech_prob = 0.7;
        assert!(silent.is_silence());
        silent.part.avg_logprob = -0.9;
        assert!(!silent.is_silence(), "it is sure of what it hears");
    }
}
