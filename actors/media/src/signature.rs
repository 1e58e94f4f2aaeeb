//! What a stranger's bytes begin like, in words for people.

use file_format::FileFormat;

/// Bytes in which a signature is looked for.
pub(crate) const HEAD: usize = 64 << 10;

/// The format that the first bytes are the signature of.
pub(crate) fn format(bytes: &[u8]) -> FileFormat {
    FileFormat::from_bytes(&bytes[..bytes.len().min(HEAD)])
}

/// Its name, the short one if it has one.
pub(crate) fn name(format: &FileFormat) -> &str {
    format.short_name().unwrap_or(format.name())
}
