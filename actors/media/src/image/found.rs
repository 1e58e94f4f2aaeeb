//! What an image is that is not decoded, in words for people.

use file_format::{FileFormat, Kind};

use crate::signature;

/// What the first bytes are the signature of, if of anything that is known.
pub(super) fn named(bytes: &[u8]) -> Option<String> {
    let format = signature::format(bytes);
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
        _ => signature::name(&format),
    };
    Some(match format.kind() {
        Kind::Video => format!("{name}, a video"),
        Kind::Audio => format!("{name}, a clip"),
        _ => name.to_owned(),
    })
}
