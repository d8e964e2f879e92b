//! Lanes from the process's side: how a thread comes by one and leaves it, and what it does without.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Heap;
use super::attachment::Attachment;
use super::lock::{HeapLock, TURNS_MAX};
use super::paths::TRIES;
use crate::alloc::{Bins, orphan};
use crate::error::{Corruption, Error, Result};
use crate::format::{LaneId, LaneRecord, SHARED_LANE};
use crate::recovery;
use crate::sys::clock;
use crate::sys::seat::Seat;

/// What a thread keeps for one attachment: its lane's bins.
#[derive(Debug)]
pub(super) struct LaneSeat {
    pub(super) bins: Bins,
    /// True once the thread has allocated a large block, whose entry names its lane.
    pub(super) has_large: Cell<bool>,
    attachment: RefCell<Weak<Attachment>>,
}

impl Seat for LaneSeat {
    fn vacate(&self) {
        if let Some(attachment) = self.attachment.take().upgrade() {
            attachment.leave(self);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.attachment.borrow().strong_count() == 0
    }
}

/// In whose name a call works.
#[derive(Debug, Clone, Copy)]
pub(super) enum Caller<'a> {
    /// The calling thread's own lane.
    Lane(&'a LaneSeat),
    /// The shared lane; its token is held while the call lasts. `fresh`: it was taken just now.
    Shared { fresh: bool },
}

impl Caller<'_> {
    pub(super) fn lane(&self) -> LaneId {
        match self {
            Self::Lane(seat) => seat.bins.lane(),
            Self::Shared { .. } => SHARED_LANE,
        }
    }

    /// The same caller for another turn of the heap lock within one call.
    pub(super) fn again(self) -> Self {
        match self {
            Self::Shared { .. } => Self::Shared { fresh: false },
            lane => lane,
        }
    }
}

/// Lets one thread of this process at a time use the shared lane. The shared lane's token keeps other processes out, but
/// cannot keep apart threads that share a descriptor.
#[derive(Debug, Default)]
pub(super) struct SharedGate {
    /// A number of the thread that is inside, or 0.
    inside: AtomicU64,
}

/// A number for the calling thread that no other thread of the process has, and no thread of its parent had.
pub(super) fn thread_number() -> u64 {
    thread_local! {
        static ANCHOR: u8 = const { 0 };
    }
    // The address of a thread-local tells threads apart; the pid tells a forked child from its parent.
    ANCHOR.with(|anchor| {
        let address = std::ptr::from_ref(anchor).addr();
        u64::from(std::process::id()) << 48 | u64::try_from(address).unwrap_or(1) & 0xffff_ffff_ffff
    })
}

/// How long a laneless thread pauses before it tries again to get at the shared lane.
const GATE_PAUSE: Duration = Duration::from_micros(50);

/// How long a process that found no lane waits before it asks again whether the owners of claimed ones are alive.
const DEAD_PAUSE: Duration = Duration::from_millis(10);

/// The shared lane's token, given back when this is dropped.
pub(super) struct SharedPass<'a> {
    attachment: &'a Attachment,
    /// False if an outer call of the same thread holds the token already.
    outermost: bool,
}

impl SharedPass<'_> {
    pub(super) fn caller(&self) -> Caller<'static> {
        Caller::Shared { fresh: self.outermost }
    }
}

impl Drop for SharedPass<'_> {
    fn drop(&mut self) {
        if self.outermost {
            self.attachment.liveness.give_back(SHARED_LANE.token());
            self.attachment.gate.inside.store(0, Ordering::Release);
        }
    }
}

