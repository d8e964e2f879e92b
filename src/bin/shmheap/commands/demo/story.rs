//! What the tour tells: numbered steps as text, as they happen, or all facts as JSON in the end.

use std::fmt;

use serde::Serialize;
use serde_json::Value;
use shmheap::Heap;

use super::super::stress::closing;
use crate::failure::Failure;
use crate::map::terminal::{self, Canvas};
use crate::map::{Map, Picture};
use crate::output::{BAD, DIM, GOOD, Output, STRONG, styled};
use crate::{Outcome, Verdict};

/// The terminal for which maps are drawn is not higher than this: they are to leave room for what is told.
const MAP_HEIGHT: usize = 20;

/// The tour as it is told.
pub(super) struct Story<'a> {
    output: &'a Output,
    steps: Vec<Step>,
    wrong: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Step {
    step: usize,
    title: String,
    facts: Value,
}

#[derive(Debug, Serialize)]
struct Facts<'a> {
    steps: &'a [Step],
    valid: bool,
    wrong: &'a [String],
}

/// Commands that show more.
const NEXT: [(&str, &str); 7] = [
    ("shmheap create orders", "a heap of your own"),
    ("shmheap stat orders", "what is in it"),
    ("shmheap map orders", "the same as a map"),
    ("shmheap ls", "which heaps there are"),
    ("shmheap stress --workers 8 --kill", "the same, harder, as long as you like"),
    ("shmheap bench", "how fast it is on this machine"),
    ("shmheap rm orders", "and away"),
];

impl fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Nothing is left of this in /dev/shm. Try next:\n")?;
        for (command, why) in NEXT {
            writeln!(f, "    {command:<36}{}", styled(DIM, why))?;
        }
        writeln!(f)?;
        for wrong in self.wrong {
            writeln!(f, "{}", styled(BAD, format_args!("not as it should be: {wrong}")))?;
        }
        match self.valid {
            true => writeln!(f, "{}", styled(GOOD, "the heap is valid")),
            false => writeln!(f, "{}", styled(BAD, "the heap is not as it should be")),
        }
    }
}

impl<'a> Story<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        Self { output, steps: Vec::new(), wrong: Vec::new() }
    }

    pub(super) fn open(&self) -> Result<(), Failure> {
        self.say(format_args!(
            "{}\n\n",
            styled(STRONG, "shmheap: a heap in shared memory that survives the death of those who use it.")
        ))
    }

    /// Tells a step that was made.
    pub(super) fn step(&mut self, title: &str, lines: &[String], facts: Value) -> Result<(), Failure> {
        let step = self.steps.len() + 1;
        self.steps.push(Step { step, title: title.to_owned(), facts });
        let lines: String = lines.iter().map(|line| format!("   {line}\n")).collect();
        self.say(format_args!("{}\n{lines}\n", styled(STRONG, format_args!("{step}. {title}"))))
    }

    /// Notes that something is not as it should be.
    pub(super) fn expect(&mut self, is_so: bool, otherwise: impl FnOnce() -> String) {
        if !is_so {
            self.wrong.push(otherwise());
        }
    }

    /// Validates the heap; true if it is sound.
    pub(super) fn expect_sound(&mut self, heap: &Heap) -> bool {
        let wrong = closing::unsound(heap);
        let sound = wrong.is_empty();
        self.wrong.extend(wrong);
        sound
    }

    /// Tells how it ended.
    pub(super) fn close(self) -> Outcome {
        let valid = self.wrong.is_empty();
        self.output.print(&Facts { steps: &self.steps, valid, wrong: &self.wrong })?;
        Ok(if valid { Verdict::Fine } else { Verdict::Wrong })
    }

    /// Shows the heap as a picture.
    pub(super) fn map(&self, heap: &Heap) -> Result<(), Failure> {
        if self.output.is_json() {
            return Ok(());
        }
        let canvas = Canvas { height: MAP_HEIGHT, ..Canvas::of_stdout() };
        let map = Map::of(heap, canvas.cells())?;
        let picture = terminal::draw(&Picture::of_map(&heap.name(), &map), canvas);
        let lines: String = picture.lines().map(|line| format!("   {line}\n")).collect();
        self.say(format_args!("{lines}\n"))
    }

    fn say(&self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        if self.output.is_json() { Ok(()) } else { self.output.text(text) }
    }
}
