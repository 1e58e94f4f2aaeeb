//! Ids to text as they are generated.

use super::{Error, Tokenizer};

/// A character of UTF-8 has at most 4 bytes, and a token at least one: what is still broken after more tokens than
/// that is not a character in the making but bytes that are none.
const PATIENCE: usize = 8;

/// Turns ids into text one at a time. What was given out is never changed later, and never ends within a character.
///
/// Many decoders look at a token's neighbours (a leading space is dropped at the start of a text, pieces are glued),
/// so a token's text is what it adds to the decoded text of the tokens before it. Only the last few tokens are decoded
/// again, as their text does not depend on what is further back.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// How many of `ids` are given out: they are only decoded as context of the others.
    given: usize,
}

impl Detokenizer {
    /// A new stream; special tokens are left out of it if `skip_special`.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), skip_special, ids: Vec::new(), given: 0 }
    }

    /// Takes the next id. `None` if it only begins a character, or has no text.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the library fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        self.ids.push(id);
        let impatient = self.ids.len() - self.given >= PATIENCE;
        self.advance(impatient)
    }

    /// Ends the stream: the rest, with U+FFFD for what remained of an unfinished character.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the library fails.
    pub fn finish(mut self) -> Result<Option<String>, Error> {
        self.advance(true)
    }

    fn advance(&mut self, broken_too: bool) -> Result<Option<String>, Error> {
        let context = self.tokenizer.decode(&self.ids[..self.given], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let broken = all.ends_with(char::REPLACEMENT_CHARACTER);
        if broken && !broken_too {
            return Ok(None);
        }
        // A decoder that rewrites what it gave out ("." glued to the word before it) cannot take it back here.
        let common = common_prefix(&context, &all);
        let new = all[common..].to_owned();
        if broken {
            // Nothing that follows completes these bytes, and as context they would only confuse.
            self.ids.clear();
            self.given = 0;
        } else if !new.is_empty() {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok((!new.is_empty()).then_some(new))
    }
}

/// Bytes at which two texts begin alike, at a character boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b).map_or(a.len().min(b.len()), |((at, _), _)| at)
}
