//! The region cut into equal cells, and what each of them holds.
//!
//! A cell is a power of two of pages, so that offsets along an axis are round numbers. The row of cells goes from the start
//! of the region to its end: metadata at both ends is shown too.

use shmheap::{Error, Heap, Result, SpanInfo, SpanUsage, Stats};

/// How often a heap is looked at whose numbers contradict each other: others may be changing it.
const LOOKS_MAX: u32 = 3;
/// Most cells that a map has, whatever is asked for.
const CELLS_MAX: usize = 1 << 20;

/// What most bytes of a cell are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The heap's own tables.
    Metadata,
    /// Nothing, and no memory is taken for it.
    Free,
    /// Nothing, but memory is taken for it.
    Reserved,
    /// Nothing, but a lane keeps it for its next use.
    Kept,
    /// Slabs with blocks of so many bytes.
    Slab { block_size: u64 },
    /// Blocks of whole pages.
    Large,
    /// It cannot be told: the page table is damaged there or before.
    Unknown,
}

/// A part of the region.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cell {
    /// Where it starts.
    pub(crate) offset: u64,
    /// Its bytes; those of the last cell may be fewer.
    pub(crate) len: u64,
    /// What most of its bytes are used for.
    pub(crate) content: Content,
    /// The allocated part of the bytes that are used so, from 0 to 1.
    pub(crate) fullness: f64,
    /// True if any of its bytes belong to an orphan: a slab or a large block of no lane.
    pub(crate) orphan: bool,
}

/// A heap, cut into cells.
#[derive(Debug)]
pub(crate) struct Map {
    /// Bytes per cell.
    pub(crate) cell_len: u64,
    /// Bytes per page.
    pub(crate) page_size: u64,
    /// The cells, in the order of their offsets: never empty.
    pub(crate) cells: Vec<Cell>,
    /// The heap in numbers; the error if it is damaged.
    pub(crate) stats: Result<Stats>,
}

impl Map {
    /// Looks at a heap, and cuts it into at most so many cells.
    ///
    /// Fails if the heap cannot be looked at. One that is damaged has a map: what lies behind the damage is
    /// [`Content::Unknown`].
    pub(crate) fn of(heap: &Heap, cells: usize) -> Result<Self> {
        let mut stats = heap.stats();
        for _ in 1..LOOKS_MAX {
            if !matches!(stats, Err(Error::Corrupt(_))) {
                break;
            }
            stats = heap.stats();
        }
        if let Err(error) = &stats
            && !matches!(error, Error::Corrupt(_))
        {
            return Err(error.clone());
        }
        let cell_len = cell_len(heap.capacity(), heap.page_size(), cells.clamp(1, CELLS_MAX));
        let mut cutter = Cutter { cell_len, capacity: heap.capacity(), cells: Vec::new(), at: 0, open: Vec::new() };
        cutter.add(heap.pages_start(), Use::metadata());
        for span in heap.spans() {
            cutter.add(span.len, Use::of(&span));
        }
        let pages_end = heap.pages_start() + heap.total_size();
        cutter.add(pages_end.saturating_sub(cutter.at), Use::plain(Content::Unknown));
        cutter.add(heap.capacity().saturating_sub(cutter.at), Use::metadata());
        Ok(Self { cell_len, page_size: heap.page_size(), cells: cutter.close(), stats })
    }

    /// Pages per cell.
    pub(crate) fn pages_per_cell(&self) -> u64 {
        self.cell_len / self.page_size
    }

    /// Whether any cell holds this.
    pub(crate) fn has(&self, is_it: impl Fn(&Cell) -> bool) -> bool {
        self.cells.iter().any(is_it)
    }
}

/// The smallest power of two of pages with which the region has at most so many cells.
fn cell_len(capacity: u64, page_size: u64, cells: usize) -> u64 {
    let mut len = page_size.max(1);
    while capacity.div_ceil(len) > cells as u64 && len < 1 << 62 {
        len *= 2;
    }
    len
}

/// What a run of bytes is used for.
#[derive(Debug, Clone, Copy)]
struct Use {
    content: Content,
    fullness: f64,
    orphan: bool,
}

impl Use {
    fn plain(content: Content) -> Self {
        Self { content, fullness: 0.0, orphan: false }
    }

    fn metadata() -> Self {
        Self { fullness: 1.0, ..Self::plain(Content::Metadata) }
    }

    fn of(span: &SpanInfo) -> Self {
        match span.usage {
            SpanUsage::Free { reserved: false } => Self::plain(Content::Free),
            SpanUsage::Free { reserved: true } => Self::plain(Content::Reserved),
            SpanUsage::Kept { .. } => Self::plain(Content::Kept),
            SpanUsage::Large { lane } => Self { content: Content::Large, fullness: 1.0, orphan: lane.is_none() },
            SpanUsage::Slab { block_size, blocks, allocated, lane } => {
                let fullness = f64::from(allocated) / f64::from(blocks.max(1));
                Self { content: Content::Slab { block_size }, fullness: fullness.min(1.0), orphan: lane.is_none() }
            }
            _ => Self::plain(Content::Unknown),
        }
    }
}

