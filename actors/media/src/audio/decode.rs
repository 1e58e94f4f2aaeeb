//! Bytes to mono samples.

use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::{FormatReader, Track};

use super::mix::{BLOCK, Mix};
use super::track::{Heard, choose};
use super::{Clip, Error, Length, Limits, found, source};

/// Rates outside are refused: the lowest is half of telephony's, the highest the fastest of studio recordings.
pub(super) const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// Corrupt packets that are skipped before their share of the clip counts.
const FORGIVEN_PACKETS: usize = 4;

/// Decodes a clip to mono samples at its own rate.
///
/// The container and the codec are told from the content; `docs/MEDIA.md` lists what is read. Of HE-AAC the core is
/// decoded, at half of its rate. Channels are mixed so that none cancels another: in opposite phase they are brought
/// into the same, silent ones do not make the others fainter, and a centre keeps its level. Samples are clamped to
/// -1..=1 and those that are not numbers become 0, as happens to them on the way through 16-bit PCM, which is how the
/// speech models' own loaders read files.
///
/// A corrupt packet is skipped; more than a fifth of them make the clip undecodable. A clip whose end is cut off is
/// decoded up to there, and a WAV whose header counts wrongly to the end of what is there.
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
/// says nothing, as in what a browser records, the length is guessed from the number of bytes, at the bit rate of poor
/// speech.
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
    // Decoders of strangers' bytes may panic. That is a broken clip, not a broken server.
    std::panic::catch_unwind(read).unwrap_or_else(|_| Err(Error::Panicked { bytes: bytes.len() }))
}

/// Bits of a second of poor speech.
const POOR_BIT_RATE: f64 = 32_000.0;
/// The rate that is assumed where the header has none.
const USUAL_RATE: u32 = 48_000;
/// Seconds by which decoders may give more than the header says: what the encoder put before and behind.
const ENCODER_PADDING: f64 = 1.0;

fn length_unguarded(bytes: &[u8]) -> Result<Length, Error> {
    let reader = open(bytes)?;
    let (track, heard) = hear(reader.as_ref(), bytes)?;
    let params = heard.decoder.codec_params();
    let sample_rate = params.sample_rate.unwrap_or(USUAL_RATE).clamp(*RATES.start(), *RATES.end());
    let channels = params.channels.as_ref().map_or(2, |channels| channels.count());
    let guessed = bytes.len() as f64 * 8.0 / POOR_BIT_RATE;
    let seconds = told(reader.as_ref(), track).unwrap_or(guessed) + ENCODER_PADDING;
    // two blocks: the one that is gathered, and the packet that fills it
    let working_bytes = (f64::from(sample_rate) * 2.0 * BLOCK) as u64 * 4 * channels as u64;
    Ok(Length { seconds, sample_rate, working_bytes })
}

/// Seconds that the header tells: of the track, or of all of the file.
fn told(reader: &dyn FormatReader, track: &Track) -> Option<f64> {
    let of_track = track.duration.zip(track.time_base);
    let media = reader.media_info();
    let (duration, base) = of_track.or(media.duration.zip(media.time_base))?;
    let seconds = base.calc_duration(duration)?.as_secs_f64();
    // a recording whose end was not known when its header was written
    (seconds > 0.0).then_some(seconds)
}

fn open(bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>, Error> {
    let content = source::without_tags(bytes);
    let refused = |found| Error::Unsupported { bytes: bytes.len(), found };
    if let Some(found) = found::refused(content) {
        return Err(refused(found));
    }
    if let Some(reason) = source::absurd(content) {
        return Err(Error::UnknownFormat { bytes: bytes.len(), reason: reason.to_owned() });
    }
    source::open(content).map_err(|fault| match found::no_audio(content) {
        Some(found) => refused(found),
        None => Error::UnknownFormat { bytes: bytes.len(), reason: fault.to_string() },
    })
}

fn hear<'a>(reader: &'a dyn FormatReader, bytes: &[u8]) -> Result<(&'a Track, Heard), Error> {
    choose(reader, bytes).map_err(|found| Error::Unsupported { bytes: bytes.len(), found })
}

fn decode_unguarded(bytes: &[u8], limits: &Limits) -> Result<Clip, Error> {
    let mut reader = open(bytes)?;
    let (_, mut heard) = hear(reader.as_ref(), bytes)?;

    let codec = heard.decoder.codec_info().short_name;
    let undecodable = |reason: String| Error::Undecodable { codec, bytes: bytes.len(), reason };
    let mut mix = Mix::new(limits.max_seconds, codec, heard.skip);
    let (mut good, mut corrupt) = (0_usize, 0_usize);
    let mut last_fault = None;
    loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            // Chained OGG: another stream begins. Its rate has to be the same, which `Mix` checks.
            Err(Fault::ResetRequired) => {
                corrupt += 1;
                heard = choose(reader.as_ref(), bytes).map_err(undecodable)?.1;
                mix.skip(heard.skip);
                continue;
            }
            // Cut off or garbage at the end: what was decoded so far is the clip, if it is anything.
            Err(fault) => {
                last_fault = Some(fault);
                break;
            }
        };
        if packet.track_id != heard.id {
            continue;
        }
        match heard.decoder.decode(&packet) {
            Ok(buffer) => {
                good += 1;
                let lasts = usize::try_from(packet.dur.get()).unwrap_or(usize::MAX);
                let cut = heard.cut_to_duration && lasts > 0;
                mix.add(&buffer, if cut { lasts } else { usize::MAX })?;
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
    let clip = mix.into_clip(heard.discard);
    match last_fault {
        Some(fault) if clip.samples.is_empty() => Err(undecodable(fault.to_string())),
        None if clip.samples.is_empty() => Err(Error::Silent { codec, bytes: bytes.len() }),
        _ => Ok(clip),
    }
}