impl Attachment {
    /// Takes the shared lane's token, waiting for others to be done with it.
    pub(super) fn pass_shared_gate(&self) -> Result<SharedPass<'_>> {
        let me = thread_number();
        if self.gate.inside.load(Ordering::Relaxed) == me {
            return Ok(SharedPass { attachment: self, outermost: false });
        }
        let started = Instant::now();
        let mut blocked_by = self.shared_turn();
        let mut since = Instant::now();
        loop {
            let inside = self.gate.inside.load(Ordering::Relaxed);
            // After a fork, who was inside is not in this process.
            let is_stale = inside != 0 && inside >> 48 != u64::from(std::process::id()) & 0xffff;
            if inside == 0 || is_stale {
                let entered = self.gate.inside.compare_exchange(inside, me, Ordering::Acquire, Ordering::Relaxed);
                if entered.is_ok() {
                    match self.liveness.take(SHARED_LANE.token()) {
                        Ok(true) => {
                            self.note_shared_user();
                            return Ok(SharedPass { attachment: self, outermost: true });
                        }
                        Ok(false) => self.gate.inside.store(0, Ordering::Release),
                        Err(error) => {
                            self.gate.inside.store(0, Ordering::Release);
                            return Err(error);
                        }
                    }
                }
            }
            if self.liveness.is_severed() {
                return Err(Error::Severed);
            }
            // The time-out is for one user of the lane: as long as they take turns, all of them go on.
            let turn = self.shared_turn();
            if turn != blocked_by {
                (blocked_by, since) = (turn, Instant::now());
            }
            if since.elapsed() >= self.lock_timeout || started.elapsed() >= self.lock_timeout.saturating_mul(TURNS_MAX) {
                let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(Error::LockTimeout { holder_pid: self.pid_of(SHARED_LANE), waited_ms });
            }
            std::thread::sleep(GATE_PAUSE);
        }
    }

    /// Counts the turns of the shared lane's users, in a word that it does not need: it owns no slab, and gets no hints.
    fn shared_turn(&self) -> u64 {
        self.tables.lane(SHARED_LANE).map_or(0, |record| record.hints().load(Ordering::Relaxed))
    }

    fn note_shared_user(&self) {
        if let Some(record) = self.tables.lane(SHARED_LANE) {
            record.hints().fetch_add(1, Ordering::Relaxed);
            record.pid().store(std::process::id(), Ordering::Relaxed);
            record.thread().store(clock::thread_id(), Ordering::Relaxed);
        }
    }

    /// Takes the heap lock for a caller.
    pub(super) fn lock_for(&self, caller: Caller<'_>) -> Result<HeapLock<'_>> {
        match caller {
            Caller::Lane(seat) => self.lock(seat.bins.lane()),
            Caller::Shared { fresh } => self.lock_as(SHARED_LANE, fresh),
        }
    }

    /// Claims a lane: its token first, then its record under the heap lock (T2 of `sys::token`). `None` if all are
    /// taken.
    fn claim_lane(&self) -> Result<Option<LaneId>> {
        let record_is_free = |lane: &LaneId| self.tables.lane(*lane).is_some_and(|record| !record.is_claimed());
        // Free records first; then, among the claimed ones, those of the dead. The latter costs a system call each, so those
        // who find no lane do not all ask on every call.
        let free = self.tables.header.lane_ids().filter(record_is_free);
        let may_ask = self.may_ask_after_the_dead();
        let claimed = self.tables.header.lane_ids().filter(|lane| may_ask && !record_is_free(lane));
        for lane in free.chain(claimed) {
            if !self.liveness.take(lane.token())? {
                continue;
            }
            if let Err(error) = self.enter_lane(lane) {
                self.liveness.give_back(lane.token());
                return Err(error);
            }
            return Ok(Some(lane));
        }
        Ok(None)
    }

    /// True once per `DEAD_PAUSE` for this attachment.
    fn may_ask_after_the_dead(&self) -> bool {
        let now = u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX);
        let next = self.next_question.load(Ordering::Relaxed);
        let later = now.saturating_add(u64::try_from(DEAD_PAUSE.as_micros()).unwrap_or(u64::MAX));
        now >= next && self.next_question.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Writes the record of a lane whose token was just taken.
    fn enter_lane(&self, lane: LaneId) -> Result<()> {
        self.tables.region.check_whole()?;
        // Who waits for the lock while this lane holds it is told the pid: it is there before the lock is taken.
        if let Some(record) = self.tables.lane(lane) {
            record.pid().store(std::process::id(), Ordering::Relaxed);
            record.thread().store(clock::thread_id(), Ordering::Relaxed);
        }
        let lock = self.lock_as(lane, true)?;
        recovery::dead_lanes(self.ward(), &lock, &[])?;
        if let Some(record) = self.tables.lane(lane) {
            record.since_ms().store(clock::unix_ms(), Ordering::Relaxed);
            record.constructing().store(0, Ordering::Relaxed);
            record.hints().store(0, Ordering::Relaxed);
            record.move_old().store(0, Ordering::Relaxed);
            record.move_new().store(0, Ordering::Relaxed);
            // A predecessor may have died inside; and who holds the lock knows that nobody else can have shut the gate (G2).
            record.gate().leave();
            record.gate().open();
            record.claimed().store(1, Ordering::Release); // COMMIT
        }
        Ok(())
    }

    /// Waits until the gate of the calling thread's lane is open again.
    fn wait_at_gate(&self, lane: LaneId) -> Result<()> {
        let lock = self.lock(lane)?;
        let shut = self.tables.lane(lane).filter(|record| record.gate().is_shut());
        drop(lock);
        match shut {
            Some(record) => Err(Corruption::new("C17: a gate is shut, and nobody freezes the heap", record.at()).into()),
            None => Ok(()),
        }
    }

    /// Leaves a thread's lane in good order: its slabs become orphans or free pages, its record is freed, then its token.
    fn leave(&self, seat: &LaneSeat) {
        let lane = seat.bins.lane();
        if !self.liveness.is_own(lane.token()) {
            return;
        }
        if let Ok(lock) = self.lock(lane) {
            let left = seat.bins.leave(&self.tables, &lock, &self.classes, |slab| orphan::disown(&self.tables, &lock, slab));
            // Large blocks are in no list; and should a list have been damaged, or a construction or a move not have been
            // undone, the tables tell what is left.
            let has_more = |record: LaneRecord<'_>| record.constructing().load(Ordering::Relaxed) != 0 || record.is_moving();
            if left.is_err() || seat.has_large.get() || self.tables.lane(lane).is_some_and(has_more) {
                let _ = recovery::retire_lanes(self.ward(), &lock, &[lane]);
            } else {
                self.free_record(&lock, lane);
            }
        }
        // Had the lock timed out, the record would stay claimed, and the lane be recovered like a dead one.
        self.liveness.give_back(lane.token());
    }

    /// Frees the record of a lane of which nothing is left.
    fn free_record(&self, _lock: &HeapLock<'_>, lane: LaneId) {
        if let Some(record) = self.tables.lane(lane) {
            record.hints().store(0, Ordering::Relaxed);
            record.claimed().store(0, Ordering::Release); // COMMIT
        }
    }
}

