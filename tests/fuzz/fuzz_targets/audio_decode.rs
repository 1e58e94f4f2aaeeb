//! Clips.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sensorium_media::audio::{Error, Limits, decode};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { max_bytes: 1 << 20, max_seconds: 10.0 };
    match decode(bytes, &limits) {
        // A panic that is caught ends a fuzzer all the same; this is for builds in which the hook is silent.
        Err(Error::Panicked { .. }) => std::process::abort(),
        Err(_) => {}
        Ok(clip) => {
            assert!(!clip.samples.is_empty() && clip.seconds <= limits.max_seconds);
            assert!(clip.samples.iter().all(|sample| sample.abs() <= 1.0));
        }
    }
});
