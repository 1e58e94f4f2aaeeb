//! Bytes to a container's reader, past what people and programs put before it.

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;

use super::wav;

/// Opens the container.
///
/// # Errors
///
/// In symphonia's words, if it knows none like this.
pub(super) fn open(bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>, Fault> {
    let bytes = without_tags(bytes);
    match wav::read(bytes) {
        // MPEG audio in a WAV is a stream of its own
        Some(wav) if matches!(wav.tag, wav::MP3 | wav::MPEG) => probe(Box::new(Cursor::new(wav.data))),
        Some(wav) => probe(Box::new(Chained { head: wav.header, body: wav.data, at: 0 })),
        None => probe(Box::new(Cursor::new(bytes))),
    }
}

/// Why a header is not shown to a demuxer whose arithmetic it would overflow (symphonia 0.6.1).
pub(super) fn absurd(bytes: &[u8]) -> Option<&'static str> {
    let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let few = |channels: u32| (1..=32).contains(&channels);
    match bytes.get(..4)? {
        _ if wav::is_wav(bytes) => wav::read(bytes).is_none().then_some("a WAV without a format or without samples"),
        // The description is the first chunk: bytes and frames of a packet, channels, bits (Core Audio Format
        // Specification 1.0).
        b"caff" => {
            let [size, frames, channels, bits] = [number(36)?, number(40)?, number(44)?, number(48)?];
            let linear = bytes.get(28..32)? != b"lpcm"
                || (size == channels.saturating_mul(bits / 8) && (8..=64).contains(&bits));
            let sound = few(channels) && size < 1 << 20 && frames < 1 << 20 && linear;
            (!sound).then_some("a CAF whose description contradicts itself")
        }
        b"FORM" if matches!(bytes.get(8..12)?, b"AIFF" | b"AIFC") => {
            // channels, frames and bits ("Audio Interchange File Format 1.3", Apple 1989)
            let mut at = 12;
            while bytes.get(at..at + 4)? != b"COMM" {
                let size = usize::try_from(number(at + 4)?).ok()?;
                at = at.checked_add(8)?.checked_add(size.checked_next_multiple_of(2)?)?;
            }
            let (channels, bits) = (number(at + 8)? >> 16, number(at + 12)? & 0xffff);
            (!few(channels) || bits > 64).then_some("an AIFF whose description contradicts itself")
        }
        _ => None,
    }
}

fn probe<'a>(source: Box<dyn MediaSource + 'a>) -> Result<Box<dyn FormatReader + 'a>, Fault> {
    let stream = MediaSourceStream::new(source, Default::default());
    symphonia::default::get_probe().probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
}

/// What follows the ID3v2 tags, of which some files have several (ID3v2.4, 3.1 and 3.4). A cover picture alone may be
/// longer than the stretch in which symphonia looks for a container.
pub(super) fn without_tags(mut bytes: &[u8]) -> &[u8] {
    while let [b'I', b'D', b'3', _, _, flags, a @ 0..=127, b @ 0..=127, c @ 0..=127, d @ 0..=127, ..] = bytes {
        let size = [a, b, c, d].iter().fold(0, |size, seven| (size << 7) | usize::from(**seven));
        let footer = if flags & 0x10 != 0 { 10 } else { 0 };
        let Some(rest) = bytes.get(10 + size + footer..) else { break };
        // padding that the tag does not count
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        bytes = &rest[zeros..];
    }
    bytes
}

/// A header, and samples that it was not copied to.
struct Chained<'a> {
    head: Vec<u8>,
    body: &'a [u8],
    at: usize,
}

impl Chained<'_> {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl Read for Chained<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let rest = match self.at.checked_sub(self.head.len()) {
            None => &self.head[self.at..],
            Some(at) => self.body.get(at..).unwrap_or_default(),
        };
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

impl Seek for Chained<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(at) => (0, i64::try_from(at).unwrap_or(i64::MAX)),
            SeekFrom::Current(by) => (self.at, by),
            SeekFrom::End(by) => (self.len(), by),
        };
        let at = i64::try_from(from).ok().and_then(|from| from.checked_add(by)).and_then(|at| usize::try_from(at).ok());
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at as u64)
    }
}

impl MediaSource for Chained<'_> {
    fn is_seekable(&self) -> bool {
        true
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.len() as u64)
    }
}
