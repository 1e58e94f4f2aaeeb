//! Every format, orientation and transparency, and the preprocessing.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};
use sensorium_media::image::{Channels, Error, Filter, Image, Limits, Preprocess, decode, decoded_bytes, preprocess};

use crate::fixture;

const LIMITS: Limits = Limits { max_bytes: 16 << 20, max_pixels: 64_000_000, allow_truncated: false };

fn pixel(image: &Image, x: u32, y: u32) -> [u8; 3] {
    let at = (y * image.width + x) as usize * 3;
    [image.pixels[at], image.pixels[at + 1], image.pixels[at + 2]]
}

#[track_caller]
fn near(name: &str, got: [u8; 3], expected: [u8; 3], tolerance: u8) {
    let far = got.iter().zip(&expected).any(|(a, b)| a.abs_diff(*b) > tolerance);
    assert!(!far, "{name}: got {got:?}, expected {expected:?} within {tolerance}");
}

fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[test]
fn every_format_gives_the_same_picture() {
    // CMYK without a profile is converted naively, and lossy formats bleed.
    let files = [
        ("rgb.png", 0),
        ("rgb16.png", 0),
        ("palette.png", 0),
        ("rgb.bmp", 0),
        ("rgb.tiff", 0),
        ("animated.gif", 0),
        ("lossless.webp", 0),
        ("rgb.jpg", 12),
        ("progressive.jpg", 60),
        ("cmyk.jpg", 60),
        ("cmyk.tiff", 30),
        ("lossy.webp", 60),
    ];
    for (name, tolerance) in files {
        let image = decode(&fixture(name), &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((image.width, image.height), (24, 16), "{name}");
        near(name, pixel(&image, 2, 2), [0, 255, 0], tolerance);
        near(name, pixel(&image, 4, 13), [255, 0, 0], tolerance);
        near(name, pixel(&image, 20, 8), [0, 0, 255], tolerance);
    }
    let grey = decode(&fixture("grey.jpg"), &LIMITS).unwrap();
    let [r, g, b] = pixel(&grey, 2, 2);
    assert!(r == g && g == b && r > 100, "{r} {g} {b}");
}

#[test]
fn transparency_is_white() {
    for name in ["alpha.png", "alpha.webp"] {
        let image = decode(&fixture(name), &LIMITS).unwrap();
        assert_eq!(pixel(&image, 20, 8), [255, 255, 255], "{name}");
        assert_eq!(pixel(&image, 4, 13), [255, 0, 0], "{name}");
    }
    let half = image::RgbaImage::from_pixel(2, 2, image::Rgba([0, 0, 0, 128]));
    let mut bytes = Cursor::new(Vec::new());
    half.write_to(&mut bytes, ImageFormat::Png).unwrap();
    assert_eq!(pixel(&decode(&bytes.into_inner(), &LIMITS).unwrap(), 0, 0), [127, 127, 127]);
}

/// A JPEG with an EXIF segment that holds the orientation and nothing else.
fn oriented(orientation: u8) -> Vec<u8> {
    let jpeg = fixture("rgb.jpg");
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn exif_orientation_is_applied() {
    // Where the green corner, top left as stored, is to be seen.
    let corners = [
        (1, 24, (2, 2)),
        (2, 24, (21, 2)),
        (3, 24, (21, 13)),
        (4, 24, (2, 13)),
        (5, 16, (2, 2)),
        (6, 16, (13, 2)),
        (7, 16, (13, 21)),
        (8, 16, (2, 21)),
    ];
    for (orientation, width, (x, y)) in corners {
        let image = decode(&oriented(orientation), &LIMITS).unwrap();
        assert_eq!((image.width, image.height), (width, 40 - width), "orientation {orientation}");
        near("rgb.jpg", pixel(&image, x, y), [0, 255, 0], 12);
    }
    // An orientation that does not exist is none.
    assert_eq!(decode(&oriented(9), &LIMITS).unwrap().width, 24);
}

#[test]
fn limits_are_told_apart_from_broken_content() {
    let bytes = fixture("rgb.png");
    let small = Limits { max_bytes: 10, ..LIMITS };
    let error = decode(&bytes, &small).unwrap_err();
    assert!(matches!(error, Error::TooManyBytes { limit: 10, .. }) && error.is_over_limit(), "{error}");
    let small = Limits { max_pixels: 24 * 16 - 1, ..LIMITS };
    let error = decode(&bytes, &small).unwrap_err();
    assert_eq!(error.to_string(), "image is 24x16, 384 pixels, the limit is 383");
    assert!(error.is_over_limit());
    assert!(decode(&bytes, &Limits { max_pixels: 24 * 16, ..LIMITS }).is_ok());

    assert!(matches!(decode(b"", &LIMITS), Err(Error::Empty)));
    let error = decode(b"\x07not an image at all", &LIMITS).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { .. } | Error::UnknownFormat { .. }) && !error.is_over_limit(),
        "{error}"
    );
    let error = decode(&bytes[..bytes.len() / 2], &LIMITS).unwrap_err();
    assert!(matches!(error, Error::Truncated { format: "PNG", .. }) && !error.is_over_limit(), "{error}");
}

