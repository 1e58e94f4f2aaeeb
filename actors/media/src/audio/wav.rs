//! WAV headers as recorders and pipes write them, made canonical.
//!
//! A recorder that lost power leaves sizes of 0, a pipe writes 0xFFFFFFFF, editors append and forget to count. What
//! symphonia then refuses, players play: they take the samples that are there. The header is read here with the same
//! patience and written anew; the samples are not copied.
//!
//! RIFF and WAVE: "Multimedia Programming Interface and Data Specifications 1.0" (IBM, Microsoft, 1991); RF64: EBU
//! Tech 3306; WAVE_FORMAT_EXTENSIBLE: Microsoft's `mmreg.h`.

/// A WAV whose header was understood.
pub(super) struct Wav<'a> {
    /// A canonical header up to the samples, for [`Wav::data`].
    pub(super) header: Vec<u8>,
    /// The samples that are there.
    pub(super) data: &'a [u8],
    /// What they are coded as, in `mmreg.h`'s numbers; of an extensible one, its sub-format.
    pub(super) tag: u16,
    pub(super) channels: u16,
}

pub(super) const PCM: u16 = 1;
pub(super) const ADPCM_MS: u16 = 2;
pub(super) const FLOAT: u16 = 3;
pub(super) const A_LAW: u16 = 6;
pub(super) const MU_LAW: u16 = 7;
pub(super) const ADPCM_IMA: u16 = 0x11;
pub(super) const MPEG: u16 = 0x50;
pub(super) const MP3: u16 = 0x55;
const EXTENSIBLE: u16 = 0xfffe;

/// Behind the number of a sub-format, in all of those that stand for a tag.
const GUID_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];

/// Whether it begins as a WAV does.
pub(super) fn is_wav(bytes: &[u8]) -> bool {
    matches!(bytes.get(..4), Some(b"RIFF" | b"RF64" | b"BW64")) && bytes.get(8..12) == Some(b"WAVE")
}

/// Reads a WAV's chunks. Nothing for what is no WAV, or has no format or no samples.
pub(super) fn read(bytes: &[u8]) -> Option<Wav<'_>> {
    if !is_wav(bytes) {
        return None;
    }
    let mut format = None;
    let mut long_data = None;
    let mut at = 12;
    loop {
        let size = number(bytes, at + 4)?;
        let body = bytes.get(at + 8..)?;
        let inside = usize::try_from(size).ok().and_then(|size| body.get(..size));
        match &bytes[at..at + 4] {
            b"data" => {
                let format = Format::read(format?)?;
                let long = long_data.filter(|_| size == u32::MAX).and_then(|size| body.get(..size));
                let data = long.or(inside).filter(|data| !data.is_empty() || begins_chunk(body)).unwrap_or(body);
                return Some(Wav {
                    header: format.header(data.len()),
                    data,
                    tag: format.tag,
                    channels: format.channels,
                });
            }
            b"fmt " => format = Some(inside.unwrap_or(body)),
            // the size of `data` in 64 bits, behind that of the whole
            b"ds64" => long_data = body.get(8..16).and_then(|long| usize::try_from(u64_of(long)).ok()),
            _ => {}
        }
        let size = inside?.len();
        at += 8 + size;
        // An odd chunk is followed by a byte of padding, which some writers forget.
        if size % 2 == 1 && !known(bytes.get(at..at + 4).unwrap_or_default()) {
            at += 1;
        }
    }
}

/// Whether a chunk of a known name begins here that is as long as it says: then a `data` of 0 bytes is truly empty.
fn begins_chunk(bytes: &[u8]) -> bool {
    let size = number(bytes, 4).and_then(|size| usize::try_from(size).ok());
    bytes.is_empty() || (known(&bytes[..bytes.len().min(4)]) && size.is_some_and(|size| size <= bytes.len() - 8))
}

