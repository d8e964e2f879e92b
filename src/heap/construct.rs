//! `find_or_construct`: an object that is constructed once, however many processes race for it.
//!
//! The first one to come makes a root in the state "constructing" and allocates its block, as one step under the heap
//! lock; the constructor then runs without the lock; then the root goes live. The others wait for that. If the constructing
//! lane dies, recovery frees the block and removes the root, and one of the waiters becomes the constructor.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Heap;
use super::attachment::Attachment;
use super::blocks::as_offset;
use super::lane::Caller;
use super::paths::{Kind, as_requested};
use super::roots::Found;
use crate::error::{Corruption, Error, Result};
use crate::format::{LaneId, RootName, RootState, SHARED_LANE};
use crate::recovery;
use crate::region::Offset;
use crate::sys::futex;

/// How long a waiter sleeps before it asks whether the constructor is alive.
const SLICE: Duration = Duration::from_millis(1);

/// What one look at the root's name led to.
#[derive(Clone, Copy)]
enum Turn {
    /// The object is there.
    There(u64),
    /// The root is the caller's to construct; this is its block.
    Mine(u64),
    /// Somebody else is constructing.
    Wait,
}

impl Heap {
    /// The block of the root of this name, constructing it first if there is none.
    ///
    /// However many processes and threads call this at once, `construct` runs in one of them; it is given a zeroed block of
    /// `size` bytes, and the others wait until it returns. If it fails or panics, or its process dies, the block is freed,
    /// the root is removed, and another caller's constructor runs. What else the constructor allocated is its own to free;
    /// with [`Heap::allocate_into`] it can hang it on the block.
    ///
    /// `construct` may use the heap, but must not ask for the same root.
    ///
    /// # Errors
    ///
    /// As [`Heap::allocate`] and [`Heap::set_root`]; [`Error::LockTimeout`] if another constructor does not come to an end
    /// within the lock time-out; whatever `construct` returned.
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let make = |block| heap.copy_in(block, b"settings");
    /// let block = heap.find_or_construct("settings", 64, make)?;
    /// assert_eq!(heap.find_or_construct("settings", 64, |_| unreachable!("it exists"))?, block);
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn find_or_construct(
        &self,
        name: &str,
        size: usize,
        construct: impl FnOnce(Offset) -> Result<()>,
    ) -> Result<Offset> {
        let key = RootName::new(name)?;
        let attachment = &self.attachment;
        let kind = attachment.kind(size as u64, 8)?;
        let started = Instant::now();
        let mut construct = Some(construct);
        loop {
            if let Some(found) = attachment.find_root(&key)?
                && found.state == RootState::Live
                && attachment.is_allocated(found.offset)
            {
                return as_offset(found.offset);
            }
            // The constructor runs inside, so that a laneless caller holds the shared lane's token until it is done: that is
            // what tells the others that it lives.
            let turn = self.as_caller(|caller| {
                let turn =
                    attachment.begin_construction(caller, &key, kind).map_err(|error| as_requested(error, size as u64))?;
                if let Turn::Mine(block) = turn
                    && let Some(construct) = construct.take()
                {
                    let undo = Undo { attachment, caller, key: &key };
                    let block = as_offset(block)?;
                    attachment.tables.region.zero(block.get(), self.usable(block)?);
                    // G3 of `sys::gate`: it may take its time. What follows takes the heap lock.
                    attachment.lane_record(caller)?.gate().step_out();
                    construct(block)?;
                    std::mem::forget(undo);
                    attachment.end_construction(caller, &key, true)?;
                }
                Ok(turn)
            })?;
            match turn {
                Turn::There(block) | Turn::Mine(block) => return as_offset(block),
                Turn::Wait => attachment.wait_for_constructor(&key, started)?,
            }
        }
    }
}

/// Undoes a construction, unless it is forgotten: the constructor failed or panicked.
struct Undo<'a> {
    attachment: &'a Attachment,
    caller: Caller<'a>,
    key: &'a RootName,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        // Without the lock, the root stays under construction until this lane ends, and is undone then.
        let _ = self.attachment.end_construction(self.caller, self.key, false);
    }
}

