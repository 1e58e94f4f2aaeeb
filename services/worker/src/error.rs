//! What can go wrong between a folder of weights and an answer, and what the replica is told about it.

use sensorium_actors::engine::{self, Interrupted};
use tch::TchError;

/// Why this crate could not do its work; becomes [`engine::Error`] at the crate's edge.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The folder does not hold what the architecture asks for.
    #[error("{0}")]
    Load(String),
    /// The batch is not what the model takes.
    #[error("{0}")]
    Input(String),
    /// libtorch said no.
    #[error("{}", first_line(.0))]
    Torch(#[from] TchError),
    /// The pulse said stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<Interrupted> for Error {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl From<Error> for engine::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Load(message) => Self::Load(message),
            Error::Input(message) => Self::Input(message),
            Error::Torch(_) => Self::Device(error.to_string()),
            Error::Interrupted => Self::Interrupted,
        }
    }
}

/// libtorch appends a C++ stack to its messages, of no use to whoever reads a status.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
