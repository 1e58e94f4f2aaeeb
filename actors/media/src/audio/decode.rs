//! Bytes to mono samples.

use std::io::Cursor;

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use super::{Clip, Error, Length, Limits};

/// Rates outside are refused: the lowest is half of telephony's, the highest the fastest of studio recordings.
const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// Corrupt packets that are skipped before their share of the clip counts.
const FORGIVEN_PACKETS: usize = 4;

/// Decodes a clip to mono samples at its own rate.
///
/// The container is told from the content: WAV (integer and float PCM, A-law, µ-law), FLAC, MP3, OGG/Vorbis, AAC in
/// M4A or ADTS. Channels are averaged. Samples are clamped to -1..=1 and those that are not numbers become 0, as
/// happens to them on the way through 16-bit PCM, which is how the speech models' own loaders read files.
///
/// A corrupt packet is skipped; more than a fifth of them make the clip undecodable. A clip whose end is cut off is
/// decoded up to there.
///
/// # Errors
///
/// [`Error::TooManyBytes`] and [`Error::TooLong`] for a clip over a limit; decoding stops at `max_seconds`, whatever
/// the header claims, so memory is bounded by the limit and by the highest rate. The other variants for content that
/// is no audio.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Clip, Error> {
    guarded(bytes, limits, || decode_unguarded(bytes, limits))
}

/// How long a clip will be, told from its header: what decoding it takes can be told before it is decoded. Where the header
/// says nothing, the length is guessed from the number of bytes, at the bit rate of poor speech.
///
/// # Errors
///
/// Those of [`decode`] that need no decoding.
pub fn length(bytes: &[u8], limits: &Limits) -> Result<Length, Error> {
    guarded(bytes, limits, || length_unguarded(bytes))
}

fn guarded<T>(
    bytes: &[u8],
    limits: &Limits,
    read: impl FnOnce() -> Result<T, Error> + std::panic::UnwindSafe,
) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    // A header can still overflow the demuxers' arithmetic (seen: a WAV of 32 channels with an empty channel mask, where
    // overflow checks are on). That is a broken clip, not a broken server.
    std::panic::catch_unwind(read)
        .unwrap_or_else(|_| Err(Error::UnknownFormat { bytes: bytes.len(), reason: "its decoder panicked".to_owned() }))
}

/// Bits of a second of poor speech.
const POOR_BIT_RATE: f64 = 32_000.0;
/// The rate that is assumed where the header has none.
const USUAL_RATE: u32 = 48_000;
/// Seconds by which decoders may give more than the header says: what the encoder put before and behind.
const ENCODER_PADDING: f64 = 1.0;

fn length_unguarded(bytes: &[u8]) -> Result<Length, Error> {
    let reader = probe(bytes)?;
    let track = reader.default_track(TrackType::Audio);
    let rate = track.and_then(|track| track.codec_params.as_ref()?.audio()?.sample_rate).unwrap_or(USUAL_RATE);
    let sample_rate = rate.clamp(*RATES.start(), *RATES.end());
    let guessed = bytes.len() as f64 * 8.0 / POOR_BIT_RATE;
    let told = track.and_then(|track| track.num_frames).map(|frames| frames as f64 / f64::from(sample_rate));
    Ok(Length { seconds: told.unwrap_or(guessed) + ENCODER_PADDING, sample_rate })
}

