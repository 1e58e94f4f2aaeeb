//! Texts, by a byte-level tokenizer of its own that needs no file of a model.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sensorium_media::text::Tokenizer;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tokenizer.json");
    Tokenizer::from_file(&file).expect("the fuzz folder's tokenizer.json")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for truncate in [false, true] {
        if let Ok(encoded) = TOKENIZER.encode(text, 64, truncate) {
            assert!(encoded.ids.len() <= 64);
            assert!(truncate || !encoded.truncated);
        }
    }
});
