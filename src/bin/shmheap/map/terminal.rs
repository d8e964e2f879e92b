//! A picture on a terminal: two cells in a character where there are colours, one letter a cell where there are none.

use std::fmt::Write;

use anstream::{AutoStream, ColorChoice};
use anstyle::{Ansi256Color, Color, Style};

use super::palette::{self, Ground};
use super::picture::{Entry, Picture};
use super::{Cell, Content};
use crate::output::{DIM, STRONG, styled};

/// What a terminal is taken for that does not tell.
const SIZE_DEFAULT: (usize, usize) = (80, 28);
/// Lines around the cells: the heading, the legend, and the next prompt.
const LINES_AROUND: usize = 12;
/// Fewest and most lines that the cells take.
const LINES: (usize, usize) = (8, 32);
/// Columns are a multiple of this, if there is room for so many.
const COLUMNS_STEP: usize = 32;
/// Fewest and most columns of cells.
const COLUMNS: (usize, usize) = (16, 192);
/// Room that the labels of rows take.
const LABEL: usize = 14;

/// How many colours there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    None,
    Indexed,
    True,
}

/// Where a picture is to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Canvas {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) colours: Colours,
}

impl Canvas {
    /// Standard output, as far as it tells.
    pub(crate) fn of_stdout() -> Self {
        let colours = match AutoStream::choice(&std::io::stdout()) {
            ColorChoice::Never => Colours::None,
            _ if anstyle_query::truecolor() => Colours::True,
            _ => Colours::Indexed,
        };
        let size = terminal_size::terminal_size_of(std::io::stdout());
        let (width, height) = size.map_or(SIZE_DEFAULT, |(width, height)| (width.0.into(), height.0.into()));
        Self { width, height, colours }
    }

    fn columns(self) -> usize {
        let room = self.width.saturating_sub(LABEL);
        let columns = if room < COLUMNS_STEP { room } else { room / COLUMNS_STEP * COLUMNS_STEP };
        columns.clamp(COLUMNS.0, COLUMNS.1)
    }

    fn cells_per_character(self) -> usize {
        if self.colours == Colours::None { 1 } else { 2 }
    }

    /// How many cells there is room for.
    pub(crate) fn cells(self) -> usize {
        let lines = self.height.saturating_sub(LINES_AROUND).clamp(LINES.0, LINES.1);
        self.columns() * lines * self.cells_per_character()
    }

    fn colour(self, cell: &Cell) -> Color {
        match self.colours {
            Colours::Indexed => Color::Ansi256(Ansi256Color(palette::index(cell))),
            _ => palette::colour(cell, Ground::Night).into(),
        }
    }
}

/// The picture as lines of text, with escapes for its colours.
pub(crate) fn draw(picture: &Picture, canvas: Canvas) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    let mut facts = picture.facts.iter();
    let first = facts.next().map_or("", String::as_str);
    line(format!("{}  {first}", styled(STRONG, &picture.title)));
    facts.for_each(|fact| line(fact.clone()));
    let columns = canvas.columns();
    let per_line = columns * canvas.cells_per_character();
    for (index, cells) in picture.cells.chunks(per_line).enumerate() {
        let label = styled(DIM, picture.row_label(index * per_line));
        let row = if canvas.colours == Colours::None {
            cells.iter().map(palette::character).collect()
        } else {
            let (upper, lower) = cells.split_at(columns.min(cells.len()));
            halves(canvas, upper, lower)
        };
        line(format!("{label} {row}"));
    }
    line(unit(picture, canvas));
    legend(picture, canvas).into_iter().for_each(line);
    text
}

fn unit(picture: &Picture, canvas: Canvas) -> String {
    if canvas.colours == Colours::None {
        return picture.unit.clone();
    }
    format!("{} Two in a character, the upper row first.", picture.unit)
}

/// A line of characters whose upper halves are one row of cells, and whose lower halves are the next.
fn halves(canvas: Canvas, upper: &[Cell], lower: &[Cell]) -> String {
    let mut text = String::new();
    let mut last = Style::new();
    for (index, above) in upper.iter().enumerate() {
        let below = lower.get(index).map(|cell| canvas.colour(cell));
        let style = Style::new().fg_color(Some(canvas.colour(above))).bg_color(below);
        if style != last {
            // Writing to a String does not fail.
            let _ = write!(text, "{last:#}{style}");
            last = style;
        }
        text.push('\u{2580}');
    }
    let _ = write!(text, "{last:#}");
    text
}

/// The legend: as many entries in a line as there is room for.
fn legend(picture: &Picture, canvas: Canvas) -> Vec<String> {
    let mut lines: Vec<(String, usize)> = Vec::new();
    for entry in &picture.legend {
        let (sample, sample_width) = sample(entry, canvas);
        let width = sample_width + 1 + entry.text.chars().count();
        let text = format!("{sample} {}", entry.text);
        match lines.last_mut() {
            Some((line, used)) if *used + 3 + width <= canvas.width => {
                line.push_str("   ");
                line.push_str(&text);
                *used += 3 + width;
            }
            _ => lines.push((text, width)),
        }
    }
    let mut lines: Vec<String> = lines.into_iter().map(|(line, _)| line).collect();
    let has = |is_it: fn(&Cell) -> bool| picture.cells.iter().any(is_it);
    let has_slabs = has(|cell| matches!(cell.content, Content::Slab { .. })) && picture.legend.len() > 2;
    match canvas.colours {
        Colours::None if has_slabs && has(|cell| cell.orphan) => {
            lines.push("Capital letters: at least half full. U to Z are A to F of orphans, and @ is their #.".to_owned());
        }
        Colours::None if has_slabs => lines.push("Capital letters: at least half full.".to_owned()),
        Colours::None => {}
        _ if has_slabs && has(|cell| cell.orphan) => {
            lines.push("The brighter, the fuller; the paler, an orphan.".to_owned());
        }
        _ if has_slabs => lines.push("The brighter, the fuller.".to_owned()),
        _ => {}
    }
    lines
}

/// What the cells of an entry look like, and its width.
fn sample(entry: &Entry, canvas: Canvas) -> (String, usize) {
    if canvas.colours == Colours::None {
        let mut characters: Vec<char> = entry.samples.iter().map(palette::character).collect();
        characters.dedup();
        return (characters.iter().collect(), characters.len());
    }
    let block = |cell| styled(Style::new().fg_color(Some(canvas.colour(cell))), '\u{2588}');
    (entry.samples.iter().map(block).collect(), entry.samples.len())
}
