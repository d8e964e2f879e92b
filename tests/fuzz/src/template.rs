//! Templates: valid regions with live contents, made once by the library and put under each input.

use shmheap::Heap;

use super::{Ground, Layout};

/// A region's bytes.
#[derive(Debug)]
pub struct Template {
    layout: Layout,
    bytes: Vec<u8>,
}

/// Capacity of most regions here: the smallest that a heap can have.
pub(super) const SMALL: usize = 64 << 10;
/// Capacity of a region with more than one summary node on the lowest level, and thus with two levels.
pub(super) const TALL: usize = 2304 << 10;

impl Template {
    /// Bytes of a heap that nobody has used yet.
    pub fn fresh(layout: Layout, len: usize) -> Self {
        let mut bytes = vec![0; len];
        bytes[..128].copy_from_slice(&layout.header());
        Self { layout, bytes }
    }

    /// A small heap whose users have left in good order: slabs of several classes, all orphans, a large block, a cell,
    /// roots.
    pub fn left() -> Self {
        let (ground, heap) = new_ground(SMALL);
        furnish(&heap);
        drop(heap);
        Self { layout: Layout::usual(SMALL as u64), bytes: ground.bytes() }
    }

    /// A small heap whose user died while it constructed a root: slabs of its own, and spans that it keeps.
    pub fn dead() -> Self {
        let (ground, heap) = new_ground(SMALL);
        furnish(&heap);
        let mut bytes = Vec::new();
        let construct = |_| {
            bytes = ground.bytes();
            Ok(())
        };
        heap.find_or_construct("half made", 40, construct).expect("there is room for the root's block");
        Self { layout: Layout::usual(SMALL as u64), bytes }
    }

    /// A heap of more than 512 pages: two levels of summaries, and more pages in use than one node covers.
    pub fn tall() -> Self {
        let (ground, heap) = new_ground(TALL);
        let [first, _, third] = [200, 250, 60].map(|pages| heap.allocate(pages * 4096).expect("there is room"));
        let small = heap.allocate(100).expect("there is room");
        heap.set_root("small", small).expect("there is a slot");
        [first, third].into_iter().for_each(|block| heap.deallocate(block).expect("it is allocated"));
        heap.trim().expect("the heap is sound");
        drop(heap);
        Self { layout: Layout::usual(TALL as u64), bytes: ground.bytes() }
    }

    /// Where its tables are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn new_ground(len: usize) -> (Ground, Heap) {
    let ground = Ground::new(len);
    let heap = Heap::options().lanes(4).root_slots(16).create_in(ground.memory()).expect("a heap fits");
    (ground, heap)
}

/// Puts blocks of many kinds into a heap.
fn furnish(heap: &Heap) {
    let allocate = |size: usize| heap.allocate(size).expect("there is room");
    // A slab whose thread has ended, with room; a block of it is freed from afar.
    let from_afar = std::thread::scope(|scope| {
        let work = || [64, 64, 64, 200].map(allocate);
        scope.spawn(work).join().expect("the thread's work does not panic")
    });
    let blocks = [16, 16, 48, 320, 1000].map(allocate);
    let large = allocate(5000);
    let gone = allocate(9000);
    for block in [gone, blocks[1], from_afar[1]] {
        heap.deallocate(block).expect("it is allocated");
    }
    let cells = heap.allocate_zeroed(64).expect("there is room");
    heap.allocate_into(cells, 40).expect("the cell is empty");
    // A slab that is wholly free, and is kept.
    let kept = allocate(700);
    heap.deallocate(kept).expect("it is allocated");
    let roots = [("cells", cells), ("large", large), ("removed", blocks[0]), ("far", from_afar[0])];
    for (name, block) in roots {
        heap.set_root(name, block).expect("there is a slot");
    }
    heap.remove_root("removed").expect("it is there");
}
