//! What a repair tells of what it did.

use std::fmt;

use crate::error::Corruption;
use crate::region::Offset;

/// Most actions that a report lists one by one.
const ACTIONS_MAX: usize = 10_000;

/// What was done about something that was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// The pages became one allocated block, which nobody uses or frees by itself: [`Heap::blocks`](crate::Heap::blocks)
    /// lists it, its bytes are as they were, and [`Heap::deallocate`](crate::Heap::deallocate) frees it when nobody needs
    /// them.
    Quarantined {
        /// The block.
        block: Offset,
        /// Its length in bytes.
        len: u64,
    },
    /// The word was set to what it says in a heap at rest, or to what the rest of the heap shows that it must be.
    Reset,
    /// What cannot have been under way, or cannot be carried out, was forgotten.
    Dropped,
    /// What somebody who died had under way was finished or undone, as recovery does.
    Recovered,
    /// The slab, with its blocks as they are, belongs to nobody any more, and to whoever needs room next.
    Orphaned,
    /// The pages, which hold no block, became free pages.
    Freed,
    /// The memory was reserved.
    Reserved,
    /// What follows from other words was derived from them again.
    Rebuilt,
    /// The root was removed. The block that it led to, if any, is as it was.
    Removed,
    /// The root was moved to where a search finds it.
    Moved {
        /// Where its record stands now.
        to: u64,
    },
    /// Nothing: it contradicts no rule, and only the heap's users can tell whether it is right.
    Kept,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Quarantined { block, len } => {
                return write!(f, "quarantined {len} bytes as the block at {:#x}", block.get());
            }
            Self::Moved { to } => return write!(f, "moved to {to:#x}"),
            Self::Reset => "reset",
            Self::Dropped => "dropped",
            Self::Recovered => "finished or undone",
            Self::Orphaned => "made an orphan",
            Self::Freed => "freed",
            Self::Reserved => "reserved",
            Self::Rebuilt => "rebuilt",
            Self::Removed => "removed",
            Self::Kept => "kept as it is",
        };
        f.write_str(text)
    }
}

/// One thing that a repair found, and what it did about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairAction {
    /// What was wrong, with the invariant's number where it has one, and where.
    pub found: Corruption,
    /// What was done about it.
    pub remedy: Remedy,
}

impl RepairAction {
    /// False if something was only pointed out, and is as it was.
    #[must_use]
    pub fn changed_anything(&self) -> bool {
        self.remedy != Remedy::Kept
    }
}

impl fmt::Display for RepairAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found, self.remedy)
    }
}

/// Everything that a repair did, or, after a dry run, would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// What was done, in the order in which it was done; at most 10,000 actions.
    pub actions: Vec<RepairAction>,
    /// How many further ones there were.
    pub unlisted: u64,
}

impl RepairReport {
    /// True if the heap needed no repair: nothing was changed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unlisted == 0 && !self.actions.iter().any(RepairAction::changed_anything)
    }

    pub(super) fn note(&mut self, what: &'static str, at: u64, remedy: Remedy) {
        self.add(Corruption::new(what, at), remedy);
    }

    pub(super) fn add(&mut self, found: Corruption, remedy: Remedy) {
        if self.actions.len() < ACTIONS_MAX {
            self.actions.push(RepairAction { found, remedy });
        } else {
            self.unlisted = self.unlisted.saturating_add(1);
        }
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.iter().try_for_each(|action| writeln!(f, "{action}"))?;
        if self.unlisted != 0 {
            writeln!(f, "and {} more", self.unlisted)?;
        }
        Ok(())
    }
}
