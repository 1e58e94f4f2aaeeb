//! Text to ids, within a limit, and without reading a huge text to its end.

use tokenizers::{Encoding, TruncationDirection};

use super::{Error, Tokenizer};

/// Texts up to this length are always tokenised whole.
const WHOLE_BYTES: usize = 64 << 10;
/// A longer text is read to this many bytes per allowed token first.
const BYTES_PER_TOKEN: usize = 16;
/// And never beyond this length, or four times the first reading if that is more: a quarter of a second at worst.
const FURTHEST_BYTES: usize = 256 << 10;

/// A text's ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids with the special tokens of the file's post-processor, at most the limit.
    pub ids: Vec<u32>,
    /// Tokens before truncation, special ones included. A lower bound unless `exact`.
    pub total: usize,
    /// Whether `total` counts the whole text; of a huge text only the beginning is read.
    pub exact: bool,
    /// Whether tokens were left out.
    pub truncated: bool,
}

/// What stands around a text, such as a chat template's turns. Special tokens that it spells are special tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame<'a> {
    /// What stands before the text.
    pub before: &'a str,
    /// What stands after it.
    pub after: &'a str,
}

impl Tokenizer {
    /// Ids of `text`, at most `max_tokens`, special tokens included. Of a longer text the beginning is kept, with the
    /// closing special token, if `truncate`. A special token that the text spells is text: a stranger's `[SEP]` ends
    /// nothing.
    ///
    /// A huge text is not read to its end. It is read in prefixes of doubling length until one holds more tokens than
    /// are allowed, and that is exact: text after a cut can only change the words that touch the cut, since normalisers
    /// and pre-tokenisers look at neighbouring characters only, so the kept ids are taken from a prefix that has at
    /// least two more words behind them. A tokenizer without words never satisfies that and is read on.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyTokens`] if there are more and `truncate` is false; [`Error::Sparse`] if a quarter of
    /// a megabyte of the text holds no `max_tokens` tokens; [`Error::NoRoom`] if `max_tokens` does not exceed the special tokens.
    pub fn encode(&self, text: &str, max_tokens: usize, truncate: bool) -> Result<Encoded, Error> {
        let (content, cut) = self.within(&self.inner, text, self.added, max_tokens, truncate)?;
        Ok(Encoded { ids: self.closed(content)?, ..cut })
    }

    /// The same within a frame, of which nothing is ever cut.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode); [`Error::NoRoom`] if the frame leaves none.
    pub fn encode_framed(
        &self,
        text: &str,
        frame: Frame<'_>,
        max_tokens: usize,
        truncate: bool,
    ) -> Result<Encoded, Error> {
        let part = |part: &str| self.control().encode_fast(part, false).map_err(failed);
        let (before, after) = (part(frame.before)?, part(frame.after)?);
        let around = self.added + before.len() + after.len();
        let (content, cut) = self.within(&self.inner, text, around, max_tokens, truncate)?;
        Ok(Encoded { ids: self.closed(Encoding::merge([before, content, after], false))?, ..cut })
    }

    /// Ids of a text that is all the caller's own, whose special tokens are special tokens.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode).
    pub fn encode_raw(&self, text: &str, max_tokens: usize, truncate: bool) -> Result<Encoded, Error> {
        let (content, cut) = self.within(self.control(), text, self.added, max_tokens, truncate)?;
        Ok(Encoded { ids: self.closed(content)?, ..cut })
    }

    /// Ids of all of a text, in windows of at most so many ids for each of the `widths`, special tokens included, of which
    /// each begins in the middle of the one before. A width is left out where a wider one before it gave the text in one
    /// window that fits it, too.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyTokens`] if there are more than `max_tokens` in all; [`Error::Sparse`] and [`Error::NoRoom`] as
    /// [`encode`](Self::encode) does.
    pub fn windows(&self, text: &str, widths: &[usize], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        let (content, _) = self.within(&self.inner, text, self.added, max_tokens, false)?;
        let mut all = Vec::new();
        for &width in widths {
            let room = width.checked_sub(self.added).filter(|room| *room > 1);
            let room = room.ok_or(Error::NoRoom { limit: width, added: self.added })?;
            if !all.is_empty() && content.len() <= room {
                continue;
            }
            let mut first = content.clone();
            first.truncate(room, room / 2, TruncationDirection::Right);
            let rest = first.take_overflowing();
            for window in [first].into_iter().chain(rest) {
                all.push(self.closed(window)?);
            }
        }
        Ok(all)
    }

    /// Ids of tokens with the special ones of the file's post-processor.
    fn closed(&self, tokens: Encoding) -> Result<Vec<u32>, Error> {
        Ok(self.inner.post_process(tokens, None, true).map_err(failed)?.get_ids().to_vec())
    }

    /// Tokens of the text, at most `max_tokens` with those `around` it, and what had to be cut for that; no ids.
    fn within(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        around: usize,
        max_tokens: usize,
        truncate: bool,
    ) -> Result<(Encoding, Encoded), Error> {
        let room = max_tokens.checked_sub(around).filter(|room| *room > 0);
        let room = room.ok_or(Error::NoRoom { limit: max_tokens, added: around })?;
        let (mut content, exact) = beginning(tokenizer, text, room)?;
        let total = content.len() + around;
        let truncated = total > max_tokens;
        if truncated && !truncate {
            return Err(Error::TooManyTokens { bytes: text.len(), tokens: total, exact, limit: max_tokens });
        }
        if truncated {
            content.truncate(room, 0, TruncationDirection::Right);
            // What was cut off is kept in there and would be post-processed too.
            content.take_overflowing();
        }
        Ok((content, Encoded { ids: Vec::new(), total, exact, truncated }))
    }
}

/// Tokens of as much of `text` as decides about `room` of them, without special ones; whether it is all of it.
fn beginning(tokenizer: &tokenizers::Tokenizer, text: &str, room: usize) -> Result<(Encoding, bool), Error> {
    let first = WHOLE_BYTES.max(room.saturating_mul(BYTES_PER_TOKEN));
    let furthest = FURTHEST_BYTES.max(first.saturating_mul(4));
    let mut read = first;
    while read < text.len() {
        let cut = text.floor_char_boundary(read);
        let encoding = tokenizer.encode(&text[..cut], false).map_err(failed)?;
        let settled = settled(&encoding);
        if settled > room {
            let mut encoding = encoding;
            encoding.truncate(settled, 0, TruncationDirection::Right);
            encoding.take_overflowing();
            return Ok((encoding, false));
        }
        if read >= furthest {
            return Err(Error::Sparse { bytes: text.len(), tokens: encoding.len(), read: cut });
        }
        read = read.saturating_mul(2);
    }
    Ok((tokenizer.encode_fast(text, false).map_err(failed)?, true))
}

/// Tokens of a prefix that no text after it can change: those before its last two words.
fn settled(encoding: &Encoding) -> usize {
    let words = encoding.get_word_ids();
    let last = words.iter().rev().find_map(|word| *word).unwrap_or(0);
    words.iter().position(|word| word.is_none_or(|word| word + 1 >= last)).unwrap_or(0)
}

// By value, as `map_err` hands it over.
#[allow(clippy::needless_pass_by_value)]
fn failed(error: tokenizers::Error) -> Error {
    Error::Failed(error.to_string())
}
