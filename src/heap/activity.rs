//! What goes on in a heap: counters, for those who watch it from outside.
//!
//! A lane counts the blocks that it allocates, in its record; nobody counts frees. What is allocated now is read from the
//! slabs' bits, and what was freed between two looks follows from both.
//!
//! Nothing depends on these numbers, and any value is one. Who watches takes no lock, and writes nothing.
//!
//! Not here: the counting (`alloc::bin`, `paths`), and what the numbers of one moment are (`stats`, `inspect`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Heap;
use super::inspect::Span;
use crate::error::Result;
use crate::format::{LARGE_BLOCKS, LaneId, superblock};

/// What [`Heap::activity`] tells: counters that only go on, as they stood at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Activity {
    /// What became of those who wanted the heap lock.
    pub lock: LockStats,
    /// The shared lane, and every lane that is claimed, has ever counted a block, or has one; by their numbers.
    pub lanes: Vec<LaneActivity>,
}

/// What [`Heap::lock_stats`] tells of the heap lock, since the heap was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LockStats {
    /// Calls that slept because somebody else held the lock. Those who got it within about a microsecond do not count.
    pub waits: u64,
    /// How long they slept, in all.
    pub waited: Duration,
    /// Times that the lock was taken from a holder that had died.
    pub takeovers: u64,
}

/// What [`Activity`] tells of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneActivity {
    /// Its number, as in [`LaneInfo`](crate::LaneInfo). 0 is the shared lane: its blocks are those of slabs that belong to
    /// nobody, and large ones whose lane has ended.
    pub lane: u16,
    /// The sizes of which it has ever counted a block, or has one now, from the smallest; large blocks come last.
    pub classes: Vec<ClassActivity>,
}

/// What [`LaneActivity`] tells of blocks of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassActivity {
    /// Bytes per block; `None` for large blocks, which consist of pages of their own.
    pub size: Option<u64>,
    /// Blocks that were allocated through this lane since the heap was created, modulo 2^32. Whoever claims the lane next
    /// counts on.
    pub allocated_ever: u32,
    /// Blocks that are allocated now in the lane's slabs, whoever holds them; or large blocks that it allocated.
    pub allocated: u64,
    /// Their usable bytes.
    pub allocated_bytes: u64,
}

/// What happened to blocks of one size in one lane between two looks; see [`Activity::since`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The lane's number.
    pub lane: u16,
    /// Bytes per block; `None` for large blocks.
    pub size: Option<u64>,
    /// Blocks that were allocated through the lane.
    pub allocated: u64,
    /// Blocks of the lane's slabs, or large ones of its own, that were freed, by whomever.
    pub freed: u64,
}

impl LockStats {
    /// What came on top of what an earlier look at the same heap has told.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            waits: self.waits.wrapping_sub(before.waits),
            waited: self.waited.saturating_sub(before.waited),
            takeovers: self.takeovers.wrapping_sub(before.takeovers),
        }
    }
}

/// By what rows are told apart: a size, then a lane. Large blocks come last.
type Key = (u64, u16);

/// A change, and what became of the number of live blocks.
#[derive(Debug)]
struct Row {
    change: Change,
    growth: i64,
    has_live: bool,
}

impl Activity {
    /// What was allocated and freed since an earlier look at the same heap, by lane, and by size within a lane; only what
    /// did change.
    ///
    /// A lane counts each allocation right after it. The number of frees is what was allocated less what more there is, and
    /// never below 0; so it is off by what happens while a look walks through the heap. That does not grow with the time
    /// between the two looks: rates over a longer time are closer to the truth. More than 2^32 blocks of one size and lane
    /// between two looks are not seen.
    ///
    /// Blocks that change their lane together with their slab, because a thread ends or another one takes the slab over,
    /// count as neither allocated nor freed: within these limits the sum over all lanes is right for each size. Of a lane
    /// that is killed in the middle of a call the last block may not be counted.
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let before = heap.activity()?;
    /// for _ in 0..1000 {
    ///     heap.deallocate(heap.allocate(100)?)?;
    /// }
    /// heap.allocate(100)?;
    /// let changes = heap.activity()?.since(&before);
    /// assert_eq!((changes.len(), changes[0].size), (1, Some(112)));
    /// assert_eq!((changes[0].allocated, changes[0].freed), (1001, 1000));
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<Change> {
        let (earlier, later) = (before.rows(), self.rows());
        let keys: BTreeSet<&Key> = earlier.keys().chain(later.keys()).collect();
        let mut rows: Vec<Row> = keys.into_iter().map(|key| row(*key, earlier.get(key), later.get(key))).collect();
        rows.chunk_by_mut(|one, other| one.change.size == other.change.size).for_each(share_moved);
        let mut changes: Vec<Change> = rows.into_iter().map(|row| row.change).collect();
        changes.retain(|change| change.allocated != 0 || change.freed != 0);
        changes.sort_by_key(|change| (change.lane, change.size.unwrap_or(u64::MAX)));
        changes
    }

