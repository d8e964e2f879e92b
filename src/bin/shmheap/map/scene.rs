//! A picture as rectangles and texts: laid out once, painted twice.
//!
//! Lengths are pixels, and the origin is at the top left. All text is in one monospaced font, so that its width is known
//! without a painter.

use super::palette::{self, Ground, Rgb};
use super::picture::{Entry, Picture};
use super::{Cell, Content};
use crate::units::size;

/// Width of a character, as a part of the font's size: that of Hack and of DejaVu Sans Mono.
const CHARACTER: f64 = 0.602;

const INK: Rgb = (0x21, 0x25, 0x29);
const FAINT: Rgb = (0x6c, 0x75, 0x7d);
const TICK: Rgb = (0xad, 0xb5, 0xbd);

/// Space around the picture.
const MARGIN: f64 = 28.0;
/// Width of all cells of a row, if it is a full one.
const GRID_WIDTH: f64 = 832.0;
/// Fewest and most cells of a row: powers of two.
const COLUMNS: (usize, usize) = (8, 64);
/// Largest edge of a cell.
const EDGE_MAX: f64 = 40.0;
/// Space between cells.
const GAP: f64 = 1.0;
/// Cells with edges of at least this are numbered.
const NUMBERED_LEAST: f64 = 26.0;
/// How thick the frame is around the cell that was asked for.
const FRAME: f64 = 2.0;
/// Height of a line of the legend, the width of a swatch in it, and the space between its columns.
const ENTRY: f64 = 22.0;
const SWATCH: f64 = 14.0;
const COLUMN_GAP: f64 = 48.0;

/// Which end of a text stands at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    End,
}

/// A filled rectangle.
#[derive(Debug)]
pub(crate) struct Rectangle {
    pub(crate) at: (f64, f64),
    pub(crate) size: (f64, f64),
    pub(crate) fill: Rgb,
    /// What is told of it when somebody points at it.
    pub(crate) note: Option<String>,
}

/// A line of text; its point is on the baseline.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) at: (f64, f64),
    pub(crate) size: f64,
    pub(crate) fill: Rgb,
    pub(crate) anchor: Anchor,
    pub(crate) text: String,
}

impl Text {
    pub(crate) fn width(&self) -> f64 {
        self.text.chars().count() as f64 * CHARACTER * self.size
    }
}

/// Everything to be painted, the lowest first; texts are above all rectangles.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) title: String,
    pub(crate) size: (f64, f64),
    pub(crate) rectangles: Vec<Rectangle>,
    pub(crate) texts: Vec<Text>,
}

/// Where the cells are.
#[derive(Debug, Clone, Copy)]
struct Grid {
    at: (f64, f64),
    columns: usize,
    rows: usize,
    /// From one cell to the next.
    step: f64,
}

impl Grid {
    fn new(picture: &Picture) -> Self {
        let count = picture.cells.len().max(1);
        // About twice as wide as high.
        let wanted = ((count * 2) as f64).sqrt().ceil() as usize;
        let columns = wanted.next_power_of_two().clamp(COLUMNS.0, COLUMNS.1);
        let step = (GRID_WIDTH / columns as f64).min(EDGE_MAX).floor();
        let label = picture.row_label(0).chars().count() as f64 * CHARACTER * SMALL + 14.0;
        let top = MARGIN + 62.0 + (picture.facts.len() as f64) * 20.0;
        Self { at: (MARGIN + label, top), columns, rows: count.div_ceil(columns), step }
    }

    fn bottom(&self) -> f64 {
        self.at.1 + self.rows as f64 * self.step
    }

    fn cell(&self, index: usize) -> (f64, f64) {
        let (row, column) = (index / self.columns, index % self.columns);
        (self.at.0 + column as f64 * self.step, self.at.1 + row as f64 * self.step)
    }
}

/// Sizes of the font.
const LARGE: f64 = 22.0;
const NORMAL: f64 = 13.0;
const SMALL: f64 = 11.0;
const TINY: f64 = 9.0;

