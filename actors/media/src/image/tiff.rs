//! The first directory of a TIFF (TIFF 6.0, section 2), read before its decoder does.

use super::Cut;

/// Values of an entry that says how the picture lies in the file: enough for strips of one row, or tiles of 16 by 16.
/// `tiff` 0.11.3 allocates 32 bytes for each that an entry counts before it looks for one of them.
const MOST_VALUES: u64 = 1 << 18;

/// Entries that describe the picture rather than accompany it have lower numbers (and `JPEGTables` is 347).
const PRIVATE: u64 = 700;

struct Directory<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    start: u64,
    count: u64,
}

struct Entry {
    tag: u64,
    values: u64,
    /// Bytes of a value.
    size: u64,
    /// Where the values lie.
    at: u64,
}

impl<'a> Directory<'a> {
    /// Nothing if the file has ended by then.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut directory = Self { bytes, big_endian: bytes.starts_with(b"MM"), start: 0, count: 0 };
        directory.start = directory.number(4, 4)?;
        directory.count = directory.number(directory.start, 2)?;
        Some(directory)
    }

    fn number(&self, at: u64, length: usize) -> Option<u64> {
        super::truncated::number(self.bytes, at, length, self.big_endian)
    }

    fn end(&self) -> u64 {
        self.start + 2 + 12 * self.count + 4
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.count).map_while(|index| {
            let entry = self.start + 2 + 12 * index;
            let (tag, kind, values) = (self.number(entry, 2)?, self.number(entry + 2, 2)?, self.number(entry + 4, 4)?);
            let size = match kind {
                3 | 8 => 2,
                4 | 9 | 11 => 4,
                5 | 10 | 12 => 8,
                _ => 1,
            };
            let at = if values * size <= 4 { entry + 8 } else { self.number(entry + 8, 4)? };
            Some(Entry { tag, values, size, at })
        })
    }
}

/// An entry that would cost more than any picture needs.
pub(super) fn absurd(bytes: &[u8]) -> Option<String> {
    let directory = Directory::read(bytes)?;
    let entry = directory.entries().find(|entry| entry.tag < PRIVATE && entry.values > MOST_VALUES)?;
    Some(format!("its directory counts {} values of tag {}, the limit is {MOST_VALUES}", entry.values, entry.tag))
}

/// How much of what the directory points to came.
pub(super) fn cut(bytes: &[u8]) -> Option<Cut> {
    let here = bytes.len() as u64;
    let share = |whole: u64| super::truncated::share(here, whole);
    let Some(directory) = Directory::read(bytes) else {
        let start = super::truncated::number(bytes, 4, 4, bytes.starts_with(b"MM"))?;
        return share(start + 2);
    };
    if directory.end() > here {
        return share(directory.end());
    }
    // offsets and lengths of strips or of tiles
    let (mut offsets, mut lengths) = (Vec::new(), Vec::new());
    for entry in directory.entries().filter(|entry| entry.values <= MOST_VALUES) {
        let into = match entry.tag {
            273 | 324 => &mut offsets,
            279 | 325 => &mut lengths,
            _ => continue,
        };
        if entry.at + entry.values * entry.size > here {
            return share(entry.at + entry.values * entry.size);
        }
        let length = if entry.size == 2 { 2 } else { 4 };
        into.extend((0..entry.values).filter_map(|index| directory.number(entry.at + index * entry.size, length)));
    }
    share(offsets.iter().zip(&lengths).map(|(offset, length)| offset + length).max()?)
}
