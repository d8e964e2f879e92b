//! What a lane keeps for its next use is there for everybody who is short of memory, and for `trim`.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};

use common::new_heap;
use shmheap::{Error, Heap, Offset, OffsetFault, SpanUsage};

/// Calls `then` while another thread lives that has allocated a block of `size` bytes and freed it, and keeps its span.
fn while_another_keeps(heap: &Heap, size: usize, then: impl FnOnce()) {
    let (ready, wait): (Sender<()>, Receiver<()>) = channel();
    let (done, until_done): (Sender<()>, Receiver<()>) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = heap.allocate(size).expect("room");
            heap.deallocate(block).expect("the block is ours");
            ready.send(()).expect("somebody waits");
            // Ends when the other side is dropped, too.
            let _ = until_done.recv();
        });
        wait.recv().expect("the thread has freed its block");
        then();
        drop(done);
    });
}

/// Allocates blocks of this size until there is no room; returns how many there were.
fn fill(heap: &Heap, size: usize) -> usize {
    for count in 0.. {
        match heap.allocate(size) {
            Ok(_) => {}
            Err(Error::OutOfMemory { .. }) => return count,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("a heap has an end")
}

#[test]
fn nobody_hears_that_memory_is_out_while_another_lane_keeps_some() {
    const PIECE: usize = 64 << 10;
    let (_other, untouched) = new_heap("untouched");
    let most = fill(&untouched, PIECE);
    for size in [512 << 10, 100] {
        let (_segment, heap) = new_heap("kept");
        while_another_keeps(&heap, size, || {
            let held = most - fill(&heap, PIECE);
            // A hundred bytes leave an empty slab that is the bin's current one: a page or so that nobody else gets.
            assert!(held <= 1, "{held} pieces of 64 KiB stayed with a lane that does not need them");
            heap.validate().expect("the heap is sound");
        });
    }
}

#[test]
fn trim_gives_back_what_other_lanes_keep() {
    let (_segment, heap) = new_heap("trimmed");
    while_another_keeps(&heap, 512 << 10, || {
        let before = heap.stats().expect("stats").taken;
        assert!(before >= 512 << 10, "the span was used, and takes memory: {before}");
        heap.trim().expect("trim");
        let after = heap.stats().expect("stats").taken;
        assert!(after <= before - (512 << 10), "{after} of {before} bytes are still taken");
        heap.validate().expect("the heap is sound");
    });
}

#[test]
fn what_is_kept_is_free_and_says_so() {
    let (_segment, heap) = new_heap("says-so");
    let block = heap.allocate(100_000).expect("room");
    heap.deallocate(block).expect("live");
    let stats = heap.stats().expect("stats");
    assert_eq!((stats.used, stats.free_blocks, stats.fragmentation), (0, 1, 0));
    assert_eq!(heap.blocks().count(), 0);
    let inside = Offset::new(block.get() + 4096).expect("not zero");
    for offset in [block, inside] {
        let not_allocated = Error::InvalidOffset { offset: offset.get(), fault: OffsetFault::NotAllocated };
        assert_eq!(heap.deallocate(offset), Err(not_allocated.clone()), "a block that is freed twice");
        assert_eq!(heap.info(offset).map(drop), Err(not_allocated));
    }
    heap.validate().expect("the heap is sound");
}

/// Bytes of each span that is kept, in the order of their places.
fn kept(heap: &Heap) -> Vec<u64> {
    let kept = heap.spans().filter(|span| matches!(span.usage, SpanUsage::Kept { .. }));
    kept.map(|span| span.len).collect()
}

#[test]
fn a_lane_that_needs_a_longer_run_gives_back_no_more_than_it_takes() {
    const PIECE: u64 = 64 << 10;
    let (_segment, heap) = new_heap("one-by-one");
    let blocks: Vec<Offset> = (0..8).map(|_| heap.allocate(PIECE as usize).expect("room")).collect();
    blocks.into_iter().for_each(|block| heap.deallocate(block).expect("it is allocated"));
    assert_eq!(kept(&heap), [PIECE; 8]);
    let taken = heap.stats().expect("stats").taken;

    // None is long enough; two that were freed one after the other are neighbours.
    let double = heap.allocate(2 * PIECE as usize).expect("room");
    assert_eq!(kept(&heap), [PIECE; 6]);
    heap.deallocate(double).expect("it is allocated");
    assert_eq!(kept(&heap), [&[PIECE; 6][..], &[2 * PIECE]].concat());

    // The long one is, for something shorter that it would be too long for; what is left of it is at hand after that.
    let size = 5 * PIECE as usize / 4;
    let (first, second) = (heap.allocate(size).expect("room"), heap.allocate(40 << 10).expect("room"));
    assert_eq!(kept(&heap), [PIECE; 6]);
    assert!(first < second, "{first} {second}");
    assert_eq!(heap.stats().expect("stats").taken, taken, "there was room enough in what was taken before");
}

#[test]
fn nobody_hears_that_memory_is_out_while_others_have_freed_blocks_of_its_slabs() {
    let (_segment, heap) = new_heap("freed");
    let blocks: Vec<Offset> = std::iter::from_fn(|| heap.allocate(1000).ok()).collect();
    for freed in [blocks[blocks.len() / 2], blocks[blocks.len() * 9 / 10]] {
        let free = || heap.deallocate(freed).expect("it is allocated");
        std::thread::scope(|scope| scope.spawn(free).join().expect("the thread ends well"));
        assert_eq!(heap.allocate(1000), Ok(freed));
    }
}
