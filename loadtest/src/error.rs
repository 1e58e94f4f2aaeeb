//! What can go wrong outside of the requests themselves; failed requests are figures, not errors.

/// Result with our [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one, or nobody answers there.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Where to.
        target: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// A file or a process.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A request that had to succeed failed.
    #[error("{what}: {code:?}: {message}")]
    Refused {
        /// What was asked.
        what: String,
        /// The gRPC code.
        code: tonic::Code,
        /// The server's words.
        message: String,
    },
    /// A baseline, or the server, did not do what was expected of it.
    #[error("{0}")]
    Child(String),
}

impl Error {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// Wraps a status that a measurement cannot do without.
    pub fn refused(what: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let what = what.into();
        move |status| Self::Refused { what, code: status.code(), message: status.message().to_owned() }
    }
}
