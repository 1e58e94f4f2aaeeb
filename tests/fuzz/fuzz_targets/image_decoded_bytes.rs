//! What is told of images before they are decoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sensorium_media::image::{Error, Limits, decoded_bytes};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 18, allow_truncated: false };
    match decoded_bytes(bytes, &limits) {
        Err(Error::Panicked { .. }) => std::process::abort(),
        Err(_) => {}
        Ok(told) => assert!(told > 0 && told <= 32 * limits.max_pixels + (16 << 20)),
    }
});