fn probe(bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>, Error> {
    let stream = MediaSourceStream::new(Box::new(Cursor::new(bytes)), Default::default());
    symphonia::default::get_probe()
        .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(|fault| Error::UnknownFormat { bytes: bytes.len(), reason: fault.to_string() })
}

fn decode_unguarded(bytes: &[u8], limits: &Limits) -> Result<Clip, Error> {
    let unknown = |fault: Fault| Error::UnknownFormat { bytes: bytes.len(), reason: fault.to_string() };
    let mut reader = probe(bytes)?;
    let (mut track, mut decoder) = open(reader.as_ref()).map_err(unknown)?;

    let codec = decoder.codec_info().short_name;
    let undecodable = |reason: String| Error::Undecodable { codec, bytes: bytes.len(), reason };
    let mut mix = Mix::new(limits.max_seconds, codec);
    let (mut good, mut corrupt) = (0_usize, 0_usize);
    let mut last_fault = None;
    loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            // Chained OGG: another stream begins. Its rate has to be the same, which `Mix` checks.
            Err(Fault::ResetRequired) => {
                corrupt += 1;
                (track, decoder) = open(reader.as_ref()).map_err(|fault| undecodable(fault.to_string()))?;
                continue;
            }
            // Cut off or garbage at the end: what was decoded so far is the clip, if it is anything.
            Err(fault) => {
                last_fault = Some(fault);
                break;
            }
        };
        if packet.track_id != track {
            continue;
        }
        match decoder.decode(&packet) {
            Ok(buffer) => {
                good += 1;
                mix.add(&buffer)?;
            }
            Err(fault @ (Fault::DecodeError(_) | Fault::IoError(_))) => {
                corrupt += 1;
                last_fault = Some(fault);
            }
            Err(fault) => return Err(undecodable(fault.to_string())),
        }
    }

    if corrupt > FORGIVEN_PACKETS.max(good / 4) {
        let why = last_fault.map(|fault| format!(", the last: {fault}")).unwrap_or_default();
        return Err(undecodable(format!("{corrupt} of {} packets are corrupt{why}", good + corrupt)));
    }
    match last_fault {
        Some(fault) if mix.samples.is_empty() => Err(undecodable(fault.to_string())),
        None if mix.samples.is_empty() => Err(Error::Silent { codec, bytes: bytes.len() }),
        _ => Ok(mix.into_clip()),
    }
}

/// The default audio track's id, and a decoder for it.
fn open(reader: &dyn FormatReader) -> Result<(u32, Box<dyn AudioDecoder>), Fault> {
    let track = reader.default_track(TrackType::Audio).ok_or(Fault::Unsupported("no audio track"))?;
    let codec = track.codec_params.as_ref().and_then(|codec| codec.audio());
    let codec = codec.ok_or(Fault::Unsupported("audio track of an unknown codec"))?;
    let decoder = symphonia::default::get_codecs().make_audio_decoder(codec, &AudioDecoderOptions::default())?;
    Ok((track.id, decoder))
}

/// Mono samples in the making.
struct Mix {
    samples: Vec<f32>,
    sample_rate: u32,
    channels: usize,
    codec: &'static str,
    max_seconds: f64,
    /// Interleaved samples of one packet, kept for the next.
    packet: Vec<f32>,
}

impl Mix {
    fn new(max_seconds: f64, codec: &'static str) -> Self {
        Self { samples: Vec::new(), sample_rate: 0, channels: 0, codec, max_seconds, packet: Vec::new() }
    }

    fn add(&mut self, buffer: &GenericAudioBufferRef<'_>) -> Result<(), Error> {
        let rate = buffer.spec().rate();
        let channels = buffer.spec().channels().count();
        if buffer.frames() == 0 || channels == 0 {
            return Ok(());
        }
        if !RATES.contains(&rate) || (self.sample_rate != 0 && rate != self.sample_rate) {
            let (min, max) = if self.sample_rate == 0 {
                (*RATES.start(), *RATES.end())
            } else {
                (self.sample_rate, self.sample_rate)
            };
            return Err(Error::SampleRate { codec: self.codec, rate, min, max });
        }
        self.sample_rate = rate;
        self.channels = self.channels.max(channels);
        if (self.samples.len() + buffer.frames()) as f64 > self.max_seconds * f64::from(rate) {
            return Err(Error::TooLong { limit: self.max_seconds });
        }
        self.packet.resize(buffer.samples_interleaved(), 0.0);
        buffer.copy_to_slice_interleaved(&mut self.packet);
        let share = 1.0 / channels as f32;
        self.samples.extend(self.packet.chunks_exact(channels).map(|frame| {
            let mean = frame.iter().sum::<f32>() * share;
            if mean.is_nan() { 0.0 } else { mean.clamp(-1.0, 1.0) }
        }));
        Ok(())
    }

    fn into_clip(self) -> Clip {
        Clip {
            seconds: self.samples.len() as f64 / f64::from(self.sample_rate),
            samples: self.samples,
            sample_rate: self.sample_rate,
            channels: self.channels,
            codec: self.codec,
        }
    }
}
