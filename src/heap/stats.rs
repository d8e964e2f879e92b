//! The heap in numbers.
//!
//! A *free block* here is a maximal run of free bytes, whatever it consists of: free pages, wholly free slabs, free blocks
//! of a slab. So coalescing can be seen, and a heap from which everything was freed has one free block and fragmentation
//! zero, even while threads keep empty slabs.

use std::fmt::{self, Write};

use super::Heap;
use super::inspect::Span;
use crate::alloc::Slab;
use crate::error::Result;
use crate::format::SHARED_LANE;

/// What [`Heap::stats`] counts. All sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The whole region.
    pub capacity: u64,
    /// The pages: `used + free + overhead`.
    pub total: u64,
    /// Usable bytes of allocated blocks.
    pub used: u64,
    /// Bytes in free blocks.
    pub free: u64,
    /// Bytes at the ends of slabs that make no whole block.
    pub overhead: u64,
    /// Allocated blocks.
    pub allocated_blocks: u64,
    /// Maximal runs of free bytes.
    pub free_blocks: u64,
    /// The largest of those.
    pub largest_free: u64,
    /// The smallest of those; 0 if there are none.
    pub smallest_free: u64,
    /// Free bytes outside the largest run.
    pub fragmentation: u64,
    /// Memory or disk that the region takes now; 0 for heaps in the caller's memory.
    pub taken: u64,
    /// Lanes of living threads.
    pub lanes_alive: u32,
    /// Lanes of dead ones that were not recovered yet.
    pub lanes_dead: u32,
    /// Roots.
    pub roots: u32,
    /// True if the heap's name was removed: nobody else can open it.
    pub unlinked: bool,
    /// The size classes that have slabs, from the smallest.
    pub classes: Vec<ClassStats>,
}

/// What [`Stats`] tells of one size class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ClassStats {
    /// Bytes per block.
    pub size: u64,
    /// Slabs.
    pub slabs: u32,
    /// Those of them that belong to no lane.
    pub orphans: u32,
    /// Blocks, allocated or free.
    pub blocks: u64,
    /// Allocated blocks.
    pub allocated: u64,
}

impl Stats {
    /// Free bytes outside the largest run, as a part of all free bytes: from 0 to 1.
    #[must_use]
    pub fn fragmentation_ratio(&self) -> f64 {
        if self.free == 0 { 0.0 } else { self.fragmentation as f64 / self.free as f64 }
    }
}

/// Counts runs of free bytes that come in the order of their places.
#[derive(Debug, Default)]
struct Runs {
    stats: Stats,
    /// The run that may go on.
    open: u64,
}

impl Runs {
    fn free(&mut self, bytes: u64) {
        self.open = self.open.saturating_add(bytes);
    }

    /// Something that is not free ends the run.
    fn close(&mut self) {
        let run = std::mem::take(&mut self.open);
        if run == 0 {
            return;
        }
        let stats = &mut self.stats;
        stats.free = stats.free.saturating_add(run);
        stats.free_blocks = stats.free_blocks.saturating_add(1);
        stats.largest_free = stats.largest_free.max(run);
        stats.smallest_free = if stats.smallest_free == 0 { run } else { stats.smallest_free.min(run) };
    }

    fn used(&mut self, bytes: u64) {
        self.close();
        self.stats.used = self.stats.used.saturating_add(bytes);
        self.stats.allocated_blocks = self.stats.allocated_blocks.saturating_add(1);
    }

    fn overhead(&mut self, bytes: u64) {
        if bytes != 0 {
            self.close();
            self.stats.overhead = self.stats.overhead.saturating_add(bytes);
        }
    }
}

impl Heap {
    /// Counts everything. Walks the page table and the slabs' bitmaps once, without a lock; what others do meanwhile may be
    /// counted or not.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) where the page table is damaged;
    /// [`Error::System`](crate::Error::System).
    ///
    /// ```
    /// # let heap = shmheap::Heap::options().create_in(shmheap::Memory::zeroed(1 << 20)?)?;
    /// let block = heap.allocate(5000)?;
    /// heap.deallocate(block)?;
    /// let stats = heap.stats()?;
    /// assert_eq!((stats.used, stats.free_blocks, stats.fragmentation), (0, 1, 0));
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn stats(&self) -> Result<Stats> {
        let attachment = &self.attachment;
        let tables = &attachment.tables;
        tables.region.check_whole()?;
        let page_shift = tables.geometry.page_shift;
        let bytes_of = |pages: u32| u64::from(pages).checked_shl(page_shift).unwrap_or(0);
        let mut runs = Runs::default();
        let mut classes = vec![ClassStats::default(); attachment.classes.count() as usize];
        let mut walked = 0u32;
        self.walk(|_, pages, span| {
            walked = walked.saturating_add(pages);
            match span {
                Span::Free | Span::Kept { .. } => runs.free(bytes_of(pages)),
                Span::Large { .. } => runs.used(bytes_of(pages)),
                Span::Slab(slab) => {
                    let allocated = self.count_slab(&slab, bytes_of(pages), &mut runs);
                    if let Some(class) = classes.get_mut(usize::from(slab.class.0)) {
                        class.size = u64::from(slab.info.size);
                        class.slabs = class.slabs.saturating_add(1);
                        class.orphans = class.orphans.saturating_add(u32::from(slab.lane == SHARED_LANE));
                        class.blocks = class.blocks.saturating_add(u64::from(slab.info.blocks));
                        class.allocated = class.allocated.saturating_add(allocated);
                    }
                }
            }
        })?;
        runs.free(bytes_of(tables.geometry.pages.saturating_sub(walked)));
        runs.close();
        let mut stats = runs.stats;
        stats.capacity = self.capacity();
        stats.total = self.total_size();
        stats.fragmentation = stats.free.saturating_sub(stats.largest_free);
        stats.taken = tables.region.object().map_or(Ok(0), |object| object.taken_bytes())?;
        for lane in tables.header.lane_ids().filter(|lane| tables.lane(*lane).is_some_and(|record| record.is_claimed())) {
            let alive = attachment.liveness.is_alive(lane.token())?;
            let count = if alive { &mut stats.lanes_alive } else { &mut stats.lanes_dead };
            *count = count.saturating_add(1);
        }
        stats.roots = attachment.count_roots();
        stats.unlinked = self.is_unlinked()?;
        stats.classes = classes.into_iter().filter(|class| class.slabs != 0).collect();
        Ok(stats)
    }

