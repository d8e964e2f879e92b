//! A scene as PNG: rectangles and the outlines of characters on a canvas of pixels.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use epaint_default_fonts::HACK_REGULAR;

use super::palette::{Ground, Rgb, ground, mix};
use super::scene::{Anchor, Rectangle, Scene, Text};

/// Pixels per pixel of the scene: screens have become finer.
const SCALE: f64 = 2.0;

/// Why a picture could not be painted.
#[derive(Debug)]
pub(crate) enum Fault {
    Font(ab_glyph::InvalidFont),
    Encoding(png::EncodingError),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Font(error) => error.fmt(f),
            Self::Encoding(error) => error.fmt(f),
        }
    }
}

/// The scene as the bytes of a file.
pub(crate) fn paint(scene: &Scene) -> Result<Vec<u8>, Fault> {
    let font = FontRef::try_from_slice(HACK_REGULAR).map_err(Fault::Font)?;
    let mut canvas = Canvas::new(scaled(scene.size.0), scaled(scene.size.1));
    scene.rectangles.iter().for_each(|rectangle| canvas.rectangle(rectangle));
    scene.texts.iter().for_each(|text| canvas.text(&font, text));
    canvas.encode().map_err(Fault::Encoding)
}

fn scaled(length: f64) -> usize {
    (length.max(0.0) * SCALE).round() as usize
}

/// Rows of pixels.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Rgb>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![ground(Ground::Paper); width * height] }
    }

    fn rectangle(&mut self, rectangle: &Rectangle) {
        let ((x, y), (width, height)) = (rectangle.at, rectangle.size);
        let (left, right) = (scaled(x).min(self.width), scaled(x + width).min(self.width));
        for row in scaled(y)..scaled(y + height).min(self.height) {
            self.pixels[row * self.width + left..row * self.width + right].fill(rectangle.fill);
        }
    }

    fn text(&mut self, font: &FontRef<'_>, text: &Text) {
        // A font's size is that of its em; the library asks for the height of its lines.
        let em = font.units_per_em().unwrap_or(1000.0);
        let scale = PxScale::from((text.size * SCALE) as f32 * font.height_unscaled() / em);
        let scaled = font.as_scaled(scale);
        let start = match text.anchor {
            Anchor::Start => 0.0,
            Anchor::End => text.width(),
        };
        let mut x = ((text.at.0 - start) * SCALE) as f32;
        for character in text.text.chars() {
            let id = scaled.glyph_id(character);
            self.glyph(font, id.with_scale_and_position(scale, point(x, (text.at.1 * SCALE) as f32)), text.fill);
            x += scaled.h_advance(id);
        }
    }

    fn glyph(&mut self, font: &FontRef<'_>, glyph: Glyph, fill: Rgb) {
        let Some(outline) = font.outline_glyph(glyph) else { return };
        let (left, top) = (outline.px_bounds().min.x as i64, outline.px_bounds().min.y as i64);
        outline.draw(|x, y, coverage| {
            let at = |from: i64, by: u32, end: usize| usize::try_from(from + i64::from(by)).ok().filter(|at| *at < end);
            if let (Some(x), Some(y)) = (at(left, x, self.width), at(top, y, self.height)) {
                let pixel = &mut self.pixels[y * self.width + x];
                *pixel = mix(*pixel, fill, f64::from(coverage));
            }
        });
    }

    fn encode(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let data: Vec<u8> = self.pixels.iter().flat_map(|(red, green, blue)| [*red, *green, *blue]).collect();
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&data)?;
        writer.finish()?;
        Ok(bytes)
    }
}
