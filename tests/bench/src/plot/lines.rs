//! Scaling: a line for each allocator, from one worker to as many as the machine has processors for.

use super::{Anchor, Canvas, FAINT, GRID, MARGIN, Style, colour, drawn};
use crate::allocators::Kind;
use crate::results::{Results, ScalingRow};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
/// The frame of the lines. Right of it stand the names.
const LEFT: f64 = MARGIN + 40.0;
const RIGHT: f64 = WIDTH - 170.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = HEIGHT - 50.0;
/// Distance of the first and the last number of workers from the frame.
const INDENT: f64 = 24.0;
/// Smallest distance of two names, one below the other.
const NAMES_APART: f64 = 16.0;

pub(super) fn scaling(results: &Results) -> Canvas {
    let rows = &results.scaling;
    let kinds = drawn(|kind| rows.iter().any(|row| row.million_per_second.contains_key(&kind)));
    let values = rows.iter().flat_map(|row| kinds.iter().filter_map(|kind| row.million_per_second.get(kind)));
    let most = values.copied().fold(1.0, f64::max);
    let tick = tick(most);
    let top = (most / tick).ceil() * tick;
    let distance = (RIGHT - LEFT - 2.0 * INDENT) / (rows.len() - 1).max(1) as f64;
    let x = |place: usize| LEFT + INDENT + distance * place as f64;
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * value / top;

    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    let meaning = "millions of operations per second of all workers, more is better; small churns in one heap";
    canvas.heading("Scaling", meaning);
    for step in 0..=(top / tick).round() as u32 {
        let value = f64::from(step) * tick;
        canvas.line((LEFT, y(value)), (RIGHT, y(value)), if step == 0 { FAINT } else { GRID }, 1.0);
        let style = Style::new(11.0, Anchor::End).colour(FAINT);
        canvas.text(&format!("{value}"), (LEFT - 6.0, y(value) + 4.0), style);
    }
    for (place, row) in rows.iter().enumerate() {
        canvas.text(&row.workers.to_string(), (x(place), BOTTOM + 18.0), Style::new(12.0, Anchor::Middle));
    }
    let below = "workers: processes for shmheap and Boost.Interprocess, threads for the others";
    canvas.text(below, ((LEFT + RIGHT) / 2.0, BOTTOM + 38.0), Style::new(11.0, Anchor::Middle).colour(FAINT));

    let mut ends = Vec::new();
    // shmheap last, so that its line lies on top.
    let (ours, others): (Vec<Kind>, Vec<Kind>) = kinds.into_iter().partition(|kind| *kind == Kind::Shmheap);
    for kind in others.into_iter().chain(ours) {
        let point = |(place, row): (usize, &ScalingRow)| Some((x(place), y(*row.million_per_second.get(&kind)?)));
        let points: Vec<(f64, f64)> = rows.iter().enumerate().filter_map(point).collect();
        canvas.path(&points, colour(kind), if kind == Kind::Shmheap { 3.5 } else { 2.0 });
        ends.extend(points.last().map(|point| (kind, *point)));
    }
    names(&mut canvas, results, ends);
    canvas
}

/// Names and last values, right of the ends of the lines, moved apart where they would lie upon each other.
fn names(canvas: &mut Canvas, results: &Results, mut ends: Vec<(Kind, (f64, f64))>) {
    ends.sort_by(|(_, one), (_, other)| one.1.total_cmp(&other.1));
    let mut places: Vec<f64> = ends.iter().map(|(_, end)| end.1).collect();
    for place in 1..places.len() {
        places[place] = places[place].max(places[place - 1] + NAMES_APART);
    }
    // The lowest may have left the picture; then they move up again.
    let mut limit = BOTTOM;
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - NAMES_APART;
    }
    for ((kind, end), place) in ends.into_iter().zip(places) {
        let x = RIGHT + 8.0;
        canvas.line((end.0 + 6.0, end.1), (x, place), FAINT, 0.8);
        canvas.rectangle((x, place - 5.0), (10.0, 10.0), colour(kind));
        let last = results.scaling.iter().rev().find_map(|row| row.million_per_second.get(&kind));
        let text = format!("{} {:.0}", kind.name(), last.copied().unwrap_or(0.0));
        let style = Style::new(12.0, Anchor::Start);
        let style = if kind == Kind::Shmheap { style.bold() } else { style };
        canvas.text(&text, (x + 15.0, place + 4.0), style);
    }
}

/// A round distance of lines that makes about five of them.
fn tick(most: f64) -> f64 {
    let magnitude = 10f64.powf((most / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    steps.into_iter().find(|step| most / step <= 6.0).unwrap_or(10.0 * magnitude)
}