    /// Adds a slab's blocks to the runs; returns how many are allocated.
    fn count_slab(&self, slab: &Slab<'_>, bytes: u64, runs: &mut Runs) -> u64 {
        let tables = &self.attachment.tables;
        let size = u64::from(slab.info.size);
        let mut allocated = 0u64;
        let mut counted = Runs { stats: std::mem::take(&mut runs.stats), open: runs.open };
        for word in 0..slab.info.words() {
            let bits = slab.allocated(tables, word);
            allocated = allocated.saturating_add(u64::from(bits.count_ones()));
            let blocks = slab.info.mask(word).count_ones();
            for bit in 0..blocks {
                if bits >> bit & 1 != 0 { counted.used(size) } else { counted.free(size) }
            }
        }
        if allocated == 0 {
            // A wholly free slab is as good as free pages: its end is no overhead.
            runs.stats = counted.stats;
            runs.free(bytes);
        } else {
            counted.overhead(bytes.saturating_sub(size.saturating_mul(u64::from(slab.info.blocks))));
            *runs = counted;
        }
        allocated
    }

    /// Usable bytes of all allocated blocks. Walks the heap; see [`Heap::stats`].
    ///
    /// # Errors
    ///
    /// As [`Heap::stats`].
    pub fn used_size(&self) -> Result<u64> {
        Ok(self.stats()?.used)
    }

    /// Bytes in free blocks. Walks the heap; see [`Heap::stats`].
    ///
    /// # Errors
    ///
    /// As [`Heap::stats`].
    pub fn free_size(&self) -> Result<u64> {
        Ok(self.stats()?.free)
    }

    /// Free bytes outside the largest free block: 0 when all that is free is in one piece.
    ///
    /// # Errors
    ///
    /// As [`Heap::stats`].
    pub fn fragmentation(&self) -> Result<u64> {
        Ok(self.stats()?.fragmentation)
    }

    /// Bytes in the largest free block.
    ///
    /// # Errors
    ///
    /// As [`Heap::stats`].
    pub fn largest_free(&self) -> Result<u64> {
        Ok(self.stats()?.largest_free)
    }

    /// A report for people: [`Heap::stats`] and [`Heap::lanes`] as text.
    ///
    /// # Errors
    ///
    /// As [`Heap::stats`].
    pub fn dump_stats(&self) -> Result<String> {
        let mut text = format!("heap {}\n{}", self.name(), self.stats()?);
        for lane in self.lanes()? {
            let state = if lane.alive { "alive" } else { "dead" };
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "lane {:>4}  pid {:<8} thread {:<8} {state:<5} {:>6} slabs  {:>14} bytes held",
                lane.lane, lane.pid, lane.thread, lane.slabs, lane.bytes_held
            );
        }
        Ok(text)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "capacity        {:>16} bytes", self.capacity)?;
        writeln!(f, "pages           {:>16} bytes", self.total)?;
        writeln!(f, "used            {:>16} bytes in {} blocks", self.used, self.allocated_blocks)?;
        writeln!(f, "free            {:>16} bytes in {} blocks", self.free, self.free_blocks)?;
        writeln!(f, "largest free    {:>16} bytes, smallest {}", self.largest_free, self.smallest_free)?;
        writeln!(f, "fragmentation   {:>16} bytes ({:.1} %)", self.fragmentation, self.fragmentation_ratio() * 100.0)?;
        writeln!(f, "slab ends       {:>16} bytes", self.overhead)?;
        writeln!(f, "memory taken    {:>16} bytes", self.taken)?;
        writeln!(f, "lanes           {:>16} alive, {} dead", self.lanes_alive, self.lanes_dead)?;
        writeln!(f, "roots           {:>16}", self.roots)?;
        if self.unlinked {
            writeln!(f, "unlinked: nobody else can open it; save() keeps what it holds")?;
        }
        if !self.classes.is_empty() {
            writeln!(
                f,
                "{:>10} {:>8} {:>8} {:>12} {:>12} {:>7}",
                "class", "slabs", "orphans", "blocks", "allocated", "full"
            )?;
        }
        for class in &self.classes {
            let full = class.allocated as f64 * 100.0 / (class.blocks.max(1)) as f64;
            let ClassStats { size, slabs, orphans, blocks, allocated } = class;
            writeln!(f, "{size:>10} {slabs:>8} {orphans:>8} {blocks:>12} {allocated:>12} {full:>5.1} %")?;
        }
        Ok(())
    }
}
