//! The track of a container that is heard, and a decoder for it.

use std::sync::LazyLock;

use symphonia::core::codecs::audio::well_known::{CODEC_ID_AAC, CODEC_ID_OPUS, CODEC_ID_PCM_ALAW, CODEC_ID_PCM_MULAW};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::codecs::registry::CodecRegistry;
use symphonia::core::formats::well_known::{FORMAT_ID_ISOMP4, FORMAT_ID_MKV};
use symphonia::core::formats::{FormatReader, Track, TrackType};
use symphonia_adapter_libopus::OpusDecoder;

use super::{found, matroska};

static CODECS: LazyLock<CodecRegistry> = LazyLock::new(|| {
    let mut codecs = CodecRegistry::new();
    symphonia::default::register_enabled_codecs(&mut codecs);
    codecs.register_audio_decoder::<OpusDecoder>();
    codecs
});

/// Channels of a clip at most.
pub(super) const MAX_CHANNELS: usize = 32;

/// Whether so many channels are read.
pub(super) fn are_read(channels: usize) -> bool {
    (1..=MAX_CHANNELS).contains(&channels)
}

/// A track and its decoder.
pub(super) struct Heard {
    pub(super) id: u32,
    pub(super) decoder: Box<dyn AudioDecoder>,
    /// Frames at the start that the encoder put there.
    pub(super) skip: usize,
    /// Nanoseconds at the end that the encoder put there.
    pub(super) discard: u64,
    /// Whether a packet that lasts shorter than what it decodes to is to be cut at its end.
    pub(super) cut_to_duration: bool,
}

