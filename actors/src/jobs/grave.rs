//! What lies among the dead letters: tasks that failed too often, and what nobody could read.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::record::{Task, decode, encode};
use crate::error::Result;

/// A task that failed too often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Letter {
    /// On whose behalf.
    pub tenant: String,
    /// The task.
    pub task: Task,
    /// Why it failed the last time.
    pub error: String,
    /// How often it was tried.
    pub deliveries: u64,
    /// Milliseconds since 1970.
    pub buried: u64,
}

/// A message that nobody could read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The queue that it was in.
    pub queue: String,
    /// Whose turn it was.
    pub flow: String,
    /// A `traceparent`; empty: none.
    pub trace: String,
    /// The message.
    pub body: Bytes,
    /// Why it could not be read.
    pub error: String,
    /// How often it was tried.
    pub deliveries: u64,
    /// Milliseconds since 1970.
    pub buried: u64,
}

/// What lies among the dead.
#[derive(Clone, Debug, PartialEq)]
pub enum Grave {
    /// A task.
    Letter(Letter),
    /// What may once have been one.
    Unreadable(Unreadable),
}

/// Begins what is no letter: a letter begins with a length, and no length is written so.
const NO_LETTER: [u8; 11] = [0xff; 11];

impl Unreadable {
    pub(super) fn encode(&self) -> Result<Bytes> {
        Ok([&NO_LETTER, &encode(self)?[..]].concat().into())
    }
}

impl Grave {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        match bytes.strip_prefix(&NO_LETTER) {
            Some(rest) => decode(rest).map(Self::Unreadable),
            None => decode(bytes).map(Self::Letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nobody_could_read_is_no_letter() {
        let unreadable = Unreadable {
            queue: "text".into(),
            flow: "f".into(),
            trace: String::new(),
            body: Bytes::from_static(b"?"),
            error: "why".into(),
            deliveries: 5,
            buried: 1,
        };
        let bytes = unreadable.encode().unwrap();
        assert_eq!(Grave::decode(&bytes).unwrap(), Grave::Unreadable(unreadable));
        assert!(decode::<Letter>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn whatever_lies_there_is_read_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Grave::decode(&bytes);
            let _ = Grave::decode(&[&NO_LETTER[..], &bytes[..]].concat());
        }
    }
}
