//! Bytes to a container's reader, past what people and programs put before it.

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::sync::LazyLock;

use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::{Hint, Probe};
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;
use symphonia::default::formats::{
    AdtsReader, AiffReader, CafReader, FlacReader, IsoMp4Reader, MkvReader, MpaReader, OggReader, WavReader,
};

use super::track::are_read;
use super::wav;

/// Streams begin anywhere: behind words of a server, or in the middle of a broadcast. Containers have headers, and are
/// told from their first bytes alone: symphonia's own probe would also find one in the middle of another file.
static STREAMS: LazyLock<Probe> = LazyLock::new(|| {
    let mut streams = Probe::new();
    streams.register_format::<AdtsReader<'_>>();
    streams.register_format::<FlacReader<'_>>();
    streams.register_format::<MpaReader<'_>>();
    streams.register_format::<OggReader<'_>>();
    streams
});

/// Opens the container.
///
/// # Errors
///
/// In symphonia's words, if it knows none like this.
pub(super) fn open(bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>, Fault> {
    if let Some(wav) = wav::read(bytes) {
        return if matches!(wav.tag, wav::MP3 | wav::MPEG) {
            // MPEG audio in a WAV is a stream of its own
            probe(wav.data)
        } else {
            let chained = MediaSourceStream::new(
                Box::new(Chained { head: wav.header, body: wav.data, at: 0 }),
                Default::default(),
            );
            Ok(Box::new(WavReader::try_new(chained, FormatOptions::default())?))
        };
    }
    let (source, options) = (stream(bytes), FormatOptions::default());
    Ok(match (bytes.get(..4).unwrap_or_default(), bytes.get(4..8).unwrap_or_default()) {
        (b"caff", _) => Box::new(CafReader::try_new(source, options)?),
        (b"FORM", _) => Box::new(AiffReader::try_new(source, options)?),
        (b"\x1a\x45\xdf\xa3", _) => Box::new(MkvReader::try_new(source, options)?),
        (_, b"ftyp" | b"styp" | b"moov" | b"mdat" | b"free" | b"skip" | b"wide" | b"uuid") => {
            Box::new(IsoMp4Reader::try_new(source, options)?)
        }
        _ => return probe(bytes),
    })
}

fn stream(bytes: &[u8]) -> MediaSourceStream<'_> {
    MediaSourceStream::new(Box::new(Cursor::new(bytes)), Default::default())
}

fn probe(bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>, Fault> {
    STREAMS.probe(&Hint::new(), stream(bytes), FormatOptions::default(), MetadataOptions::default())
}

/// Why a header is not shown to a demuxer whose arithmetic it would overflow (symphonia 0.6.1).
pub(super) fn absurd(bytes: &[u8]) -> Option<&'static str> {
    match bytes.get(..4)? {
        _ if wav::is_wav(bytes) => wav::read(bytes).is_none().then_some("a WAV without a format or without samples"),
        b"caff" => {
            let mut chunks = chunks(bytes, 8, 8);
            let sound = chunks.all(|(name, body)| name != b"desc" || sound_caf(body).unwrap_or(false));
            (!sound).then_some("a CAF whose description contradicts itself")
        }
        b"FORM" => {
            let mut chunks = chunks(bytes, 12, 4);
            let sound = chunks.all(|(name, body)| name != b"COMM" || sound_aiff(body).unwrap_or(false));
            (!sound).then_some("an AIFF whose description contradicts itself")
        }
        _ => None,
    }
}

/// Names of the chunks from there on, and all that follows each name and its length of so many bytes.
fn chunks(bytes: &[u8], from: usize, length: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = Some(from);
    std::iter::from_fn(move || {
        let header = bytes.get(at?..)?;
        let (name, body) = (header.get(..4)?, header.get(4 + length..)?);
        let size = header[4..4 + length].iter().fold(0_u64, |size, byte| (size << 8) | u64::from(*byte));
        // those of AIFF are padded to even lengths
        let size =
            usize::try_from(size).ok().map(|size| if length == 4 { size.saturating_add(size % 2) } else { size });
        at = size.and_then(|size| at?.checked_add(4 + length)?.checked_add(size));
        Some((name, body))
    })
}

/// Bytes and frames of a packet, channels, bits (Core Audio Format Specification 1.0).
fn sound_caf(description: &[u8]) -> Option<bool> {
    let number = |at: usize| description.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let [size, frames, channels, bits] = [number(16)?, number(20)?, number(24)?, number(28)?];
    let packed = size == channels.saturating_mul(bits / 8) && (8..=64).contains(&bits);
    let linear = description.get(8..12)? == b"lpcm";
    Some(are_read(channels as usize) && size < 1 << 20 && frames < 1 << 20 && (packed || !linear))
}

/// Channels, frames, bits ("Audio Interchange File Format 1.3", Apple 1989).
fn sound_aiff(common: &[u8]) -> Option<bool> {
    let number = |at: usize| common.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    Some(are_read(number(0)?.into()) && number(6)? <= 64)
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
