//! Every path of the allocator over plain memory, small enough to run under Miri (scripts/miri.sh).
//!
//! Miri sees each access: one outside its bounds, one that races with another, one through a pointer that has no right to
//! what it reaches. Nothing here needs a segment, a file or a second process.

mod published;
mod threads;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use shmheap::{Error, Heap, Memory, Offset, OffsetFault, Options, Shortage};

/// The smallest capacity that a heap can have.
const SMALL: usize = 64 << 10;
/// Room for some slabs of many classes.
const MEDIUM: usize = 512 << 10;
/// How often threads repeat what they do at the same time.
const ROUNDS: usize = if cfg!(miri) { 6 } else { 3000 };

/// Miri is slow, and what a lock's holder does takes long there.
fn options() -> Options {
    Heap::options().lock_timeout(Duration::from_secs(600))
}

fn heap(capacity: usize) -> Heap {
    let memory = Memory::zeroed(capacity).expect("there is memory");
    options().create_in(memory).expect("a heap fits")
}

/// Nothing is allocated, everything is in one piece, and all invariants hold.
fn expect_empty(heap: &Heap) {
    let stats = heap.stats().expect("the heap is sound");
    assert_eq!((stats.used, stats.allocated_blocks, stats.overhead), (0, 0, 0), "{stats}");
    assert_eq!((stats.free, stats.free_blocks, stats.fragmentation), (stats.total, 1, 0), "{stats}");
    assert_eq!(heap.validate(), Ok(()));
}

/// Runs `work` in a thread and waits until the thread is gone, with its lane.
fn in_a_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(work).join().expect("the thread's work does not panic"))
}

/// Runs `work` in `count` threads that start together.
fn in_threads(count: u8, work: impl Fn(u8) + Sync) {
    let start = Barrier::new(usize::from(count));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(number);
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("the thread's work does not panic"));
    });
}

fn bytes_of(heap: &Heap, block: Offset, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    heap.copy_out(block, &mut bytes).expect("the block is allocated");
    bytes
}

#[test]
fn a_block_that_was_freed_is_handed_out_again() {
    let heap = heap(SMALL);
    let blocks = [20, 20, 20].map(|size| heap.allocate(size).unwrap());
    assert_eq!(heap.used_size(), Ok(3 * 32));
    heap.deallocate(blocks[1]).unwrap();
    assert_eq!(heap.usable_size(blocks[1]), Err(Error::DoubleFree { offset: blocks[1].get() }));
    // The lane works through its copy of the word first; then it finds what was freed.
    let mut again = (0..256).map(|_| heap.allocate(20).unwrap());
    assert!(again.any(|block| block == blocks[1]));
}

#[test]
fn allocating_goes_on_in_the_next_word_and_in_a_new_slab() {
    let heap = heap(MEDIUM);
    let blocks: Vec<Offset> = (0..600).map(|_| heap.allocate(16).unwrap()).collect();
    let slabs: u32 = heap.stats().unwrap().classes.iter().map(|class| class.slabs).sum();
    assert!(slabs >= 2, "600 blocks of 16 bytes take more than one page");
    assert_eq!(heap.blocks().count(), blocks.len());
    assert_eq!(heap.validate(), Ok(()));
    for block in blocks.iter().step_by(2).chain(blocks.iter().skip(1).step_by(2)) {
        heap.deallocate(*block).unwrap();
    }
    expect_empty(&heap);
}

#[test]
fn every_class_and_alignment_has_blocks_that_do_not_touch() {
    let heap = heap(MEDIUM);
    let mut blocks = Vec::new();
    let mut size = 1;
    while size < 6000 {
        let block = heap.allocate(size).unwrap();
        let usable = heap.usable_size(block).unwrap();
        assert!(usable >= size);
        heap.copy_in(block, &vec![blocks.len() as u8; usable]).unwrap();
        blocks.push((block, usable));
        size += size / 2 + 1;
    }
    for shift in 3..=12 {
        let block = heap.allocate_aligned(100, 1 << shift).unwrap();
        assert!(block.get().is_multiple_of(1 << shift));
        let address = heap.resolve(block).unwrap();
        assert!(address.addr().get().is_multiple_of(1 << shift));
        let usable = heap.usable_size(block).unwrap();
        heap.copy_in(block, &vec![blocks.len() as u8; usable]).unwrap();
        blocks.push((block, usable));
    }
    for (number, (block, usable)) in blocks.iter().enumerate() {
        assert!(bytes_of(&heap, *block, *usable).iter().all(|byte| *byte == number as u8));
        heap.deallocate(*block).unwrap();
    }
    expect_empty(&heap);
}

