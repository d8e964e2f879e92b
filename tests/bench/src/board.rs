//! The board: memory that the workers of one measurement share with each other and with whoever started them, whether
//! they are threads or processes. It has no name; processes inherit its descriptor.
//!
//! Every worker waits here until all have come, so that what it took to start them is not measured, and leaves here
//! when it began and when it ended.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

/// Workers at most.
pub(crate) const WORKERS_MAX: usize = 16;
/// Words of the table that the workers exchange blocks through.
pub(crate) const TABLE_WORDS: usize = 1024 + 2 * 16;
/// How long a worker waits for another one.
const PATIENCE: Duration = Duration::from_secs(40);

/// What one worker tells.
#[repr(C, align(128))]
#[derive(Debug, Default)]
struct Tally {
    start_ns: AtomicU64,
    end_ns: AtomicU64,
    operations: AtomicU64,
}

#[repr(C, align(4096))]
#[derive(Debug)]
struct Words {
    arrived: AtomicU32,
    tallies: [Tally; WORKERS_MAX],
    /// The table of private allocators; that of shared ones is a block of their heap.
    table: [AtomicU64; TABLE_WORDS],
}

/// A mapping of the board.
#[derive(Debug)]
pub(crate) struct Board {
    words: *mut Words,
}

/// Makes the memory of a board: all zeros. Children inherit the descriptor.
pub(crate) fn memory() -> Result<OwnedFd> {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"shmheap-bench-board".as_ptr(), 0) };
    ensure!(fd >= 0, "no memory for the board: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is open, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the descriptor is open.
    let status = unsafe { libc::ftruncate(fd.as_raw_fd(), size_of::<Words>() as i64) };
    ensure!(status == 0, "no memory for the board: {}", std::io::Error::last_os_error());
    Ok(fd)
}

impl Board {
    /// Maps the board behind a descriptor from [`memory`].
    pub(crate) fn map(fd: i32) -> Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping disturbs no other.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Words>(), access, flags, fd, 0) };
        ensure!(address != libc::MAP_FAILED, "cannot map the board: {}", std::io::Error::last_os_error());
        Ok(Self { words: address.cast() })
    }

    fn words(&self) -> &Words {
        // SAFETY: the mapping has this size and alignment, lives as long as `self`, and consists of atomics.
        unsafe { &*self.words }
    }

    /// Waits until all `workers` are here.
    pub(crate) fn meet(&self, workers: usize) -> Result<()> {
        let arrived = &self.words().arrived;
        arrived.fetch_add(1, Ordering::AcqRel);
        let mut patience = Patience::new();
        while (arrived.load(Ordering::Acquire) as usize) < workers {
            patience.wait()?;
        }
        Ok(())
    }

    /// Leaves what a worker has done and when.
    pub(crate) fn report(&self, worker: usize, start_ns: u64, end_ns: u64, operations: u64) {
        let tally = &self.words().tallies[worker];
        tally.start_ns.store(start_ns, Ordering::Relaxed);
        tally.end_ns.store(end_ns, Ordering::Relaxed);
        tally.operations.store(operations, Ordering::Release);
    }

    /// Nanoseconds from the first one's start to the last one's end, and the operations of all.
    pub(crate) fn outcome(&self, workers: usize) -> Result<(u64, u64)> {
        let tallies = &self.words().tallies[..workers];
        let operations = |tally: &Tally| tally.operations.load(Ordering::Acquire);
        ensure!(tallies.iter().all(|tally| operations(tally) != 0), "a worker has not reported");
        let start = tallies.iter().map(|tally| tally.start_ns.load(Ordering::Relaxed)).min().unwrap_or(0);
        let end = tallies.iter().map(|tally| tally.end_ns.load(Ordering::Relaxed)).max().unwrap_or(0);
        Ok((end.saturating_sub(start), tallies.iter().map(operations).sum()))
    }

    /// The table of private allocators.
    pub(crate) fn table(&self) -> &[AtomicU64] {
        &self.words().table
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and nobody borrows from it any more.
        unsafe { libc::munmap(self.words.cast(), size_of::<Words>()) };
    }
}

/// The monotonic clock, which is the same for all processes.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the time is ours to write.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits for another worker: spins, then lets others run, and in the end gives up.
#[derive(Debug)]
pub(crate) struct Patience {
    turns: u32,
    until_ns: u64,
}

impl Patience {
    /// Turns before the processor is offered to others. The machine may have fewer than there are workers.
    const TURNS: u32 = 20;
    /// Pauses in a turn. Who looks too often takes the cache line away from the one whom it waits for, and the two of
    /// them get into a lockstep in which the ring is all that is measured.
    const PAUSES: u32 = 32;

    pub(crate) fn new() -> Self {
        Self { turns: 0, until_ns: 0 }
    }

    #[inline]
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.turns += 1;
        if self.turns < Self::TURNS {
            (0..Self::PAUSES).for_each(|_| std::hint::spin_loop());
            return Ok(());
        }
        self.wait_long()
    }

    #[cold]
    fn wait_long(&mut self) -> Result<()> {
        let now = now_ns();
        if self.until_ns == 0 {
            self.until_ns = now + PATIENCE.as_nanos() as u64;
        }
        ensure!(now < self.until_ns, "waited {PATIENCE:?} for another worker, which did not get on");
        std::thread::yield_now();
        Ok(())
    }
}
