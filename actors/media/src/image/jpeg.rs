//! How much of a JPEG came (ITU-T T.81).
//!
//! Decoders fill what is missing with grey and say nothing. The markers tell whether the end came; if it did not, the
//! blocks are counted by their Huffman codes, without being decoded, since the end marker alone may be missing.

use super::Cut;

/// Nothing for a picture that is whole, or of a kind that decoders refuse anyway.
pub(super) fn cut(bytes: &[u8]) -> Option<Cut> {
    let mut header = Header::default();
    let mut at = 2;
    let mut seen = 0.0;
    loop {
        let Some((code, body)) = marker(bytes, at) else { return header.cut(seen) };
        match code {
            0xd9 => return None,
            0x01 | 0xd0..=0xd7 => {
                at = body;
                continue;
            }
            _ => {}
        }
        let length = bytes.get(body..body + 2).map(|length| usize::from(u16::from_be_bytes([length[0], length[1]])));
        let Some(segment) = length.and_then(|length| bytes.get(body + 2..body + length)) else {
            // A length that makes no sense is for the decoder to refuse.
            return if length.is_some_and(|length| length < 2) { None } else { header.cut(seen) };
        };
        at = body + 2 + segment.len();
        match code {
            0xc0..=0xc2 => header.frame(code == 0xc2, segment)?,
            // arithmetic coding and the like, which are not read
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return None,
            0xc4 => header.tables(segment)?,
            0xdd => header.restart = u32::from(u16::from_be_bytes([*segment.first()?, *segment.get(1)?])),
            0xda => {
                let data = &bytes[at..];
                let end = end_of_scan(data);
                let scan = header.scan(segment)?;
                match end {
                    Some(end) => {
                        at += end;
                        seen += scan.worth;
                    }
                    None => {
                        seen += scan.worth * scan.share(data, header.restart)?;
                        return header.cut(seen);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The next marker's code, and where its segment begins.
fn marker(bytes: &[u8], from: usize) -> Option<(u8, usize)> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)? + 1;
        match bytes.get(at)? {
            0 => {}
            0xff => {}
            code => return Some((*code, at + 1)),
        }
    }
}

/// Where the next marker is that does not belong to the scan.
fn end_of_scan(data: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += data.get(at..)?.iter().position(|byte| *byte == 0xff)?;
        match data.get(at + 1)? {
            0 | 0xd0..=0xd7 => at += 2,
            0xff => at += 1,
            _ => return Some(at),
        }
    }
}

#[derive(Default)]
struct Header {
    progressive: bool,
    width: u32,
    height: u32,
    /// Identifier, and samples across and down in a unit.
    components: Vec<(u8, u32, u32)>,
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart: u32,
}

impl Header {
    fn frame(&mut self, progressive: bool, segment: &[u8]) -> Option<()> {
        let number = |at: usize| Some(u32::from(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?])));
        self.progressive = progressive;
        (self.height, self.width) = (number(1)?, number(3)?);
        let component = |part: &[u8]| (part[0], u32::from(part[1] >> 4), u32::from(part[1] & 15));
        self.components = segment.get(6..)?.chunks_exact(3).map(component).collect();
        let sound = self.components.iter().all(|(_, across, down)| (1..=4).contains(across) && (1..=4).contains(down));
        // a height that only the end of the scan tells is none that could be missed
        (sound && self.width > 0 && self.height > 0 && !self.components.is_empty()).then_some(())
    }

    fn tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((kind, rest)) = segment.split_first() {
            let counts = rest.get(..16)?;
            let total = counts.iter().map(|count| usize::from(*count)).sum::<usize>();
            let values = rest.get(16..16 + total)?;
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(kind & 15))? = Some(Huffman::new(counts, values));
            segment = &rest[16 + total..];
        }
        Some(())
    }

    fn scan(&self, segment: &[u8]) -> Option<Scan<'_>> {
        let count = usize::from(*segment.first()?);
        let of = segment.get(1..1 + 2 * count)?;
        let [first, last, approximation] = *segment.get(1 + 2 * count..4 + 2 * count)? else { return None };
        let most = |side: fn(&(u8, u32, u32)) -> u32| self.components.iter().map(side).max().unwrap_or(1);
        let (across, down) = (most(|part| part.1), most(|part| part.2));
        let mut blocks = Vec::new();
        let mut units = u64::from(self.width.div_ceil(8 * across)) * u64::from(self.height.div_ceil(8 * down));
        for pair in of.chunks_exact(2) {
            let part = self.components.iter().find(|part| part.0 == pair[0])?;
            let tables = (self.dc[usize::from(pair[1] >> 4) & 3].as_ref(), self.ac[usize::from(pair[1] & 3)].as_ref());
            let times = if count == 1 { 1 } else { part.1 * part.2 };
            if count == 1 {
                let side = |pixels: u32, own: u32, most: u32| u64::from((pixels * own).div_ceil(8 * most));
                units = side(self.width, part.1, across) * side(self.height, part.2, down);
            }
            blocks.extend((0..times).map(|_| tables));
        }
        // Of a progressive picture, the first scan shows all of it coarsely, and nobody knows how many will follow.
        let coarse = self.progressive && (first, last, approximation >> 4) == (0, 0, 0);
        let worth = if self.progressive && !coarse { 0.0 } else { count as f64 / self.components.len() as f64 };
        Some(Scan { blocks, units, dc_only: self.progressive, countable: coarse || !self.progressive, worth })
    }

    /// What is to be said if the end is not there, but so much of the picture.
    fn cut(&self, seen: f64) -> Option<Cut> {
        match (self.progressive, seen >= 1.0) {
            (false, true) => None,
            (true, true) => Some(Cut { came: None }),
            (_, false) => Some(Cut { came: Some(seen) }),
        }
    }
}

