//! Clips as recorders, pipes, browsers and music shops write them, and what is refused by name.

use sensorium_media::audio::{Error, Limits, decode, length};

use crate::audio::{LIMITS, amplitude, wav};
use crate::fixture;

/// Replaces all occurrences, which are as many as expected.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8], times: usize) -> Vec<u8> {
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert_eq!(places.len(), times);
    let mut bytes = bytes.to_vec();
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    bytes
}

/// Decodes a second of the fixtures' tone.
#[track_caller]
fn second(name: &str, bytes: &[u8], slack: f64) {
    let clip = decode(bytes, &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!((clip.seconds - 1.0).abs() <= slack, "{name}: {} s", clip.seconds);
    let middle = &clip.samples[clip.samples.len() / 4..clip.samples.len() * 3 / 4];
    let got = amplitude(middle, clip.sample_rate, 440.0);
    assert!((got - 0.5).abs() < 0.03, "{name}: amplitude {got}");
    let told = length(bytes, &LIMITS).unwrap().seconds;
    assert!(told >= clip.seconds, "{name}: {told} s told, {} s decoded", clip.seconds);
}

/// Name, the size that is claimed, and what is there.
type Chunk<'a> = (&'a [u8; 4], u32, &'a [u8]);

/// A file of chunks.
fn riff(form: &[u8; 4], size: u32, chunks: &[Chunk<'_>]) -> Vec<u8> {
    let chunks = chunks.iter().flat_map(|(name, size, body)| [&name[..], &size.to_le_bytes(), body].concat());
    [&form[..], &size.to_le_bytes(), b"WAVE"].concat().into_iter().chain(chunks).collect()
}

#[test]
fn wav_sizes_that_are_wrong() {
    let good = fixture("wav-s16-8k.wav");
    let (format, data) = (&good[20..36], &good[44..]);
    let all = u32::try_from(data.len()).unwrap();
    let lists: [&[Chunk<'_>]; 7] = [
        &[(b"fmt ", 16, format), (b"data", all, data)],
        &[(b"fmt ", 16, format), (b"data", 0, data)],
        &[(b"fmt ", 16, format), (b"data", u32::MAX, data)],
        &[(b"fmt ", 16, format), (b"data", all + 7001, data)],
        &[(b"LIST", 9, b"INFOICMT\0\0"), (b"fmt ", 16, format), (b"data", all, data)],
        &[(b"fmt ", 16, format), (b"bext", 3, b"abc"), (b"data", all, data)],
        &[(b"fmt ", 20, &[format, &[0; 4]].concat()), (b"data", all, data)],
    ];
    for (list, chunks) in lists.iter().enumerate() {
        for (form, size) in [(b"RIFF", 36 + all), (b"RIFF", 0), (b"RIFF", 3), (b"RIFF", u32::MAX), (b"RF64", u32::MAX)]
        {
            second(&format!("list {list}, size {size}"), &riff(form, size, chunks), 0.0);
        }
    }
    // what follows the samples is none of them, if the header counts rightly
    let trailing = [(b"fmt ", 16, format), (b"data", all, data), (b"id3 ", 400, &[7; 400])];
    second("trailing", &riff(b"RIFF", 0, &trailing), 0.0);
    // and a clip without samples has none, whatever follows
    let empty = riff(b"RIFF", 60, &[(b"fmt ", 16, format), (b"data", 0, b""), (b"LIST", 4, b"INFO")]);
    assert!(matches!(decode(&empty, &LIMITS), Err(Error::Silent { .. })));
}

#[test]
fn wav_formats_that_are_short_or_extended() {
    let law = fixture("wav-mulaw-8k.wav");
    let at = law.windows(4).position(|name| name == b"data").unwrap();
    second("mu-law in 16 bytes", &wav(7, 1, 8_000, 8, 8_000, &law[at + 8..]), 0.0);
    // A-law from linear samples: the sign, which is set for positive ones, and every other bit inverted
    let linear = fixture("wav-s16-8k.wav");
    let a_law: Vec<u8> =
        linear[44..].chunks_exact(2).map(|pair| alaw(i16::from_le_bytes([pair[0], pair[1]]))).collect();
    second("A-law in 16 bytes", &wav(6, 1, 8_000, 8, 8_000, &a_law), 0.0);

    let guid = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];
    for (count, valid, mask) in [(22_u16, 16_u16, 4_u32), (0, 0, 0), (22, 12, 3), (22, 16, u32::MAX)] {
        let mut format = linear[20..36].to_vec();
        format[..2].copy_from_slice(&[0xfe, 0xff]);
        format.extend([&count.to_le_bytes()[..], &valid.to_le_bytes(), &mask.to_le_bytes(), &[1, 0], &guid].concat());
        let chunks: [Chunk<'_>; 2] = [(b"fmt ", 40, &format), (b"data", 16_000, &linear[44..])];
        second(&format!("extensible {count} {valid} {mask:x}"), &riff(b"RIFF", 0, &chunks), 0.0);
    }
    // MP3 in a WAV
    second("MP3 in WAV", &wav(0x55, 1, 16_000, 0, 2_360, &fixture("mp3-16k.mp3")), 0.001);
}

fn alaw(sample: i16) -> u8 {
    let (sign, magnitude) = if sample >= 0 { (0x80, sample >> 3) } else { (0, (-(sample + 1)) >> 3) };
    let magnitude = magnitude.min(0xfff);
    let segment = (magnitude >> 5).checked_ilog2().map_or(0, |top| top + 1);
    let low = if segment == 0 { magnitude >> 1 } else { magnitude >> segment };
    let code = (segment as u8) << 4 | (low & 0xf) as u8;
    (sign | code) ^ 0x55
}

/// An ID3v2 tag over a cover picture that looks like MP3 here and there.
fn tag(size: usize, footer: bool) -> Vec<u8> {
    let sevens = [21, 14, 7, 0].map(|shift| (size >> shift & 127) as u8);
    let picture = b"APIC\xff\xfb\x90\xc4\xff\xf1\x50".iter().copied().cycle().take(size);
    let end: &[u8] = if footer { b"3DI\x04\0\x10\0\0\0\0" } else { b"" };
    let head = [&b"ID3\x04\0"[..], &[if footer { 0x10 } else { 0 }], &sevens].concat();
    head.into_iter().chain(picture).chain(end.iter().copied()).collect()
}

#[test]
fn tags_with_pictures_are_skipped() {
    for (name, slack) in [("mp3-16k.mp3", 0.001), ("aac-16k.aac", 0.1), ("flac-16k.flac", 0.0)] {
        let clip = fixture(name);
        second(name, &[tag(1_300_000, false), clip.clone()].concat(), slack);
        let several = [tag(1_100_000, true), vec![0; 1000], tag(200, false), tag(1_000_001, true), clip].concat();
        second(name, &several, slack);
    }
    // a tag that is longer than the file
    let cut = &tag(100_000, false)[..5_000];
    assert!(decode(cut, &LIMITS).is_err());
}

#[test]
fn streams_begin_anywhere() {
    for (name, slack) in [("mp3-16k.mp3", 0.04), ("aac-16k.aac", 0.1), ("flac-16k.flac", 0.0), ("opus.ogg", 0.0)] {
        second(name, &[b"HTTP/1.1 200 OK\r\n\r\n", &fixture(name)[..]].concat(), slack);
    }
}

#[test]
fn what_browsers_record() {
    // clusters without a length, beside the segment, which the fixture has without one
    let mut open = fixture("opus-live.webm");
    let clusters: Vec<usize> = (0..open.len()).filter(|at| open[*at..].starts_with(b"\x1f\x43\xb6\x75")).collect();
    assert!(clusters.len() > 2);
    for at in clusters {
        assert_eq!(open[at + 4] & 0xc0, 0x40, "a length of two bytes");
        open[at + 4..at + 6].copy_from_slice(&[0x7f, 0xff]);
    }
    second("clusters without a length", &open, 0.0);
    // cut off, as when a tab is closed
    let clip = decode(&open[..open.len() * 2 / 3], &LIMITS).unwrap();
    assert!((0.5..0.9).contains(&clip.seconds), "{} s", clip.seconds);
    // what is said of the end counts only if it is said of the end
    let misplaced = replaced(&open, b"\x75\xa2\x84\0\xcd\xfe\x60", b"\xec\x85\0\0\0\0\0", 1);
    assert_eq!(decode(&misplaced, &LIMITS).unwrap().samples.len(), 51 * 960 - 312);
    // nor more than the last packet holds
    let endless = replaced(&open, b"\x75\xa2\x84\0\xcd\xfe\x60", b"\x75\xa2\x84\x7f\xff\xff\xff", 1);
    assert_eq!(decode(&endless, &LIMITS).unwrap().samples.len(), 50 * 960 - 312);
}

#[test]
fn the_core_of_high_efficiency_aac_is_heard() {
    let plain = fixture("aac-stereo-44k.m4a");
    // explicit: band replication, and parametric stereo, over an AAC-LC at 44.1 kHz
    for config in [b"\x2a\x11\x88\0\0", b"\xea\x11\x88\0\0"] {
        let explicit = replaced(&plain, b"\x12\x10\x56\xe5\0", config, 1);
        let clip = decode(&explicit, &LIMITS).unwrap();
        assert_eq!(clip.samples, decode(&plain, &LIMITS).unwrap().samples);
    }
    // but not of what has another core, or frames of another length
    for (config, found) in [
        (b"\x0a\x10\0\0\0", "AAC Main"),
        (b"\xba\x10\0\0\0", "AAC-LD"),
        (b"\xf8\xe8\x40\0\0", "AAC-ELD"),
        (b"\xf9\x48\x40\0\0", "xHE-AAC"),
        (b"\x12\x14\0\0\0", "AAC-LC in frames of 960 samples"),
    ] {
        let error = decode(&replaced(&plain, b"\x12\x10\x56\xe5\0", config, 1), &LIMITS).unwrap_err();
        assert!(error.to_string().contains(found), "{error}, expected {found}");
    }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let named = [
        (fixture("ac3.mp4"), "MP4 with AC-3"),
        (fixture("eac3.mkv"), "Matroska with E-AC-3"),
        (fixture("speex.ogg"), "Ogg with Speex"),
        (fixture("wma.asf"), "WMA/ASF"),
        (fixture("gsm.wav"), "WAV with GSM 6.10"),
        (fixture("aac-5.1.m4a"), "MP4 with AAC-LC of 6 channels"),
        (fixture("opus-5.1.ogg"), "Ogg with Opus of 6 channels"),
        (fixture("video.mp4"), "MP4 with video only"),
        (b"#!AMR\n\x3c\x91\x17\x16\xbe\x66".repeat(20), "AMR"),
        (b"#!AMR-WB\n\x3c\x91\x17\x16\xbe\x66".repeat(20), "AMR"),
        (b"MThd\0\0\0\x06\0\x01\0\x01\x01\xe0MTrk".to_vec(), "MIDI"),
        (b".snd\0\0\0\x20\xff\xff\xff\xff\0\0\0\x01\0\0\x1f\x40\0\0\0\x01".to_vec(), "AU"),
        (wav(0x161, 1, 16_000, 16, 400, &[1; 400]), "WAV with WMA"),
        (replaced(&wav(1, 1, 16_000, 16, 400, &[1; 400]), b"RIFF", b"RIFX", 1), "RIFX"),
        (fixture("rgb.jpg"), "JPEG image"),
        (fixture("lossy.webp"), "WebP image"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3".repeat(20), "PDF"),
        (b"<!DOCTYPE html><html><head><title>404</title></head></html>".to_vec(), "HTML"),
        (replaced(&fixture("ac3.mp4"), b"ac-3", b"samr", 1), "MP4 with AMR"),
        (replaced(&fixture("opus.webm"), b"A_OPUS", b"A_QDM2", 1), "Matroska with A_QDM2"),
    ];
    for (bytes, expected) in named {
        for error in [decode(&bytes, &LIMITS).unwrap_err(), length(&bytes, &LIMITS).unwrap_err()] {
            let Error::Unsupported { found, .. } = &error else { panic!("{error}, expected {expected}") };
            assert!(found.starts_with(expected), "{found}, expected {expected}");
            assert!(error.to_string().ends_with("Opus or Vorbis (Ogg, WebM, Matroska)"), "{error}");
        }
    }
}

#[test]
fn limits_hold_for_all_formats() {
    for name in ["opus.webm", "opus.mp4", "alac-8k.caf", "s16-8k.aiff", "adpcm-ms-8k.wav", "vorbis-stereo-44k.webm"] {
        let short = Limits { max_seconds: 0.7, ..LIMITS };
        let error = decode(&fixture(name), &short).unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{name}: {error}");
    }
}
