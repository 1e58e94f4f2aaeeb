//! Upright RGB to a model's input.

use fast_image_resize::images::{Image as Pixels, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::{Error, Image};

/// The preprocessing that a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Pixels to which the shorter side is resized, the longer one in proportion.
    pub resize: u32,
    /// Pixels of the square that is then cut from the centre; at most `resize`.
    pub crop: u32,
    /// The filter of the resize.
    pub filter: Filter,
    /// Value `p` in 0..=255 becomes `(p * scale - mean) / std`, per channel.
    pub scale: f32,
    /// See `scale`, in the order of `channels`.
    pub mean: [f32; 3],
    /// See `scale`, in the order of `channels`.
    pub std: [f32; 3],
    /// Order of the output's channels.
    pub channels: Channels,
}

/// Interpolation of a resize. All of them widen with the factor of a reduction, as Pillow's do ("antialias").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle.
    Bilinear,
    /// Catmull-Rom, a = -0.5.
    Bicubic,
    /// Lanczos of 3 lobes.
    Lanczos,
}

/// Order of the channels of a model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// Resizes the shorter side, cuts the centre and normalises: `[3, crop, crop]` f32, row-major.
///
/// Same result as torchvision's `Resize`, `CenterCrop`, `Normalize` over a Pillow image, to a rounding of one step
/// of 255: 8-bit intermediate values, the longer side rounded down, the crop's corner rounded half to even.
///
/// # Errors
///
/// [`Error::Preprocess`] if the options contradict each other.
pub fn preprocess(image: &Image, options: &Preprocess) -> Result<Vec<f32>, Error> {
    check(image, options)?;
    let cut = resize_and_crop(image, options)?;
    Ok(normalise(&cut, options))
}

fn check(image: &Image, options: &Preprocess) -> Result<(), Error> {
    let bad = |key, value: String, expected| Err(Error::Preprocess { key, value, expected });
    if options.crop == 0 || options.crop > options.resize {
        return bad("crop", options.crop.to_string(), "1 to preprocess.resize");
    }
    if options.std.contains(&0.0) {
        return bad("std", format!("{:?}", options.std), "three values other than 0");
    }
    let expected = image.width as usize * image.height as usize * 3;
    if image.pixels.is_empty() || image.pixels.len() != expected {
        return bad("image.pixels", format!("{} bytes", image.pixels.len()), "3 * width * height bytes, at least 3");
    }
    Ok(())
}

/// `[crop, crop, 3]` bytes.
///
/// Only the centre is computed: the whole resized image of a 1 x 60,000,000 picture would be a bomb, and for a
/// usual one most of the longer side is work thrown away. The filter still reads beyond the cut, so the pixels are
/// those of a full resize.
fn resize_and_crop(image: &Image, options: &Preprocess) -> Result<Vec<u8>, Error> {
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    let shorter = width.min(height);
    let resize = f64::from(options.resize);
    let crop = f64::from(options.crop);
    let span = |side: f64| {
        let resized = (resize * side / shorter).floor();
        let step = side / resized;
        let corner = ((resized - crop) / 2.0).round_ties_even();
        let from = corner * step;
        // The product may end a rounding error beyond the image, which the resizer refuses.
        (from, (crop * step).min(side - from))
    };
    let (left, wide) = span(width);
    let (top, high) = span(height);

    let refused = |reason: String| Error::Preprocess { key: "image", value: reason, expected: "an image to resize" };
    let source = ImageRef::new(image.width, image.height, &image.pixels, PixelType::U8x3)
        .map_err(|error| refused(error.to_string()))?;
    let mut cut = Pixels::new(options.crop, options.crop, PixelType::U8x3);
    let filter = match options.filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::Bicubic => FilterType::CatmullRom,
        Filter::Lanczos => FilterType::Lanczos3,
    };
    let how = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(left, top, wide, high);
    Resizer::new().resize(&source, &mut cut, &how).map_err(|error| refused(error.to_string()))?;
    Ok(cut.into_vec())
}

/// `[crop, crop, 3]` bytes to `[3, crop, crop]` floats.
fn normalise(cut: &[u8], options: &Preprocess) -> Vec<f32> {
    let mut planes = Vec::with_capacity(cut.len());
    for channel in 0..3 {
        let from = match options.channels {
            Channels::Rgb => channel,
            Channels::Bgr => 2 - channel,
        };
        let (mean, std) = (options.mean[channel], options.std[channel]);
        // 256 values, computed once: the same arithmetic per pixel costs a division each.
        let table: [f32; 256] = std::array::from_fn(|p| (p as f32 * options.scale - mean) / std);
        planes.extend(cut.chunks_exact(3).map(|pixel| table[usize::from(pixel[from])]));
    }
    planes
}
