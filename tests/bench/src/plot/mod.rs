//! Pictures of saved results, as SVG: `bars` draws times and space, `lines` draws scaling. Here is what they share: the
//! canvas, the colours of the allocators, the legend.
//!
//! A picture has a light background of its own, so that it can be read wherever it is shown.

mod bars;
mod lines;

use std::path::Path;

use anyhow::{Context, Result};
use svg::node::element::{Circle, Line, Polyline, Rectangle, Text};
use svg::{Document, Node};

use crate::allocators::Kind;
use crate::results::Results;

const FONT: &str = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif";
const INK: &str = "#212529";
const FAINT: &str = "#868e96";
const GRID: &str = "#e3e6e9";
const PAPER: &str = "#fcfcfd";

/// Widths of a character of the font and of its bold form, as a part of its size: enough for the names of allocators.
const CHARACTER: f64 = 0.6;
const CHARACTER_BOLD: f64 = 0.72;

/// Draws what there are results for in a file.
pub(crate) fn draw(file: &Path, directory: &Path) -> Result<()> {
    let results = &Results::load(file)?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let pictures = [
        ("bench.svg", (!results.rows.is_empty()).then(|| bars::times(results))),
        ("scaling.svg", (!results.scaling.is_empty()).then(|| lines::scaling(results))),
        ("space.svg", (!results.space.is_empty()).then(|| bars::space(results))),
    ];
    for (name, picture) in pictures {
        let file = directory.join(name);
        match picture {
            Some(picture) => {
                svg::save(&file, &picture.document).with_context(|| format!("cannot write {}", file.display()))?;
                println!("{}", file.display());
            }
            None => println!("{name}: the results have nothing for it"),
        }
    }
    Ok(())
}

/// The colour of an allocator in all pictures. Only shmheap's is a warm one.
fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Shmheap => "#e8590c",
        Kind::Harness => "#dee2e6",
        Kind::Mimalloc => "#1c5d99",
        Kind::Snmalloc => "#4a9bd4",
        Kind::Jemalloc => "#2a9d8f",
        Kind::Rpmalloc => "#8ac6bd",
        Kind::Glibc => "#a6adb4",
        Kind::Boost => "#7950a8",
        Kind::RtsAlloc => "#c39bd3",
    }
}

/// The allocators to draw, in the order of the report.
fn drawn(present: impl Fn(Kind) -> bool) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| *kind != Kind::Harness && present(*kind)).collect()
}

/// Where a text stands, relative to its point.
#[derive(Debug, Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy)]
struct Style {
    size: f64,
    colour: &'static str,
    is_bold: bool,
    anchor: Anchor,
}

impl Style {
    fn new(size: f64, anchor: Anchor) -> Self {
        Self { size, colour: INK, is_bold: false, anchor }
    }

    fn colour(self, colour: &'static str) -> Self {
        Self { colour, ..self }
    }

    fn bold(self) -> Self {
        Self { is_bold: true, ..self }
    }
}

/// A picture in the making. The origin is at the top left.
struct Canvas {
    document: Document,
}

impl Canvas {
    fn new(width: f64, height: f64) -> Self {
        let document = Document::new()
            .set("viewBox", (0, 0, width, height))
            .set("width", width)
            .set("height", height)
            .set("font-family", FONT);
        let mut canvas = Self { document };
        canvas.rectangle((0.0, 0.0), (width, height), PAPER);
        canvas
    }

    fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
        let rectangle =
            Rectangle::new().set("x", x).set("y", y).set("width", width).set("height", height).set("fill", colour);
        self.document.append(rectangle);
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let line = Line::new().set("x1", from.0).set("y1", from.1).set("x2", to.0).set("y2", to.1);
        self.document.append(line.set("stroke", colour).set("stroke-width", width));
    }

    fn path(&mut self, points: &[(f64, f64)], colour: &str, width: f64) {
        let text: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = Polyline::new().set("points", text.join(" ")).set("fill", "none");
        self.document.append(path.set("stroke", colour).set("stroke-width", width).set("stroke-linejoin", "round"));
        for (x, y) in points {
            self.document.append(Circle::new().set("cx", *x).set("cy", *y).set("r", width + 1.0).set("fill", colour));
        }
    }

    fn text(&mut self, text: &str, (x, y): (f64, f64), style: Style) {
        let anchor = match style.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if style.is_bold { "bold" } else { "normal" };
        let element = Text::new(text).set("x", x).set("y", y).set("font-size", style.size).set("fill", style.colour);
        // An edge in the colour of the paper keeps text apart from lines that run below it.
        let element = element.set("paint-order", "stroke").set("stroke", PAPER).set("stroke-width", 2.5);
        self.document.append(element.set("text-anchor", anchor).set("font-weight", weight));
    }

    /// The heading: a title, and below it what the numbers mean.
    fn heading(&mut self, title: &str, meaning: &str) {
        self.text(title, (MARGIN, 26.0), Style::new(16.0, Anchor::Start).bold());
        self.text(meaning, (MARGIN, 45.0), Style::new(12.0, Anchor::Start).colour(FAINT));
    }

    /// A line of coloured squares and names.
    fn legend(&mut self, kinds: &[Kind], y: f64) {
        let mut x = MARGIN;
        for kind in kinds {
            self.rectangle((x, y - 10.0), (12.0, 12.0), colour(*kind));
            let style = Style::new(12.0, Anchor::Start);
            let is_ours = *kind == Kind::Shmheap;
            let style = if is_ours { style.bold() } else { style };
            self.text(kind.name(), (x + 17.0, y), style);
            let character = if is_ours { CHARACTER_BOLD } else { CHARACTER };
            x += 17.0 + kind.name().len() as f64 * 12.0 * character + 20.0;
        }
    }
}

/// Space around a picture.
const MARGIN: f64 = 20.0;