/// The container's default audio track if it can be decoded, or else the first that can.
///
/// # Errors
///
/// What was found instead, in words for people.
pub(super) fn choose<'a>(reader: &'a dyn FormatReader, bytes: &[u8]) -> Result<(&'a Track, Heard), String> {
    let default = reader.default_track(TrackType::Audio);
    let others = reader.tracks().iter().filter(|track| default.is_none_or(|default| default.id != track.id));
    let mut why = None;
    for track in default.into_iter().chain(others) {
        let Some(params) = track.codec_params.as_ref().and_then(|params| params.audio()) else { continue };
        match open(reader, track, params, bytes) {
            Ok(heard) => return Ok((track, heard)),
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    let container = found::container(reader.format_info().format);
    Err(why.unwrap_or_else(|| found::without_known_audio(container, reader.tracks(), bytes)))
}

fn open(
    reader: &dyn FormatReader,
    track: &Track,
    params: &AudioCodecParameters,
    bytes: &[u8],
) -> Result<Heard, String> {
    let container = reader.format_info().format;
    let mut params = params.clone();
    let mut skip = 0;
    let name = match params.codec {
        CODEC_ID_AAC => {
            let config = params.extra_data.as_deref().map(AacConfig::read);
            if let Some(core) = config.as_ref().and_then(AacConfig::core) {
                params.with_extra_data(core.into());
            }
            config.map_or_else(|| "AAC".to_owned(), |config| config.name())
        }
        CODEC_ID_OPUS => {
            // whatever the container names, which is what was recorded
            params.with_sample_rate(48_000);
            skip = take_pre_skip(&mut params, container == FORMAT_ID_ISOMP4);
            let channels = params.channels.as_ref().map_or(0, |channels| channels.count());
            if channels > 2 { format!("Opus of {channels} channels") } else { "Opus".to_owned() }
        }
        codec => {
            if matches!(codec, CODEC_ID_PCM_ALAW | CODEC_ID_PCM_MULAW) {
                // CAF tells those of the file, which the decoder, who knows them, takes for those of the samples
                (params.bits_per_sample, params.bits_per_coded_sample) = (None, None);
            }
            found::codec(codec)
        }
    };
    let channels = params.channels.as_ref().map_or(0, |channels| channels.count());
    let refused = |why: &str| format!("{} with {name}{why}", found::container(container));
    if channels > MAX_CHANNELS {
        return Err(refused(&format!(" of {channels} channels, of which {MAX_CHANNELS} are read at most")));
    }
    let decoder = CODECS.make_audio_decoder(&params, &AudioDecoderOptions::default()).map_err(|_| refused(""))?;
    let discard = if container == FORMAT_ID_MKV { matroska::discarded_at_end(bytes, u64::from(track.id)) } else { 0 };
    // symphonia reads no edit lists, but the last packet of Opus in MP4 is marked shorter as well
    let counts_frames = track.time_base.is_some_and(|base| (base.numer.get(), base.denom.get()) == (1, 48_000));
    let cut_to_duration = container == FORMAT_ID_ISOMP4 && params.codec == CODEC_ID_OPUS && counts_frames;
    Ok(Heard { id: track.id, decoder, skip, discard, cut_to_duration })
}

/// Frames before the clip (RFC 7845, 5.1), which the header then says no more: they may be more than the first packet
/// has, and the decoder drops no others. MP4 writes its numbers the other way round, which the decoder does not know.
fn take_pre_skip(params: &mut AudioCodecParameters, big_endian: bool) -> usize {
    let Some(header) = params.extra_data.as_mut().filter(|header| header.starts_with(b"OpusHead")) else { return 0 };
    match header.get_mut(10..12) {
        Some(field) => {
            let bytes = [field[0], field[1]];
            let skip = if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
            field.fill(0);
            skip.into()
        }
        None => 0,
    }
}

/// The start of an AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1).
struct AacConfig {
    object: u32,
    /// What lies under spectral band replication, or the same.
    core: u32,
    /// Index of the core's rate, and the rate itself if the index is 15.
    rate: (u32, u32),
    channels: u32,
    short_frames: u32,
}

const SPECTRAL_BAND_REPLICATION: u32 = 5;
const PARAMETRIC_STEREO: u32 = 29;
const LOW_COMPLEXITY: u32 = 2;

impl AacConfig {
    /// Bits beyond the end are 0: a config that is cut short is refused by the decoder.
    fn read(bytes: &[u8]) -> Self {
        let mut at = 0;
        let mut bits = |count: usize| {
            let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| u32::from(byte >> (7 - at % 8) & 1));
            at += count;
            (at - count..at).fold(0, |all, at| (all << 1) | bit(at))
        };
        let object = |bits: &mut dyn FnMut(usize) -> u32| match bits(5) {
            31 => 32 + bits(6),
            object => object,
        };
        let rate = |bits: &mut dyn FnMut(usize) -> u32| match bits(4) {
            15 => (15, bits(24)),
            index => (index, 0),
        };
        let outer = object(&mut bits);
        let core_rate = rate(&mut bits);
        let channels = bits(4);
        let mut core = outer;
        if matches!(outer, SPECTRAL_BAND_REPLICATION | PARAMETRIC_STEREO) {
            rate(&mut bits);
            core = object(&mut bits);
        }
        Self { object: outer, core, rate: core_rate, channels, short_frames: bits(1) }
    }

    /// The config of the core of HE-AAC alone: AAC-LC at half of the rate, which holds all below a quarter of the
    /// full rate, and the sum of both channels where stereo is parametric. Speech models hear up to 8 kHz.
    fn core(&self) -> Option<Vec<u8>> {
        if self.core != LOW_COMPLEXITY {
            return None;
        }
        let rate = if self.rate.0 == 15 { (self.rate.1, 24) } else { (0, 0) };
        let fields = [(LOW_COMPLEXITY, 5), (self.rate.0, 4), rate, (self.channels, 4), (self.short_frames, 1), (0, 2)];
        let all = fields.iter().fold(0_u64, |all, (value, bits)| (all << bits) | u64::from(*value));
        let bits: u32 = fields.iter().map(|(_, bits)| bits).sum();
        let bytes = bits.div_ceil(8);
        Some((all << (8 * bytes - bits)).to_be_bytes()[8 - bytes as usize..].to_vec())
    }

    fn name(&self) -> String {
        let kind = match self.object {
            1 => "AAC Main",
            LOW_COMPLEXITY => "AAC-LC",
            3 => "AAC-SSR",
            4 => "AAC-LTP",
            SPECTRAL_BAND_REPLICATION => "HE-AAC",
            PARAMETRIC_STEREO => "HE-AAC v2",
            23 => "AAC-LD",
            39 => "AAC-ELD",
            42 => "xHE-AAC",
            _ => "AAC",
        };
        let short = if self.short_frames == 1 { " in frames of 960 samples" } else { "" };
        match self.channels {
            0 => format!("{kind} whose channels only its own stream tells{short}"),
            1 | 2 => format!("{kind}{short}"),
            7 => format!("{kind} of 8 channels{short}"),
            count => format!("{kind} of {count} channels{short}"),
        }
    }
}
