//! The heap that users hold: creating and attaching, allocating and freeing, roots, numbers.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`Options`] | `options.rs` | how a heap is created and opened |
//! | `Attachment` | `attachment.rs` | this process's share of a heap: mapping, tokens, lanes; shared by all its handles |
//! | lane seat | `lane.rs` | what a thread keeps: its lane and its bins |
//! | heap lock | `lock.rs` | the in-region lock, and recovery when it is taken from a dead holder |
//! | blocks | `blocks.rs`, `paths.rs` | allocate, free, reallocate, and the way that each takes |
//! | access | `access.rs` | copying in and out, addresses |
//! | moves | `moves.rs` | replace a block by another, in one step |
//! | cells | `cells.rs` | allocate and publish, unpublish and free, in one step |
//! | durable | `durable.rs` | heaps in files: flush, and what a power cut leaves |
//! | mending | `mend.rs` | being alone with a heap, to repair it |
//! | freeze | `freeze.rs` | nobody else allocates or frees for a while |
//! | roots | `roots.rs`, `construct.rs` | named ways in |
//! | images | `snapshot.rs`, `restore.rs` | what a heap holds at one moment, and how that comes back |
//! | segments | `segments.rs` | which heaps there are |
//! | numbers | `stats.rs`, `inspect.rs`, `spans.rs` | what the heap holds, who is attached, is it sound |
//! | activity | `activity.rs` | what goes on: counters of allocations, of waits for the lock |
//!
//! **Lock order.** The heap lock comes first; a lock that guards a root's or a collection's contents is taken after it or
//! without it, never before it. The shared lane's gate (a process's threads that found no lane, one at a time) is taken
//! before the heap lock. No user code runs under the heap lock.
//!
//! Not here: what `T` is in a block (`typed`).

mod access;
mod activity;
mod attach;
mod attachment;
mod blocks;
mod cells;
mod construct;
mod durable;
mod freeze;
mod inspect;
mod lane;
mod lock;
mod mend;
mod moves;
mod options;
mod paths;
mod restore;
mod roots;
mod segments;
mod snapshot;
mod spans;
mod stats;

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use attachment::Attachment;

pub use activity::{Activity, Change, ClassActivity, LaneActivity, LockStats};
pub use freeze::Freeze;
pub use inspect::{BlockInfo, Blocks, LaneInfo};
pub use options::{Options, OwnerTrust};
pub(crate) use restore::Restore;
pub use roots::RootInfo;
pub use segments::{SegmentInfo, SegmentKind};
pub(crate) use snapshot::{SavedRoot, SavedSpan, Snapshot, SpanKind};
pub use spans::{SpanInfo, SpanUsage, Spans};
pub use stats::{ClassStats, Stats};

/// A handle to a heap that this process has attached.
///
/// Clones are cheap and share one attachment; handles may be used from any thread. The process detaches when the last
/// handle is dropped. Nothing is ever unlinked by dropping: see [`Heap::unlink`] and [`Heap::destroy`].
///
/// # Threads and lanes
///
/// A thread's first allocation claims a *lane* of the heap, and the end of the thread gives it back. A lane owns the slabs
/// that it allocates from, so the common paths take no lock. Threads that find no lane free share one: slower, and
/// correct. [`Options::lanes`] sets how many there are.
///
/// # Cost
///
/// Allocating and freeing take constant time: a few nanoseconds in the thread's own slabs, one atomic operation more for
/// a block of another lane's slab, two for a block above the largest size class (32 KiB in heaps of 16 MiB and more) whose
/// like the lane has freed before. New slabs, other large blocks, and roots take the heap lock; finding a run of pages takes
/// time logarithmic in the capacity.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shmheap::Heap;
///
/// # let name = &format!("doc-heap-{}", std::process::id());
/// let heap = Heap::options().capacity(1 << 20).create(name)?;
/// let worker = heap.clone();
/// let block = std::thread::spawn(move || worker.allocate(1000)).join().expect("the worker allocates")?;
/// assert_eq!(heap.used_size()?, heap.usable_size(block)? as u64);
/// heap.deallocate(block)?;
/// heap.destroy()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Heap {
    attachment: Arc<Attachment>,
}

impl Heap {
    /// The options for creating or opening a heap, all at their defaults.
    #[must_use]
    pub fn options() -> Options {
        Options::new()
    }

    /// Attaches the heap of this name, for reading and writing. Short for `Heap::options().open(name)`.
    ///
    /// # Errors
    ///
    /// As [`Options::open`].
    pub fn open(name: &str) -> Result<Self> {
        Options::new().open(name)
    }

    /// Attaches the heap of this name for reading: takes no lane, writes no byte, and disturbs nobody.
    ///
    /// # Errors
    ///
    /// As [`Options::open`]. Calls that would write fail with [`Error::ReadOnly`](crate::Error::ReadOnly).
    pub fn open_read_only(name: &str) -> Result<Self> {
        Options::new().open_read_only(name)
    }

    /// Removes a heap's name. Processes that have it attached keep it until they detach; then its memory is freed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) if there is none of this name, and
    /// [`Error::BadName`](crate::Error::BadName) or [`Error::PermissionDenied`](crate::Error::PermissionDenied).
    pub fn unlink(name: &str) -> Result<()> {
        crate::sys::object::Place::segment(name)?.unlink()
    }

    /// Drops this handle and removes the heap's name, if it still leads to this very heap.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) if the name is gone or leads to another heap by now, and
    /// [`Error::PermissionDenied`](crate::Error::PermissionDenied). Heaps without a name are just dropped.
    pub fn destroy(self) -> Result<()> {
        self.attachment.unlink()
    }

    /// The segment's name or the file's path; `(anonymous)` and `(memory)` for heaps that have neither.
    #[must_use]
    pub fn name(&self) -> String {
        self.attachment.label()
    }

    /// True if the heap's name was removed: nobody else can open it, and it goes with its last user. [`Heap::save`] keeps
    /// its contents.
    ///
    /// # Errors
    ///
    /// [`Error::System`](crate::Error::System).
    pub fn is_unlinked(&self) -> Result<bool> {
        self.attachment.tables.region.object().map_or(Ok(false), |object| object.is_unlinked())
    }

    /// True if this handle may only read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !self.attachment.tables.region.is_writable()
    }

    /// Bytes in the region: pages and metadata.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.attachment.tables.header.capacity
    }

    /// Bytes in the heap's pages: what blocks can be made of. Always `used_size() + free_size()` and what rounding and the
    /// ends of slabs take.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.attachment.tables.geometry.data_len
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("name", &self.name())
            .field("capacity", &self.capacity())
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}
