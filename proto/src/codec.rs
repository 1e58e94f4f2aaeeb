//! Reads messages only after their size in memory is known.
//!
//! Two bytes on the wire may be a nested message of hundreds of bytes in memory, and a byte a number of eight: 8 MiB
//! would become gigabytes. So a message is weighed first, without making anything of it.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::weigh::{MESSAGE, weigh};

/// What any message may weigh…
const FREE: usize = 16 << 20;
/// …and how many times its bytes on the wire beyond that.
const FACTOR: usize = 4;
/// A message of so many bytes on the wire weighs no more than any may, whatever it holds: two bytes are one nested message
/// at most.
const LIGHT: usize = (FREE - MESSAGE) / (MESSAGE / 2);

/// Bytes that are set aside for a message before it is known: most are small, and a large one is given all it needs at once.
/// tonic's default is eight times as much, for every call.
const BUFFER: usize = 1 << 10;
/// Bytes of a stream that are gathered before they are handed on: tonic's default.
const GATHERED: usize = 32 << 10;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER, GATHERED)
}

/// prost's messages, each weighed before it is read.
#[derive(Clone, Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(buffers()))
    }
}

/// See [`BoundedCodec`].
#[derive(Debug)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Name + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let (wire, limit) = (buffer.chunk(), FREE.max(buffer.remaining().saturating_mul(FACTOR)));
        // a message lies in one piece; what cannot be read is prost's to complain about
        if wire.len() > LIGHT && wire.len() == buffer.remaining() && weigh(&U::full_name(), wire, limit).is_err() {
            return Err(Status::out_of_range(format!(
                "message of {} bytes takes more than {limit} bytes in memory, the limit; expected fewer repeated fields, \
                 or values as raw contents",
                wire.len()
            )));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::encoding::encode_key;
    use prost::encoding::{WireType, encode_varint};

    use super::*;
    use crate::inference::model_infer_request::InferInputTensor;
    use crate::inference::{InferTensorContents, ModelInferRequest};
    use crate::weigh::TooHeavy;

    fn is_refused(wire: &[u8]) -> bool {
        let limit = FREE.max(wire.len() * FACTOR);
        weigh(&ModelInferRequest::full_name(), wire, limit).is_err()
    }

    #[test]
    fn what_would_burst_is_refused_and_what_people_send_is_not() {
        // field 5 are the inputs: two bytes each
        let empty_inputs = [0x2a, 0].repeat(4 << 20);
        assert!(is_refused(&empty_inputs));
        assert!(is_refused(&[0x3a, 0].repeat(4 << 20)), "empty raw contents");
        let nested = |contents: InferTensorContents| {
            let input = InferInputTensor { contents: Some(contents), ..Default::default() };
            ModelInferRequest { inputs: vec![input], ..Default::default() }.encode_to_vec()
        };
        let empty_strings = InferTensorContents { bytes_contents: vec![Bytes::new(); 4 << 20], ..Default::default() };
        assert!(is_refused(&nested(empty_strings)));
        let ones = InferTensorContents { uint64_contents: vec![1; 8 << 20], ..Default::default() };
        assert!(is_refused(&nested(ones)));

        let raw = ModelInferRequest { raw_input_contents: vec![vec![0; 8 << 20].into()], ..Default::default() };
        assert!(!is_refused(&raw.encode_to_vec()));
        let floats = InferTensorContents { fp32_contents: vec![1.0; 2 << 20], ..Default::default() };
        assert!(!is_refused(&nested(floats)));
        let texts = InferTensorContents { bytes_contents: vec!["word".into(); 60_000], ..Default::default() };
        assert!(!is_refused(&nested(texts)));
    }

    #[test]
    fn no_light_message_weighs_more_than_any_may() {
        let name = ModelInferRequest::full_name();
        // field 5 are inputs, of which field 5 are contents; field 7 are raw contents
        for piece in [&[0x2a, 0][..], &[0x2a, 2, 0x2a, 0], &[0x2a, 4, 0x2a, 2, 0x0a, 0], &[0x3a, 0], &[0x3a, 1, 0]] {
            let weight = weigh(&name, &piece.repeat(LIGHT / piece.len()), usize::MAX).unwrap();
            assert!(weight <= FREE, "{weight} of {piece:?}");
        }
        assert_eq!(weigh(&name, &[0x2a, 0].repeat(LIGHT / 2 + 1), FREE), Err(TooHeavy), "the heaviest there is");
    }

    #[test]
    fn unpacked_numbers_are_weighed_as_well() {
        let mut contents = Vec::new();
        for _ in 0..1000 {
            encode_key(5, WireType::Varint, &mut contents);
            encode_varint(1, &mut contents);
        }
        let mut input = Vec::new();
        encode_key(5, WireType::LengthDelimited, &mut input);
        encode_varint(contents.len() as u64, &mut input);
        input.extend(contents);
        let mut message = Vec::new();
        encode_key(5, WireType::LengthDelimited, &mut message);
        encode_varint(input.len() as u64, &mut message);
        message.extend(input);
        assert_eq!(weigh(&ModelInferRequest::full_name(), &message, 10_000), Ok(3 * 256 + 1000 * 8));
        assert!(weigh(&ModelInferRequest::full_name(), &message, 8000).is_err());
    }

    #[test]
    fn whatever_comes_is_weighed_without_a_panic() {
        let mut state = 7u64;
        for length in 0..2000 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    state.to_be_bytes()[0]
                })
                .collect();
            let weight = weigh(&ModelInferRequest::full_name(), &bytes, usize::MAX).unwrap();
            assert!(weight >= 256);
        }
    }
}
