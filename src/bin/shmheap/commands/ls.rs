//! `ls`: which heaps there are.

use std::fmt;

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use shmheap::{Error, Heap, SegmentInfo, SegmentKind};

use crate::failure::{Failure, user_name};
use crate::output::{self, DIM, Output, WARNING, shown, styled};
use crate::place::{self, Place};
use crate::{Outcome, Verdict, units};

/// Lists the heaps in /dev/shm.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only these
    #[arg(value_name = "NAME", value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    places: Vec<Place>,
    /// Also segments that are no heaps
    #[arg(long, short)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    heaps: Vec<Row>,
    /// Segments that are not listed because they are no heaps.
    others: usize,
    /// Segments that are not listed because they may not be read.
    closed: usize,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    kind: &'static str,
    /// What more there is to say of its kind.
    note: Option<String>,
    capacity: u64,
    taken: u64,
    owner: u32,
    owner_name: String,
    mode: String,
    attached: Option<bool>,
    #[serde(flatten)]
    numbers: Option<Numbers>,
}

/// What only an open heap tells.
#[derive(Debug, Serialize)]
struct Numbers {
    used: u64,
    largest_free: u64,
    fragmentation: f64,
    lanes_alive: u32,
    lanes_dead: u32,
    created_ms: u64,
}

impl Row {
    /// `None` if it has gone since it was listed.
    fn new(segment: SegmentInfo) -> Option<Self> {
        let SegmentInfo { name, kind, owner, mode, len, taken, attached, .. } = segment;
        let (mut kind, mut note) = match kind {
            SegmentKind::Heap => ("heap", None),
            SegmentKind::OtherVersion { found } => ("other version", Some(format!("format version {found}"))),
            SegmentKind::Broken { why } => ("broken", Some(why)),
            SegmentKind::Temporary => ("being created", None),
            SegmentKind::Closed => ("closed", Some("no permission to read it".to_owned())),
            _ => ("no heap", None),
        };
        let numbers = match kind {
            "heap" => match Numbers::of(&name) {
                Ok(numbers) => Some(numbers),
                Err(Error::NotFound { .. } | Error::Unlinked { .. }) => return None,
                Err(error) => {
                    // Only what is found in the heap is the heap's fault.
                    let is_broken =
                        matches!(error, Error::Corrupt(_) | Error::NotAHeap { .. } | Error::CapacityMismatch { .. });
                    kind = if is_broken { "broken" } else { "not looked into" };
                    note = Some(error.to_string());
                    None
                }
            },
            _ => None,
        };
        let mode = format!("{mode:04o}");
        let owner_name = user_name(owner);
        Some(Self { name, kind, note, capacity: len, taken, owner, owner_name, mode, attached, numbers })
    }
}

impl Numbers {
    fn of(name: &str) -> shmheap::Result<Self> {
        let options = place::trusting(Heap::options(), true);
        // A name with a slash is a file's path.
        let heap = if name.contains('/') { options.open_file_read_only(name) } else { options.open_read_only(name) }?;
        let stats = heap.stats()?;
        Ok(Self {
            used: stats.used,
            largest_free: stats.largest_free,
            fragmentation: stats.fragmentation_ratio(),
            lanes_alive: stats.lanes_alive,
            lanes_dead: stats.lanes_dead,
            created_ms: heap.created_ms(),
        })
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads =
            ["NAME", ">CAPACITY", ">USED", ">LARGEST FREE", ">FRAG", ">TAKEN", "ATTACHED", "LANES", ">AGE", "OWNER", "MODE"];
        let mut table = output::table(&heads);
        for row in &self.heaps {
            let attached = match row.attached {
                Some(true) => "yes",
                Some(false) => "no",
                None => "?",
            };
            let capacity = units::size(row.capacity);
            let mut cells = vec![shown(&row.name), capacity];
            match &row.numbers {
                Some(numbers) => cells.extend([
                    units::size(numbers.used),
                    units::size(numbers.largest_free),
                    format!("{:.1} %", numbers.fragmentation * 100.0),
                    units::size(row.taken),
                    attached.to_owned(),
                    lanes(numbers.lanes_alive, numbers.lanes_dead),
                    units::age(numbers.created_ms),
                ]),
                None => {
                    let none = || "-".to_owned();
                    cells.extend([none(), none(), none(), units::size(row.taken), attached.to_owned(), none(), none()]);
                }
            }
            cells.extend([row.owner_name.clone(), row.mode.clone()]);
            table.add_row(cells);
        }
        if self.heaps.is_empty() {
            writeln!(f, "there are no heaps in /dev/shm; shmheap create NAME makes one")?;
        } else {
            f.write_str(&output::lines_of(&table))?;
        }
        for row in self.heaps.iter().filter(|row| row.kind != "heap") {
            let note = row.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
            writeln!(f, "{}", styled(WARNING, format_args!("{} ({}{note})", shown(&row.name), row.kind)))?;
        }
        for (hidden, what) in [(self.others, "are no heaps"), (self.closed, "you may not read")] {
            if hidden != 0 {
                let more = if self.heaps.is_empty() { "" } else { "more " };
                let text = format_args!("{hidden} {more}that {what}; shmheap ls --all lists them");
                writeln!(f, "{}", styled(DIM, text))?;
            }
        }
        Ok(())
    }
}

fn lanes(alive: u32, dead: u32) -> String {
    if dead == 0 { format!("{alive}") } else { format!("{alive} and {dead} dead") }
}

impl Ls {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let segments = self.segments()?;
        let is_shown = |segment: &SegmentInfo| {
            self.all || !self.places.is_empty() || !matches!(segment.kind, SegmentKind::Foreign | SegmentKind::Closed)
        };
        let (shown, hidden): (Vec<_>, Vec<_>) = segments.into_iter().partition(is_shown);
        let heaps: Vec<Row> = shown.into_iter().filter_map(Row::new).collect();
        let has_broken = heaps.iter().any(|row| row.kind == "broken");
        let closed = hidden.iter().filter(|segment| segment.kind == SegmentKind::Closed).count();
        output.print(&Listing { heaps, others: hidden.len() - closed, closed })?;
        Ok(if has_broken { Verdict::Wrong } else { Verdict::Fine })
    }

    fn segments(&self) -> Result<Vec<SegmentInfo>, Failure> {
        if self.places.is_empty() {
            return Ok(Heap::segments()?);
        }
        self.places.iter().map(Place::look).collect()
    }
}