struct Scan<'a> {
    /// Tables of the blocks of a unit.
    blocks: Vec<(Option<&'a Huffman>, Option<&'a Huffman>)>,
    units: u64,
    dc_only: bool,
    countable: bool,
    /// Its share of the picture.
    worth: f64,
}

impl Scan<'_> {
    /// The share of the units that are there; nothing if a table is missing.
    fn share(&self, data: &[u8], restart: u32) -> Option<f64> {
        if !self.countable || self.units == 0 {
            return Some(0.0);
        }
        let mut bits = Bits { data, at: 0, held: 0, count: 0 };
        let mut whole = 0;
        'units: while whole < self.units {
            if restart > 0 && whole > 0 && whole % u64::from(restart) == 0 && bits.restart().is_none() {
                break;
            }
            for (dc, ac) in &self.blocks {
                let block = if self.dc_only { skip_dc((*dc)?, &mut bits) } else { skip((*dc)?, (*ac)?, &mut bits) };
                if block.is_none() {
                    break 'units;
                }
            }
            whole += 1;
        }
        Some(whole as f64 / self.units as f64)
    }
}

fn skip_dc(dc: &Huffman, bits: &mut Bits<'_>) -> Option<()> {
    let size = dc.symbol(bits)?;
    bits.take(u32::from(size.min(16))).map(drop)
}

/// Goes past a block of sequential coding.
fn skip(dc: &Huffman, ac: &Huffman, bits: &mut Bits<'_>) -> Option<()> {
    skip_dc(dc, bits)?;
    let mut at = 1;
    while at < 64 {
        let symbol = ac.symbol(bits)?;
        match (symbol >> 4, symbol & 15) {
            (15, 0) => at += 16,
            (_, 0) => break,
            (zeros, size) => {
                bits.take(u32::from(size))?;
                at += u32::from(zeros) + 1;
            }
        }
    }
    Some(())
}

/// Bits of a scan, without the zeros that follow 0xff in it.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    held: u32,
    count: u32,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Option<u32> {
        while self.count < count {
            let byte = *self.data.get(self.at)?;
            self.at += 1;
            if byte == 0xff {
                match self.data.get(self.at)? {
                    0 => self.at += 1,
                    _ => return None,
                }
            }
            self.held = (self.held << 8) | u32::from(byte);
            self.count += 8;
        }
        self.count -= count;
        Some((self.held >> self.count) & ((1 << count) - 1))
    }

    fn restart(&mut self) -> Option<()> {
        self.count = 0;
        let found = matches!(self.data.get(self.at..self.at + 2)?, [0xff, 0xd0..=0xd7]);
        self.at += 2;
        found.then_some(())
    }
}

/// Canonical codes (T.81, F.2.2.3): of each length the first code, and where its values begin.
struct Huffman {
    lengths: [(u32, u32, usize); 16],
    values: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8], values: &[u8]) -> Self {
        let mut lengths = [(0, 0, 0); 16];
        let (mut code, mut at) = (0, 0);
        for (length, count) in lengths.iter_mut().zip(counts) {
            *length = (code, u32::from(*count), at);
            code = (code + u32::from(*count)) << 1;
            at += usize::from(*count);
        }
        Self { lengths, values: values.to_vec() }
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Option<u8> {
        let mut code = 0;
        for (first, count, at) in self.lengths {
            code = (code << 1) | bits.take(1)?;
            if code >= first && code - first < count {
                return self.values.get(at + (code - first) as usize).copied();
            }
        }
        None
    }
}