/// Lays out a picture.
pub(crate) fn of(picture: &Picture) -> Scene {
    let grid = Grid::new(picture);
    let mut scene = Scene { title: picture.title.clone(), size: (0.0, 0.0), rectangles: Vec::new(), texts: Vec::new() };
    scene.text(&picture.title, (MARGIN, MARGIN + 18.0), LARGE, INK, Anchor::Start);
    let mut y = MARGIN + 42.0;
    for fact in &picture.facts {
        scene.text(fact, (MARGIN, y), NORMAL, INK, Anchor::Start);
        y += 20.0;
    }
    scene.axes(picture, grid);
    scene.cells(picture, grid);
    let mut bottom = grid.bottom() + 28.0;
    let unit = format!("{} {}", picture.unit, hint(picture));
    scene.text(unit.trim_end(), (MARGIN, bottom), NORMAL, FAINT, Anchor::Start);
    bottom = scene.legend(picture, bottom + 16.0);
    // As wide as the widest of what is in it.
    let texts = scene.texts.iter().filter(|text| text.anchor == Anchor::Start).map(|text| text.at.0 + text.width());
    let rectangles = scene.rectangles.iter().map(|rectangle| rectangle.at.0 + rectangle.size.0);
    let right = texts.chain(rectangles).fold(0.0, f64::max);
    scene.size = ((right + MARGIN).ceil(), (bottom + MARGIN - 8.0).ceil());
    scene
}

/// What colours and dots mean, if there is more than one thing to tell apart.
fn hint(picture: &Picture) -> &'static str {
    let has_slabs = picture.cells.iter().any(|cell| matches!(cell.content, Content::Slab { .. }));
    if has_slabs && picture.legend.len() > 2 { "The paler a slab, the emptier it is." } else { "" }
}

impl Scene {
    fn text(&mut self, text: &str, at: (f64, f64), size: f64, fill: Rgb, anchor: Anchor) {
        self.texts.push(Text { at, size, fill, anchor, text: text.to_owned() });
    }

    fn rectangle(&mut self, at: (f64, f64), size: (f64, f64), fill: Rgb) {
        self.rectangles.push(Rectangle { at, size, fill, note: None });
    }

    /// Offsets at the left of rows, and distances above columns: as many as have room.
    fn axes(&mut self, picture: &Picture, grid: Grid) {
        let every = (16.0 / grid.step).ceil() as usize;
        let every = every.next_power_of_two();
        for row in (0..grid.rows).step_by(every) {
            let y = grid.at.1 + row as f64 * grid.step;
            let middle = y + grid.step.min(16.0) / 2.0;
            let label = picture.row_label(row * grid.columns);
            self.text(&label, (grid.at.0 - 10.0, middle + SMALL * 0.36), SMALL, FAINT, Anchor::End);
            self.rectangle((grid.at.0 - 7.0, middle - 0.5), (4.0, 1.0), TICK);
        }
        // A single cell needs no distances.
        let columns = grid.columns.min(picture.cells.len());
        for column in (0..columns).step_by((grid.columns / 4).max(1)).filter(|_| columns > 1) {
            let x = grid.at.0 + column as f64 * grid.step;
            self.text(&picture.distance(column), (x, grid.at.1 - 9.0), SMALL, FAINT, Anchor::Start);
            self.rectangle((x, grid.at.1 - 6.0), (1.0, 4.0), TICK);
        }
    }

    /// The cells. Neighbours that look alike are one rectangle, and gaps are painted over it: a picture of a large heap has
    /// far fewer rectangles so.
    fn cells(&mut self, picture: &Picture, grid: Grid) {
        for (row, cells) in picture.cells.chunks(grid.columns).enumerate() {
            let mut start = 0;
            for run in cells.chunk_by(is_alike) {
                let at = grid.cell(row * grid.columns + start);
                let size = (grid.step * run.len() as f64 - GAP, grid.step - GAP);
                let note = Some(note_of(run, picture.blocks_per_cell));
                self.rectangles.push(Rectangle { at, size, fill: palette::colour(&run[0], Ground::Paper), note });
                start += run.len();
            }
        }
        let full_columns = grid.columns.min(picture.cells.len());
        for column in 1..full_columns {
            let x = grid.at.0 + column as f64 * grid.step - GAP;
            self.rectangle((x, grid.at.1), (GAP, grid.bottom() - grid.at.1), palette::ground(Ground::Paper));
        }
        let has_numbers = picture.blocks_per_cell == Some(1) && picture.cells.len() > 1 && grid.step >= NUMBERED_LEAST;
        for (index, cell) in picture.cells.iter().enumerate() {
            let ((x, y), edge) = (grid.cell(index), grid.step - GAP);
            if has_numbers {
                let text = index.to_string();
                let width = text.chars().count() as f64 * CHARACTER * TINY;
                let at = (x + (edge - width) / 2.0, y + edge / 2.0 + TINY * 0.36);
                self.text(&text, at, TINY, contrast(cell), Anchor::Start);
            }
            if cell.orphan {
                // Where a number stands in the middle, the dot stands in a corner.
                let shift = if has_numbers { edge / 3.0 } else { 0.0 };
                self.dot((x + shift, y - shift), edge, cell);
            }
        }
        if let Some(index) = picture.asked {
            self.frame(grid.cell(index), grid.step - GAP);
        }
    }

