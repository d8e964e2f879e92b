//! A scene as SVG.

use svg::node::element::{Rectangle as Rect, Text as Words, Title};
use svg::{Document, Node};

use super::palette::{Ground, Rgb, ground};
use super::scene::{Anchor, Scene};

/// Fonts whose characters are as wide as the scene takes them to be, as far as a viewer has them.
const FONTS: &str = "Hack, 'DejaVu Sans Mono', Menlo, Consolas, monospace";

/// The scene as the text of a file.
pub(crate) fn paint(scene: &Scene) -> String {
    let (width, height) = scene.size;
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width)
        .set("height", height)
        .set("font-family", FONTS)
        .add(Title::new(&scene.title));
    // A background of its own, so that it can be read wherever it is shown.
    document.append(Rect::new().set("width", width).set("height", height).set("fill", hex(ground(Ground::Paper))));
    for rectangle in &scene.rectangles {
        let ((x, y), (width, height)) = (rectangle.at, rectangle.size);
        let mut element = Rect::new().set("x", short(x)).set("y", short(y)).set("width", short(width));
        element = element.set("height", short(height)).set("fill", hex(rectangle.fill));
        if let Some(note) = &rectangle.note {
            element.append(Title::new(note));
        }
        document.append(element);
    }
    for text in &scene.texts {
        let anchor = match text.anchor {
            Anchor::Start => "start",
            Anchor::End => "end",
        };
        // Labels are aligned by blanks, of which SVG would make one.
        let words = text.text.replace("  ", "\u{a0}\u{a0}");
        let element = Words::new(words).set("x", short(text.at.0)).set("y", short(text.at.1));
        let element = element.set("font-size", text.size).set("fill", hex(text.fill)).set("text-anchor", anchor);
        // Whatever font there is, the text takes the room that the scene has for it.
        document.append(element.set("textLength", short(text.width())).set("lengthAdjust", "spacingAndGlyphs"));
    }
    format!("{document}\n")
}

/// A length with at most one digit after the point.
fn short(length: f64) -> f64 {
    (length * 10.0).round() / 10.0
}

fn hex((red, green, blue): Rgb) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}