impl Attachment {
    /// Looks at the root under the heap lock, and begins its construction if there is none.
    fn begin_construction(&self, caller: Caller<'_>, key: &RootName, kind: Kind) -> Result<Turn> {
        let lock = self.lock_for(caller)?;
        match self.find_root(key)? {
            Some(found) if found.state == RootState::Live && self.is_allocated(found.offset) => {
                return Ok(Turn::There(found.offset));
            }
            // Its block was freed: it leads nowhere.
            Some(found) if found.state == RootState::Live => self.remove_found(&lock, &found),
            Some(_) => {
                recovery::dead_lanes(self.ward(), &lock, &[])?;
                return self.expect_constructor(key);
            }
            None => {}
        }
        let (record, slot) = self.vacant_root(&lock, key)?;
        record.set_name(key);
        record.offset().store(0, Ordering::Relaxed);
        record.lane().store(u64::from(caller.lane().get()), Ordering::Relaxed);
        self.note_construction(caller, true);
        record.set_state(RootState::Constructing);
        match self.allocate_published(&lock, caller, kind, record.cell()) {
            Ok(block) => Ok(Turn::Mine(block)),
            Err(error) => {
                self.remove_found(&lock, &Found { record, slot, state: RootState::Constructing, offset: 0 });
                self.note_construction(caller, false);
                Err(error)
            }
        }
    }

    /// A root under construction is waited for, if there is somebody who can end it: the dead have just been seen to, so
    /// that whoever constructs has claimed a lane. Under the lock.
    fn expect_constructor(&self, key: &RootName) -> Result<Turn> {
        if let Some(found) = self.find_root(key)?.filter(|found| found.state == RootState::Constructing) {
            let lane = u16::try_from(found.record.lane().load(Ordering::Relaxed)).map(LaneId::new);
            let record = lane.ok().and_then(|lane| self.tables.lane(lane));
            if !record.is_some_and(|record| record.is_claimed()) {
                let what = "C13: a root's constructor belongs to a lane that nobody claims";
                return Err(Corruption::new(what, found.record.at()).into());
            }
        }
        Ok(Turn::Wait)
    }

    /// Makes the root live, or frees its block and removes it.
    fn end_construction(&self, caller: Caller<'_>, key: &RootName, complete: bool) -> Result<()> {
        let lock = self.lock_for(caller.again())?;
        let lane = u64::from(caller.lane().get());
        let found = self
            .find_root(key)?
            .filter(|found| found.state == RootState::Constructing && found.record.lane().load(Ordering::Relaxed) == lane);
        let Some(found) = found else {
            return Err(Corruption::new("a root under construction has vanished", self.tables.geometry.roots_at).into());
        };
        if complete {
            found.record.set_state(RootState::Live); // COMMIT
        } else {
            // A constructor may have freed the block itself before it failed.
            if found.offset != 0 && self.free_published(&lock, caller, found.record.cell()).is_err() {
                found.record.offset().store(0, Ordering::Release);
            }
            self.remove_found(&lock, &found);
        }
        self.note_construction(caller, false);
        futex::wake(found.record.state_word(), i32::MAX);
        Ok(())
    }

    /// Counts a lane's constructions in its record, so that recovery knows whether to look for any. The shared lane is
    /// claimed while it has one.
    fn note_construction(&self, caller: Caller<'_>, begins: bool) {
        let Some(record) = self.tables.lane(caller.lane()) else { return };
        let count = record.constructing().load(Ordering::Relaxed);
        let count = if begins { count.saturating_add(1) } else { count.saturating_sub(1) };
        record.constructing().store(count, Ordering::Release);
        if caller.lane() == SHARED_LANE {
            record.release_shared();
        }
    }

    /// Waits until a root's construction has ended, or its constructor is dead.
    fn wait_for_constructor(&self, key: &RootName, started: Instant) -> Result<()> {
        loop {
            let Some(found) = self.find_root(key)?.filter(|found| found.state == RootState::Constructing) else {
                return Ok(());
            };
            let lane = u16::try_from(found.record.lane().load(Ordering::Relaxed)).map_or(SHARED_LANE, LaneId::new);
            if !self.liveness.is_alive(lane.token())? {
                return Ok(());
            }
            let waited = started.elapsed();
            if waited >= self.lock_timeout {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::LockTimeout { holder_pid: self.pid_of(lane), waited_ms });
            }
            let word = found.record.state_word();
            let now = word.load(Ordering::Acquire);
            if found.record.state() == Some(RootState::Constructing) {
                futex::wait(word, now, SLICE);
            }
        }
    }
}
