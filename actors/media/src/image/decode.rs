//! Bytes to upright RGB.

use std::cell::Cell;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult,
    RgbImage,
};

use super::{Cut, Error, Image, Limits, found, tiff, truncated};

/// Bytes that decoding may hold per allowed pixel: 16-bit RGBA. Only float TIFFs need more, and they still pass
/// below half of the pixel limit.
const BYTES_PER_PIXEL: u64 = 8;

/// Decoders' working memory beside the pixels: tables, rows, chunks of metadata.
const WORKING_BYTES: u64 = 16 << 20;

/// Decodes the first frame of an image to upright 8-bit RGB.
///
/// The format is told from the content, never from a name: JPEG, PNG, WebP, GIF, BMP or TIFF. Greyscale, palette,
/// CMYK and 16-bit images become 8-bit RGB, 16-bit values scaled rather than clipped. The EXIF orientation is applied,
/// as people and models look at upright pictures.
///
/// Transparency is composited onto white. What lies under a transparent pixel is whatever the encoder left there,
/// often black or noise that nobody has seen; white is the page on which such an image was seen.
///
/// An image that ends too early is refused, or with [`Limits::allow_truncated`] decoded as far as it came, and says so.
/// WebP and TIFF are decoded whole or not at all. What follows the end is no concern.
///
/// # Errors
///
/// [`Error::TooManyBytes`], [`Error::TooManyPixels`] and [`Error::TooMuchMemory`] before anything of the image's
/// size is allocated: the header's word is enough to refuse. [`Error::Truncated`] for one that ends too early, and the
/// other variants for content that is no image.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, Error> {
    guarded(bytes, limits, |format| decode_as(format, bytes, limits))
}

/// Bytes that [`decode`] will hold at its peak, told from the header: the decoder's pixels, their RGB form, and for a
/// progressive JPEG its coefficients.
///
/// # Errors
///
/// Those of [`decode`] that need no decoding.
pub fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, Error> {
    guarded(bytes, limits, |format| {
        let decoder = open(format, bytes, limits)?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        // 16 bits for each of three channels
        let coefficients = if format == ImageFormat::Jpeg && is_progressive(bytes) { 6 * pixels } else { 0 };
        let alpha = if decoder.color_type().has_alpha() { 4 * pixels } else { 0 };
        Ok(decoder.total_bytes().saturating_add(3 * pixels + coefficients + alpha))
    })
}

/// Whether a JPEG has the marker of a progressive frame (ITU-T T.81, B.1.1.3). A thumbnail's counts too.
fn is_progressive(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|marker| marker == [0xff, 0xc2])
}

fn guarded<T>(
    bytes: &[u8],
    limits: &Limits,
    read: impl FnOnce(ImageFormat) -> Result<T, Error> + std::panic::UnwindSafe,
) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    let format = sniff(bytes)?;
    // Decoders of strangers' bytes do panic now and then. That is a broken image, not a broken server.
    std::panic::catch_unwind(|| read(format))
        .unwrap_or_else(|_| Err(Error::Panicked { format: name(format), bytes: bytes.len() }))
}

/// A decoder that has read the header, of an image within the limits.
fn open<'a>(format: ImageFormat, bytes: &'a [u8], limits: &Limits) -> Result<impl ImageDecoder + 'a, Error> {
    let max_alloc = max_alloc(limits);
    let undecodable = |reason: String| Error::Undecodable { format: name(format), bytes: bytes.len(), reason };

    if let Some(absurd) = (format == ImageFormat::Tiff).then(|| tiff::absurd(bytes)).flatten() {
        return Err(undecodable(absurd));
    }
    let mut decoder_limits = image::Limits::no_limits();
    decoder_limits.max_alloc = Some(max_alloc);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(decoder_limits);
    let cut = || truncated::cut(format, bytes, max_alloc);
    let decoder = reader.into_decoder().map_err(|error| refused(format, bytes, limits, error, cut))?;

    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(undecodable(format!("it is {width}x{height}, without a pixel")));
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(Error::TooManyPixels { width, height, limit: limits.max_pixels });
    }
    // Not every decoder counts its output against the limit, so it is counted here.
    if decoder.total_bytes() > max_alloc {
        return Err(Error::TooMuchMemory { format: name(format), bytes: bytes.len(), limit: max_alloc });
    }
    Ok(decoder)
}

/// Bytes that decoding may allocate.
fn max_alloc(limits: &Limits) -> u64 {
    limits.max_pixels.saturating_mul(BYTES_PER_PIXEL).saturating_add(WORKING_BYTES)
}

// By value, as `map_err` hands it over.
#[allow(clippy::needless_pass_by_value)]
fn refused(
    format: ImageFormat,
    bytes: &[u8],
    limits: &Limits,
    error: ImageError,
    cut: impl FnOnce() -> Option<Cut>,
) -> Error {
    let (format, bytes) = (name(format), bytes.len());
    if matches!(error, ImageError::Limits(_)) {
        return Error::TooMuchMemory { format, bytes, limit: max_alloc(limits) };
    }
    match cut() {
        Some(cut) => Error::Truncated { format, bytes, cut },
        None => Error::Undecodable { format, bytes, reason: error.to_string() },
    }
}

