//! Whisper's ids to timed text.
//!
//! With timestamps on, Whisper writes `<|0.00|> text <|2.40|><|2.40|> text <|5.00|>`: ids from `timestamp_begin` on
//! are times from the window's start in steps of 20 ms, everything else is text or a special token.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::text::{Error, Tokenizer};

/// Seconds of one timestamp step.
const STEP: f64 = 0.02;

/// A piece of text and when it was spoken.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Seconds from the clip's start.
    pub start: f64,
    /// Seconds from the clip's start; at least `start`.
    pub end: f64,
    /// Trimmed, never empty.
    pub text: String,
}

/// What was said in a window, or in several one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    /// Timed pieces, in order.
    pub segments: Vec<Segment>,
    /// As decoded. Languages that put spaces between words begin each piece with one, the others do not, so pieces
    /// are glued as they are and the ends trimmed at last.
    raw: String,
}

impl Transcript {
    /// All of the text, trimmed.
    pub fn text(&self) -> &str {
        self.raw.trim()
    }

    /// Adds what was said in a later window.
    pub fn append(&mut self, later: Self) {
        self.segments.extend(later.segments);
        self.raw.push_str(&later.raw);
    }
}

/// The window that was heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heard {
    /// Seconds from the clip's start to the window's.
    pub offset: f64,
    /// Seconds of the window, without the padding.
    pub seconds: f64,
}

/// Transcript of the ids that were generated for a window, without the prompt; special tokens are left out.
///
/// Robust against what the model writes under stress: text without an opening time starts where the last segment
/// ended, text without a closing time ends with the next time or with the window, and times that go backwards or
/// beyond the window are brought into it.
///
/// # Errors
///
/// [`Error::Failed`] if the tokenizer cannot decode the ids.
pub fn transcript(ids: &[u32], timestamp_begin: u32, heard: Heard, tokenizer: &Tokenizer) -> Result<Transcript, Error> {
    let mut transcript = Transcript::default();
    let mut pending: Vec<u32> = Vec::new();
    let mut start = 0.0_f64;
    // The window's end closes whatever is open.
    let end = [None];
    let steps = ids.iter().map(|&id| Some(id));
    for id in steps.chain(end) {
        let time = match id.map(|id| id.checked_sub(timestamp_begin).ok_or(id)) {
            Some(Err(text)) => {
                pending.push(text);
                continue;
            }
            Some(Ok(step)) => f64::from(step) * STEP,
            None => heard.seconds,
        };
        let time = time.min(heard.seconds).max(start);
        let text = tokenizer.decode(&pending, true)?;
        pending.clear();
        transcript.raw.push_str(&text);
        if !text.trim().is_empty() {
            transcript.segments.push(Segment {
                start: heard.offset + start,
                end: heard.offset + time,
                text: text.trim().to_owned(),
            });
        }
        start = time;
    }
    Ok(transcript)
}

/// How well a text compresses: its bytes, divided by those that zlib makes of it at its usual level. Of a text that
/// repeats itself this is high; Whisper's authors doubt what is above 2.4.
pub fn compression_ratio(text: &str) -> f32 {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let packed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
    text.len() as f32 / packed.len().max(1) as f32
}

/// The ids up to the last time that closes a text; nothing if there is none. What follows was broken off.
pub fn closed(ids: &[u32], timestamp_begin: u32) -> Option<&[u32]> {
    let is_time = |id: u32| id >= timestamp_begin;
    let last = ids.windows(2).rposition(|pair| !is_time(pair[0]) && is_time(pair[1]))?;
    Some(&ids[..last + 2])
}

/// The ids without the copies of the phrase that they end with again and again.
pub fn without_copies(ids: &[u32]) -> &[u32] {
    let phrase = (1..=ids.len() / 2).find_map(|period| {
        let same = (period..ids.len()).rev().take_while(|&at| ids[at] == ids[at - period]).count();
        (same >= period * 3).then(|| ids.len() - same / period * period)
    });
    &ids[..phrase.unwrap_or(ids.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_repeats_itself_compresses() {
        assert!(compression_ratio("He was not an ill-disposed young man.") < 1.1);
        assert!(compression_ratio(&"Thank you. ".repeat(20)) > 2.4);
        assert_eq!(compression_ratio(""), 0.0);
    }

    #[test]
    fn what_was_broken_off_is_told_from_what_was_closed() {
        assert_eq!(closed(&[100, 1, 2, 110, 110, 3], 100), Some(&[100, 1, 2, 110][..]));
        assert_eq!(closed(&[100, 1, 2, 110], 100), Some(&[100, 1, 2, 110][..]));
        assert_eq!(closed(&[100, 1, 2], 100), None);
        assert_eq!(closed(&[], 100), None);
    }

    #[test]
    fn one_copy_is_left_of_a_phrase() {
        assert_eq!(without_copies(&[9, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]), [9, 1, 2]);
        assert_eq!(without_copies(&[9, 7, 7, 7, 7, 7]), [9, 7]);
        assert_eq!(without_copies(&[9, 1, 2, 1, 2, 1, 2]), [9, 1, 2, 1, 2, 1, 2], "that may be meant");
        assert!(without_copies(&[]).is_empty());
    }
}
