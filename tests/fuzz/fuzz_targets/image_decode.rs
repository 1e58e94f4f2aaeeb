//! Images, whole or as far as they came.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sensorium_media::image::{Error, Limits, decode};

fuzz_target!(|bytes: &[u8]| {
    for allow_truncated in [false, true] {
        let limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 18, allow_truncated };
        match decode(bytes, &limits) {
            Err(Error::Panicked { .. }) => std::process::abort(),
            Err(_) => {}
            Ok(image) => {
                assert!(allow_truncated || image.cut.is_none());
                assert_eq!(image.pixels.len(), 3 * image.width as usize * image.height as usize);
            }
        }
    }
});
