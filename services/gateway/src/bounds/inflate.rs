//! Compressed messages, inflated by us rather than by tonic: it would inflate whatever comes to the limit of a message,
//! on the lane, and tells nobody how much smaller it was on the wire.

use std::io::{self, Read};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, header::HeaderName};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What a message may become without a question…
const FREE: usize = 1 << 20;
/// …and how many times its size beyond that. Text shrinks by a factor of 3 to 10, tensors by less; what shrinks by more
/// than this was made for it.
const RATIO: usize = 100;

/// How messages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    Zstd,
}

impl Encoding {
    /// How the messages of a request are compressed. Those that it knows are not left for tonic to see; others are, and
    /// it refuses them with a list of those that we know. Answers are compressed for those who compress what they ask:
    /// stock clients always say that they would understand gzip, and compressing embeddings takes longer than computing
    /// them.
    pub(super) fn take(headers: &mut HeaderMap) -> Option<Self> {
        let encoding = headers.get(&ENCODING).map(|value| value.as_bytes());
        let known = match encoding {
            Some(b"gzip") => Some(Self::Gzip),
            Some(b"zstd") => Some(Self::Zstd),
            _ => None,
        };
        if known.is_some() {
            headers.remove(&ENCODING);
        } else if encoding.is_none_or(|encoding| encoding == b"identity") {
            headers.remove(&ACCEPT);
        }
        known
    }

    /// A message of `limit` bytes at most.
    ///
    /// # Errors
    /// What is wrong with it, or which limit it passes.
    pub(super) fn inflate(self, compressed: &[u8], limit: usize) -> Result<Bytes, String> {
        let most = limit.min(FREE.max(compressed.len().saturating_mul(RATIO)));
        let bad = |error: io::Error| format!("cannot be inflated: {error}");
        // twice: what is to burst is known by its size, before any memory is set aside for it
        let size = self.reader(compressed).and_then(|from| read(from, most, |_| ())).map_err(bad)?;
        let message = size.map(|size| {
            let mut message = BytesMut::with_capacity(size);
            let whole = self.reader(compressed).and_then(|from| read(from, size, |piece| message.put_slice(piece)));
            whole.map(|_| message.freeze()).map_err(bad)
        });
        message.ok_or_else(|| {
            let size = compressed.len();
            if most == limit {
                format!("more than {limit} bytes, inflated from {size}, the limit is {limit}")
            } else {
                format!("inflates from {size} to more than {most} bytes, the limit is {RATIO} times its size")
            }
        })?
    }

    fn reader(self, compressed: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(compressed)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(compressed)?),
        })
    }
}

/// Passes on all that comes, and says how much it was; nothing if it is more than `most` bytes.
fn read(mut from: impl Read, most: usize, mut pass: impl FnMut(&[u8])) -> io::Result<Option<usize>> {
    let mut size = 0;
    let mut piece = [0; 16 << 10];
    loop {
        let count = from.read(&mut piece)?;
        size += count;
        match count {
            0 => return Ok(Some(size)),
            _ if size > most => return Ok(None),
            _ => pass(&piece[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn messages_come_back_and_what_was_made_to_burst_does_not() {
        let text = b"to be or not to be ".repeat(50);
        let all = [(Encoding::Gzip, gzip(&text)), (Encoding::Zstd, zstd::encode_all(&text[..], 3).unwrap())];
        for (encoding, compressed) in all {
            assert_eq!(encoding.inflate(&compressed, 1 << 20).unwrap(), text);
            let refused = encoding.inflate(&compressed, 100).unwrap_err();
            assert!(refused.contains("the limit is 100"), "{refused}");
            assert!(encoding.inflate(&compressed[..compressed.len() / 2], 1 << 20).is_err());
            assert!(encoding.inflate(b"nothing of the kind", 1 << 20).is_err());
        }
        let zeros = vec![0; 8 << 20];
        for (encoding, bomb) in
            [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd::encode_all(&zeros[..], 3).unwrap())]
        {
            let refused = encoding.inflate(&bomb, 64 << 20).unwrap_err();
            assert!(refused.contains("100 times"), "{refused}");
        }
        assert!(Encoding::Gzip.inflate(&gzip(&zeros[..1 << 20]), 64 << 20).is_ok(), "small enough to ask nothing");
    }

    #[test]
    fn what_we_inflate_tonic_does_not_see() {
        let headers = |encoding: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, "gzip".parse().unwrap());
            if let Some(encoding) = encoding {
                headers.insert(ENCODING, encoding.parse().unwrap());
            }
            headers
        };
        for (encoding, known, left, answered) in [
            (Some("gzip"), Some(Encoding::Gzip), false, true),
            (Some("zstd"), Some(Encoding::Zstd), false, true),
            (Some("snappy"), None, true, true),
            (Some("identity"), None, true, false),
            (None, None, false, false),
        ] {
            let mut headers = headers(encoding);
            assert_eq!(Encoding::take(&mut headers), known, "{encoding:?}");
            assert_eq!(
                (headers.contains_key(ENCODING), headers.contains_key(ACCEPT)),
                (left, answered),
                "{encoding:?}"
            );
        }
    }
}
