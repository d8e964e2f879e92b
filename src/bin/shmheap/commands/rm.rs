//! `rm`: removes heaps.

use std::fmt;
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use shmheap::{Heap, SegmentKind};

use crate::failure::Failure;
use crate::output::Output;
use crate::place::{self, Place};
use crate::{Outcome, Verdict, processes};

/// How long those who only look at a heap, as `ls` does, are waited for.
const LOOKERS_MAX: Duration = Duration::from_millis(500);

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
        let mut found = place.look()?;
        self.check_kind(place, &found.kind)?;
        let started = Instant::now();
        loop {
            // Who attaches it while it is removed by force keeps it, as those do who have it.
            found.attached = if self.force { Some(true) } else { self.unused(place, started)? };
            if Heap::unlink_if_same(&found).map_err(|error| place.explain(error))? {
                return Ok(());
            }
            // It may just be gone; or one more looks at it.
            place.look()?;
            if started.elapsed() >= LOOKERS_MAX {
                let text = format!("{} was made anew or attached meanwhile", place.text());
                return Err(Failure::cannot_but(text, format!("look at it again: shmheap ls {}", place.text())));
            }
            std::thread::sleep(LOOKERS_MAX / 20);
        }
    }

    /// Refuses what is in use, and tells whether that is known; those who only take a look are waited for.
    fn unused(&self, place: &Place, started: Instant) -> Result<Option<bool>, Failure> {
        loop {
            match place.look()?.attached {
                Some(false) => return Ok(Some(false)),
                None if self.any_kind => return Ok(None),
                Some(true) if started.elapsed() >= LOOKERS_MAX => return Err(in_use(place)),
                Some(true) => std::thread::sleep(LOOKERS_MAX / 20),
                None => {
                    let text = format!("whether anybody uses {} cannot be told: it may not be read", place.text());
                    let remedy = format!("if it is to go all the same: shmheap rm --force {}", place.text());
                    return Err(Failure::cannot_but(text, remedy));
                }
            }
        }
    }

    fn check_kind(&self, place: &Place, kind: &SegmentKind) -> Result<(), Failure> {
        let name = place.text();
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
