//! Grouped bars: a group for each workload or load, a bar for each allocator.

use super::{Anchor, Canvas, FAINT, GRID, INK, MARGIN, Style, colour, drawn};
use crate::allocators::Kind;
use crate::results::{Results, Row, SpaceRow};

/// A group of bars, and the name below it.
struct Group {
    name: String,
    bars: Vec<(Kind, f64)>,
}

/// How groups are drawn.
struct Frame {
    /// Values from 0 to here are drawn; larger ones end here, with their number on top.
    top: f64,
    /// Distance of the lines across.
    tick: f64,
    bar_width: f64,
    height: f64,
    /// Decimals of the numbers on bars.
    decimals: usize,
    /// True if every bar has its number, else only shmheap's and those that are cut off.
    all_numbers: bool,
}

/// Room for the numbers of the axis.
const AXIS: f64 = 26.0;
/// Room between groups.
const GAP: f64 = 20.0;
/// Room for the names below the bars, and for the numbers above.
const BELOW: f64 = 24.0;
const ABOVE: f64 = 20.0;
/// Where the first row of bars begins: below the heading and the legend.
const HEAD: f64 = 84.0;
/// Groups in a row of the times.
const GROUPS_IN_ROW: usize = 6;

/// Times of all workloads beside mimalloc's.
pub(super) fn times(results: &Results) -> Canvas {
    let kinds = drawn(|kind| results.rows.iter().any(|row| row.ns.contains_key(&kind)));
    let group = |row: &Row| {
        let bar = |kind: &Kind| Some((*kind, row.ratio(*kind, Kind::Mimalloc)?));
        Group { name: row.workload.name(), bars: kinds.iter().filter_map(bar).collect() }
    };
    let groups: Vec<Group> = results.rows.iter().map(group).collect();
    let frame = Frame { top: 5.0, tick: 1.0, bar_width: 17.0, height: 170.0, decimals: 1, all_numbers: false };
    let meaning = format!("mimalloc = 1, less is better; cut off at {}; {}", frame.top, results.machine);
    draw("Time per operation beside mimalloc", &meaning, &kinds, &groups, &frame)
}

/// Memory taken per live byte.
pub(super) fn space(results: &Results) -> Canvas {
    let kinds = drawn(|kind| results.space.iter().any(|row| row.ratio.contains_key(&kind)));
    let group = |row: &SpaceRow| {
        let bar = |kind: &Kind| Some((*kind, *row.ratio.get(kind)?));
        Group { name: row.what.clone(), bars: kinds.iter().filter_map(bar).collect() }
    };
    let groups: Vec<Group> = results.space.iter().map(group).collect();
    let frame = Frame { top: 4.0, tick: 1.0, bar_width: 26.0, height: 170.0, decimals: 2, all_numbers: true };
    let meaning = "bytes of memory taken per live byte, less is better; after a churn, and at the traces' peaks";
    draw("Space", meaning, &kinds, &groups, &frame)
}

fn draw(title: &str, meaning: &str, kinds: &[Kind], groups: &[Group], frame: &Frame) -> Canvas {
    let most_bars = groups.iter().map(|group| group.bars.len()).max().unwrap_or(0);
    let group_width = most_bars as f64 * frame.bar_width + GAP;
    let in_row = groups.len().min(GROUPS_IN_ROW);
    let rows = groups.len().div_ceil(GROUPS_IN_ROW);
    let row_height = ABOVE + frame.height + BELOW;
    let width = (2.0 * MARGIN + AXIS + in_row as f64 * group_width).max(760.0);
    let mut canvas = Canvas::new(width, HEAD + rows as f64 * row_height + MARGIN / 2.0);
    canvas.heading(title, meaning);
    canvas.legend(kinds, 70.0);
    for (row, groups) in groups.chunks(GROUPS_IN_ROW).enumerate() {
        let base = HEAD + row as f64 * row_height + ABOVE + frame.height;
        axis(&mut canvas, frame, base, width);
        for (place, group) in groups.iter().enumerate() {
            let middle = MARGIN + AXIS + (place as f64 + 0.5) * group_width;
            bars(&mut canvas, frame, group, middle, base);
        }
    }
    canvas
}

/// The lines across and their numbers.
fn axis(canvas: &mut Canvas, frame: &Frame, base: f64, width: f64) {
    for step in 0..=(frame.top / frame.tick) as u32 {
        let value = f64::from(step) * frame.tick;
        let y = base - frame.height * value / frame.top;
        let left = MARGIN + AXIS - 4.0;
        // 1 is what all is compared with.
        let is_one = (value - 1.0).abs() < 1e-9;
        let colour = if is_one || step == 0 { FAINT } else { GRID };
        canvas.line((left, y), (width - MARGIN, y), colour, if is_one { 1.2 } else { 1.0 });
        canvas.text(&format!("{value}"), (left - 5.0, y + 4.0), Style::new(11.0, Anchor::End).colour(FAINT));
    }
}

fn bars(canvas: &mut Canvas, frame: &Frame, group: &Group, middle: f64, base: f64) {
    let left = middle - group.bars.len() as f64 * frame.bar_width / 2.0;
    for (place, (kind, value)) in group.bars.iter().enumerate() {
        let x = left + place as f64 * frame.bar_width;
        let is_cut = *value > frame.top;
        let height = frame.height * value.min(frame.top) / frame.top;
        canvas.rectangle((x + 0.5, base - height), (frame.bar_width - 1.0, height), colour(*kind));
        if is_cut {
            // A slit shows that the bar goes on.
            canvas.line((x, base - height + 8.0), (x + frame.bar_width, base - height + 4.0), super::PAPER, 2.0);
        }
        let is_ours = *kind == Kind::Shmheap;
        if frame.all_numbers || is_ours || is_cut {
            // Beside large numbers a tenth does not matter, and would not fit.
            let decimals = if *value >= 9.95 { 0 } else { frame.decimals };
            let style = Style::new(9.0, Anchor::Middle).colour(if is_ours { colour(*kind) } else { INK });
            let style = if is_ours { style.bold() } else { style };
            let x = x + frame.bar_width / 2.0;
            canvas.text(&format!("{value:.decimals$}"), (x, base - height - 4.0), style);
        }
    }
    canvas.text(&group.name, (middle, base + 16.0), Style::new(12.0, Anchor::Middle));
}