fn decode_as(format: ImageFormat, bytes: &[u8], limits: &Limits) -> Result<Image, Error> {
    let mut decoder = open(format, bytes, limits)?;
    // Broken metadata is no reason to refuse pixels that are fine.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let cut_of = || truncated::cut(format, bytes, max_alloc(limits));
    // Of JPEG alone the decoder does not say that the end is missing.
    let mut cut = if format == ImageFormat::Jpeg { cut_of() } else { None };
    if let Some(cut) = cut.filter(|cut| !limits.allow_truncated || cut.came == Some(0.0)) {
        return Err(Error::Truncated { format: name(format), bytes: bytes.len(), cut });
    }
    let fault = Cell::new(None);
    let in_parts = matches!(format, ImageFormat::Png | ImageFormat::Bmp | ImageFormat::Gif);
    let decoder = Partial { inner: decoder, fault: &fault, keep: in_parts };
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| refused(format, bytes, limits, error, cut_of))?;
    if let Some(Fault { error, gave_anything }) = fault.into_inner() {
        cut = cut_of();
        let lacks_end_only = format == ImageFormat::Png && cut.is_none() && is_end_of_file(&error);
        let may_be_kept = cut.is_some() && limits.allow_truncated && gave_anything;
        if !lacks_end_only && !may_be_kept {
            return Err(refused(format, bytes, limits, error, || cut));
        }
    }
    let mut upright = DynamicImage::ImageRgb8(opaque(decoded));
    upright.apply_orientation(orientation);
    let upright = upright.into_rgb8();
    Ok(Image { width: upright.width(), height: upright.height(), pixels: upright.into_raw(), cut })
}

fn is_end_of_file(error: &ImageError) -> bool {
    matches!(error, ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// A decoder whose pixels are kept as far as it came before it failed; grey beyond, as zune-jpeg fills it.
struct Partial<'a, D> {
    inner: D,
    fault: &'a Cell<Option<Fault>>,
    keep: bool,
}

/// Why a decoder failed.
struct Fault {
    error: ImageError,
    /// Whether it had given a pixel by then.
    gave_anything: bool,
}

impl<D: ImageDecoder> ImageDecoder for Partial<'_, D> {
    fn dimensions(&self) -> (u32, u32) {
        self.inner.dimensions()
    }

    fn color_type(&self) -> ColorType {
        self.inner.color_type()
    }

    fn original_color_type(&self) -> ExtendedColorType {
        self.inner.original_color_type()
    }

    fn read_image(self, pixels: &mut [u8]) -> ImageResult<()> {
        if !self.keep {
            return self.inner.read_image(pixels);
        }
        let color = self.inner.color_type();
        let (size, channels) = (usize::from(color.bytes_per_pixel()), usize::from(color.channel_count()));
        let mut grey = vec![128; size];
        if color.has_alpha() {
            grey[size - size / channels..].fill(255);
        }
        pixels.chunks_exact_mut(size).for_each(|pixel| pixel.copy_from_slice(&grey));
        if let Err(error) = self.inner.read_image(pixels) {
            let gave_anything = pixels.chunks_exact(size).any(|pixel| pixel != grey);
            // The decoder brings 16-bit numbers into the machine's order when all are there.
            if size == 2 * channels {
                pixels.as_chunks_mut().0.iter_mut().for_each(|pair| *pair = u16::from_be_bytes(*pair).to_ne_bytes());
            }
            self.fault.set(Some(Fault { error, gave_anything }));
        }
        Ok(())
    }

    fn read_image_boxed(self: Box<Self>, pixels: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(pixels)
    }
}

fn sniff(bytes: &[u8]) -> Result<ImageFormat, Error> {
    if let Some(format) = image::guess_format(bytes).ok().filter(|format| name(*format) != "unknown") {
        return Ok(format);
    }
    Err(match found::named(bytes) {
        Some(found) => Error::Unsupported { bytes: bytes.len(), found },
        None => Error::UnknownFormat {
            bytes: bytes.len(),
            start: bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
        },
    })
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        _ => "unknown",
    }
}

/// 8-bit RGB, composited onto white where there is transparency.
fn opaque(decoded: DynamicImage) -> RgbImage {
    if !decoded.color().has_alpha() {
        return decoded.into_rgb8();
    }
    let rgba = decoded.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(from[3]);
        for channel in 0..3 {
            let over_white = u32::from(from[channel]) * alpha + 255 * (255 - alpha);
            // At most 255 * 255, so the rounded quotient fits a byte.
            to[channel] = ((over_white + 127) / 255) as u8;
        }
    }
    rgb
}
