//! `create`: makes a heap.

use std::fmt;

use clap::Args;
use serde::Serialize;
use shmheap::{Heap, Options};

use super::Named;
use crate::output::Output;
use crate::place::Place;
use crate::units::{self, counted};
use crate::{Outcome, Verdict};

/// Creates an empty heap.
///
/// Memory is taken only for what is used. Members of the owner's group that a --mode lets in, and everybody where it lets
/// others write, have to say --any-owner to change the heap.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    named: Named,
    /// Size of the heap with its metadata: bytes, or 64K, 16M, 1G
    #[arg(long, short, value_parser = units::parse_size, default_value = "64M")]
    capacity: u64,
    /// Bytes per page, a power of two from 4K to 64K [default: by the capacity]
    #[arg(long, value_parser = units::parse_size)]
    page_size: Option<u64>,
    /// Threads, of all processes, that can have a lane of their own [default: by the capacity]
    #[arg(long)]
    lanes: Option<u32>,
    /// How many roots there can be [default: by the capacity]
    #[arg(long)]
    root_slots: Option<u32>,
    /// Permission bits, in octal
    #[arg(long, value_parser = parse_mode, default_value = "600")]
    mode: u32,
    /// If there is one of this name already, leave it as it is and say so
    #[arg(long)]
    if_missing: bool,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "write permission bits in octal, as 600 or 660".to_owned())
}

#[derive(Debug, Serialize)]
struct Created {
    name: String,
    created: bool,
    capacity: u64,
    page_size: u64,
    lanes: u32,
    root_slots: u32,
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, created, capacity, page_size, lanes, root_slots } = self;
        let (verb, capacity, page_size) =
            (if *created { "created" } else { "was there already:" }, units::size(*capacity), units::size(*page_size));
        let (lanes, slots) = (counted(*lanes, "lane"), counted(*root_slots, "root slot"));
        writeln!(f, "{name} {verb} {capacity}, pages of {page_size}, {lanes}, {slots}")
    }
}

impl Create {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let (heap, created) = match self.create(place) {
            Err(shmheap::Error::AlreadyExists { .. }) if self.if_missing => (place.open()?, false),
            made => (made.map_err(|error| place.explain(error))?, true),
        };
        output.print(&Created {
            name: place.text(),
            created,
            capacity: heap.capacity(),
            page_size: heap.page_size(),
            lanes: heap.lanes_max(),
            root_slots: heap.root_slots(),
        })?;
        Ok(Verdict::Fine)
    }

    fn create(&self, place: &Place) -> shmheap::Result<Heap> {
        let mut options: Options = Heap::options().capacity(self.capacity).mode(self.mode);
        if let Some(bytes) = self.page_size {
            options = options.page_size(bytes);
        }
        if let Some(lanes) = self.lanes {
            options = options.lanes(lanes);
        }
        if let Some(slots) = self.root_slots {
            options = options.root_slots(slots);
        }
        match place {
            Place::Segment(name) => options.create(name),
            Place::File(path) => options.create_file(path),
        }
    }
}
