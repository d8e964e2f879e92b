//! A lane's gate: how somebody who freezes the heap keeps a lane from allocating and freeing without the lock.
//!
//! A lane says *busy* before it does anything without the heap lock, and looks at *stop*; a freezer says *stop* to every
//! lane and then waits until none is busy (Dekker's mutual exclusion, one word for each side). Each must see the other's
//! word after it has written its own. That takes a full fence on both sides, and the lane cannot afford one on every call;
//! so the freezer pays for both, with `membarrier(2)`: when it returns, every thread of the system has passed a full fence
//! since the call began. For the lane a fence for the compiler is enough.
//!
//! G1. What is done without the lock is done between `busy = 1`, after which `stop` was seen to be 0, and `busy = 0`. But
//!     a slab that is wholly free may be kept after that (`alloc::kept`): a page entry changes, and what is allocated does
//!     not.
//! G2. `stop` is not 0 only while somebody holds the heap lock or died holding it, or has left word that the next to take
//!     the lock is to open the gates (`heap::durable`). So who finds it set takes the lock.
//! G3. Nobody waits for the heap lock while busy, for a freezer holds it, and waits in turn; and no user code runs while
//!     busy.
//!
//! Both words stand in the lane's record; a lane that died busy is told from one that is slow by its token.
//!
//! Not here: who freezes and for how long (`heap::freeze`).

mod protocol;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use protocol::{Flag, exclude};

use crate::error::Result;

/// The two words, as they stand in the region.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Gate {
    /// Not 0 while the lane does something without the heap lock. Written by the lane.
    busy: AtomicU64,
    /// Not 0 while the lane must not. Written by the holder of the heap lock.
    stop: AtomicU64,
}

const _: () = assert!(size_of::<Gate>() == 16, "a gate is two words");

impl Gate {
    /// An open gate through which nobody is passing.
    #[cfg(test)]
    pub(crate) const fn new() -> Self {
        Self { busy: AtomicU64::new(0), stop: AtomicU64::new(0) }
    }

    /// Enters; false, and the lane stays outside, if the gate is shut.
    #[inline]
    pub(crate) fn enter(&self) -> bool {
        protocol::enter(&self.busy, &self.stop, light_fence)
    }

    /// Ends what `enter` began. Who sees that the lane is done sees what it did.
    #[inline]
    pub(crate) fn leave(&self) {
        self.busy.set(false);
    }

    /// Calls `f` inside; `None` if the gate is shut.
    #[inline]
    pub(crate) fn pass<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        if !self.enter() {
            return None;
        }
        let _inside = Inside(self);
        Some(f())
    }

    /// Steps outside for as long as the lane waits for the heap lock (G3); tells [`Self::resume`] whether it was inside.
    pub(crate) fn step_out(&self) -> bool {
        let was_inside = self.busy.load(Ordering::Relaxed) != 0;
        self.leave();
        was_inside
    }

    /// Goes on inside. For who holds the heap lock: nobody else can have shut the gate (G2).
    pub(crate) fn resume(&self, was_inside: bool) {
        self.busy.store(u64::from(was_inside), Ordering::Relaxed);
    }

    /// The two words, for [`exclude`].
    pub(crate) fn words(&self) -> (&AtomicU64, &AtomicU64) {
        (&self.busy, &self.stop)
    }

    /// For the holder of the heap lock: lets the lane go on.
    pub(crate) fn open(&self) {
        self.stop.set(false);
    }

    /// True if the lane must not go inside.
    pub(crate) fn is_shut(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }

    /// True while the lane is inside.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) != 0
    }
}

/// Leaves the gate when it is dropped, in a panic too.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Flag for AtomicU64 {
    #[inline]
    fn is_set(&self) -> bool {
        self.load(Ordering::Acquire) != 0
    }

    #[inline]
    fn set(&self, value: bool) {
        self.store(u64::from(value), Ordering::Release);
    }
}

/// The lane's side of [`heavy_fence`].
#[inline]
fn light_fence() {
    if cfg!(miri) {
        std::sync::atomic::fence(Ordering::SeqCst);
    } else {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}

/// Makes every running thread of the system pass a full fence. Takes some milliseconds: the kernel waits until each
/// processor has been through its scheduler.
///
/// # Errors
///
/// [`crate::Error::System`] where the kernel has no `membarrier`, or the system has processors that are never interrupted.
pub(crate) fn heavy_fence() -> Result<()> {
    std::sync::atomic::fence(Ordering::SeqCst);
    // A fuzzer's one thread need not wait for others.
    if cfg!(any(miri, fuzzing)) {
        return Ok(());
    }
    // SAFETY: the call takes two integers, and changes no memory.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done == 0 { Ok(()) } else { Err(super::system("membarrier", nix::errno::Errno::last())) }
}