fn known(name: &[u8]) -> bool {
    let names: [&[u8; 4]; 12] =
        [b"data", b"fmt ", b"fact", b"LIST", b"bext", b"cue ", b"smpl", b"PEAK", b"iXML", b"id3 ", b"ID3 ", b"JUNK"];
    names.iter().any(|known| name == *known)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |all, byte| (all << 8) | u64::from(*byte))
}

/// `fmt `, however long it is.
struct Format {
    tag: u16,
    channels: u16,
    rate: u32,
    /// Bytes of a sample of all channels, or of a block.
    block: u16,
    /// Bits of a sample as it is stored: 24 for 20 that are used.
    bits: u16,
    /// Which speakers the channels belong to, in `mmreg.h`'s bits; 0 where nobody says.
    speakers: u32,
}

impl Format {
    fn read(body: &[u8]) -> Option<Self> {
        let (tag, channels, rate) = (short(body, 0)?, short(body, 2)?, number(body, 4)?);
        let (block, bits) = (short(body, 12)?, short(body, 14)?);
        let mut format = Self { tag, channels, rate, block, bits: bits.checked_next_multiple_of(8)?, speakers: 0 };
        if tag == EXTENSIBLE {
            format.tag = short(body, 24)?;
            format.speakers = number(body, 20)?;
        }
        if matches!(format.tag, A_LAW | MU_LAW) {
            format.bits = 8;
        }
        Some(format)
    }

    /// The header of a file with so many bytes of samples.
    fn header(&self, data: usize) -> Vec<u8> {
        let format = self.chunk();
        // 0xFFFFFFFF stands for "to the end" with symphonia, in both places
        let data = u32::try_from(data).unwrap_or(u32::MAX);
        let whole = data.saturating_add(u32::try_from(format.len() + 20).unwrap_or(u32::MAX));
        let size = u32::try_from(format.len()).unwrap_or(u32::MAX);
        [
            &b"RIFF"[..],
            &whole.to_le_bytes(),
            b"WAVEfmt ",
            &size.to_le_bytes(),
            &format[..],
            b"data",
            &data.to_le_bytes(),
        ]
        .concat()
    }

    fn chunk(&self) -> Vec<u8> {
        let positioned = matches!(self.tag, PCM | FLOAT) && (3..=18).contains(&self.channels);
        let plain = [
            &(if positioned { EXTENSIBLE } else { self.tag }).to_le_bytes()[..],
            &self.channels.to_le_bytes(),
            &self.rate.to_le_bytes(),
            &self.rate.saturating_mul(self.block.into()).to_le_bytes(),
            &self.block.to_le_bytes(),
            &(if matches!(self.tag, ADPCM_MS | ADPCM_IMA) { 4 } else { self.bits }).to_le_bytes(),
        ]
        .concat();
        let extension: &[u8] = match self.tag {
            _ if positioned => {
                let tag = self.tag.to_le_bytes();
                return [&plain, &[22, 0][..], &self.bits.to_le_bytes(), &self.mask().to_le_bytes(), &tag, &GUID_TAIL]
                    .concat();
            }
            A_LAW | MU_LAW => &[0, 0],
            // samples of a block, which are reckoned from its length, and coefficients, which are always the same
            ADPCM_IMA => &[2, 0, 0, 0],
            ADPCM_MS => &[32; 34],
            _ => &[],
        };
        let extension = if self.tag == ADPCM_MS { [&[32, 0], &extension[2..]].concat() } else { extension.to_vec() };
        [plain, extension].concat()
    }

    /// One bit per channel. Where the file names other than as many speakers, nothing is known of them, and none is
    /// called the one for bass, which is left out of a mix.
    fn mask(&self) -> u32 {
        if self.speakers.count_ones() == u32::from(self.channels) && self.speakers < 1 << 18 {
            return self.speakers;
        }
        // front and rear, sides, then the others, without the centre and the bass
        let order = [0, 1, 4, 5, 9, 10, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 2, 3];
        order.iter().take(self.channels.into()).map(|bit| 1 << bit).sum()
    }
}
