//! What an image is that is not decoded, in words for people.

use file_format::{FileFormat, Kind};

/// Bytes in which a signature is looked for.
const HEAD: usize = 64 << 10;

/// What the first bytes are the signature of, if of anything that is known.
pub(super) fn named(bytes: &[u8]) -> Option<String> {
    let format = FileFormat::from_bytes(&bytes[..bytes.len().min(HEAD)]);
    let name = match format {
        FileFormat::ArbitraryBinaryData | FileFormat::Empty => return None,
        FileFormat::PlainText => "text",
        FileFormat::HighEfficiencyImageCoding | FileFormat::HighEfficiencyImageCodingSequence => "HEIC",
        FileFormat::HighEfficiencyImageFileFormat | FileFormat::HighEfficiencyImageFileFormatSequence => "HEIF",
        FileFormat::Av1ImageFileFormat | FileFormat::Av1ImageFileFormatSequence => "AVIF",
        FileFormat::JpegXl => "JPEG XL",
        FileFormat::Jpeg2000Codestream | FileFormat::Jpeg2000Part1 | FileFormat::Jpeg2000Part2 => "JPEG 2000",
        FileFormat::AdobePhotoshopDocument => "PSD",
        FileFormat::ScalableVectorGraphics => "SVG",
        _ => format.short_name().unwrap_or(format.name()),
    };
    Some(match format.kind() {
        Kind::Video => format!("{name}, a video"),
        Kind::Audio => format!("{name}, a clip"),
        _ => name.to_owned(),
    })
}
