//! What `top` is to show, and what keys do to it.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use shmheap::Heap;

use super::sampler::{History, Sample};
use crate::map::Map;
use crate::place::Place;

/// The intervals that `+` and `-` go through, in milliseconds.
const INTERVALS_MS: [u64; 10] = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000];
/// Rows that a page-up or page-down goes.
const PAGE: usize = 10;

/// What does not change about the heap.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) capacity: u64,
    pub(super) page_size: u64,
    pub(super) created_ms: u64,
}

impl Facts {
    pub(super) fn new(place: &Place, heap: &Heap) -> Self {
        Self { name: place.text(), capacity: heap.capacity(), page_size: heap.page_size(), created_ms: heap.created_ms() }
    }
}

/// What the body of the screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Overview,
    Classes,
    Lanes,
    Map,
}

impl View {
    pub(super) const ALL: [Self; 4] = [Self::Overview, Self::Classes, Self::Lanes, Self::Map];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Overview => "overview",
            Self::Classes => "classes",
            Self::Lanes => "lanes",
            Self::Map => "map",
        }
    }

    /// So many views further on, round and round.
    fn after(self, steps: usize) -> Self {
        let at = Self::ALL.iter().position(|view| *view == self).unwrap_or(0);
        Self::ALL[(at + steps) % Self::ALL.len()]
    }
}

/// By what tables are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// The busiest first.
    Rate,
    /// Who holds most bytes first.
    Bytes,
    /// By size, or by the lane's number.
    Number,
}

impl Sort {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Rate => "by rate",
            Self::Bytes => "by bytes",
            Self::Number => "by number",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Rate => Self::Bytes,
            Self::Bytes => Self::Number,
            Self::Number => Self::Rate,
        }
    }
}

/// What a key asks of the display beyond this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Quit,
    /// The interval is another one now.
    Pace,
}

/// The state of the display.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) facts: Facts,
    pub(super) sample: Sample,
    pub(super) history: History,
    /// If it is shown.
    pub(super) map: Option<Map>,
    pub(super) view: View,
    pub(super) sort: Sort,
    pub(super) has_help: bool,
    /// Rows of the table that are above what is shown.
    pub(super) scrolled: usize,
    interval: Duration,
    is_paused: bool,
}

impl Screen {
    pub(super) fn new(facts: Facts, interval: Duration, first: Sample) -> Self {
        Self {
            facts,
            sample: first,
            history: History::default(),
            map: None,
            view: View::Overview,
            sort: Sort::Rate,
            has_help: false,
            scrolled: 0,
            interval,
            is_paused: false,
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// From now on this is what is shown.
    pub(super) fn show(&mut self, sample: Sample) {
        self.history.push(&sample);
        self.sample = sample;
    }

    /// Does what a key says.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Asked> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if is_control => return Some(Asked::Quit),
            KeyCode::Esc if self.has_help => self.has_help = false,
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => return Some(Asked::Quit),
            KeyCode::Char('?' | 'h') => self.has_help = !self.has_help,
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('+' | '=') => {
                return self.set_interval(INTERVALS_MS.into_iter().find(|ms| *ms > self.interval_ms()));
            }
            KeyCode::Char('-' | '_') => {
                return self.set_interval(INTERVALS_MS.into_iter().rev().find(|ms| *ms < self.interval_ms()));
            }
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Tab => self.turn_to(self.view.after(1)),
            KeyCode::BackTab => self.turn_to(self.view.after(View::ALL.len() - 1)),
            KeyCode::Char(digit @ '1'..='4') => self.turn_to(View::ALL[digit as usize - '1' as usize]),
            KeyCode::Down | KeyCode::Char('j') => self.scroll(1),
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::PageDown => self.scroll(PAGE),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(PAGE),
            KeyCode::Home => self.scrolled = 0,
            _ => {}
        }
        None
    }

    fn interval_ms(&self) -> u64 {
        u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX)
    }

    fn set_interval(&mut self, ms: Option<u64>) -> Option<Asked> {
        self.interval = Duration::from_millis(ms?);
        Some(Asked::Pace)
    }

    fn turn_to(&mut self, view: View) {
        (self.view, self.scrolled) = (view, 0);
    }

    /// Down by so many rows, as long as there are any.
    fn scroll(&mut self, rows: usize) {
        let all = match self.view {
            View::Overview | View::Map => 0,
            View::Classes => self.sample.classes.len(),
            View::Lanes => self.sample.lanes.len(),
        };
        self.scrolled = (self.scrolled + rows).min(all.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use shmheap::Memory;

    use super::super::sampler::Sampler;
    use super::*;

    fn screen() -> Screen {
        let heap = Heap::options().create_in(Memory::zeroed(1 << 20).expect("memory")).expect("a heap");
        let (_, first) = Sampler::start(&heap).expect("a sound heap");
        Screen::new(Facts::default(), Duration::from_secs(1), first)
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Option<Asked> {
        screen.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn views_are_reached_by_number_and_one_after_the_other() {
        let mut screen = screen();
        press(&mut screen, KeyCode::Char('3'));
        assert_eq!(screen.view, View::Lanes);
        let turns = [(KeyCode::Tab, View::Map), (KeyCode::Tab, View::Overview), (KeyCode::BackTab, View::Map)];
        for (code, view) in turns {
            press(&mut screen, code);
            assert_eq!(screen.view, view);
        }
    }

    #[test]
    fn the_interval_goes_up_and_down_within_its_bounds() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, KeyCode::Char('+')), Some(Asked::Pace));
        assert_eq!(screen.interval(), Duration::from_secs(2));
        while press(&mut screen, KeyCode::Char('-')).is_some() {}
        assert_eq!(screen.interval(), Duration::from_millis(100));
        // An interval that was given on the command line need not be one of the steps.
        screen.interval = Duration::from_millis(1500);
        press(&mut screen, KeyCode::Char('-'));
        assert_eq!(screen.interval(), Duration::from_secs(1));
    }

    #[test]
    fn escape_closes_the_help_first_and_then_quits() {
        let mut screen = screen();
        press(&mut screen, KeyCode::Char('?'));
        assert_eq!((screen.has_help, press(&mut screen, KeyCode::Esc)), (true, None));
        assert_eq!((screen.has_help, press(&mut screen, KeyCode::Esc)), (false, Some(Asked::Quit)));
        assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Asked::Quit));
        assert_eq!(press(&mut screen, KeyCode::Char('c')), None);
    }

    #[test]
    fn space_pauses_and_s_sorts_and_nothing_scrolls_beyond_its_rows() {
        let mut screen = screen();
        press(&mut screen, KeyCode::Char(' '));
        press(&mut screen, KeyCode::Char('s'));
        assert_eq!((screen.is_paused(), screen.sort), (true, Sort::Bytes));
        press(&mut screen, KeyCode::Char('2'));
        press(&mut screen, KeyCode::PageDown);
        assert_eq!(screen.scrolled, screen.sample.classes.len().saturating_sub(1));
    }
}