    fn rows(&self) -> BTreeMap<Key, &ClassActivity> {
        let of_lane = |lane: &LaneActivity| lane.lane;
        let rows = self.lanes.iter().flat_map(|lane| lane.classes.iter().map(move |class| (of_lane(lane), class)));
        rows.map(|(lane, class)| ((class.size.unwrap_or(u64::MAX), lane), class)).collect()
    }
}

/// What changed in a row. One that is missing has counted nothing, and has no blocks.
fn row((size, lane): Key, before: Option<&&ClassActivity>, after: Option<&&ClassActivity>) -> Row {
    let figures = |class: Option<&&ClassActivity>| class.map_or((0, 0), |class| (class.allocated_ever, class.allocated));
    let ((ever_before, live_before), (ever, live)) = (figures(before), figures(after));
    let size = (size != u64::MAX).then_some(size);
    let change = Change { lane, size, allocated: u64::from(ever.wrapping_sub(ever_before)), freed: 0 };
    let signed = |blocks: u64| i64::try_from(blocks).unwrap_or(i64::MAX);
    Row { change, growth: signed(live).saturating_sub(signed(live_before)), has_live: live != 0 }
}

/// Says what was freed in all rows of one size. Where a lane has more blocks than it allocated, they came from others, with
/// their slabs: they were not freed there. Lanes that have none left may have ended, and are asked first; then those that
/// have lost most.
fn share_moved(rows: &mut [Row]) {
    rows.sort_by_key(|row| (row.has_live, row.growth));
    let balance = |row: &Row| i64::try_from(row.change.allocated).unwrap_or(i64::MAX).saturating_sub(row.growth);
    let came = rows.iter().map(|row| balance(row).min(0)).fold(0, i64::saturating_add);
    let mut came = came.unsigned_abs();
    for row in rows {
        let gone = u64::try_from(balance(row)).unwrap_or(0);
        let moved = came.min(gone);
        came = came.saturating_sub(moved);
        row.change.freed = gone.saturating_sub(moved);
    }
}

impl Heap {
    /// Looks at the counters of what goes on: what every lane has allocated, by size, and what it has now.
    ///
    /// [`Activity::since`] tells what happened between two looks, and how exact that is. The counters are not part of an
    /// image: a heap that is loaded begins at 0.
    ///
    /// Walks the page table and the slabs' bitmaps once, without a lock, and disturbs nobody; a read-only handle will do.
    /// What others do meanwhile may be seen or not.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) where the page table is damaged; [`Error::Shrunk`](crate::Error::Shrunk).
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// heap.allocate(100)?;
    /// for lane in heap.activity()?.lanes {
    ///     for class in lane.classes {
    ///         println!("lane {}: {:?} bytes, {} blocks", lane.lane, class.size, class.allocated);
    ///     }
    /// }
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn activity(&self) -> Result<Activity> {
        let attachment = &*self.attachment;
        let (tables, classes) = (&attachment.tables, &attachment.classes);
        tables.region.check_whole()?;
        let page_shift = tables.geometry.page_shift;
        let mut held: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        self.walk(|_, pages, span| {
            let (key, blocks, size) = match span {
                Span::Free | Span::Kept { .. } => return,
                Span::Large { lane } => ((lane, LARGE_BLOCKS), 1, u64::from(pages).checked_shl(page_shift).unwrap_or(0)),
                Span::Slab(slab) => {
                    let blocks = u64::from(slab.allocated_count(tables));
                    ((slab.lane, slab.class), blocks, u64::from(slab.info.size))
                }
            };
            let (allocated, bytes) = held.entry(key).or_default();
            *allocated = allocated.saturating_add(blocks);
            *bytes = bytes.saturating_add(blocks.saturating_mul(size));
        })?;
        let of_lane = |lane: LaneId| {
            let record = tables.lane(lane)?;
            let all = classes.indices().chain([LARGE_BLOCKS]).map(|class| {
                let (allocated, allocated_bytes) = held.get(&(lane, class)).copied().unwrap_or_default();
                let allocated_ever = record.allocated_ever(class).load(Ordering::Relaxed);
                let size = classes.get(class).map(|info| u64::from(info.size));
                ClassActivity { size, allocated_ever, allocated, allocated_bytes }
            });
            let classes: Vec<_> = all.filter(|class| class.allocated_ever != 0 || class.allocated != 0).collect();
            let is_listed = lane.is_shared() || record.is_claimed() || !classes.is_empty();
            is_listed.then(|| LaneActivity { lane: lane.get(), classes })
        };
        Ok(Activity { lock: self.lock_stats(), lanes: tables.header.all_lanes().filter_map(of_lane).collect() })
    }

    /// How often, and how long, calls have waited for the heap lock, and how often it was taken from the dead.
    ///
    /// Constant time, without a lock; a read-only handle will do.
    #[must_use]
    pub fn lock_stats(&self) -> LockStats {
        let word = |at| self.attachment.tables.superblock(at).load(Ordering::Relaxed);
        LockStats {
            waits: word(superblock::LOCK_WAITS),
            waited: Duration::from_nanos(word(superblock::LOCK_WAITED_NS)),
            takeovers: word(superblock::TAKEOVERS),
        }
    }
}
