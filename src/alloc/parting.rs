//! What a lane gives away of its bins: empty slabs when memory is short, and everything when its thread ends.
//!
//! Not here: what becomes of the slabs (`orphan`, `span`).

use std::sync::atomic::Ordering;

use super::{Bins, Classes, Slab};
use crate::error::Result;
use crate::format::{ClassIndex, Tables, superblock};
use crate::journal::Locked;

impl Bins {
    /// True once for each time that memory has run out somewhere.
    pub(crate) fn feels_pressure(&self, tables: &Tables) -> bool {
        let now = tables.superblock(superblock::PRESSURE).load(Ordering::Relaxed);
        self.pressure.replace(now) != now
    }

    /// Gives back what the lane keeps, and hands every slab that is wholly free to `give_back`, after merging what others
    /// have freed.
    pub(crate) fn give_back_empty(
        &self,
        tables: &Tables,
        locked: &Locked,
        classes: &Classes,
        mut give_back: impl FnMut(&Slab<'_>) -> Result<()>,
    ) -> Result<()> {
        self.kept.give_back(tables, locked, classes, self.lane())?;
        for class in classes.indices() {
            self.for_each_slab(tables, classes, class, |slab| {
                slab.merge_all(tables);
                if slab.is_wholly_free(tables) {
                    return give_back(slab);
                }
                Ok(self.own(tables, slab)?)
            })?;
        }
        Ok(())
    }

    /// Gives back what the lane keeps, and hands every slab to `f`; the bins are empty afterwards.
    pub(crate) fn leave(
        &self,
        tables: &Tables,
        locked: &Locked,
        classes: &Classes,
        mut f: impl FnMut(&Slab<'_>) -> Result<()>,
    ) -> Result<()> {
        self.kept.give_back(tables, locked, classes, self.lane())?;
        classes.indices().try_for_each(|class| self.for_each_slab(tables, classes, class, &mut f))
    }

    /// Takes each slab that the bin has now out of it, and hands it to `f`, which may put it back.
    fn for_each_slab(
        &self,
        tables: &Tables,
        classes: &Classes,
        class: ClassIndex,
        mut f: impl FnMut(&Slab<'_>) -> Result<()>,
    ) -> Result<()> {
        let bin = self.bin(class);
        let Some(info) = classes.get(class) else { return Ok(()) };
        bin.hand.clear();
        bin.copy.set(0);
        bin.to_scan.set(0);
        bin.full_count.set(0);
        let mut slabs = Vec::new();
        if let Some(slab) = self.slab(tables, class, info, bin.current.replace(0))? {
            slabs.push(slab);
        }
        for list in [&bin.room, &bin.full] {
            while let Some(slab) = self.slab(tables, class, info, self.notes.pop_front(list))? {
                slabs.push(slab);
            }
        }
        let mut done = Ok(());
        for slab in &slabs {
            self.notes.remove(slab);
            match done {
                Ok(()) => done = f(slab),
                // Its notes have just been removed, so that there is room for them.
                Err(_) => _ = self.own(tables, slab),
            }
        }
        done
    }
}
