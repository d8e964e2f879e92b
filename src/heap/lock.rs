//! The heap lock: one word in the region, and what its holder owes to those who died holding it.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::attachment::Attachment;
use crate::error::{Corruption, Error, Result};
use crate::format::{LaneId, superblock};
use crate::journal::Locked;
use crate::recovery;
use crate::sys::futex;
use crate::sys::lock::{self, Taken, WAITERS, Word, World};

/// How long a waiter sleeps before it asks whether the holder is alive (L3 of `sys::lock`).
const SLICE: Duration = Duration::from_micros(500);
/// How often a waiter looks at the word before it sleeps: about a microsecond, as long as a short operation takes.
const SPINS: u32 = 64;
/// How many time-outs a call waits in all, while the holder keeps changing.
pub(super) const TURNS_MAX: u32 = 12;

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        AtomicU32::load(self, Ordering::Relaxed)
    }

    #[inline]
    fn swap_if(&self, from: u32, to: u32) -> bool {
        self.compare_exchange_weak(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn clear(&self) -> u32 {
        self.swap(0, Ordering::Release)
    }
}

/// The world as a waiter of this attachment sees it.
struct Waiter<'a> {
    attachment: &'a Attachment,
    /// Since when this call waits.
    started: Cell<Option<Instant>>,
    has_slept: Cell<bool>,
    /// The holder last asked after, and since when it stands in the way.
    blocked_by: Cell<Option<(u32, Instant)>>,
}

impl<'a> Waiter<'a> {
    fn new(attachment: &'a Attachment) -> Self {
        Self { attachment, started: Cell::new(None), has_slept: Cell::new(false), blocked_by: Cell::new(None) }
    }

    fn waited(&self) -> Duration {
        self.started.get().map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// A call that sleeps for several slices has waited once.
    fn count_sleep(&self, slept: Duration) {
        let tables = &self.attachment.tables;
        if !self.has_slept.replace(true) {
            tables.superblock(superblock::LOCK_WAITS).fetch_add(1, Ordering::Relaxed);
        }
        let slept_ns = u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX);
        tables.superblock(superblock::LOCK_WAITED_NS).fetch_add(slept_ns, Ordering::Relaxed);
    }
}

impl World for Waiter<'_> {
    fn sleep(&self, expected: u32) -> bool {
        let before = Instant::now();
        self.started.set(self.started.get().or(Some(before)));
        futex::wait(self.attachment.tables.lock(), expected, SLICE);
        let slept = before.elapsed();
        self.count_sleep(slept);
        slept >= SLICE
    }

    fn wake_one(&self) {
        futex::wake(self.attachment.tables.lock(), 1);
    }

    fn seize(&self, lane: u32) -> bool {
        // A word that names no lane was scribbled on; no token guards it, and nobody alive can hold it.
        self.attachment.liveness.take(lane).unwrap_or(false)
    }

    fn give_back(&self, lane: u32) {
        self.attachment.liveness.give_back(lane);
    }

    /// The time-out is for one holder: where many take turns, all of them go on, and so will the caller. But no call waits
    /// for longer than `TURNS_MAX` time-outs in all.
    fn expired(&self, holder: u32) -> bool {
        let timeout = self.attachment.lock_timeout;
        let since = match self.blocked_by.get() {
            Some((same, since)) if same == holder => since,
            // It stood there for the slice that has just run out.
            _ => Instant::now().checked_sub(SLICE).unwrap_or_else(Instant::now),
        };
        self.blocked_by.set(Some((holder, since)));
        since.elapsed() >= timeout || self.waited() >= timeout.saturating_mul(TURNS_MAX)
    }

    fn gives_up(&self) -> bool {
        self.started.set(self.started.get().or_else(|| Some(Instant::now())));
        self.waited() >= self.attachment.lock_timeout.saturating_mul(TURNS_MAX)
    }

    fn spins(&self) -> u32 {
        SPINS
    }

    fn pause(&self) {
        std::hint::spin_loop();
    }
}

/// The heap lock, held until this is dropped.
#[derive(Debug)]
pub(super) struct HeapLock<'a> {
    attachment: &'a Attachment,
    locked: Locked,
}

