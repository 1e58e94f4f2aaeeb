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
    /// The model gave what `model.toml` does not promise.
    #[error("{0}")]
    Output(String),
    /// libtorch said no.
    #[error("{}", words(&.0.to_string()))]
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
            Error::Output(message) => Self::Output(message),
            Error::Torch(ref torch) if is_of_the_device(&torch.to_string()) => Self::Device(error.to_string()),
            // an index, a shape, an assertion: the model's own code refuses what it was given
            Error::Torch(_) => Self::Input(error.to_string()),
            Error::Interrupted => Self::Interrupted,
        }
    }
}

/// What libtorch and the libraries below it write when the device has failed or has no memory left, rather than the code
/// that ran on it. c10 has no codes to tell them apart by.
const DEVICE_FAILURES: [&str; 12] = [
    "CUDA error",
    "CUDA driver error",
    "CUDA runtime error",
    "CUBLAS_STATUS",
    "cuDNN error",
    "CUDNN_STATUS",
    "CUSOLVER_STATUS",
    "cuFFT error",
    "NVML",
    "device-side assert",
    "out of memory",
    "allocate memory",
];

/// Whether the device failed, so that the engine has to be made anew.
fn is_of_the_device(message: &str) -> bool {
    message.contains("bad_alloc") || DEVICE_FAILURES.iter().any(|failure| message.contains(failure))
}

/// Bytes of a message that are worth telling.
const LONGEST: usize = 500;

/// What went wrong, in the words of whoever noticed: libtorch appends a C++ stack to its messages, and TorchScript puts the
/// lines of the module's source before them, both of no use to whoever reads a status.
fn words(message: &str) -> String {
    let message = message.split("\nException raised from").next().unwrap_or_default();
    let raised = match message.rfind("<--- HERE") {
        Some(at) => &message[at + "<--- HERE".len()..],
        None => message,
    };
    let mut words = raised.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.len() > LONGEST {
        words.truncate(words.floor_char_boundary(LONGEST - '…'.len_utf8()));
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "The following operation failed in the TorchScript interpreter.\n\
        Traceback of TorchScript, serialized code (most recent call last):\n  File \"code/__torch__.py\", line 9, in forward\n    \
        _0 = torch.embedding(weight, x)\n         ~~~~~~~~~~~~~~~ <--- HERE\n";

    #[test]
    fn what_was_raised_is_told_and_no_more() {
        let raised = format!(
            "{SCRIPT}RuntimeError: index out of range\n  in self\nException raised from f at x.cpp:1\nframe #0"
        );
        assert_eq!(words(&raised), "RuntimeError: index out of range in self");
        assert_eq!(words("shape '[2]' is invalid\nException raised from f"), "shape '[2]' is invalid");
        let long = words(&"é".repeat(1000));
        assert!(long.len() <= LONGEST && long.ends_with("é…"), "{long}");
    }

    #[test]
    fn only_what_the_device_did_is_its_failure() {
        let kind = |message: &str| engine::Error::from(Error::Torch(TchError::Torch(message.to_owned())));
        for message in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA out of memory. Tried to allocate 20.00 MiB",
            "CUDA error: device-side assert triggered",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)",
        ] {
            assert!(matches!(kind(message), engine::Error::Device(_)), "{message}");
        }
        for message in [
            "index out of range in self",
            "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1",
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
            "AssertionError: x must be positive",
        ] {
            assert!(matches!(kind(message), engine::Error::Input(_)), "{message}");
        }
    }
}