/// How much of a cell holds one kind of content.
#[derive(Debug, Clone, Copy)]
struct Tally {
    content: Content,
    bytes: u64,
    allocated: f64,
    orphan: bool,
}

/// Cuts a row of runs into cells as they come: in time and memory for the runs and the cells, not for the bytes.
#[derive(Debug)]
struct Cutter {
    cell_len: u64,
    capacity: u64,
    cells: Vec<Cell>,
    /// Where the next run starts.
    at: u64,
    /// What is known of the cell that is not complete.
    open: Vec<Tally>,
}

impl Cutter {
    fn add(&mut self, len: u64, usage: Use) {
        // What a damaged table says never reaches beyond the region.
        let end = self.at.saturating_add(len).min(self.capacity);
        while self.at < end {
            let cell_end = (self.at / self.cell_len + 1) * self.cell_len;
            let bytes = cell_end.min(end) - self.at;
            self.count(bytes, usage);
            self.at += bytes;
            if self.at == cell_end {
                self.finish();
            }
        }
    }

    fn count(&mut self, bytes: u64, usage: Use) {
        let Use { content, fullness, orphan } = usage;
        let index = self.open.iter().position(|tally| tally.content == content).unwrap_or_else(|| {
            self.open.push(Tally { content, bytes: 0, allocated: 0.0, orphan: false });
            self.open.len() - 1
        });
        let tally = &mut self.open[index];
        tally.bytes += bytes;
        tally.allocated += bytes as f64 * fullness;
        tally.orphan |= orphan;
    }

    fn finish(&mut self) {
        let tallies = std::mem::take(&mut self.open);
        let len = tallies.iter().map(|tally| tally.bytes).sum();
        let orphan = tallies.iter().any(|tally| tally.orphan);
        if let Some(most) = tallies.into_iter().max_by_key(|tally| tally.bytes) {
            let fullness = most.allocated / most.bytes.max(1) as f64;
            self.cells.push(Cell { offset: self.at - len, len, content: most.content, fullness, orphan });
        }
    }

    fn close(mut self) -> Vec<Cell> {
        self.finish();
        self.cells
    }
}

#[cfg(test)]
mod tests {
    use shmheap::Memory;

    use super::*;

    fn cutter(cell_len: u64, capacity: u64) -> Cutter {
        Cutter { cell_len, capacity, cells: Vec::new(), at: 0, open: Vec::new() }
    }

    #[test]
    fn a_cell_shows_what_most_of_its_bytes_hold_and_every_orphan() {
        let mut cutter = cutter(100, 250);
        let slab = |block_size, fullness, orphan| Use { content: Content::Slab { block_size }, fullness, orphan };
        cutter.add(30, slab(16, 1.0, true));
        cutter.add(20, slab(32, 1.0, false));
        cutter.add(25, Use::plain(Content::Free));
        cutter.add(40, slab(32, 0.5, false));
        cutter.add(u64::MAX, Use::plain(Content::Free));
        let cells = cutter.close();
        assert_eq!(cells.iter().map(|cell| (cell.offset, cell.len)).collect::<Vec<_>>(), [(0, 100), (100, 100), (200, 50)]);
        let first = cells[0];
        assert_eq!((first.content, first.orphan), (Content::Slab { block_size: 32 }, true));
        assert!((first.fullness - (20.0 + 25.0 * 0.5) / 45.0).abs() < 1e-9, "{first:?}");
        assert_eq!((cells[1].content, cells[1].orphan), (Content::Free, false));
    }

    #[test]
    fn the_cells_of_a_heap_cover_it_and_are_as_few_as_was_asked_for() {
        let heap = Heap::options().create_in(Memory::zeroed(4 << 20).expect("memory")).expect("a heap");
        heap.allocate(100).expect("a block");
        heap.allocate(300_000).expect("a large block");
        for cells in [0, 1, 7, 100, 1024, usize::MAX] {
            let map = Map::of(&heap, cells).expect("a map");
            assert!(map.cells.len() <= cells.max(1), "{} of {cells}", map.cells.len());
            assert_eq!(map.cells.iter().map(|cell| cell.len).sum::<u64>(), heap.capacity());
            assert!(map.cell_len >= map.page_size && map.pages_per_cell().is_power_of_two());
        }
        let map = Map::of(&heap, 1024).expect("a map");
        assert_eq!(map.pages_per_cell(), 1);
        assert_eq!(map.cells[0].content, Content::Metadata);
        assert_eq!(map.cells.iter().filter(|cell| cell.content == Content::Large).count(), 74);
        assert!(map.has(|cell| matches!(cell.content, Content::Slab { block_size: 112 }) && !cell.orphan));
        assert!(!map.has(|cell| cell.content == Content::Unknown || cell.orphan) && map.stats.is_ok());
    }
}
