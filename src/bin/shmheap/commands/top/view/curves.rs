//! Curves over time: memory in use, allocations, waits for the lock. The newest value is at the right.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::widgets::{RenderDirection, Sparkline};

use super::super::sampler::Point;
use super::super::screen::Screen;
use super::{GAP, WHOLE, section};
use crate::units::{count, percent, size};

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    if area.height == 0 {
        return;
    }
    let sample = &screen.sample;
    let has_three = area.width >= WHOLE.0;
    let shares = if has_three { [27, 30, 19] } else { [27, 30, 0] };
    let [used, rates, lock] = Layout::horizontal(shares.map(Constraint::Fill)).spacing(GAP).areas(area);
    let (in_use, all) = (sample.stats.used, sample.stats.total);
    let title = format!("used {}, {} ", size(in_use), percent(in_use, all));
    curve(frame, used, screen, title, Color::Cyan, |point| point.used as f64);
    let title = format!("alloc {}/s, free {}/s ", count(sample.rate.allocated), count(sample.rate.freed));
    curve(frame, rates, screen, title, Color::Green, |point| point.rate.allocated);
    if has_three {
        let title = format!("lock waits {}/s ", count(sample.lock.waits));
        curve(frame, lock, screen, title, Color::Magenta, |point| point.lock_waits);
    }
}

/// One curve, from zero to the largest value that is shown.
fn curve(frame: &mut Frame<'_>, area: Rect, screen: &Screen, title: String, color: Color, of: impl Fn(&Point) -> f64) {
    let shown = screen.history.points().take(usize::from(area.width));
    let values: Vec<u64> = shown.map(|point| of(point).ceil() as u64).collect();
    let max = values.iter().copied().max().unwrap_or(0).max(1);
    let line = Sparkline::default().data(values).max(max).direction(RenderDirection::RightToLeft);
    frame.render_widget(line.style(Style::new().fg(color)).block(section(title)), area);
}
