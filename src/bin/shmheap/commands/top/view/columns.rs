//! Tables that show as many of their columns as there is room for.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Row, Table};

use super::{DIM, clipped};

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) head: &'static str,
    /// Characters that its cells need.
    pub(super) width: u16,
    /// Characters beyond which more room is of no use to it.
    pub(super) width_max: u16,
    pub(super) alignment: Alignment,
    /// Columns of the highest rank are left away first; those of rank 0 never.
    pub(super) rank: u8,
}

impl Column {
    /// A column of numbers.
    pub(super) const fn number(head: &'static str, width: u16, rank: u8) -> Self {
        Self { head, width, width_max: width, alignment: Alignment::Right, rank }
    }

    /// A column of text.
    pub(super) const fn text(head: &'static str, width: u16, width_max: u16, rank: u8) -> Self {
        Self { head, width, width_max, alignment: Alignment::Left, rank }
    }
}

/// A cell: what it says, and how it looks.
pub(super) type Cell = (String, Style);

/// The indices of the columns that fit into this width, and how wide each is.
fn chosen(columns: &[Column], width: u16) -> Vec<(usize, u16)> {
    let mut chosen: Vec<usize> = (0..columns.len()).collect();
    let needed = |chosen: &[usize]| chosen.iter().map(|index| columns[*index].width + 1).sum::<u16>().saturating_sub(1);
    while needed(&chosen) > width {
        match chosen.iter().copied().max_by_key(|index| columns[*index].rank) {
            Some(last) if columns[last].rank > 0 => chosen.retain(|index| *index != last),
            _ => break,
        }
    }
    let mut extra = width.saturating_sub(needed(&chosen));
    let widths = chosen.into_iter().map(|index| {
        let column = columns[index];
        let more = extra.min(column.width_max - column.width);
        extra -= more;
        (index, column.width + more)
    });
    widths.collect()
}

/// Draws the rows from `scrolled` on.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, columns: &[Column], rows: &[Vec<Cell>], block: Block<'_>) {
    let chosen = chosen(columns, area.width);
    let cell = |text: &str, style: Style, (index, width): (usize, u16)| {
        let line = Line::styled(clipped(text, usize::from(width)), style);
        Text::from(line).alignment(columns[index].alignment)
    };
    let heads = chosen.iter().map(|place| cell(columns[place.0].head, DIM, *place));
    let lines = rows.iter().map(|row| Row::new(chosen.iter().map(|place| cell(&row[place.0].0, row[place.0].1, *place))));
    let widths = chosen.iter().map(|(_, width)| Constraint::Length(*width));
    let table = Table::new(lines, widths).header(Row::new(heads)).column_spacing(1).block(block);
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [Column::number("A", 4, 0), Column::text("B", 5, 8, 2), Column::number("C", 3, 1)];

    #[test]
    fn what_matters_least_is_left_away_first() {
        let indices = |width| chosen(&COLUMNS, width).into_iter().map(|(index, _)| index).collect::<Vec<_>>();
        assert_eq!((indices(14), indices(13), indices(7), indices(2)), (vec![0, 1, 2], vec![0, 2], vec![0], vec![0]));
    }

    #[test]
    fn more_room_goes_to_those_that_can_use_it() {
        assert_eq!(chosen(&COLUMNS, 16), [(0, 4), (1, 7), (2, 3)]);
        assert_eq!(chosen(&COLUMNS, 100), [(0, 4), (1, 8), (2, 3)]);
    }
}