fn options(resize: u32, crop: u32, filter: Filter) -> Preprocess {
    Preprocess { resize, crop, filter, scale: 1.0, mean: [0.0; 3], std: [1.0; 3], channels: Channels::Rgb }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let boxed = |brand: &[u8; 4]| [b"\0\0\0\x18ftyp", &brand[..], b"\0\0\0\0mif1", brand].concat();
    let named = [
        (boxed(b"heic"), "HEIC"),
        (boxed(b"mif1"), "HEIF"),
        (boxed(b"avif"), "AVIF"),
        (b"\xff\x0a\xfa\x0f\x10\x00".to_vec(), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ".to_vec(), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ".to_vec(), "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f\0\0\0\0".to_vec(), "JPEG 2000"),
        (b"8BPS\0\x01\0\0\0\0\0\0\0\x03".to_vec(), "PSD"),
        (b"<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\"></svg>".to_vec(), "SVG"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3".to_vec(), "PDF"),
        (b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0".to_vec(), "ICO"),
        (fixture("video.mp4"), "MP4, a video"),
        (fixture("opus.webm"), "WebM, a video"),
        (fixture("flac-16k.flac"), "FLAC, a clip"),
        (b"a line of text".to_vec(), "text"),
        (b"<!DOCTYPE html><html><head><title>404</title></head></html>".to_vec(), "HTML"),
    ];
    for (bytes, expected) in named {
        for error in [decode(&bytes, &LIMITS).unwrap_err(), decoded_bytes(&bytes, &LIMITS).unwrap_err()] {
            let Error::Unsupported { found, .. } = &error else { panic!("{error}, expected {expected}") };
            assert!(found.starts_with(expected), "{found}, expected {expected}");
        }
    }
    let error = decode(&[7, 8, 9, 200, 1], &LIMITS).unwrap_err();
    assert!(error.to_string().starts_with("image of 5 bytes starts with 070809c801, expected JPEG"), "{error}");
}

#[test]
fn preprocessing_normalises_planes_in_the_order_asked_for() {
    let image = decode(&png(8, 8, |_, _| [255, 51, 0]), &LIMITS).unwrap();
    let rgb = Preprocess {
        scale: 1.0 / 255.0,
        mean: [0.5, 0.1, 0.0],
        std: [0.5, 0.1, 2.0],
        ..options(4, 2, Filter::Bilinear)
    };
    let got = preprocess(&image, &rgb).unwrap();
    let expected = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?}");
    let bgr = Preprocess { channels: Channels::Bgr, ..options(4, 2, Filter::Bicubic) };
    let got = preprocess(&image, &bgr).unwrap();
    assert_eq!(got, [0.0, 0.0, 0.0, 0.0, 51.0, 51.0, 51.0, 51.0, 255.0, 255.0, 255.0, 255.0]);
}

/// What Pillow does, in floats: a triangle as wide as the reduction, one axis after the other.
fn naive_bilinear(image: &Image, width: usize, height: usize) -> Vec<[f64; 3]> {
    let weights = |from: usize, to: usize, at: usize| -> Vec<(usize, f64)> {
        let scale = from as f64 / to as f64;
        let reach = scale.max(1.0);
        let centre = (at as f64 + 0.5) * scale;
        let all: Vec<(usize, f64)> =
            (0..from).map(|p| (p, (1.0 - ((p as f64 + 0.5 - centre) / reach).abs()).max(0.0))).collect();
        let sum: f64 = all.iter().map(|(_, weight)| weight).sum();
        all.into_iter().filter(|(_, weight)| *weight > 0.0).map(|(p, weight)| (p, weight / sum)).collect()
    };
    let mut resized = Vec::new();
    for y in 0..height {
        let rows = weights(image.height as usize, height, y);
        for x in 0..width {
            let mut sum = [0.0; 3];
            for (column, across) in weights(image.width as usize, width, x) {
                for (row, down) in &rows {
                    let from = pixel(image, column as u32, *row as u32);
                    for channel in 0..3 {
                        sum[channel] += across * down * f64::from(from[channel]);
                    }
                }
            }
            resized.push(sum);
        }
    }
    resized
}

#[test]
fn the_resize_is_antialiased_and_the_crop_central() {
    for (width, height) in [(61, 40), (40, 61), (17, 9), (100, 24)] {
        let noise = |x: u32, y: u32| [(x * 37 + y * 91) as u8, (x * x + y) as u8, (x * 5) as u8];
        let image = decode(&png(width, height, noise), &LIMITS).unwrap();
        let (resize, crop) = (24, 20);
        let shorter = width.min(height);
        let (wide, high) = ((resize * width / shorter) as usize, (resize * height / shorter) as usize);
        let whole = naive_bilinear(&image, wide, high);
        let left = ((wide - crop) as f64 / 2.0).round_ties_even() as usize;
        let top = ((high - crop) as f64 / 2.0).round_ties_even() as usize;
        let got = preprocess(&image, &options(resize, crop as u32, Filter::Bilinear)).unwrap();
        for channel in 0..3 {
            for y in 0..crop {
                for x in 0..crop {
                    let expected = whole[(top + y) * wide + left + x][channel];
                    let value = f64::from(got[(channel * crop + y) * crop + x]);
                    assert!((value - expected).abs() <= 1.0, "{width}x{height} at {x},{y}: {value}, {expected}");
                }
            }
        }
    }
}

#[test]
fn extreme_shapes_cost_no_more_than_their_crop() {
    for (width, height) in [(1, 1), (1, 60_000), (60_000, 1), (3, 2)] {
        let image = decode(&png(width, height, |_, _| [9, 9, 9]), &LIMITS).unwrap();
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let got = preprocess(&image, &options(256, 224, filter)).unwrap();
            assert_eq!(got.len(), 3 * 224 * 224);
            assert!(got.iter().all(|value| *value == 9.0), "{width}x{height} {filter:?}");
        }
    }
}

