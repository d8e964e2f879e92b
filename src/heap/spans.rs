//! What stands where: the heap as a row of spans, for those who draw it.
//!
//! Not here: the blocks themselves (`inspect`), sums (`stats`).

use std::sync::atomic::Ordering;

use super::Heap;
use super::inspect::Span;
use crate::error::Result;
use crate::format::{LaneId, SHARED_LANE};
use crate::region::Offset;

/// A run of pages, and what it is used for; see [`Heap::spans`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpanInfo {
    /// Where it starts.
    pub offset: Offset,
    /// Its length in bytes, a multiple of the page size.
    pub len: u64,
    /// What it is used for.
    pub usage: SpanUsage,
}

/// What a span is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanUsage {
    /// Nothing.
    Free {
        /// True if memory is taken for it all the same, until [`Heap::trim`] gives it back.
        reserved: bool,
    },
    /// A slab, cut into equal blocks.
    Slab {
        /// Bytes per block.
        block_size: u64,
        /// Blocks, allocated or free.
        blocks: u32,
        /// Allocated blocks.
        allocated: u32,
        /// The lane that owns it; `None` for an orphan.
        lane: Option<u16>,
    },
    /// One block of whole pages.
    Large {
        /// The lane that allocated it, as long as somebody sits there; `None` for an orphan.
        lane: Option<u16>,
    },
    /// A free span that a lane keeps for its next use.
    Kept {
        /// The lane; `None` while the span is being taken from it.
        lane: Option<u16>,
    },
}

/// Iterator over a heap's spans; see [`Heap::spans`].
#[derive(Debug)]
pub struct Spans<'a> {
    heap: &'a Heap,
    /// The page after the last span that was returned.
    page: u32,
}

fn as_public(lane: LaneId) -> Option<u16> {
    (lane != SHARED_LANE).then(|| lane.get())
}

impl Heap {
    /// All of the heap's pages, in the order of their offsets, as spans: free runs, slabs, large blocks.
    ///
    /// Takes no lock: what others change meanwhile may be seen before or after it, or in part. Ends early where the page
    /// table is damaged ([`Heap::validate`] tells). Time proportional to the pages in use so far.
    ///
    /// # Examples
    ///
    /// ```
    /// use shmheap::{Heap, Memory, SpanUsage};
    ///
    /// let heap = Heap::options().create_in(Memory::zeroed(1 << 20)?)?;
    /// heap.allocate(100)?;
    /// let slabs = heap.spans().filter(|span| matches!(span.usage, SpanUsage::Slab { allocated: 1, .. })).count();
    /// assert_eq!(slabs, 1);
    /// assert_eq!(heap.spans().map(|span| span.len).sum::<u64>(), heap.total_size());
    /// # Ok::<(), shmheap::Error>(())
    /// ```
    pub fn spans(&self) -> Spans<'_> {
        Spans { heap: self, page: 0 }
    }

    /// Bytes per page.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.attachment.tables.geometry.page_size()
    }

    /// Where the first page starts, in bytes from the start of the region: what stands before it is metadata, and so is what
    /// stands behind the last page, at this place plus [`Heap::total_size`].
    #[must_use]
    pub fn pages_start(&self) -> u64 {
        self.attachment.tables.geometry.data_start
    }

    /// How many threads, of all processes, can have a lane of their own ([`Options::lanes`](crate::Options::lanes)).
    #[must_use]
    pub fn lanes_max(&self) -> u32 {
        self.attachment.tables.geometry.lanes
    }

    /// How many roots there can be ([`Options::root_slots`](crate::Options::root_slots)).
    #[must_use]
    pub fn root_slots(&self) -> u32 {
        self.attachment.tables.geometry.root_slots
    }

    /// When the heap was created or loaded, in milliseconds since 1970.
    #[must_use]
    pub fn created_ms(&self) -> u64 {
        self.attachment.tables.header.created_ms
    }
}

impl Spans<'_> {
    /// Whether memory is taken for a page that is in use so far; what is beyond those has none.
    fn is_reserved(&self, page: u32) -> bool {
        let tables = &self.heap.attachment.tables;
        page < tables.pages_high() && tables.reserved_word(page / 64).load(Ordering::Relaxed) >> (page % 64) & 1 != 0
    }

    /// How many free pages alike follow, from `self.page` on.
    fn free_run(&self, reserved: bool) -> Result<u32> {
        let pages = self.heap.attachment.tables.geometry.pages;
        let mut end = self.page;
        while end < pages {
            match self.heap.span_at(end)? {
                Some((_, _, Span::Free)) if self.is_reserved(end) == reserved => end = end.saturating_add(1),
                Some(_) => break,
                // Beyond the pages in use everything is free, and nothing reserved.
                None if reserved => break,
                None => end = pages,
            }
        }
        Ok(end.saturating_sub(self.page))
    }

    fn look(&self) -> Result<Option<(u32, SpanUsage)>> {
        let tables = &self.heap.attachment.tables;
        if self.page >= tables.geometry.pages {
            return Ok(None);
        }
        let (pages, usage) = match self.heap.span_at(self.page)? {
            None | Some((_, _, Span::Free)) => {
                let reserved = self.is_reserved(self.page);
                (self.free_run(reserved)?.max(1), SpanUsage::Free { reserved })
            }
            Some((_, pages, Span::Large { lane })) => (pages, SpanUsage::Large { lane: as_public(lane) }),
            Some((_, pages, Span::Kept { lane })) => (pages, SpanUsage::Kept { lane: as_public(lane) }),
            Some((_, pages, Span::Slab(slab))) => {
                let (block_size, blocks) = (u64::from(slab.info.size), slab.info.blocks);
                let allocated = slab.allocated_count(tables);
                (pages, SpanUsage::Slab { block_size, blocks, allocated, lane: as_public(slab.lane) })
            }
        };
        Ok(Some((pages, usage)))
    }
}

impl Iterator for Spans<'_> {
    type Item = SpanInfo;

    fn next(&mut self) -> Option<SpanInfo> {
        if self.page == 0 {
            self.heap.attachment.tables.region.check_whole().ok()?;
        }
        let (pages, usage) = self.look().ok().flatten()?;
        let geometry = &self.heap.attachment.tables.geometry;
        let bytes_of = |pages: u32| u64::from(pages).saturating_mul(geometry.page_size());
        let offset = Offset::new(geometry.data_start.saturating_add(bytes_of(self.page)))?;
        self.page = self.page.saturating_add(pages);
        Some(SpanInfo { offset, len: bytes_of(pages), usage })
    }
}
