//! One span, block by block.

use shmheap::{Error, Heap, Offset, Result, SpanInfo, SpanUsage};

/// What a span is, as far as a zoom tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A slab, with its blocks in the order of their numbers.
    Slab { block_size: u64, blocks: Vec<Block> },
    /// One block of whole pages.
    Large,
    /// A free span that a lane keeps.
    Kept,
    /// Free pages; true if memory is taken for them.
    Free { reserved: bool },
}

/// A block of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) offset: u64,
    pub(crate) allocated: bool,
}

/// The span around an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zoom {
    /// What was asked for.
    pub(crate) at: u64,
    /// Where the span starts.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) len: u64,
    pub(crate) subject: Subject,
    /// The lane that it belongs to.
    pub(crate) lane: Option<u16>,
}

impl Zoom {
    /// Looks at the span around this offset; `None` if there is none: metadata, or beyond damage or the heap's end.
    pub(crate) fn of(heap: &Heap, at: u64) -> Result<Option<Self>> {
        let holds = |span: &SpanInfo| (span.offset.get()..span.offset.get().saturating_add(span.len)).contains(&at);
        let Some(span) = heap.spans().find(holds) else { return Ok(None) };
        let (subject, lane) = match span.usage {
            SpanUsage::Slab { block_size, blocks, lane, .. } => {
                (Subject::Slab { block_size, blocks: look(heap, span.offset, block_size, blocks)? }, lane)
            }
            SpanUsage::Large { lane } => (Subject::Large, lane),
            SpanUsage::Kept { lane } => (Subject::Kept, lane),
            SpanUsage::Free { reserved } => (Subject::Free { reserved }, None),
            _ => return Ok(None),
        };
        Ok(Some(Self { at, offset: span.offset.get(), len: span.len, subject, lane }))
    }

    /// Number of the block of a slab in which the offset lies that was asked for.
    pub(crate) fn asked(&self) -> Option<usize> {
        let Subject::Slab { block_size, blocks } = &self.subject else { return None };
        let number = usize::try_from((self.at - self.offset) / (*block_size).max(1)).ok()?;
        (number < blocks.len()).then_some(number)
    }
}

fn look(heap: &Heap, start: Offset, block_size: u64, blocks: u32) -> Result<Vec<Block>> {
    let starts = (0..u64::from(blocks)).filter_map(|number| Offset::new(start.get().checked_add(number * block_size)?));
    let look = |offset: Offset| match heap.info(offset) {
        Ok(_) => Ok(Block { offset: offset.get(), allocated: true }),
        // Also if somebody frees the whole slab while it is looked at.
        Err(Error::DoubleFree { .. } | Error::InvalidOffset { .. }) => Ok(Block { offset: offset.get(), allocated: false }),
        Err(error) => Err(error),
    };
    starts.map(look).collect()
}

#[cfg(test)]
mod tests {
    use shmheap::Memory;

    use super::*;

    #[test]
    fn a_slab_is_told_block_by_block() {
        let heap = Heap::options().create_in(Memory::zeroed(4 << 20).expect("memory")).expect("a heap");
        let blocks: Vec<Offset> = (0..3).map(|_| heap.allocate(1000).expect("a block")).collect();
        heap.deallocate(blocks[1]).expect("it was allocated");
        let zoom = Zoom::of(&heap, blocks[2].get() + 7).expect("the heap is whole").expect("a span");
        let Subject::Slab { block_size, blocks: found } = &zoom.subject else { panic!("{zoom:?}") };
        assert_eq!((*block_size, zoom.lane.is_some()), (1024, true));
        let allocated: Vec<u64> = found.iter().filter(|block| block.allocated).map(|block| block.offset).collect();
        assert_eq!(allocated, [blocks[0].get(), blocks[2].get()]);
        assert_eq!(zoom.asked().map(|number| found[number].offset), Some(blocks[2].get()));
    }

    #[test]
    fn what_is_no_slab_is_told_too() {
        let heap = Heap::options().create_in(Memory::zeroed(4 << 20).expect("memory")).expect("a heap");
        let large = heap.allocate(100_000).expect("a block");
        let zoom = Zoom::of(&heap, large.get() + 50_000).expect("the heap is whole").expect("a span");
        assert_eq!((zoom.offset, zoom.len, &zoom.subject), (large.get(), 102_400, &Subject::Large));
        let last = heap.pages_start() + heap.total_size() - 1;
        let free = Zoom::of(&heap, last).expect("the heap is whole").expect("a span");
        assert!(matches!(free.subject, Subject::Free { .. }) && free.asked().is_none());
        assert_eq!(Zoom::of(&heap, 0), Ok(None));
        assert_eq!(Zoom::of(&heap, u64::MAX), Ok(None));
    }
}
