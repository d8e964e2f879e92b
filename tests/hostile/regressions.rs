//! What was found, told one by one. tests/fuzz/findings/README.md lists all of it, with what found it.

use std::sync::atomic::Ordering;

use shmheap::{Error, Heap, Memory, Offset};

use super::targets::{Ground, Layout};

const SMALL: usize = 64 << 10;
const PAGE: u64 = 4096;

/// A heap on a ground, and where its tables are.
fn stage() -> (Ground, Layout, Heap) {
    let ground = Ground::new(SMALL);
    let heap = Heap::options().lanes(4).root_slots(16).create_in(ground.memory()).expect("a heap fits");
    (ground, Layout::usual(SMALL as u64), heap)
}

/// Place of the entry of the page in which `offset` lies.
fn entry_at(layout: &Layout, offset: Offset) -> u64 {
    layout.area(4).0 + (offset.get() - layout.data_start) / PAGE * 8
}

fn is_corrupt<T>(result: shmheap::Result<T>) -> bool {
    matches!(result, Err(Error::Corrupt(_)))
}

/// `blocks`, `lanes` and `stats` took the length of a large block from its entry as it stood. A length that reached
/// beyond the pages was handed out, for callers to read and write by.
#[test]
fn a_block_that_is_said_to_reach_beyond_the_pages_is_not_listed() {
    let (ground, layout, heap) = stage();
    let block = heap.allocate(5000).expect("room");
    let entry = ground.word(entry_at(&layout, block));
    let good = entry.load(Ordering::Relaxed);
    for pages in [13, 1 << 20, u64::from(u32::MAX)] {
        entry.store(good & 0xffff_ffff | pages << 32, Ordering::Relaxed);
        assert_eq!(heap.blocks().count(), 0);
        assert!(is_corrupt(heap.stats()) && is_corrupt(heap.lanes()) && is_corrupt(heap.usable_size(block)));
    }
    entry.store(good, Ordering::Relaxed);
    assert_eq!(heap.blocks().count(), 1);
}

/// A root that says "under construction", by a lane that nobody has claimed, made `find_or_construct` go round for
/// ever: there was nobody to wait for, and nobody dead to see to.
#[test]
fn a_root_that_nobody_constructs_is_an_error() {
    let (ground, layout, heap) = stage();
    let block = heap.allocate(100).expect("room");
    heap.set_root("it", block).expect("a slot");
    let (start, len) = layout.area(3);
    let is_live = |at: &u64| ground.word(*at).load(Ordering::Relaxed) & 0xff == 2;
    let at = (start..start + len).step_by(128).find(is_live).expect("the root is there");
    ground.set_byte(at, 3);
    for lane in [0, 3, 9, 1 << 40] {
        ground.word(at + 0x10).store(lane, Ordering::Relaxed);
        assert!(is_corrupt(heap.find_or_construct("it", 100, |_| Ok(()))), "lane {lane}");
    }
}

/// A slab was believed to have all its pages wherever its entry stood. One on the last page, of a class with longer
/// slabs, had its bits behind the end of the region: an assertion stopped the process.
#[test]
fn a_slab_that_reaches_beyond_the_last_page_is_an_error() {
    // Slabs of 64 KiB and more.
    let layout = Layout::new(1 << 20, 12, 4, 16, 40, 1 << 16).expect("a layout");
    let ground = Ground::new(1 << 20);
    ground.put(0, &layout.header());
    let heap = ground.open().expect("an empty heap can be attached");
    heap.deallocate(heap.allocate(40).expect("room")).expect("it is allocated");
    let last = layout.data_end - PAGE;
    for class in 0..40u64 {
        ground.word(entry_at(&layout, Offset::new(last).expect("not 0"))).store(1 | class << 8, Ordering::Relaxed);
        assert!(is_corrupt(heap.info(Offset::new(last).expect("not 0"))), "class {class}");
        assert!(is_corrupt(heap.stats()) && is_corrupt(heap.validate()), "class {class}");
        assert_eq!(heap.blocks().count(), 0);
    }
}

