//! The keys, and what the words on the screen mean.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Padding, Paragraph};

const TEXT: [&str; 17] = [
    "q, Esc     quit",
    "space      pause, go on",
    "+  -       longer, shorter interval",
    "1 2 3 4    overview, classes, lanes, map; Tab goes on",
    "s          sort by rate, by bytes, by number",
    "↑ ↓        scroll (also PgUp, PgDn, Home)",
    "?          this help",
    "",
    "class      blocks of one size; large: whole pages",
    "lane       a thread's way in; 0 is shared by all",
    "left       who sat there has ended",
    "full       allocated part of the slabs' blocks",
    "orphans    slabs that belong to no lane",
    "takeovers  locks taken from the dead, ever",
    "",
    "Curves rise from 0 to the most that they show.",
    "Frees count in the lane that has the block.",
];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect) {
    let longest = TEXT.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    // Two lines of frame, and two blanks and a line at each side.
    let (width, height) = (longest as u16 + 6, TEXT.len() as u16 + 2);
    let place = area.centered(Constraint::Max(width), Constraint::Max(height));
    let block = Block::bordered().title(" help: ? closes it ").padding(Padding::horizontal(2));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(TEXT.map(Line::from).to_vec()).block(block), place);
}
