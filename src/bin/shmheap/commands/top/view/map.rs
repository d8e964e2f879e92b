//! The map: a character for every few pages, from the start of the heap to its end.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::super::screen::{Screen, View};
use super::{DIM, fitting, section};
use crate::map::palette::{self, Ground, SIZES};
use crate::map::{Cell, Content, Map};
use crate::units::size;

/// Lines of the legend below a map that has the screen for itself.
const LEGEND: u16 = 3;
/// How far a character's colour is from that of its ground.
const CONTRAST: f64 = 0.6;

/// Where the characters are, and where the legend: the title takes the first line.
fn parts(area: Rect, view: View) -> [Rect; 2] {
    let legend = if view == View::Map { LEGEND } else { 0 };
    let inside = Rect { y: area.y.saturating_add(1), height: area.height.saturating_sub(1), ..area };
    Layout::vertical([Constraint::Fill(1), Constraint::Length(legend)]).areas(inside)
}

/// Most cells that a map in this area can have.
pub(super) fn cells(area: Rect, view: View) -> usize {
    let [map, _] = parts(area, view);
    usize::from(map.width) * usize::from(map.height)
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let Some(map) = screen.map.as_ref().filter(|_| area.height > 1) else { return };
    let [place, legend] = parts(area, screen.view);
    let each = size(map.cell_len);
    let title = match screen.view {
        View::Map => format!("map, {each} a character "),
        _ => format!("map, {each} a character: . free, A-F slabs by block size, # large, = tables "),
    };
    frame.render_widget(section(title), area);
    let rows = map.cells.chunks(usize::from(place.width).max(1));
    let lines: Vec<Line<'_>> = rows.map(|row| Line::from_iter(row.iter().map(tile))).collect();
    frame.render_widget(Paragraph::new(lines), place);
    if legend.height > 0 {
        draw_legend(frame, legend, map);
    }
}

fn tile(cell: &Cell) -> Span<'static> {
    let colour = palette::colour(cell, Ground::Night);
    let is_dark = u16::from(colour.0) + u16::from(colour.1) + u16::from(colour.2) < 3 * 0x60;
    let towards = if is_dark { (0xff, 0xff, 0xff) } else { (0, 0, 0) };
    let rgb = |(red, green, blue): palette::Rgb| Color::Rgb(red, green, blue);
    let style = Style::new().bg(rgb(colour)).fg(rgb(palette::mix(colour, towards, CONTRAST)));
    Span::styled(palette::character(cell).to_string(), style)
}

fn draw_legend(frame: &mut Frame<'_>, area: Rect, map: &Map) {
    let cell = |content, fullness, orphan| Cell { offset: 0, len: map.cell_len, content, fullness, orphan };
    let entry = |cell: &Cell, what: &str| [tile(cell), Span::raw(format!(" {what}  "))];
    let slabs = SIZES.iter().flat_map(|(most, what)| entry(&cell(Content::Slab { block_size: *most }, 1.0, false), what));
    let others = [
        (Content::Large, "large block"),
        (Content::Free, "free"),
        (Content::Reserved, "free, memory taken"),
        (Content::Kept, "kept by a lane"),
        (Content::Metadata, "tables"),
        (Content::Unknown, "damaged"),
    ];
    let others = others.into_iter().flat_map(|(content, what)| entry(&cell(content, 1.0, false), what));
    let notes = ["small letters: less than half full", "U-Z and @: orphans, of no lane"];
    let lines = vec![
        Line::from_iter([Span::styled("slabs: ", DIM)].into_iter().chain(slabs)),
        Line::from_iter(others),
        fitting(notes.map(|note| Span::styled(note, DIM)).to_vec(), area.width),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}
