//! Text to token ids and back, by a model's own `tokenizer.json`.

mod encode;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub use encode::{Encoded, Frame};
pub use stream::Detokenizer;

/// A model's tokenizer. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    /// Reads a text as nothing but text, also where it spells a special token.
    inner: Arc<tokenizers::Tokenizer>,
    /// The same, which reads special tokens where a text spells them; made when it is asked for.
    control: Arc<OnceLock<tokenizers::Tokenizer>>,
    /// Tokens that the file's post-processor adds to one text, such as `[CLS]` and `[SEP]`.
    added: usize,
}

/// Why there are no tokens, or no text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or no tokenizer.
    #[error("cannot read the tokenizer {path}: {reason}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The library's words.
        reason: String,
    },
    /// More tokens than allowed, and truncation was not asked for. The caller's fault.
    #[error("text of {bytes} bytes has {}{tokens} tokens, the limit is {limit}", if *exact { "" } else { "at least " })]
    TooManyTokens {
        /// Bytes given.
        bytes: usize,
        /// Tokens, special ones included.
        tokens: usize,
        /// Whether all tokens were counted; of a huge text only the beginning is.
        exact: bool,
        /// Tokens allowed.
        limit: usize,
    },
    /// So many bytes for so few tokens that it is no text. The caller's fault.
    #[error("text of {bytes} bytes has only {tokens} tokens in its first {read} bytes, which is no text")]
    Sparse {
        /// Bytes given.
        bytes: usize,
        /// Tokens found.
        tokens: usize,
        /// Bytes read.
        read: usize,
    },
    /// The limit leaves no room for the tokens that the model needs around a text: the model's settings are wrong.
    #[error("the limit of {limit} tokens has no room beside the {added} that stand around a text")]
    NoRoom {
        /// Tokens allowed.
        limit: usize,
        /// Tokens that the post-processor adds, and those of the frame.
        added: usize,
    },
    /// The library failed on this text or these ids.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

impl Error {
    /// Whether the text may be fine but is over a limit.
    pub fn is_over_limit(&self) -> bool {
        matches!(self, Self::TooManyTokens { .. } | Self::Sparse { .. })
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that the file configures are ignored: limits are the served
    /// model's, and a row is padded with its batch.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let refused = |reason: tokenizers::Error| Error::Read { path: path.to_owned(), reason: reason.to_string() };
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(refused)?;
        inner.with_truncation(None).map_err(refused)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let added = inner.get_post_processor().map_or(0, |post| tokenizers::PostProcessor::added_tokens(post, false));
        Ok(Self { inner: Arc::new(inner), control: Arc::default(), added })
    }

    fn control(&self) -> &tokenizers::Tokenizer {
        self.control.get_or_init(|| {
            let mut control = (*self.inner).clone();
            control.set_encode_special_tokens(false);
            control
        })
    }

    /// Text of `ids`; special tokens are left out if `skip_special`.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        self.inner.decode(ids, skip_special).map_err(|error| Error::Failed(error.to_string()))
    }

    /// Id of a token by its exact spelling, such as `<|endoftext|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of ids: the highest is below it.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}
