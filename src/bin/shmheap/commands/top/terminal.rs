//! The terminal: taken whole, and given back as it was when this is dropped, after a panic too.

use std::io::Error;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use ratatui::layout::Rect;

use super::screen::Screen;
use super::view;
use crate::failure::Failure;

/// Longest wait for a key, so that a signal is noticed.
const SLICE: Duration = Duration::from_millis(100);

/// A terminal in raw mode, showing another screen than the shell's.
#[derive(Debug)]
pub(super) struct Terminal {
    inner: DefaultTerminal,
}

fn failed(error: Error) -> Failure {
    Failure::cannot(format!("cannot use the terminal: {error}"))
}

impl Terminal {
    pub(super) fn take() -> Result<Self, Failure> {
        // A hook that gives it back before a panic is printed comes with it.
        let taken = ratatui::try_init();
        let inner = taken.map_err(|error| {
            give_back();
            failed(error)
        })?;
        Ok(Self { inner })
    }

    /// The whole of it, from its upper left corner.
    pub(super) fn area(&self) -> Result<Rect, Failure> {
        self.inner.size().map(Rect::from).map_err(failed)
    }

    pub(super) fn draw(&mut self, screen: &Screen) -> Result<(), Failure> {
        self.inner.draw(|frame| view::draw(frame, screen)).map(drop).map_err(failed)
    }

    /// The next event, if there is one within this time, or a short one.
    pub(super) fn event(&mut self, within: Duration) -> Result<Option<Event>, Failure> {
        match event::poll(within.min(SLICE)).map_err(failed)? {
            true => event::read().map(Some).map_err(failed),
            false => Ok(None),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The cursor is shown by ratatui's own terminal when that is dropped. After a panic the hook has given all back
        // already; to do it once more would take the cursor back to where the panic's message starts.
        if !std::thread::panicking() {
            give_back();
        }
    }
}

/// Gives the terminal back as it was.
pub(super) fn give_back() {
    // Where the terminal is gone there is nobody to tell.
    let _ = ratatui::try_restore();
}
