//! Images whose files end too early.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use sensorium_media::image::{Cut, Error, Image, Limits, decode};

use crate::fixture;

const LIMITS: Limits = Limits { max_bytes: 16 << 20, max_pixels: 64_000_000, allow_truncated: false };
const ALLOWED: Limits = Limits { allow_truncated: true, ..LIMITS };

/// A picture that compresses badly, of 96 x 64 pixels or as many in 16 bits.
fn encoded(format: ImageFormat, deep: bool) -> Vec<u8> {
    let mut state = 7_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 26) as u8
    };
    let picture = RgbImage::from_fn(96, 64, |x, y| Rgb([x as u8 * 2 + noise(), y as u8 * 2 + noise(), noise()]));
    let picture = DynamicImage::ImageRgb8(picture);
    let picture = if deep { DynamicImage::ImageRgb16(picture.into_rgb16()) } else { picture };
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        ("JPEG", encoded(ImageFormat::Jpeg, false)),
        ("PNG", encoded(ImageFormat::Png, false)),
        ("deep PNG", encoded(ImageFormat::Png, true)),
        ("GIF", encoded(ImageFormat::Gif, false)),
        ("BMP", encoded(ImageFormat::Bmp, false)),
        ("TIFF", encoded(ImageFormat::Tiff, false)),
        ("WebP", encoded(ImageFormat::WebP, false)),
    ];
    let fixtures = [
        "scene.jpg",
        "scene-grey.jpg",
        "scene-progressive.jpg",
        "scene-interlaced.png",
        "scene-interlaced.gif",
        "scene.webp",
    ];
    all.extend(fixtures.map(|name| (name, fixture(name))));
    all
}

fn share(bytes: &[u8], percent: usize) -> &[u8] {
    &bytes[..bytes.len() * percent / 100]
}

fn refused(name: &str, bytes: &[u8], limits: &Limits) -> Cut {
    match decode(bytes, limits) {
        Err(Error::Truncated { cut, .. }) => cut,
        Err(error) => panic!("{name}: {error}"),
        Ok(_) => panic!("{name}: decoded"),
    }
}

#[test]
fn what_ends_too_early_is_refused_with_its_share() {
    for (name, bytes) in all() {
        assert_eq!(decode(&bytes, &LIMITS).unwrap().cut, None, "{name}");
        for percent in [10, 30, 60, 90, 99] {
            let Some(came) = refused(name, share(&bytes, percent), &LIMITS).came else {
                assert!(name.contains("GIF") || name.contains("gif") || name.contains("progressive"), "{name}");
                continue;
            };
            // headers and tables come first, and some parts of a picture are harder to code than others
            let slack = if bytes.len() < 5_000 { 0.4 } else { 0.15 };
            assert!((came - percent as f64 / 100.0).abs() < slack, "{name} at {percent} %: {came}");
        }
    }
}

#[test]
fn what_ends_in_its_header_has_nothing_of_its_picture() {
    for (name, bytes) in all() {
        for length in [12, 20, 27] {
            for limits in [LIMITS, ALLOWED] {
                assert!(decode(&bytes[..length], &limits).is_err(), "{name}: {length} bytes");
            }
        }
    }
    // all tables, and not a block
    let jpeg = encoded(ImageFormat::Jpeg, false);
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    assert_eq!(refused("JPEG", &jpeg[..scan + 10], &ALLOWED).came, Some(0.0));
    assert_eq!(refused("JPEG", &jpeg[..scan + 14], &ALLOWED).came, Some(0.0));
    let error = decode(&jpeg[..scan + 14], &LIMITS).unwrap_err().to_string();
    assert_eq!(error, format!("JPEG image of {} bytes ends after about 0 % of its picture", scan + 14));
}

#[test]
fn an_end_that_only_lacks_its_mark_is_an_end() {
    for (name, bytes) in all() {
        let without_mark = match name {
            "JPEG" | "scene.jpg" | "scene-grey.jpg" => &bytes[..bytes.len() - 2],
            "PNG" | "scene-interlaced.png" => &bytes[..bytes.len() - 12],
            "GIF" | "scene-interlaced.gif" => &bytes[..bytes.len() - 1],
            _ => continue,
        };
        let (whole, lacking) = (decode(&bytes, &LIMITS).unwrap(), decode(without_mark, &LIMITS));
        assert_eq!(lacking.unwrap_or_else(|error| panic!("{name}: {error}")), whole, "{name}");
    }
}

#[test]
fn what_follows_the_end_is_no_concern() {
    for (name, bytes) in all() {
        let more = [&bytes[..], b"\xff\xd8\xff\xe0 trailing words", &[0; 99]].concat();
        assert_eq!(decode(&more, &LIMITS).unwrap(), decode(&bytes, &LIMITS).unwrap(), "{name}");
    }
    // a thumbnail's end is not the picture's
    let jpeg = encoded(ImageFormat::Jpeg, false);
    let thumbnail = [&[0xff, 0xe1, 0x01, 0x61][..], &fixture("rgb.jpg")].concat();
    let with_thumbnail = [&jpeg[..2], &thumbnail, &jpeg[2..]].concat();
    assert_eq!(decode(&with_thumbnail, &LIMITS).unwrap().cut, None);
    assert!(refused("thumbnail", share(&with_thumbnail, 50), &LIMITS).came.is_some());
}