impl Deref for HeapLock<'_> {
    type Target = Locked;

    fn deref(&self) -> &Locked {
        &self.locked
    }
}

impl Drop for HeapLock<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A mistake of ours may have left an operation half done: whoever takes the lock next recovers.
            self.attachment.tables.superblock(superblock::RECOVERING).store(1, Ordering::Relaxed);
        }
        let waiter = Waiter::new(self.attachment);
        lock::release(self.attachment.tables.lock(), &waiter);
    }
}

impl Attachment {
    /// Takes the heap lock for `lane`, whose token this attachment holds, and recovers if its last holder died.
    pub(super) fn lock(&self, lane: LaneId) -> Result<HeapLock<'_>> {
        self.lock_as(lane, false)
    }

    /// As [`Self::lock`]; `fresh` says that the lane's token was taken just now, so that its record, and even the lock,
    /// may still be its dead predecessor's.
    pub(super) fn lock_as(&self, lane: LaneId, fresh: bool) -> Result<HeapLock<'_>> {
        if self.liveness.is_severed() {
            return Err(Error::Severed);
        }
        self.check_not_frozen_here()?;
        let waiter = Waiter::new(self);
        // G3 of `sys::gate`. The shared lane does nothing without the lock.
        let gate = self.tables.lane(lane).filter(|_| !lane.is_shared()).map(|record| record.gate());
        let was_inside = gate.is_some_and(|gate| gate.step_out());
        let acquired = lock::acquire(self.tables.lock(), &waiter, lane.token());
        if let (Some(gate), Ok(_)) = (gate, &acquired) {
            gate.resume(was_inside && !fresh);
        }
        let taken = acquired.map_err(|holder| {
            if holder > self.tables.geometry.lanes {
                return Corruption::new("C14: the lock word names a lane that does not exist", superblock::LOCK).into();
            }
            let holder = LaneId::new(u16::try_from(holder).unwrap_or(u16::MAX));
            let waited_ms = u64::try_from(waiter.waited().as_millis()).unwrap_or(u64::MAX);
            Error::LockTimeout { holder_pid: self.pid_of(holder), waited_ms }
        })?;
        let lock = HeapLock { attachment: self, locked: Locked::assume() };
        let seized = match taken {
            Taken::FromDead(dead) if dead != lane.token() => u16::try_from(dead).ok().map(LaneId::new),
            _ => None,
        };
        if let Err(error) = self.note_in_use(&lock) {
            // Nothing has changed since the heap was marked clean, so there is nothing to recover from the dead.
            if let Some(dead) = seized {
                self.liveness.give_back(dead.token());
            }
            return Err(error);
        }
        let recovering = self.tables.superblock(superblock::RECOVERING);
        match taken {
            Taken::FromDead(_) => {
                self.tables.superblock(superblock::TAKEOVERS).fetch_add(1, Ordering::Relaxed);
            }
            Taken::Free if recovering.load(Ordering::Relaxed) == 0 => {
                if fresh && self.tables.lane(lane).is_some_and(|record| record.is_claimed()) {
                    recovery::dead_lanes(self.ward(), &lock, &[lane])?;
                }
                return Ok(lock);
            }
            Taken::Free => {}
        }
        recovering.store(1, Ordering::Relaxed);
        // The seized token is kept until the dead lane is seen to, so that nobody takes it for alive meanwhile.
        let held: Vec<LaneId> = fresh.then_some(lane).into_iter().chain(seized).collect();
        let recovered = recovery::after_dead_holder(self.ward(), &lock, &held);
        if let Some(dead) = seized {
            self.liveness.give_back(dead.token());
        }
        recovered?;
        recovering.store(0, Ordering::Relaxed);
        Ok(lock)
    }

    /// The lane that holds the heap lock now, for people.
    pub(super) fn lock_holder(&self) -> Option<LaneId> {
        let word = self.tables.lock().load(Ordering::Relaxed) & !WAITERS;
        word.checked_sub(1).and_then(|lane| u16::try_from(lane).ok()).map(LaneId::new)
    }
}
