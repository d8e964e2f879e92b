//! `rm`: removes heaps.

use std::fmt;
use std::os::unix::fs::FileTypeExt;

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use shmheap::{Heap, SegmentKind};

use crate::failure::Failure;
use crate::output::Output;
use crate::place::{self, Place};
use crate::{Outcome, Verdict, processes};

/// Removes heaps.
///
/// Their names go at once, their memory when the last process that has them attached is gone.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names of the heaps
    #[arg(value_name = "NAME", required = true, value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    places: Vec<Place>,
    /// Also while somebody has it attached; they keep it until they detach
    #[arg(long, short)]
    force: bool,
    /// Also what is no heap of this version, broken ones included
    #[arg(long)]
    any_kind: bool,
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: Vec<String>,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.removed.iter().try_for_each(|name| writeln!(f, "removed {name}"))
    }
}

impl Rm {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let mut removed = Vec::new();
        let mut refused = None;
        for place in &self.places {
            match self.remove(place) {
                Ok(()) => removed.push(place.text()),
                Err(failure) => {
                    // The others are removed all the same; each refusal is told.
                    if let Some(earlier) = refused.replace(failure) {
                        earlier.print();
                    }
                }
            }
        }
        output.print(&Removed { removed })?;
        refused.map_or(Ok(Verdict::Fine), Err)
    }

    fn remove(&self, place: &Place) -> Result<(), Failure> {
        match place {
            Place::Segment(name) => {
                let segment = Heap::segment(name).map_err(|error| place.explain(error))?;
                self.check_kind(name, &segment.kind)?;
                if segment.attached == Some(true) && !self.force {
                    return Err(in_use(place));
                }
                Heap::unlink(name).map_err(|error| place.explain(error))
            }
            Place::File(path) => {
                let kind = std::fs::symlink_metadata(path)
                    .map_err(|error| Failure::cannot(format!("{}: {error}", place.text())))?;
                if !kind.is_file() || kind.file_type().is_fifo() {
                    return Err(Failure::cannot(format!("{} is no file", place.text())));
                }
                // Whoever may open it learns whether it is a heap.
                if !self.any_kind {
                    drop(place.open_read_only()?);
                }
                if !processes::mapping(path).is_empty() && !self.force {
                    return Err(in_use(place));
                }
                std::fs::remove_file(path).map_err(|error| Failure::cannot(format!("{}: {error}", place.text())))
            }
        }
    }

    fn check_kind(&self, name: &str, kind: &SegmentKind) -> Result<(), Failure> {
        let why = match kind {
            _ if self.any_kind => return Ok(()),
            SegmentKind::Heap => return Ok(()),
            SegmentKind::OtherVersion { found } => format!("{name} is a heap of format version {found}, not of this one"),
            SegmentKind::Broken { why } => format!("{name} is a broken heap: {why}"),
            SegmentKind::Closed => return Ok(()),
            _ => format!("{name} is no heap"),
        };
        Err(Failure::cannot_but(why, format!("if it is to go all the same: shmheap rm --any-kind {name}")))
    }
}

fn in_use(place: &Place) -> Failure {
    let name = place.text();
    let users = processes::mapping(&place.path());
    let who = match users.as_slice() {
        [] => "by processes that cannot be seen from here (of another user, or in another container)".to_owned(),
        users => format!("by {}", processes::sentence(users)),
    };
    let remedy =
        format!("end those processes, or remove it all the same, and they keep it to their end: shmheap rm --force {name}");
    Failure::cannot_but(format!("{name} is in use {who}"), remedy)
}