#[test]
fn contradicting_options_are_refused() {
    let image = decode(&fixture("rgb.png"), &LIMITS).unwrap();
    let error = preprocess(&image, &options(224, 256, Filter::Bilinear)).unwrap_err();
    assert_eq!(error.to_string(), "preprocess.crop = 256, expected 1 to preprocess.resize");
    let flat = Preprocess { std: [1.0, 0.0, 1.0], ..options(24, 24, Filter::Bilinear) };
    assert!(preprocess(&image, &flat).is_err());
}

#[test]
fn what_an_image_decodes_to_is_told_from_its_header() {
    for (width, height) in [(1, 1), (640, 480), (3000, 2000)] {
        let file = png(width, height, |_, _| [1, 2, 3]);
        let told = decoded_bytes(&file, &LIMITS).unwrap();
        let pixels = u64::from(width * height);
        assert_eq!(told, 6 * pixels, "the decoder's pixels and their RGB form");
        assert_eq!(decode(&file, &LIMITS).unwrap().pixels.len() as u64, 3 * pixels);
    }
    let (plain, progressive) = (fixture("rgb.jpg"), fixture("progressive.jpg"));
    let told = |file: &[u8]| decoded_bytes(file, &LIMITS).unwrap();
    assert_eq!(told(&progressive), 2 * told(&plain), "a progressive one keeps its coefficients");
    let small = Limits { max_pixels: 100, ..LIMITS };
    assert!(matches!(decoded_bytes(&plain, &small), Err(Error::TooManyPixels { .. })));
    assert!(matches!(decoded_bytes(b"no image", &LIMITS), Err(Error::Unsupported { .. })));
}
