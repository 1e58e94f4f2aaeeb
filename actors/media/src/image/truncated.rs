//! Whether an image that its decoder refuses ends too early, and how much of it came.

use flate2::{Decompress, FlushDecompress, Status};
use image::ImageFormat;

use super::{Cut, jpeg, tiff};

/// Nothing for what is whole, as far as its structure tells, or claims to decode to more than `most` bytes: a header may
/// claim anything, and nobody counts that far.
pub(super) fn cut(format: ImageFormat, bytes: &[u8], most: u64) -> Option<Cut> {
    match format {
        ImageFormat::Jpeg => jpeg::cut(bytes),
        ImageFormat::Png => png(bytes, most),
        ImageFormat::Gif => gif(bytes),
        ImageFormat::Bmp => bmp(bytes),
        ImageFormat::WebP => {
            let claimed = little(bytes, 4, 4)?.saturating_add(8);
            share(bytes.len() as u64, claimed)
        }
        ImageFormat::Tiff => tiff::cut(bytes),
        _ => None,
    }
}

/// A share that is no whole.
pub(super) fn share(came: u64, whole: u64) -> Option<Cut> {
    (came < whole).then(|| Cut { came: Some(came as f64 / whole as f64) })
}

/// An unsigned number of up to 8 bytes; nothing where the file has ended.
pub(super) fn number(bytes: &[u8], at: u64, length: usize, big_endian: bool) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let part = bytes.get(at..at.checked_add(length)?)?;
    let add = |all: u64, byte: &u8| (all << 8) | u64::from(*byte);
    Some(if big_endian { part.iter().fold(0, add) } else { part.iter().rev().fold(0, add) })
}

fn little(bytes: &[u8], at: u64, length: usize) -> Option<u64> {
    number(bytes, at, length, false)
}

/// By what its data inflates to, interlaced or not.
fn png(bytes: &[u8], most: u64) -> Option<Cut> {
    let big = |at: usize, length| number(bytes, at as u64, length, true);
    let nothing = Some(Cut { came: Some(0.0) });
    let Some((width, height)) = big(16, 4).zip(big(20, 4)) else { return nothing };
    let Some([depth, kind, _, _, interlaced]) = bytes.get(24..29) else { return nothing };
    let samples = [1, 0, 3, 1, 2, 0, 4].get(usize::from(*kind)).copied().unwrap_or(0);
    let bits = samples * u64::from(*depth);
    let rows =
        |width: u64, height: u64| if width == 0 { 0 } else { height.saturating_mul(1 + (width * bits).div_ceil(8)) };
    // Adam7: where each pass begins, and its steps
    let passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)];
    let step = |size: u64, from: u64, step: u64| size.saturating_sub(from).div_ceil(step);
    let pass = |(x, y, across, down)| rows(step(width, x, across), step(height, y, down));
    let all = |passes: [_; 7]| passes.into_iter().map(pass).fold(0, u64::saturating_add);
    let whole = if *interlaced == 1 { all(passes) } else { rows(width, height) };
    if whole > most {
        return None;
    }

    let mut inflater = Decompress::new(true);
    let mut page = vec![0; 32 << 10];
    let mut at = 8;
    while let Some(length) = big(at, 4) {
        let body = bytes.get(at + 8..).unwrap_or_default();
        let length = usize::try_from(length).ok()?;
        let here = &body[..length.min(body.len())];
        match bytes.get(at + 4..at + 8) {
            Some(b"IEND") => return None,
            Some(b"IDAT") => inflate(&mut inflater, here, &mut page, whole),
            _ => {}
        }
        if here.len() < length {
            break;
        }
        at += 12 + length;
    }
    // the end alone may be missing
    share(inflater.total_out(), whole)
}

/// Counts what comes out, which is thrown away. What is broken is the decoder's to refuse.
fn inflate(inflater: &mut Decompress, mut data: &[u8], page: &mut [u8], whole: u64) {
    while inflater.total_out() < whole {
        let (before, written) = (inflater.total_in(), inflater.total_out());
        let status = inflater.decompress(data, page, FlushDecompress::None);
        data = &data[usize::try_from(inflater.total_in() - before).unwrap_or(data.len()).min(data.len())..];
        let stuck = inflater.total_out() == written && (data.is_empty() || inflater.total_in() == before);
        if stuck || matches!(status, Ok(Status::StreamEnd) | Err(_)) {
            return;
        }
    }
}

/// The first frame's blocks: GIF89a, sections 15 to 27. Nothing tells how long they would have been.
fn gif(bytes: &[u8]) -> Option<Cut> {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let ends = Some(Cut { came: None });
    let Some(flags) = bytes.get(10) else { return ends };
    let mut at = 13 + table(*flags);
    loop {
        let Some(kind) = bytes.get(at) else { return ends };
        let image = *kind == 0x2c;
        at += match kind {
            0x21 => 2,
            0x2c => {
                let Some(flags) = bytes.get(at + 9) else { return ends };
                10 + table(*flags) + 1
            }
            _ => return None,
        };
        loop {
            let Some(length) = bytes.get(at) else { return ends };
            at += 1 + usize::from(*length);
            if *length == 0 {
                break;
            }
        }
        if image {
            return None;
        }
    }
}

/// By its rows, if they are not compressed, or by its own length.
fn bmp(bytes: &[u8]) -> Option<Cut> {
    let nothing = Some(Cut { came: Some(0.0) });
    let Some(compression) = little(bytes, 30, 4) else { return nothing };
    let (whole, start) = (little(bytes, 2, 4)?, little(bytes, 10, 4)?);
    let signed = |at| little(bytes, at, 4).and_then(|side| u32::try_from(side).ok()).map(u32::cast_signed);
    let (width, height) = (signed(18)?.unsigned_abs(), signed(22)?.unsigned_abs());
    let came = (bytes.len() as u64).saturating_sub(start);
    if matches!(compression, 0 | 3 | 6) {
        let row = (u64::from(width) * little(bytes, 28, 2)?).div_ceil(32) * 4;
        return share(came, row.saturating_mul(height.into()));
    }
    share(came, whole.saturating_sub(start))
}