    /// The mark of an orphan.
    fn dot(&mut self, (x, y): (f64, f64), edge: f64, cell: &Cell) {
        let dot = (edge / 3.0).round().clamp(2.0, 5.0);
        let inset = (edge - dot) / 2.0;
        self.rectangle((x + inset, y + inset), (dot, dot), contrast(cell));
    }

    /// Edges around the cell that was asked for.
    fn frame(&mut self, (x, y): (f64, f64), edge: f64) {
        let (near, far, len) = (-FRAME, edge, edge + 2.0 * FRAME);
        for (left, top, width, height) in
            [(near, near, len, FRAME), (near, far, len, FRAME), (near, near, FRAME, len), (far, near, FRAME, len)]
        {
            self.rectangle((x + left, y + top), (width, height), INK);
        }
    }

    /// The legend, in columns, of which the first has the slabs; returns where it ends.
    fn legend(&mut self, picture: &Picture, top: f64) -> f64 {
        let (ramps, single): (Vec<_>, Vec<_>) = picture.legend.iter().partition(|entry| entry.samples.len() > 1);
        let lines = ramps.len().max(single.len().div_ceil(2)).max(1);
        let mut left = MARGIN;
        for column in [ramps.as_slice()].into_iter().chain(single.chunks(lines)).filter(|column| !column.is_empty()) {
            let mut right = left;
            for (line, entry) in column.iter().enumerate() {
                right = self.entry(entry, (left, top + line as f64 * ENTRY)).max(right);
            }
            left = right + COLUMN_GAP;
        }
        top + lines as f64 * ENTRY
    }

    /// An entry of the legend; returns where it ends at the right.
    fn entry(&mut self, entry: &Entry, (mut x, y): (f64, f64)) -> f64 {
        for sample in &entry.samples {
            self.rectangle((x, y), (SWATCH, SWATCH), palette::colour(sample, Ground::Paper));
            if sample.orphan {
                self.dot((x, y), SWATCH, sample);
            }
            x += SWATCH + GAP;
        }
        self.text(&entry.text, (x + 7.0, y + SWATCH - 2.5), NORMAL, INK, Anchor::Start);
        self.texts.last().map_or(x, |text| text.at.0 + text.width())
    }
}

/// Ink or paper, whichever can be told from the cell.
fn contrast(cell: &Cell) -> Rgb {
    let (red, green, blue) = palette::colour(cell, Ground::Paper);
    let luminance = 0.299 * f64::from(red) + 0.587 * f64::from(green) + 0.114 * f64::from(blue);
    if luminance > 140.0 { INK } else { palette::ground(Ground::Paper) }
}

fn is_alike(a: &Cell, b: &Cell) -> bool {
    a.content == b.content && a.orphan == b.orphan && percent_of(a) == percent_of(b)
}

fn percent_of(cell: &Cell) -> u32 {
    (cell.fullness * 100.0).round() as u32
}

/// What a run of like cells holds, in words.
fn note_of(run: &[Cell], blocks_per_cell: Option<usize>) -> String {
    let (first, last) = (run[0], run[run.len() - 1]);
    let what = match first.content {
        Content::Slab { .. } if blocks_per_cell == Some(1) => "allocated".to_owned(),
        Content::Slab { block_size } => {
            let orphan = if first.orphan { ", an orphan" } else { "" };
            format!("blocks of {}, {} % full{orphan}", size(block_size), percent_of(&first))
        }
        Content::Large if first.orphan => "large block, an orphan".to_owned(),
        Content::Large => "large block".to_owned(),
        Content::Metadata => "metadata".to_owned(),
        Content::Free => "free".to_owned(),
        Content::Reserved => "free, memory taken".to_owned(),
        Content::Kept => "free, kept by a lane".to_owned(),
        Content::Unknown => "damaged".to_owned(),
    };
    format!("{:#x} to {:#x}: {what}", first.offset, last.offset + last.len)
}
