//! What is told of clips before they are decoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sensorium_media::audio::{Error, Limits, length};

fuzz_target!(|bytes: &[u8]| match length(bytes, &Limits { max_bytes: 1 << 20, max_seconds: 10.0 }) {
    Err(Error::Panicked { .. }) => std::process::abort(),
    Err(_) => {}
    Ok(length) => assert!(length.seconds.is_finite() && length.seconds > 0.0 && length.working_bytes < 16 << 20),
});
