//! `gc`: removes what nobody will ask for again.
//!
//! Nothing is removed that somebody has attached, nor that of which it cannot be told. Liveness is asked for once more right
//! before the removal; a process that attaches in between keeps the heap, without its name.

use std::fmt;
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCompleter;
use nix::unistd::geteuid;
use serde::Serialize;
use shmheap::{Heap, SegmentInfo, SegmentKind};

use crate::failure::{Failure, user_name};
use crate::output::{DIM, Output, WARNING, shown, styled};
use crate::place::{self, Place};
use crate::units::{self, size};
use crate::{Outcome, Verdict};

/// Removes leftovers: names of creators that died, and heaps that nobody can open any more.
///
/// Heaps are meant to outlive their users, so sound ones that nobody has attached go only with --detached. What somebody has
/// attached, and what is no heap, stays.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Only among these
    #[arg(value_name = "NAME", value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    only: Vec<Place>,
    /// Only say what would be removed
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Also sound heaps that nobody has attached
    #[arg(long)]
    detached: bool,
    /// Of the sound heaps only those that were created longer ago than this: 30m, 12h, 1d
    #[arg(long, value_name = "TIME", requires = "detached", value_parser = units::parse_duration)]
    older_than: Option<Duration>,
    /// Also what belongs to other users (only root may)
    #[arg(long)]
    other_users: bool,
    /// Also heaps of other versions of the format of which nobody has a lane
    #[arg(long)]
    other_versions: bool,
}

#[derive(Debug, Serialize)]
struct Collected {
    dry_run: bool,
    removed: Vec<Leftover>,
    /// Bytes of memory that this gave back, or would.
    given_back: u64,
    kept: Vec<Kept>,
}

/// Something that went.
#[derive(Debug, Serialize)]
struct Leftover {
    name: String,
    why: String,
    taken: u64,
    owner: u32,
}

/// Something that would be a leftover, but for one thing.
#[derive(Debug, Serialize)]
struct Kept {
    name: String,
    why: String,
}

/// What is to become of a segment.
enum Fate {
    /// It goes, for this reason.
    Goes(String),
    /// It stays, which is worth telling.
    Stays(String),
    /// It is none of our business.
    Ignored,
}

impl fmt::Display for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.dry_run { "would remove" } else { "removed" };
        for Leftover { name, why, taken, .. } in &self.removed {
            writeln!(f, "{verb} {} ({}): {why}", shown(name), size(*taken))?;
        }
        for Kept { name, why } in &self.kept {
            writeln!(f, "{}", styled(WARNING, format_args!("kept {}: {why}", shown(name))))?;
        }
        match (self.removed.len(), self.dry_run) {
            (0, _) => writeln!(f, "{}", styled(DIM, "nothing to remove")),
            (count, true) => writeln!(f, "{count} would go, which would give back {}", size(self.given_back)),
            (count, false) => writeln!(f, "{count} removed, which gave back {}", size(self.given_back)),
        }
    }
}

impl Gc {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        if self.other_users && !geteuid().is_root() {
            let remedy = "sudo shmheap gc --other-users";
            return Err(Failure::cannot_but("only root may remove what belongs to others", remedy));
        }
        let mut collected = Collected { dry_run: self.dry_run, removed: Vec::new(), given_back: 0, kept: Vec::new() };
        let mut refused = None;
        for segment in self.candidates()? {
            match self.fate(&segment) {
                Fate::Ignored => {}
                Fate::Stays(why) => collected.kept.push(Kept { name: segment.name, why }),
                Fate::Goes(why) => match self.remove(&segment) {
                    Ok(false) => {}
                    Ok(true) => {
                        let SegmentInfo { name, taken, owner, .. } = segment;
                        collected.given_back = collected.given_back.saturating_add(taken);
                        collected.removed.push(Leftover { name, why, taken, owner });
                    }
                    Err(failure) => {
                        // The others are removed all the same; each refusal is told.
                        if let Some(earlier) = refused.replace(failure) {
                            earlier.print();
                        }
                    }
                },
            }
        }
        output.print(&collected)?;
        refused.map_or(Ok(Verdict::Fine), Err)
    }

    /// The segments to look at.
    fn candidates(&self) -> Result<Vec<SegmentInfo>, Failure> {
        if self.only.is_empty() {
            return Ok(Heap::segments()?);
        }
        let of = |place: &Place| match place {
            Place::Segment(_) => place.look(),
            Place::File(_) => Err(Failure::usage(
                format!("{} is a file: only heaps in /dev/shm are leftovers", place.text()),
                format!("remove it with: shmheap rm {}", place.text()),
            )),
        };
        self.only.iter().map(of).collect()
    }

    fn fate(&self, segment: &SegmentInfo) -> Fate {
        let why = match &segment.kind {
            SegmentKind::Temporary => "its creator died".to_owned(),
            SegmentKind::Broken { why } => format!("nobody can open it: {why}"),
            SegmentKind::Heap if self.detached => "nobody has it attached".to_owned(),
            SegmentKind::OtherVersion { found } if self.other_versions => {
                format!("nobody has a lane of it, and it has format version {found}")
            }
            _ => return Fate::Ignored,
        };
        let is_own = segment.owner == geteuid().as_raw();
        let is_sound = segment.kind == SegmentKind::Heap;
        let is_other = matches!(segment.kind, SegmentKind::OtherVersion { .. });
        match segment.attached {
            _ if !is_own && !self.other_users => Fate::Ignored,
            Some(true) if is_sound || segment.kind == SegmentKind::Temporary => Fate::Ignored,
            Some(true) => Fate::Stays("somebody has it attached".to_owned()),
            // Of other versions no more can be told.
            None if self.other_versions && is_other => Fate::Goes(self.with_owner(segment, why)),
            None => Fate::Stays("whether somebody has it attached cannot be told".to_owned()),
            Some(false) if is_sound => self.fate_by_age(segment, why),
            Some(false) => Fate::Goes(self.with_owner(segment, why)),
        }
    }

    /// The fate of a sound heap that nobody has attached.
    fn fate_by_age(&self, segment: &SegmentInfo, why: String) -> Fate {
        let Some(least) = self.older_than else { return Fate::Goes(self.with_owner(segment, why)) };
        let opened = Place::Segment(segment.name.clone()).open_read_only();
        match opened.ok().and_then(|heap| units::age_of(heap.created_ms())) {
            None => Fate::Stays("how old it is cannot be told".to_owned()),
            Some(age) if age < least => Fate::Ignored,
            Some(age) => {
                let age = units::duration(Duration::from_secs(age.as_secs()));
                Fate::Goes(self.with_owner(segment, format!("{why}, and it was created {age} ago")))
            }
        }
    }

    fn with_owner(&self, segment: &SegmentInfo, why: String) -> String {
        match segment.owner == geteuid().as_raw() {
            true => why,
            false => format!("{why} (of {})", user_name(segment.owner)),
        }
    }

    /// Removes it, if it still is what it was and nobody has attached it since; false if it stays, or has gone.
    fn remove(&self, segment: &SegmentInfo) -> Result<bool, Failure> {
        if self.dry_run {
            return Ok(true);
        }
        Heap::unlink_if_same(segment).map_err(|error| Place::Segment(segment.name.clone()).explain(error))
    }
}
