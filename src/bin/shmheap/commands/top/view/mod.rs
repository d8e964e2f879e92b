//! Draws a screen into a frame.
//!
//! From top to bottom: two lines on the heap, the names of the views, the view, the keys. At 80 by 24 everything is there;
//! in less room the views leave away what matters least, whole, and the last line says so.
//!
//! | part | file |
//! |---|---|
//! | curves over time | `curves.rs` |
//! | size classes and lanes | `tables.rs`, by `columns.rs`, which knows what fits |
//! | map | `map.rs` |
//! | help | `help.rs` |

mod columns;
mod curves;
mod help;
mod map;
mod tables;
#[cfg(test)]
mod tests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::screen::{Screen, View};
use crate::units::{self, count, size};

/// Below this size something is left away.
const WHOLE: (u16, u16) = (80, 24);
/// Below this size nothing is drawn but a note.
const LEAST: (u16, u16) = (44, 8);
/// Columns between two things that stand side by side.
const GAP: u16 = 2;

const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const GOOD: Style = Style::new().fg(Color::Green);
const WARNING: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);

pub(in super::super) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("top needs {} by {} characters. q quits", LEAST.0, LEAST.1);
        frame.render_widget(Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true }), area);
        return;
    }
    let [first, second, tabs, body, keys] = parts(area);
    frame.render_widget(fitting(first_line(screen), first.width), first);
    frame.render_widget(fitting(second_line(screen), second.width), second);
    draw_tabs(frame, tabs, screen);
    match screen.view {
        View::Overview => draw_overview(frame, body, screen),
        View::Classes => tables::draw_classes(frame, body, screen),
        View::Lanes => tables::draw_lanes(frame, body, screen),
        View::Map => map::draw(frame, body, screen),
    }
    frame.render_widget(fitting(key_line(area), keys.width), keys);
    if screen.has_help {
        help::draw(frame, body);
    }
}

/// Most cells that the map can have on a screen of this size; 0 where none is shown.
pub(in super::super) fn map_cells(area: Rect, view: View) -> usize {
    let [.., body, _] = parts(area);
    match view {
        View::Overview => map::cells(overview_parts(body)[1], view),
        View::Map => map::cells(body, view),
        View::Classes | View::Lanes => 0,
    }
}

/// Two lines on the heap, the views, the body, the keys.
fn parts(area: Rect) -> [Rect; 5] {
    let line = Constraint::Length(1);
    Layout::vertical([line, line, line, Constraint::Fill(1), line]).areas(area)
}

/// Curves, map, tables; the map goes first where there is no room, then the curves.
fn overview_parts(area: Rect) -> [Rect; 3] {
    let (curves, map) = match area.height {
        20.. => (area.height / 4, area.height / 4),
        14.. => (4, 4),
        9.. => (4, 0),
        _ => (0, 0),
    };
    Layout::vertical([Constraint::Length(curves), Constraint::Length(map), Constraint::Fill(1)]).areas(area)
}

/// Which heap that is.
fn first_line(screen: &Screen) -> Vec<Span<'static>> {
    let (facts, stats) = (&screen.facts, &screen.sample.stats);
    let mut pieces = vec![Span::styled(clipped(&facts.name, 30), STRONG)];
    if stats.unlinked {
        pieces.push(Span::styled("its name was removed", WARNING));
    }
    pieces.push(Span::raw(format!("{} in pages of {}", size(facts.capacity), size(facts.page_size))));
    pieces.push(Span::raw(format!("age {}", units::age(facts.created_ms))));
    pieces.push(Span::raw(format!("{} of memory", size(stats.taken))));
    pieces
}

/// What cannot be seen from the curves.
fn second_line(screen: &Screen) -> Vec<Span<'static>> {
    let (stats, lock) = (&screen.sample.stats, &screen.sample.lock);
    let mut pieces = vec![
        Span::raw(format!("{} blocks", count(stats.allocated_blocks as f64))),
        Span::raw(format!("largest free {}", size(stats.largest_free))),
        Span::raw(format!("fragmentation {:.1} %", stats.fragmentation_ratio() * 100.0)),
    ];
    let takeovers = format!("takeovers {}", count(lock.takeovers_ever as f64));
    pieces.push(if lock.takeovers == 0 { Span::raw(takeovers) } else { Span::styled(takeovers, BAD) });
    if let Some(holder) = screen.sample.lock_holder() {
        let style = if holder.state == "alive" { Style::new() } else { BAD };
        pieces.push(Span::styled(format!("lock: lane {}", holder.lane), style));
    }
    pieces
}

/// The views, and how often there is a look.
fn draw_tabs(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let mut spans = Vec::new();
    for (number, view) in (1..).zip(View::ALL) {
        let style = if view == screen.view { MARKED } else { DIM };
        spans.push(Span::styled(format!(" {number} {} ", view.title()), style));
        spans.push(Span::raw(" "));
    }
    let tabs = Line::from(spans);
    let pace = match screen.is_paused() {
        true => Span::styled(" PAUSED ", WARNING.add_modifier(Modifier::REVERSED)),
        false => Span::styled(format!("every {}", humantime::format_duration(screen.interval())), DIM),
    };
    let has_room = tabs.width() + pace.width() < usize::from(area.width);
    frame.render_widget(tabs, area);
    if has_room || screen.is_paused() {
        frame.render_widget(Line::from(pace).right_aligned(), area);
    }
}

fn key_line(area: Rect) -> Vec<Span<'static>> {
    let mut pieces = Vec::new();
    if area.width < WHOLE.0 || area.height < WHOLE.1 {
        pieces.push(Span::styled(format!("{} by {} shows all", WHOLE.0, WHOLE.1), WARNING));
    }
    let keys = ["q quit", "? help", "space pause", "+/- interval", "tab 1-4 views", "s sort", "↑↓ scroll"];
    pieces.extend(keys.map(|key| Span::styled(key, DIM)));
    pieces
}

/// All at once. Where the tables have no room side by side, lanes have a view of their own.
fn draw_overview(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let [curve_area, map_area, tables] = overview_parts(area);
    curves::draw(frame, curve_area, screen);
    map::draw(frame, map_area, screen);
    if area.width < WHOLE.0 {
        return tables::draw_classes(frame, tables, screen);
    }
    let extra = area.width - WHOLE.0;
    let [classes, lanes] =
        Layout::horizontal([Constraint::Length(30 + extra / 2), Constraint::Fill(1)]).spacing(GAP).areas(tables);
    tables::draw_classes(frame, classes, screen);
    tables::draw_lanes(frame, lanes, screen);
}

/// A line above a part of the screen, with its title.
fn section(title: impl Into<Line<'static>>) -> Block<'static> {
    Block::new().borders(Borders::TOP).border_style(DIM).title(title.into())
}

/// As many of the pieces as fit in a line. What does not fit is left away whole.
fn fitting(pieces: Vec<Span<'static>>, width: u16) -> Line<'static> {
    let mut line = Line::default();
    for piece in pieces {
        let gap = if line.width() == 0 { 0 } else { usize::from(GAP) };
        if line.width() + gap + piece.width() <= usize::from(width) {
            line.push_span(Span::raw(" ".repeat(gap)));
            line.push_span(piece);
        }
    }
    line
}

/// Text of at most so many characters, with a sign where something is missing. Control characters are shown as blanks:
/// names come from outside.
fn clipped(text: &str, max: usize) -> String {
    let plain = |character: char| if character.is_control() { ' ' } else { character };
    if text.chars().count() <= max {
        return text.chars().map(plain).collect();
    }
    text.chars().take(max.saturating_sub(1)).map(plain).chain(['…']).collect()
}
