//! `validate`, `repair`, `recover`, `trim`: is it sound, and what is done about it.

use std::fmt;

use clap::Args;
use serde::Serialize;
use shmheap::{Corruption, Heap, Remedy, RepairAction, RepairReport};

use super::{Changed, Named};
use crate::output::{BAD, GOOD, Output, styled};
use crate::place::Place;
use crate::{Outcome, Verdict, units};

/// Checks whether a heap is sound.
///
/// Looks at every invariant, and tells what is wrong, and where. Changes nothing, and takes no lock. Exit code 1 if anything
/// is wrong.
#[derive(Debug, Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    named: Named,
}

#[derive(Debug, Serialize)]
struct Validated {
    name: String,
    sound: bool,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    at: u64,
}

impl From<Corruption> for Finding {
    fn from(corruption: Corruption) -> Self {
        Self { what: corruption.what, at: corruption.at }
    }
}

impl fmt::Display for Validated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sound {
            return writeln!(f, "{}: {}", self.name, styled(GOOD, "sound"));
        }
        writeln!(f, "{}: {}", self.name, styled(BAD, "damaged"))?;
        for Finding { what, at } in &self.findings {
            writeln!(f, "  at {at:#x}: {what}")?;
        }
        writeln!(f, "shmheap repair {} --dry-run tells what can be mended", self.name)
    }
}

impl Validate {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let found = heap.findings().map_err(|error| place.explain(error))?;
        let findings: Vec<Finding> = found.into_iter().map(Finding::from).collect();
        let sound = findings.is_empty();
        output.print(&Validated { name: place.text(), sound, findings })?;
        Ok(if sound { Verdict::Fine } else { Verdict::Wrong })
    }
}

/// Makes a damaged heap sound again.
///
/// Reports each action. Nobody else may use the heap meanwhile.
///
/// Pages whose words contradict each other are quarantined: they become one allocated block, whose bytes are as they were.
/// The bytes of blocks are never changed. What the dead had begun is finished or undone.
#[derive(Debug, Args)]
pub(crate) struct Repair {
    #[command(flatten)]
    heap: Changed,
    /// Only tell what would be done; exit code 1 if there is anything
    #[arg(long, short = 'n')]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Repaired {
    name: String,
    dry_run: bool,
    changed: bool,
    actions: Vec<Action>,
    unlisted: u64,
}

#[derive(Debug, Serialize)]
struct Action {
    #[serde(flatten)]
    found: Finding,
    remedy: String,
    quarantined: Option<u64>,
}

impl From<&RepairAction> for Action {
    fn from(action: &RepairAction) -> Self {
        let quarantined = match action.remedy {
            Remedy::Quarantined { block, .. } => Some(block.get()),
            _ => None,
        };
        Self { found: action.found.into(), remedy: action.remedy.to_string(), quarantined }
    }
}

impl Repaired {
    fn new(place: &Place, dry_run: bool, report: &RepairReport) -> Self {
        let actions = report.actions.iter().map(Action::from).collect();
        Self { name: place.text(), dry_run, changed: !report.is_clean(), actions, unlisted: report.unlisted }
    }
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "at {:#x}: {}: {}", action.found.at, action.found.what, action.remedy)?;
        }
        if self.unlisted != 0 {
            writeln!(f, "and {} more", self.unlisted)?;
        }
        let name = &self.name;
        match (self.changed, self.dry_run) {
            (false, _) => writeln!(f, "{name} needs no repair"),
            (true, true) => writeln!(f, "nothing was changed; shmheap repair {name} does it"),
            (true, false) => writeln!(f, "{name} was repaired and is {} now", styled(GOOD, "sound")),
        }?;
        let quarantined = self.actions.iter().filter_map(|action| action.quarantined);
        for block in quarantined.filter(|_| !self.dry_run) {
            writeln!(f, "what stands in the quarantined block: shmheap dump {name} {block:#x}")?;
        }
        Ok(())
    }
}

impl Repair {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = self.heap.place();
        let options = self.heap.trusting(Heap::options().dry_run(self.dry_run));
        let report = match place {
            Place::Segment(name) => options.repair(name),
            Place::File(path) => options.repair_file(path),
        };
        let report = report.map_err(|error| place.explain(error))?;
        output.print(&Repaired::new(place, self.dry_run, &report))?;
        Ok(if self.dry_run && !report.is_clean() { Verdict::Wrong } else { Verdict::Fine })
    }
}

/// Sees to those who died while they used a heap.
///
/// What they had begun is finished or undone, and their slabs go to whoever needs room next. Can be done while
/// others use it.
///
/// That also happens by itself, whenever somebody attaches or runs short of memory.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    #[command(flatten)]
    heap: Changed,
}

#[derive(Debug, Serialize)]
struct Recovered {
    name: String,
    lanes: u32,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lanes {
            0 => writeln!(f, "{}: nobody has died", self.name),
            1 => writeln!(f, "{}: recovered 1 lane of a dead thread", self.name),
            lanes => writeln!(f, "{}: recovered {lanes} lanes of dead threads", self.name),
        }
    }
}

impl Recover {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = self.heap.place();
        // Attaching for writing recovers; what there was to do is seen before it.
        let before = place.open_read_only()?.stats().map_err(|error| place.explain(error))?.lanes_dead;
        let heap = self.heap.open()?;
        let more = heap.recover().map_err(|error| place.explain(error))?;
        output.print(&Recovered { name: place.text(), lanes: before.max(more) })?;
        Ok(Verdict::Fine)
    }
}

/// Gives memory that holds no block back to the system.
///
/// Can be done while others use the heap.
#[derive(Debug, Args)]
pub(crate) struct Trim {
    #[command(flatten)]
    heap: Changed,
}

#[derive(Debug, Serialize)]
struct Trimmed {
    name: String,
    given_back: u64,
    taken: u64,
}

impl fmt::Display for Trimmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (back, taken) = (units::size(self.given_back), units::size(self.taken));
        writeln!(f, "{}: gave back {back}, still takes {taken}", self.name)
    }
}

impl Trim {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = self.heap.place();
        let heap = self.heap.open()?;
        let given_back = heap.trim().map_err(|error| place.explain(error))?;
        let taken = heap.stats().map_err(|error| place.explain(error))?.taken;
        output.print(&Trimmed { name: place.text(), given_back, taken })?;
        Ok(Verdict::Fine)
    }
}