/// In memory whose length is no multiple of 8, an intent could name a cell in the last bytes, of which there are less
/// than 8: an assertion stopped the process that recovered.
#[test]
fn an_intent_names_a_cell_or_is_an_error() {
    for cell in [SMALL as u64, SMALL as u64 - 8, 0x100, 0, 0x3004, !7] {
        let ground = Ground::new(SMALL + PAGE as usize);
        let heap = Heap::options().lanes(4).root_slots(16).create_in(short(&ground)).expect("a heap fits");
        drop(heap);
        // Lane 1 is claimed, by nobody alive; an intent to free is under way, and so is a recovery.
        ground.set_byte(0x1200, 1);
        for (at, word) in [(0x1280, 2), (0x1288, cell), (0x1290, 0x3000), (0x108, 1)] {
            ground.word(at).store(word, Ordering::Relaxed);
        }
        assert!(is_corrupt(Heap::options().open_in(short(&ground))), "cell {cell:#x}");
    }
}

/// Memory of a length that is no multiple of 8.
fn short(ground: &Ground) -> Memory {
    ground.memory_of(SMALL + 1)
}

/// Summaries and in-use bits, which are derived, were believed without a look at the entries, which are the truth: one
/// changed bit, and a large block was allocated over a living one.
#[test]
fn pages_that_are_only_said_to_be_free_are_not_handed_out() {
    let (ground, layout, heap) = stage();
    let block = heap.allocate(5000).expect("room");
    let (in_use, summary) = (ground.word(layout.area(8).0), ground.word(layout.area(11).0));
    in_use.store(0, Ordering::Relaxed);
    summary.store(12 | 12 << 32, Ordering::Relaxed);
    assert!(is_corrupt(heap.allocate(6000)));
    assert!(heap.usable_size(block).is_ok());
    // A run that is longer than the heap.
    summary.store(u64::MAX, Ordering::Relaxed);
    assert!(is_corrupt(heap.allocate(12 * 4096)));
}

/// A journal record that could not be applied was armed all the same, and stayed so.
#[test]
fn what_cannot_be_applied_is_not_written_into_the_journal() {
    let (ground, layout, heap) = stage();
    let block = heap.allocate(20_000).expect("room");
    // A kept span that reaches beyond the pages.
    ground.word(entry_at(&layout, block)).store(5 | 1 << 16 | 500 << 32, Ordering::Relaxed);
    assert!(is_corrupt(heap.trim()));
    assert_eq!(ground.word(0x148).load(Ordering::Relaxed), 0, "the journal is at rest");
}

/// A lane that was led to adopt a slab of its own had it in its private list twice. When its neighbours there left the
/// list, it became a circle, in which the end of the lane went round for ever, and took memory all the while.
#[test]
fn a_slab_is_never_taken_twice_by_one_lane() {
    let (ground, layout, heap) = stage();
    // Three slabs of eight blocks on two pages each, all full.
    let blocks: Vec<Offset> = (0..24).map(|_| heap.allocate(1000).expect("room")).collect();
    let entry = entry_at(&layout, blocks[0]);
    for page in [entry, entry + 8] {
        let word = ground.word(page);
        word.store(word.load(Ordering::Relaxed) & !0xffff_0000, Ordering::Relaxed);
    }
    // The list of orphans of this class, the twentieth, begins with the first slab.
    let first_page = (blocks[0].get() - layout.data_start) / PAGE;
    ground.word(layout.area(7).0 + 8 * first_page).store(3 << 62, Ordering::Relaxed);
    ground.word(0x248).store((first_page + 1) << 32, Ordering::Relaxed);
    assert!(is_corrupt(heap.allocate(1000)));
    heap.deallocate(blocks[23]).expect("it is allocated");
    heap.deallocate(blocks[15]).expect("it is allocated");
    drop(heap);
}

/// A lane freed a block of its own slab by what the page entry said of the slab's class. Had somebody scribbled on
/// that, the slab was taken out of one private list and put into another class's.
#[test]
fn a_slab_of_another_class_than_its_lane_knows_is_an_error() {
    let (ground, layout, heap) = stage();
    let blocks: Vec<Offset> = (0..8).map(|_| heap.allocate(1000).expect("room")).collect();
    // The slab is listed as full when the next one is begun.
    heap.allocate(1000).expect("room");
    let entry = entry_at(&layout, blocks[0]);
    let word = ground.word(entry);
    let good = word.load(Ordering::Relaxed);
    // Another class of the same number of pages, by an intent and without one.
    word.store(good - (1 << 8), Ordering::Relaxed);
    let cells = heap.allocate_zeroed(64).expect("room");
    heap.copy_in(cells, &blocks[0].get().to_ne_bytes()).expect("the cell is a word of a block");
    assert!(is_corrupt(heap.free_from(cells)));
    word.store(good, Ordering::Relaxed);
    heap.deallocate(blocks[0]).expect("it is allocated");
}
