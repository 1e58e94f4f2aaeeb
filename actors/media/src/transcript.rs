//! Whisper's ids to timed text.
//!
//! With timestamps on, Whisper writes `<|0.00|> text <|2.40|><|2.40|> text <|5.00|>`: ids from `timestamp_begin` on
//! are times from the window's start in steps of 20 ms, everything else is text or a special token.

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
