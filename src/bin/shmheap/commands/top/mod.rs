//! `top`: a heap at work, on a whole screen.
//!
//! | noun | file | |
//! |---|---|---|
//! | sample | `sampler.rs` | what one look at the heap tells, with the rates since the look before; `watch` prints it |
//! | [`Stop`] | `stop.rs` | being asked to stop by a signal |
//! | [`Screen`] | `screen.rs` | what is to be shown, and what keys do to it; knows no terminal |
//! | view | `view/` | draws a screen into a frame |
//! | [`Terminal`] | `terminal.rs` | the terminal, given back as it was whatever happens |

pub(crate) mod sampler;
mod screen;
mod stop;
mod terminal;
mod view;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::Event;
use shmheap::Heap;

use super::Named;
use crate::failure::Failure;
use crate::map::Map;
use crate::output::Output;
use crate::place::Place;
use crate::{Outcome, Verdict, units};
use sampler::Sampler;
use screen::{Asked, Facts, Screen};
pub(crate) use stop::Stop;
use terminal::Terminal;

/// The first rates are shown so soon, however long the interval.
const FIRST_AFTER: Duration = Duration::from_millis(300);
/// Shortest and longest time between two looks.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(24 * 60 * 60));

/// Shows a heap at work: memory, rates, size classes, lanes, and a map. Press ? for help.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    named: Named,
    /// Time from look to look: seconds, or 500ms, 10s, 2m
    #[arg(long, short, value_parser = parse_interval, default_value = "1s")]
    interval: Duration,
}

/// Reads the time between two looks.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = units::parse_duration(text)?;
    let (min, max) = INTERVALS;
    if (min..=max).contains(&interval) { Ok(interval) } else { Err("from 10ms to 24h".to_owned()) }
}

impl Top {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let name = place.text();
        if output.is_json() {
            return Err(Failure::usage("top has no JSON", format!("shmheap watch {name} --json prints a line a second")));
        }
        if !std::io::stdout().is_terminal() {
            return Err(Failure::cannot_but(
                "top needs a terminal to draw on, and standard output is none",
                format!("shmheap watch {name} prints a line a second\nshmheap stat {name} prints all numbers once"),
            ));
        }
        let heap = place.open_read_only()?;
        let (sampler, first) = Sampler::start(&heap).map_err(|error| place.explain(error))?;
        let stop = Stop::on_signals(terminal::give_back)?;
        let screen = Screen::new(Facts::new(place, &heap), self.interval, first);
        let next = Instant::now() + self.interval.min(FIRST_AFTER);
        let mut show = Show { heap: &heap, place, sampler, screen, next, map_cells: 0 };
        // The terminal is given back before an error is printed on it.
        show.run(&stop).map(|()| Verdict::Fine)
    }
}

/// The running display.
#[derive(Debug)]
struct Show<'a> {
    heap: &'a Heap,
    place: &'a Place,
    sampler: Sampler,
    screen: Screen,
    /// When to look again.
    next: Instant,
    /// For how many cells the screen's map was made; 0 if it is stale.
    map_cells: usize,
}

impl Show<'_> {
    fn run(&mut self, stop: &Stop) -> Result<(), Failure> {
        let mut terminal = Terminal::take()?;
        loop {
            self.look_at_map(view::map_cells(terminal.area()?, self.screen.view))?;
            terminal.draw(&self.screen)?;
            let event = terminal.event(self.next.saturating_duration_since(Instant::now()))?;
            if stop.within(Duration::ZERO) {
                return Ok(());
            }
            if let Some(Event::Key(key)) = event {
                match self.screen.key(key) {
                    Some(Asked::Quit) => return Ok(()),
                    Some(Asked::Pace) => self.next = Instant::now() + self.screen.interval().min(FIRST_AFTER),
                    None => {}
                }
            }
            self.look_if_due()?;
        }
    }

    fn look_if_due(&mut self) -> Result<(), Failure> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + self.screen.interval();
        if !self.screen.is_paused() {
            let sample = self.sampler.sample(self.heap).map_err(|error| self.place.explain(error))?;
            self.screen.show(sample);
            self.map_cells = 0;
        }
        Ok(())
    }

    /// Makes a map of so many cells, unless there is a fresh one.
    fn look_at_map(&mut self, cells: usize) -> Result<(), Failure> {
        if cells != 0 && cells != self.map_cells {
            self.screen.map = Some(Map::of(self.heap, cells).map_err(|error| self.place.explain(error))?);
            self.map_cells = cells;
        }
        Ok(())
    }
}
