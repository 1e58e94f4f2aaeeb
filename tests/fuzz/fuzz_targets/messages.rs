//! Messages as a door's stream brings them, each with its header.

#![no_main]

use bytes::Bytes;
use futures::executor::block_on;
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use sensorium_proto::codec::BoundedCodec;
use sensorium_proto::inference::ModelInferRequest;
use sensorium_proto::v1::UnderstandRequest;
use tonic::Streaming;
use tonic::codec::Codec;

/// Bytes of a message at most.
const LIMIT: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let body = || Full::new(Bytes::copy_from_slice(bytes));
    let decoder = BoundedCodec::<ModelInferRequest, ModelInferRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body(), None, Some(LIMIT));
    while let Ok(Some(message)) = block_on(messages.message()) {
        // no field is made up: what was read is written in as many bytes, or in fewer
        assert!(message.raw_input_contents.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
    }
    let decoder = BoundedCodec::<UnderstandRequest, UnderstandRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body(), None, Some(LIMIT));
    while let Ok(Some(_)) = block_on(messages.message()) {}
});
