//! How what becomes of tasks is kept: small things in their records, large ones by reference, and nothing that could
//! not be read again.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Jobs;
use super::record::{self, Content};
use crate::error::{Error, Result};

/// How often a store that takes nothing at the moment is tried.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether the store takes nothing at the moment: no failure of anybody's task.
pub(super) fn is_of_the_store(error: &Error) -> bool {
    matches!(
        error,
        Error::Unavailable { reason: "JOBS_UNAVAILABLE", .. } | Error::Exhausted { reason: "JOBS_STORAGE_FULL", .. }
    )
}

/// Tries until the store takes it, or refuses for another reason. What was computed is not thrown away because there is
/// nowhere to put it at the moment.
macro_rules! until_kept {
    ($write:expr) => {
        loop {
            match $write {
                Err(error) if $crate::jobs::keep::is_of_the_store(&error) => {
                    $crate::jobs::keep::pause(&error).await;
                }
                written => break written,
            }
        }
    };
}
pub(super) use until_kept;

/// The pause before another try.
pub(super) async fn pause(error: &Error) {
    tracing::debug!(%error, "jobs cannot be written or read, trying on");
    tokio::time::sleep(AGAIN).await;
}

/// The form of a record, which is known to be readable: JSON has no word for numbers that are not finite.
///
/// # Errors
/// `Internal` if it could not be read again.
pub(super) fn readable<T: Serialize + DeserializeOwned>(value: &T, what: &str) -> Result<Bytes> {
    let bytes = record::to_json(value)?;
    record::from_json::<T>(&bytes).map_err(|error| {
        Error::Internal(format!("{what} holds what cannot be kept, such as a number that is not finite: {error}"))
    })?;
    Ok(bytes)
}

impl Jobs {
    /// Bytes that travel within a record or a message.
    pub(super) fn inline(&self) -> usize {
        self.options.inline_bytes.min(self.store.largest() / 2)
    }

    /// Keeps a value under a key that has none yet; false if it has. What is large goes to a blob of this name first.
    /// Waits for a store that takes nothing.
    pub(super) async fn keep(&self, key: &str, value: Bytes, blob: String) -> Result<bool> {
        let content = if value.len() > self.inline() {
            until_kept!(self.store.put_blob(&blob, value.clone()).await.map_err(Error::from))?;
            Content::Blob(blob)
        } else {
            Content::Inline(value)
        };
        let value = record::encode(&content)?;
        until_kept!(self.store.create(key, value.clone()).await.map_err(Error::from))
    }

    /// What is kept under a key; nothing if it, or what it refers to, is gone.
    pub(super) async fn kept(&self, key: &str) -> Result<Option<Bytes>> {
        let Some(found) = self.store.get(key).await? else { return Ok(None) };
        // records of earlier builds are what they keep
        if found.value.starts_with(b"{") {
            return Ok(Some(found.value));
        }
        match record::decode(&found.value)? {
            Content::Inline(value) => Ok(Some(value)),
            Content::Blob(name) => Ok(self.store.blob(&name).await?),
        }
    }

    /// Removes what is kept under a key, and what it refers to. It would expire anyhow.
    pub(super) async fn forget_kept(&self, key: &str) {
        if let Ok(Some(found)) = self.store.get(key).await
            && let Ok(Content::Blob(name)) = record::decode(&found.value)
        {
            let _ = self.store.remove_blob(&name).await;
        }
        let _ = self.store.remove(key).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Modality;
    use crate::request::{Parameter, Parameters};
    use crate::understand::report::{Branch, State};

    #[test]
    fn only_what_can_be_read_again_is_written() {
        let mut branch = Branch::silent(Modality::Text, "minilm", State::Ok, "");
        branch.embedding = vec![0.5, -1.0];
        assert!(readable(&branch, "the branch").is_ok());
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            branch.embedding[1] = number;
            assert!(readable(&branch, "the branch").unwrap_err().to_string().contains("the branch holds"));
        }
        let mut parameters = Parameters::default();
        parameters.set("temperature", Parameter::Float(f64::NAN));
        assert!(readable(&parameters, "sampling").is_err());
    }

    #[test]
    fn only_the_store_is_waited_for() {
        let of = |reason| Error::Unavailable { reason, message: String::new(), retry_after: Duration::ZERO };
        assert!(is_of_the_store(&of("JOBS_UNAVAILABLE")));
        assert!(!is_of_the_store(&of("NO_WORKER")));
        assert!(!is_of_the_store(&Error::Internal(String::new())));
    }
}