impl Heap {
    /// Calls `f` in the name of the calling thread's lane, claiming one if it has none, or else of the shared lane.
    pub(super) fn as_caller<R>(&self, f: impl FnOnce(Caller<'_>) -> Result<R>) -> Result<R> {
        let attachment = &self.attachment;
        attachment.check_writable()?;
        if attachment.key.with(|_| ()).is_none() {
            self.take_seat()?;
        }
        let mut f = Some(f);
        let mut call = |caller: Caller<'_>| f.take().map(|f| f(caller));
        for _ in 0..TRIES {
            if let Some(result) = attachment.key.with_open(|seat| call(Caller::Lane(seat))) {
                return result.unwrap_or(Err(Error::Severed));
            }
            // The gate is shut, or the thread has no lane. Who shut it holds the heap lock (G2 of `sys::gate`).
            match attachment.key.with(|seat| attachment.wait_at_gate(seat.bins.lane())) {
                Some(waited) => waited?,
                None => break,
            }
        }
        let pass = attachment.pass_shared_gate()?;
        call(pass.caller()).unwrap_or(Err(Error::Severed))
    }

    /// Claims a lane for the calling thread, if one is free.
    fn take_seat(&self) -> Result<()> {
        let attachment = &self.attachment;
        let Some(lane) = attachment.claim_lane()? else { return Ok(()) };
        let seat = Bins::new(&attachment.tables, lane).map(|bins| {
            Box::new(LaneSeat { bins, has_large: Cell::new(false), attachment: RefCell::new(Arc::downgrade(attachment)) })
        });
        // Without the memory for a seat, or if it is ending, the thread goes on with the shared lane.
        let record = attachment.tables.lane(lane);
        let seated = seat.ok().zip(record).is_some_and(|(seat, record)| attachment.key.occupy(seat, record.gate()));
        if !seated {
            if let Ok(lock) = attachment.lock(lane) {
                attachment.free_record(&lock, lane);
            }
            attachment.liveness.give_back(lane.token());
        }
        Ok(())
    }
}
