//! Freezing: nobody else allocates or frees for a while.
//!
//! The freezer holds the heap lock, which stops everything that needs it, and shuts the gates of all lanes, which stops what
//! they do without it (`sys::gate`). Whoever finds its gate shut waits for the heap lock, like everybody else: so its wait
//! is bounded, names the freezer, and ends about a millisecond after the freezer's death, when recovery opens the gates.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Heap;
use super::attachment::Attachment;
use super::lane::{SharedPass, thread_number};
use super::lock::HeapLock;
use super::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::format::{LaneId, SHARED_LANE};
use crate::recovery;
use crate::sys::gate;

/// How long the freezer pauses before it looks again at a lane that is at work.
const PAUSE: Duration = Duration::from_micros(50);

/// Keeps everybody from allocating and freeing, in all processes, until it is dropped; see [`Heap::freeze`].
pub struct Freeze<'a> {
    heap: &'a Heap,
    // In this order: gates are opened and the lock is let go before the shared lane is.
    _shut: Shut<'a>,
    _pass: Option<SharedPass<'a>>,
    /// The lock belongs to the thread's lane.
    _thread: PhantomData<*const ()>,
}

/// The heap lock, with all gates shut.
pub(super) struct Shut<'a> {
    attachment: &'a Attachment,
    /// Held until this is dropped.
    lock: Option<HeapLock<'a>>,
    stays_shut: bool,
    /// In whose name the lock is held. In a forked child it is the parent's lane, and the parent's lock.
    lane: LaneId,
}

impl Shut<'_> {
    /// Lets the lock go, but leaves the gates shut: for who has given whoever takes the lock next a reason to open them.
    pub(super) fn let_go_shut(mut self) {
        self.stays_shut = true;
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if !self.attachment.liveness.is_own(self.lane.token()) {
            return std::mem::forget(lock);
        }
        if !self.stays_shut {
            recovery::open_gates(&self.attachment.tables, &lock);
        }
        self.attachment.freezer.store(0, Ordering::Relaxed);
    }
}

impl Heap {
    /// Stops all allocations and frees, in this process and all others, and returns when none is under way any more. They go
    /// on when the returned value is dropped, or about a millisecond after its holder died.
    ///
    /// For a point in time: what the blocks hold, and which there are, belongs together as far as the users of the heap keep
    /// it so; what they write into blocks that they have is not stopped. Keep it short: calls that allocate or free wait
    /// meanwhile, and fail with [`Error::LockTimeout`] after [`Options::lock_timeout`](crate::Options::lock_timeout). Of the
    /// calling thread itself they fail at once, with [`Error::Frozen`], as does everything else that needs the heap lock.
    ///
    /// While nobody freezes, others pay a few instructions a call for it. Freezing itself takes some milliseconds (10 to 20
    /// on an idle machine), most of them in `membarrier(2)`.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`] if another process is in the middle of a call and does not go on (stopped, say); it names that
    /// process. [`Error::System`] where the kernel has no `membarrier`. [`Error::Frozen`] if this thread freezes the heap
    /// already; [`Error::ReadOnly`], [`Error::Corrupt`].
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let block = heap.allocate(100)?;
    /// let frozen = heap.freeze()?;
    /// assert!(heap.deallocate(block).is_err());
    /// assert_eq!(heap.blocks().count(), 1);
    /// drop(frozen);
    /// heap.deallocate(block)?;
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn freeze(&self) -> Result<Freeze<'_>> {
        let (pass, shut) = self.shut()?;
        Ok(Freeze { heap: self, _shut: shut, _pass: pass, _thread: PhantomData })
    }

    /// Takes the heap lock, in the name of the thread's lane or of the shared one, and shuts all gates.
    pub(super) fn shut(&self) -> Result<(Option<SharedPass<'_>>, Shut<'_>)> {
        let attachment = &*self.attachment;
        attachment.check_not_frozen_here()?;
        // A lane is claimed here if the thread has none, so that it can hold the lock.
        self.as_caller(|_| Ok(()))?;
        let lane = attachment.key.with(|seat| seat.bins.lane());
        let (pass, lock) = match lane {
            Some(lane) => (None, attachment.lock(lane)?),
            None => {
                let pass = attachment.pass_shared_gate()?;
                let lock = attachment.lock_for(pass.caller())?;
                (Some(pass), lock)
            }
        };
        attachment.freezer.store(thread_number(), Ordering::Relaxed);
        let shut = Shut { attachment, lock: Some(lock), stays_shut: false, lane: lane.unwrap_or(SHARED_LANE) };
        if let Some(lock) = &shut.lock {
            attachment.shut_gates(lock)?;
        }
        Ok((pass, shut))
    }
}

impl Freeze<'_> {
    /// The heap that is frozen.
    #[must_use]
    pub fn heap(&self) -> &Heap {
        self.heap
    }

    /// What the heap holds.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        self.heap.attachment.snapshot(true)
    }
}

impl fmt::Debug for Freeze<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Freeze").field("heap", self.heap).finish_non_exhaustive()
    }
}

impl Attachment {
    /// Refuses what would have the calling thread wait for itself.
    pub(super) fn check_not_frozen_here(&self) -> Result<()> {
        let freezer = self.freezer.load(Ordering::Relaxed);
        if freezer != 0 && freezer == thread_number() { Err(Error::Frozen) } else { Ok(()) }
    }

    /// Shuts all gates, and waits until everybody is outside. Where nobody else has a lane, there is nobody to wait for:
    /// lanes are claimed under the lock.
    fn shut_gates(&self, lock: &HeapLock<'_>) -> Result<()> {
        let own = self.key.with(|seat| seat.bins.lane());
        let is_claimed = |lane: &LaneId| self.tables.lane(*lane).is_some_and(|record| record.is_claimed());
        let is_alone = !self.tables.header.lane_ids().any(|lane| Some(lane) != own && is_claimed(&lane));
        let gates = self.tables.header.lane_ids().filter_map(|lane| {
            let (busy, stop) = self.tables.lane(lane)?.gate().words();
            Some((lane, busy, stop))
        });
        let fence = || if is_alone { Ok(()) } else { gate::heavy_fence() };
        // The fence may take longer than a short time-out: waiting begins with the first lane that is at work.
        let mut started = None;
        gate::exclude(gates, fence, |lane| self.wait_for(lock, lane, *started.get_or_insert_with(Instant::now)))
    }

    /// Waits a little for a lane that is at work, or sees to it if it is dead.
    fn wait_for(&self, lock: &HeapLock<'_>, lane: LaneId, started: Instant) -> Result<()> {
        let waited = started.elapsed();
        if waited >= self.lock_timeout {
            let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            return Err(Error::LockTimeout { holder_pid: self.pid_of(lane), waited_ms });
        }
        if self.liveness.is_alive(lane.token())? {
            std::thread::sleep(PAUSE);
        } else {
            recovery::dead_lanes(self.ward(), lock, &[])?;
            if let Some(record) = self.tables.lane(lane).filter(|record| !record.is_claimed()) {
                record.gate().leave();
            }
        }
        Ok(())
    }
}