/// Rows from the top that are as they would be if the rest had come.
fn equal_rows(a: &Image, b: &Image) -> usize {
    let row = a.width as usize * 3;
    a.pixels.chunks_exact(row).zip(b.pixels.chunks_exact(row)).take_while(|(a, b)| a == b).count()
}

#[test]
fn what_came_is_decoded_if_that_is_allowed() {
    for name in ["JPEG", "PNG", "deep PNG", "GIF", "scene.jpg"] {
        let (_, bytes) = all().into_iter().find(|(known, _)| *known == name).unwrap();
        let whole = decode(&bytes, &ALLOWED).unwrap();
        let cut = decode(share(&bytes, 60), &ALLOWED).unwrap();
        assert!(whole.cut.is_none() && cut.cut.is_some(), "{name}");
        assert_eq!((cut.width, cut.height), (whole.width, whole.height), "{name}");
        let (rows, height) = (equal_rows(&whole, &cut), whole.height as usize);
        assert!(rows > height * 3 / 10 && rows < height * 8 / 10, "{name}: {rows} of {height} rows");
        assert!(cut.pixels.ends_with(&[128; 96]), "{name}: grey beyond");
    }
    for (name, bytes) in all() {
        let cut = decode(share(&bytes, 60), &ALLOWED);
        match name {
            "WebP" | "scene.webp" | "TIFF" => assert!(matches!(cut, Err(Error::Truncated { .. })), "{name}"),
            _ => assert!(cut.unwrap().cut.is_some(), "{name}"),
        }
    }
    // a bitmap begins at its foot
    let bmp = encoded(ImageFormat::Bmp, false);
    let (whole, cut) = (decode(&bmp, &ALLOWED).unwrap(), decode(share(&bmp, 50), &ALLOWED).unwrap());
    assert!(cut.pixels.starts_with(&[128; 96]) && cut.pixels[96 * 50 * 3..] == whole.pixels[96 * 50 * 3..]);
}

#[test]
fn what_is_broken_in_its_middle_is_not_called_cut() {
    let mut png = encoded(ImageFormat::Png, false);
    let middle = png.len() / 2;
    png[middle..middle + 100].fill(0);
    for limits in [LIMITS, ALLOWED] {
        assert!(matches!(decode(&png, &limits), Err(Error::Undecodable { format: "PNG", .. })));
    }
}

#[test]
fn restart_intervals_are_counted() {
    // an interval of one row, and its markers between the rows of a picture whose rows are all alike
    let grey = DynamicImage::ImageLuma8(image::GrayImage::from_pixel(64, 64, image::Luma([200])));
    let mut jpeg = Cursor::new(Vec::new());
    grey.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let jpeg = jpeg.into_inner();
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    let header = usize::from(u16::from_be_bytes([jpeg[scan + 2], jpeg[scan + 3]])) + 2;
    let one = {
        let row = DynamicImage::ImageLuma8(image::GrayImage::from_pixel(64, 8, image::Luma([200])));
        let mut bytes = Cursor::new(Vec::new());
        row.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let bytes = bytes.into_inner();
        let start = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap() + header;
        bytes[start..bytes.len() - 2].to_vec()
    };
    let rows: Vec<u8> = (0..8_u8)
        .flat_map(|row| if row == 0 { one.clone() } else { [&[0xff, 0xcf + row][..], &one].concat() })
        .collect();
    let interval = [0xff, 0xdd, 0, 4, 0, 8];
    let whole = [&jpeg[..scan], &interval, &jpeg[scan..scan + header], &rows, &[0xff, 0xd9]].concat();
    let image = decode(&whole, &LIMITS).unwrap();
    assert!(image.pixels.iter().all(|value| value.abs_diff(200) < 3));
    assert!(decode(&whole[..whole.len() - 2], &LIMITS).is_ok());
    let five = scan + 6 + header + 5 * one.len() + 4 * 2;
    assert_eq!(refused("restarts", &whole[..five], &LIMITS).came, Some(5.0 / 8.0));
}

#[test]
fn what_a_header_claims_beyond_the_limits_is_not_counted() {
    // the sum of the header is wrong with its sides, so that the decoder refuses it before anybody looks at them
    let mut bytes = encoded(ImageFormat::Png, false);
    bytes[16..20].copy_from_slice(&(1_u32 << 30).to_be_bytes());
    bytes[20..24].copy_from_slice(&(1_u32 << 30).to_be_bytes());
    for limits in [LIMITS, ALLOWED] {
        let refusal = decode(&bytes, &limits).unwrap_err();
        assert!(matches!(refusal, Error::Undecodable { .. }), "{refusal}");
    }
}
