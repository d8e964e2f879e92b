//! The tables: size classes, and lanes with those who sit in them.

use std::cmp::Ordering;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::super::sampler::{ClassRow, LaneRow, Rate};
use super::super::screen::{Screen, Sort};
use super::columns::{self, Cell, Column};
use super::{BAD, DIM, GOOD, WARNING, section};
use crate::units::{self, count, percent, size};

const CLASSES: [Column; 8] = [
    Column::number("SIZE", 8, 0),
    Column::number("ALLOC/S", 7, 0),
    Column::number("FREE/S", 6, 1),
    Column::number("LIVE", 6, 2),
    Column::number("BYTES", 10, 3),
    Column::number("FULL", 7, 4),
    Column::number("SLABS", 7, 5),
    Column::number("ORPHANS", 7, 6),
];

const LANES: [Column; 10] = [
    Column::number("LANE", 4, 0),
    Column::number("PID", 7, 0),
    Column::text("COMMAND", 8, 16, 2),
    Column::text("STATE", 7, 7, 1),
    Column::number("ALLOC/S", 7, 1),
    Column::number("HOLDS", 10, 2),
    Column::number("FREE/S", 7, 3),
    Column::text("LOCK", 5, 5, 4),
    Column::number("FOR", 9, 5),
    Column::number("SLABS", 6, 6),
];

pub(super) fn draw_classes(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let mut rows: Vec<&ClassRow> = screen.sample.classes.iter().collect();
    rows.sort_by(|a, b| {
        let by_size = || a.size.unwrap_or(u64::MAX).cmp(&b.size.unwrap_or(u64::MAX));
        sorted(screen.sort, (a.rate, a.live_bytes), (b.rate, b.live_bytes)).then_with(by_size)
    });
    let cells: Vec<Vec<Cell>> = rows.into_iter().map(class_cells).collect();
    draw(frame, area, screen, "classes", &CLASSES, &cells);
}

pub(super) fn draw_lanes(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let mut rows: Vec<&LaneRow> = screen.sample.lanes.iter().collect();
    rows.sort_by(|a, b| {
        let by_number = || a.lane.lane.cmp(&b.lane.lane);
        sorted(screen.sort, (a.rate, a.lane.bytes_held), (b.rate, b.lane.bytes_held)).then_with(by_number)
    });
    let cells: Vec<Vec<Cell>> = rows.into_iter().map(lane_cells).collect();
    draw(frame, area, screen, "lanes", &LANES, &cells);
}

/// The order of two rows, largest first; `Equal` leaves it to their numbers.
fn sorted(sort: Sort, a: (Rate, u64), b: (Rate, u64)) -> Ordering {
    match sort {
        Sort::Rate => b.0.sum().total_cmp(&a.0.sum()),
        Sort::Bytes => b.1.cmp(&a.1),
        Sort::Number => Ordering::Equal,
    }
}

fn draw(frame: &mut Frame<'_>, area: Rect, screen: &Screen, what: &str, columns: &[Column], rows: &[Vec<Cell>]) {
    // A line for the title, one for the heads.
    let room = usize::from(area.height.saturating_sub(2));
    let first = screen.scrolled.min(rows.len().saturating_sub(room));
    let shown = &rows[first..rows.len().min(first + room)];
    let order = screen.sort.title();
    let title = match (shown.len(), rows.len()) {
        (_, 0) => format!("no {what} "),
        (shown, all) if shown == all => format!("{all} {what} {order} "),
        (shown, all) => format!("{what} {}-{} of {all} {order} ", first + 1, first + shown),
    };
    columns::draw(frame, area, columns, shown, section(title));
}

/// A rate; a quiet one is pale.
fn rate(number: f64) -> Cell {
    (count(number), if number < 0.5 { DIM } else { Style::new() })
}

fn plain(text: impl ToString) -> Cell {
    (text.to_string(), Style::new())
}

fn class_cells(row: &ClassRow) -> Vec<Cell> {
    let is_large = row.size.is_none();
    let of_slabs = |text: String| plain(if is_large { "-".to_owned() } else { text });
    // What the looks at slabs and at blocks saw may differ by what happened in between.
    let full = percent(row.live.min(row.blocks), row.blocks);
    vec![
        plain(row.size.map_or_else(|| "large".to_owned(), size)),
        rate(row.rate.allocated),
        rate(row.rate.freed),
        plain(count(row.live as f64)),
        plain(size(row.live_bytes)),
        of_slabs(full),
        of_slabs(count(f64::from(row.slabs))),
        of_slabs(count(f64::from(row.orphans))),
    ]
}

fn lane_cells(row: &LaneRow) -> Vec<Cell> {
    let lane = &row.lane;
    let state = match lane.state {
        "alive" => GOOD,
        "stopped" => WARNING,
        "dead" => BAD,
        _ => DIM,
    };
    let is_somebodys = lane.pid != 0;
    let pid = if is_somebodys { lane.pid.to_string() } else { "-".to_owned() };
    vec![
        plain(lane.lane),
        plain(pid),
        plain(lane.command.as_deref().unwrap_or("-")),
        (lane.state.to_owned(), state),
        rate(row.rate.allocated),
        plain(size(lane.bytes_held)),
        rate(row.rate.freed),
        (if lane.holds_lock { "holds" } else { "" }.to_owned(), WARNING),
        plain(if is_somebodys { units::age(lane.since_ms) } else { "-".to_owned() }),
        plain(count(f64::from(lane.slabs))),
    ]
}