#[test]
fn a_zeroed_block_is_zero_also_where_another_was_before() {
    let heap = heap(SMALL);
    for size in [100, 5000] {
        let dirty = heap.allocate(size).unwrap();
        let usable = heap.usable_size(dirty).unwrap();
        heap.copy_in(dirty, &vec![0xff; usable]).unwrap();
        heap.deallocate(dirty).unwrap();
        for _ in 0..if size == 100 { 40 } else { 1 } {
            let block = heap.allocate_zeroed(size).unwrap();
            assert!(bytes_of(&heap, block, usable).iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn a_small_block_grows_within_its_class_and_then_moves() {
    let heap = heap(SMALL);
    let block = heap.allocate(100).unwrap();
    heap.copy_in(block, b"kept").unwrap();
    assert_eq!(heap.reallocate(block, 112), Ok(block));
    let moved = heap.reallocate(block, 500).unwrap();
    assert_ne!(moved, block);
    assert_eq!(bytes_of(&heap, moved, 4), b"kept");
    let moved = heap.reallocate(moved, 4).unwrap();
    assert_eq!(bytes_of(&heap, moved, 4), b"kept");
    assert_eq!(heap.stats().unwrap().allocated_blocks, 1);
    heap.deallocate(moved).unwrap();
    expect_empty(&heap);
}

#[test]
fn a_large_block_grows_and_shrinks_in_place_and_moves_when_it_must() {
    let heap = heap(MEDIUM);
    let page = 4096;
    let block = heap.allocate(2 * page).unwrap();
    assert!(heap.info(block).unwrap().large);
    heap.copy_in(block, &[7; 2 * 4096]).unwrap();
    assert_eq!(heap.reallocate(block, 5 * page - 1), Ok(block));
    assert_eq!(heap.usable_size(block), Ok(5 * page));
    assert_eq!(heap.reallocate(block, 3 * page), Ok(block));
    let neighbour = heap.allocate(page * 2).unwrap();
    assert_eq!(neighbour.get(), block.get() + 3 * page as u64, "what was cut off is free");
    let moved = heap.reallocate(block, 6 * page).unwrap();
    assert_ne!(moved, block);
    assert_eq!(bytes_of(&heap, moved, 2 * page), [7; 2 * 4096]);
    let small = heap.reallocate(moved, 10).unwrap();
    assert_eq!(bytes_of(&heap, small, 10), [7; 10]);
    let large = heap.reallocate(small, 3 * page).unwrap();
    assert_eq!(bytes_of(&heap, large, 10), [7; 10]);
    assert_eq!(heap.validate(), Ok(()));
    [large, neighbour].into_iter().for_each(|block| heap.deallocate(block).unwrap());
    expect_empty(&heap);
}

#[test]
fn what_is_not_an_allocated_block_is_refused() {
    let heap = heap(SMALL);
    let small = heap.allocate(64).unwrap();
    let large = heap.allocate(9000).unwrap();
    for block in [small, large] {
        let inside = Offset::new(block.get() + 8).unwrap();
        let fault = OffsetFault::InsideBlock(block.get());
        assert_eq!(heap.deallocate(inside), Err(Error::InvalidOffset { offset: inside.get(), fault }));
        assert_eq!(heap.copy_in_at(block, 0, &[0; 20_000]).map_err(|error| error.is_transient()), Err(false));
        assert_eq!(heap.deallocate(block), Ok(()));
        assert!(heap.deallocate(block).is_err());
        assert!(heap.copy_in(block, &[1]).is_err());
    }
    for offset in [8, 100, 64 << 10, u64::MAX] {
        let outside = Error::InvalidOffset { offset, fault: OffsetFault::Outside };
        assert_eq!(heap.deallocate(Offset::new(offset).unwrap()), Err(outside.clone()));
        assert_eq!(heap.resolve(Offset::new(offset).unwrap()), Err(outside));
    }
    expect_empty(&heap);
}

#[test]
fn an_address_leads_to_its_offset_and_back() {
    let heap = heap(SMALL);
    let block = heap.allocate(24).unwrap();
    let address = heap.resolve(block).unwrap();
    assert_eq!(heap.offset_of(address), Ok(block));
    heap.copy_in(block, b"by copy").unwrap();
    assert!(heap.offset_of(NonNull::from(&block).cast()).is_err(), "that lies on the stack");
    let mut one = [0];
    heap.copy_out_at(block, 3, &mut one).unwrap();
    assert_eq!(one, *b"c");
}

#[test]
fn a_full_heap_says_so_and_is_whole_again_when_all_is_freed() {
    let heap = heap(SMALL);
    let mut blocks = Vec::new();
    let refused = loop {
        match heap.allocate(900) {
            Ok(block) => blocks.push(block),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::OutOfMemory { shortage: Shortage::Full, .. }), "{refused}");
    assert!(refused.is_transient());
    assert_eq!(heap.validate(), Ok(()));
    let first = blocks[0];
    assert!(heap.reallocate(first, 5000).is_err());
    assert_eq!(heap.deallocate(first), Ok(()));
    assert_eq!(heap.allocate(900), Ok(first));
    for block in blocks {
        heap.deallocate(block).unwrap();
    }
    expect_empty(&heap);
    let whole = heap.allocate(heap.total_size() as usize).unwrap();
    heap.deallocate(whole).unwrap();
    assert_eq!(heap.trim(), Ok(0), "plain memory is not given back");
    expect_empty(&heap);
}

#[test]
fn what_is_left_over_at_the_end_of_a_slab_counts_as_overhead() {
    let heap = heap(SMALL);
    let block = heap.allocate(48).unwrap();
    // A page holds 85 blocks of 48 bytes, and 16 bytes more.
    let stats = heap.stats().unwrap();
    assert_eq!((stats.used, stats.overhead, stats.classes[0].blocks), (48, 16, 85), "{stats}");
    assert_eq!(stats.free, stats.total - 48 - 16, "{stats}");
    heap.deallocate(block).unwrap();
    expect_empty(&heap);
}

#[test]
fn bytes_that_threads_write_at_the_same_time_are_some_mixture() {
    let heap = heap(SMALL);
    let block = heap.allocate(100).unwrap();
    heap.copy_in(block, &[0; 100]).unwrap();
    in_threads(3, |number| {
        for _ in 0..ROUNDS.min(100) {
            heap.copy_in_at(block, 3, &[number; 64]).unwrap();
            assert!(bytes_of(&heap, block, 100).iter().all(|byte| *byte < 3));
        }
    });
}

#[test]
fn a_heap_is_found_again_in_its_memory() {
    let memory = Memory::zeroed(SMALL).unwrap();
    let heap = Heap::options().create_in(memory.clone()).unwrap();
    let block = heap.allocate(50).unwrap();
    heap.copy_in(block, b"still here").unwrap();
    heap.set_root("it", block).unwrap();
    // A second handle is another party: it has lanes of its own.
    let second = Heap::options().open_in(memory.clone()).unwrap();
    let other = second.allocate(50).unwrap();
    assert_ne!(second.info(other).unwrap().lane, second.info(block).unwrap().lane);
    second.deallocate(block).unwrap();
    heap.deallocate(other).unwrap();
    let block = heap.allocate(50).unwrap();
    heap.set_root("it", block).unwrap();
    drop((heap, second));

    let heap = Heap::options().open_in(memory).unwrap();
    assert_eq!(heap.lanes(), Ok(Vec::new()));
    assert_eq!(heap.recover(), Ok(0));
    assert_eq!(heap.root("it"), Ok(Some(block)));
    heap.deallocate(block).unwrap();
    expect_empty(&heap);
}

#[test]
fn damaged_memory_is_an_error() {
    let memory = Memory::zeroed(SMALL).unwrap();
    assert!(matches!(Heap::options().open_in(memory.clone()), Err(Error::NotAHeap { .. })));
    assert!(matches!(Heap::options().create_in(Memory::zeroed(4096).unwrap()), Err(Error::BadCapacity { .. })));
    let heap = Heap::options().create_in(memory).unwrap();
    expect_empty(&heap);
}

#[test]
fn the_smallest_heap_looks_as_docs_format_md_draws_it() {
    let heap = heap(SMALL);
    assert_eq!((heap.capacity(), heap.total_size()), (0x10000, 12 * 4096));
    let is_data = |offset: u64| heap.resolve(Offset::new(offset).unwrap()).is_ok();
    assert!(is_data(0x3000) && !is_data(0x2fff), "the pages start at 0x3000");
    assert!(is_data(0xefff) && !is_data(0xf000), "the tables start at 0xf000");
}
