//! What symphonia reads of Matroska and WebM but does not tell: samples at the end that are not part of the clip.
//!
//! Element names and their numbers: RFC 9559; how they are coded: RFC 8794.

const SEGMENT: u32 = 0x1853_8067;
const CLUSTER: u32 = 0x1f43_b675;
const BLOCK_GROUP: u32 = 0xa0;
const BLOCK: u32 = 0xa1;
const SIMPLE_BLOCK: u32 = 0xa3;
const DISCARD_PADDING: u32 = 0x75a2;

/// Nanoseconds that a track's last block has too many.
///
/// Goes through the elements in their order and into those that hold blocks, whose lengths a live recording leaves
/// open: what is entered need not be left.
pub(super) fn discarded_at_end(mut bytes: &[u8], track: u64) -> u64 {
    let (mut discarded, mut ours) = (0, false);
    loop {
        let Some((id, rest)) = number(bytes, true) else { return discarded };
        let Some((size, body)) = number(rest, false) else { return discarded };
        match u32::try_from(id).unwrap_or(0) {
            SEGMENT | CLUSTER | BLOCK_GROUP => {
                bytes = body;
                continue;
            }
            BLOCK | SIMPLE_BLOCK => {
                ours = number(body, false).is_some_and(|(number, _)| number == track);
                discarded = if ours { 0 } else { discarded };
            }
            DISCARD_PADDING if ours => {
                let value = usize::try_from(size).ok().filter(|size| *size <= 8).and_then(|size| body.get(..size));
                let value = value.unwrap_or_default();
                // signed: before the block, if it is negative
                let negative = value.first().is_some_and(|first| first & 0x80 != 0);
                let all = value.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte));
                discarded = if negative { 0 } else { all };
            }
            _ => {}
        }
        let Some(next) = usize::try_from(size).ok().and_then(|size| body.get(size..)) else { return discarded };
        bytes = next;
    }
}

/// A number whose length is told by the zeros before its first bit, with that bit or without it; and what follows.
fn number(bytes: &[u8], with_marker: bool) -> Option<(u64, &[u8])> {
    let first = *bytes.first()?;
    let length = first.leading_zeros() as usize + 1;
    let all = bytes.get(..length.min(8))?.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte));
    let value = if with_marker { all } else { all & !(1 << (7 * length.min(8))) };
    (first != 0).then_some((value, &bytes[length..]))
}
