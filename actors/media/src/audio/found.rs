//! What a clip is that is not decoded, in words for people.

use file_format::{FileFormat, Kind};
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::AudioCodecId;
use symphonia::core::codecs::audio::well_known as codecs;
use symphonia::core::formats::well_known as formats;
use symphonia::core::formats::{FormatId, Track};

use super::track::{MAX_CHANNELS, are_read};
use super::wav;
use crate::signature;

/// A format whose audio is not read, told from its first bytes: it is not searched for what looks like a packet of MP3.
pub(super) fn refused(bytes: &[u8]) -> Option<String> {
    if let Some(wav) = wav::read(bytes) {
        if !are_read(wav.channels.into()) {
            return Some(format!("WAV of {} channels, of which 1 to {MAX_CHANNELS} are read", wav.channels));
        }
        let codec = match wav.tag {
            wav::PCM | wav::FLOAT | wav::ADPCM_MS | wav::ADPCM_IMA | wav::A_LAW | wav::MU_LAW => return None,
            wav::MP3 | wav::MPEG => return None,
            0x31 | 0x32 => "GSM 6.10".to_owned(),
            0x40 | 0x45 | 0x64 => "G.726 ADPCM".to_owned(),
            0x28f | 0x65 => "G.722".to_owned(),
            0x22 => "TrueSpeech".to_owned(),
            0x92 | 0x2000 => "AC-3".to_owned(),
            0xff | 0x1600..=0x1610 => "AAC".to_owned(),
            0x160..=0x163 => "WMA".to_owned(),
            other => format!("codec 0x{other:04x}"),
        };
        return Some(format!("WAV with {codec}"));
    }
    if bytes.starts_with(b"RIFX") {
        return Some("RIFX, a WAV whose numbers are big-endian".to_owned());
    }
    let name = match signature::format(bytes) {
        FileFormat::AdaptiveMultiRate => "AMR",
        FileFormat::AdvancedSystemsFormat | FileFormat::WindowsMediaAudio => "WMA/ASF",
        FileFormat::WindowsMediaVideo => "WMV/ASF",
        FileFormat::AudioVideoInterleave => "AVI",
        FileFormat::FlashVideo => "FLV",
        FileFormat::Realaudio | FileFormat::Realmedia | FileFormat::Realvideo => "RealMedia",
        FileFormat::MonkeysAudio => "Monkey's Audio",
        FileFormat::Musepack => "Musepack",
        FileFormat::Wavpack => "WavPack",
        FileFormat::OggSpeex => "Ogg with Speex",
        FileFormat::Au => "AU",
        FileFormat::CreativeVoice => "Creative Voice",
        FileFormat::BdavMpeg2TransportStream | FileFormat::Mpeg2TransportStream => "an MPEG transport stream",
        FileFormat::Mpeg12Video => "MPEG-1 or MPEG-2 video",
        FileFormat::AudioCodec3 => "AC-3",
        FileFormat::MusicalInstrumentDigitalInterface => "MIDI",
        _ => return None,
    };
    Some(name.to_owned())
}

/// What is no audio at all, told from its first bytes.
pub(super) fn no_audio(bytes: &[u8]) -> Option<String> {
    let format = signature::format(bytes);
    let name = signature::name(&format);
    match (format, format.kind()) {
        (FileFormat::ArbitraryBinaryData | FileFormat::Empty, _) | (_, Kind::Audio | Kind::Video) => None,
        (FileFormat::PlainText, _) => Some("text".to_owned()),
        (_, Kind::Image) => Some(format!("{name} image")),
        _ => Some(name.to_owned()),
    }
}

pub(super) fn container(id: FormatId) -> &'static str {
    match id {
        formats::FORMAT_ID_WAVE => "WAV",
        formats::FORMAT_ID_AIFF => "AIFF",
        formats::FORMAT_ID_CAF => "CAF",
        formats::FORMAT_ID_MP1 | formats::FORMAT_ID_MP2 | formats::FORMAT_ID_MP3 => "MPEG audio",
        formats::FORMAT_ID_ADTS => "ADTS",
        formats::FORMAT_ID_OGG => "Ogg",
        formats::FORMAT_ID_FLAC => "FLAC",
        formats::FORMAT_ID_ISOMP4 => "MP4",
        formats::FORMAT_ID_MKV => "Matroska",
        _ => "a container",
    }
}

pub(super) fn codec(id: AudioCodecId) -> String {
    let name = match id {
        codecs::CODEC_ID_AC3 => "AC-3",
        codecs::CODEC_ID_EAC3 => "E-AC-3",
        codecs::CODEC_ID_AC4 => "AC-4",
        codecs::CODEC_ID_DCA => "DTS",
        codecs::CODEC_ID_TRUEHD => "TrueHD",
        codecs::CODEC_ID_SPEEX => "Speex",
        codecs::CODEC_ID_MUSEPACK => "Musepack",
        codecs::CODEC_ID_WAVPACK => "WavPack",
        codecs::CODEC_ID_TTA => "TTA",
        codecs::CODEC_ID_MONKEYS_AUDIO => "Monkey's Audio",
        codecs::CODEC_ID_WMA => "WMA",
        codecs::CODEC_ID_VORBIS => "Vorbis",
        codecs::CODEC_ID_FLAC => "FLAC",
        codecs::CODEC_ID_ALAC => "ALAC",
        codecs::CODEC_ID_MP1 | codecs::CODEC_ID_MP2 | codecs::CODEC_ID_MP3 => "MPEG audio",
        codecs::CODEC_ID_ADPCM_G722 => "G.722",
        codecs::CODEC_ID_ADPCM_G726 | codecs::CODEC_ID_ADPCM_G726LE => "G.726",
        codecs::CODEC_ID_ADPCM_IMA_QT => "IMA ADPCM of QuickTime",
        codecs::CODEC_ID_ADPCM_MS | codecs::CODEC_ID_ADPCM_IMA_WAV => "ADPCM",
        codecs::CODEC_ID_RA10 | codecs::CODEC_ID_RA20 | codecs::CODEC_ID_COOK | codecs::CODEC_ID_SIPR => "RealAudio",
        _ => return format!("codec {id}"),
    };
    name.to_owned()
}

/// A container with no track that symphonia knows to be audio: it may be video only, or have a codec that only its own
/// words name.
pub(super) fn without_known_audio(container: &str, tracks: &[Track], bytes: &[u8]) -> String {
    let named = match container {
        "MP4" => sample_entries(bytes),
        "Matroska" => matroska_codec(bytes),
        _ => None,
    };
    let video = tracks.iter().any(|track| matches!(track.codec_params, Some(CodecParameters::Video(_))));
    match named {
        Some(codec) => format!("{container} with {codec}"),
        None if video => format!("{container} with video only"),
        None => format!("{container} without audio of a known codec"),
    }
}

/// The audio among an MP4's sample entries (ISO/IEC 14496-12, 8.5.2) whose code says nothing to symphonia.
fn sample_entries(bytes: &[u8]) -> Option<String> {
    bytes.windows(4).enumerate().filter(|(_, name)| name == b"stsd").find_map(|(at, _)| {
        let code = bytes.get(at + 16..at + 20)?;
        let name = match code {
            b"samr" => "AMR",
            b"sawb" => "AMR-WB",
            b"sevc" | b"sqcp" => "QCELP or EVRC",
            b"agsm" => "GSM 6.10",
            b"ima4" => "IMA ADPCM of QuickTime",
            b"dtsc" | b"dtse" | b"dtsh" | b"dtsl" => "DTS",
            b"mlpa" => "TrueHD",
            b"ac-4" => "AC-4",
            b"mhm1" | b"mha1" => "MPEG-H",
            b"enca" => "encrypted audio",
            b"QDM2" | b"QDMC" => "QDesign Music",
            _ => return None,
        };
        Some(name.to_owned())
    })
}

/// The name that a Matroska track gives its audio codec, which begins with `A_`.
fn matroska_codec(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(signature::HEAD)];
    let at = head.windows(3).position(|name| name.starts_with(b"A_") && name[2].is_ascii_uppercase())?;
    let part = |byte: &&u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'/' | b'.');
    let name: String = head[at..].iter().take(40).take_while(part).map(|byte| char::from(*byte)).collect();
    Some(name)
}
