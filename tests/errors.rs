//! Errors of calls on a heap: each variant with its numbers, and that a call which failed has changed nothing.
//!
//! Errors of creating and opening are in open_errors.rs; NoSpace in full.rs, LockTimeout in lock_holders.rs, WrongOwner,
//! WrongMode and PermissionDenied in access.rs, Severed in namespaces.rs.

mod common;

use common::{Segment, assert_emptied, assert_is_empty, new_heap, refused, state_of};
use shmheap::{Error, Heap, Offset, OffsetFault, Shortage};

fn at(bytes: u64) -> Offset {
    Offset::new(bytes).expect("not zero")
}

fn invalid(offset: Offset, fault: OffsetFault) -> Error {
    Error::InvalidOffset { offset: offset.get(), fault }
}

/// A heap of 1 MiB: its largest size class is 2048 bytes, its pages have 4096.
fn small_heap(tag: &str) -> (Segment, Heap) {
    let segment = Segment::new(tag);
    let heap = segment.create(&Heap::options().capacity(1 << 20));
    (segment, heap)
}

#[test]
fn a_full_heap_says_that_it_is_full_and_a_fragmented_one_that_it_is_fragmented() {
    let (_segment, heap) = small_heap("full");
    let pages = heap.total_size() / 4096;
    let blocks: Vec<Offset> = (0..pages).map(|_| heap.allocate(4096).expect("every page can be had")).collect();
    assert_eq!(heap.stats().expect("stats").free, 0);
    for requested in [4096, 8192, heap.total_size() as usize] {
        let full = Error::OutOfMemory { requested: requested as u64, largest_free: 0, free: 0, shortage: Shortage::Full };
        assert_eq!(refused(&heap, |heap| heap.allocate(requested)), full);
        assert!(full.is_transient());
    }
    for requested in [1, 100, 2048] {
        let full = Error::OutOfMemory { requested: requested as u64, largest_free: 0, free: 0, shortage: Shortage::Full };
        assert_eq!(refused(&heap, |heap| heap.allocate(requested)), full);
    }
    for call in [Heap::allocate_zeroed, |heap: &Heap, size| heap.allocate_aligned(size, 4096)] {
        assert!(matches!(refused(&heap, |heap| call(heap, 4096)), Error::OutOfMemory { requested: 4096, .. }));
    }
    let error = refused(&heap, |heap| heap.reallocate(blocks[0], 5000));
    assert!(matches!(error, Error::OutOfMemory { requested: 5000, .. }), "{error:?}");

    blocks.iter().step_by(2).for_each(|block| heap.deallocate(*block).expect("free"));
    let free = pages.div_ceil(2) * 4096;
    let fragmented = Error::OutOfMemory { requested: 8192, largest_free: 4096, free, shortage: Shortage::Fragmented };
    assert_eq!(refused(&heap, |heap| heap.allocate(8192)), fragmented);
    let too_much = free as usize + 4096;
    let full = Error::OutOfMemory { requested: too_much as u64, largest_free: 4096, free, shortage: Shortage::Full };
    assert_eq!(refused(&heap, |heap| heap.allocate(too_much)), full);
    assert_eq!(heap.fragmentation(), Ok(free - 4096));
    heap.allocate(4096).expect("one page can be had");
    heap.allocate(10).expect("and a slab of one page");
    assert_emptied(&heap);
}

#[test]
fn a_heap_of_small_blocks_fills_up_to_the_last_one_and_can_be_emptied_and_filled_again() {
    let (_segment, heap) = small_heap("small");
    let fill = || std::iter::from_fn(|| heap.allocate(48).ok()).collect::<Vec<Offset>>();
    let first = fill();
    assert!(first.len() as u64 * 48 > heap.total_size() * 9 / 10, "{} blocks", first.len());
    assert!(matches!(refused(&heap, |heap| heap.allocate(48)), Error::OutOfMemory { .. }));
    let kept = first.iter().skip(1).step_by(2);
    first.iter().step_by(2).for_each(|block| heap.deallocate(*block).expect("free"));
    assert_eq!(fill().len(), first.len().div_ceil(2), "as many as were freed can be had again");
    heap.validate().expect("valid");
    kept.for_each(|block| assert!(heap.info(*block).is_ok()));
    assert_emptied(&heap);
    assert_eq!(fill().len(), first.len());
    assert_emptied(&heap);
    heap.allocate(heap.total_size() as usize).expect("what small blocks took can be had in one piece again");
    assert_emptied(&heap);
}

#[test]
fn sizes_and_alignments_out_of_range_are_refused() {
    let (_segment, heap) = small_heap("sizes");
    let block = heap.allocate(100).expect("room");
    for alignment in [0, 1, 2, 3, 4, 12, 24, 4095, 8192, 1 << 40] {
        let bad = Error::BadAlignment { alignment: alignment as u64 };
        assert_eq!(refused(&heap, |heap| heap.allocate_aligned(100, alignment)), bad);
    }
    for alignment in (3..=12).map(|shift| 1usize << shift) {
        for size in [1, 100, 2000, 5000] {
            let aligned = heap.allocate_aligned(size, alignment).expect("room");
            assert_eq!(aligned.get() % alignment as u64, 0);
            assert!(heap.resolve(aligned).expect("an address").addr().get().is_multiple_of(alignment));
            assert!(heap.usable_size(aligned).expect("usable") >= size);
            heap.deallocate(aligned).expect("free");
        }
    }
    let cells = heap.allocate_zeroed(64).expect("room");
    assert_eq!(refused(&heap, |heap| heap.allocate(0)), Error::ZeroSize);
    assert_eq!(refused(&heap, |heap| heap.allocate_zeroed(0)), Error::ZeroSize);
    assert_eq!(refused(&heap, |heap| heap.allocate_aligned(0, 16)), Error::ZeroSize);
    assert_eq!(refused(&heap, |heap| heap.reallocate(block, 0)), Error::ZeroSize);
    assert_eq!(refused(&heap, |heap| heap.allocate_into(cells, 0)), Error::ZeroSize);
    assert_eq!(refused(&heap, |heap| heap.find_or_construct("x", 0, |_| Ok(()))), Error::ZeroSize);
    let max = heap.total_size();
    for requested in [max as usize + 1, 1 << 40, isize::MAX as usize, usize::MAX] {
        let too_large = Error::TooLarge { requested: requested as u64, max };
        assert_eq!(refused(&heap, |heap| heap.allocate(requested)), too_large);
        assert_eq!(refused(&heap, |heap| heap.allocate_aligned(requested, 64)), too_large);
        assert_eq!(refused(&heap, |heap| heap.reallocate(block, requested)), too_large);
        assert_eq!(refused(&heap, |heap| heap.allocate_into(cells, requested)), too_large);
        assert!(!too_large.is_transient());
    }
    assert_emptied(&heap);
    let all = heap.allocate(max as usize).expect("an empty heap hands out that much in one block");
    assert_eq!(heap.usable_size(all), Ok(max as usize));
    assert_emptied(&heap);
}

/// What every call that takes a block says of `offset`.
fn all_say(heap: &Heap, offset: Offset, error: &Error) {
    let mut byte = [0];
    assert_eq!(&refused(heap, |heap| heap.deallocate(offset)), error, "deallocate");
    assert_eq!(&refused(heap, |heap| heap.reallocate(offset, 50)), error, "reallocate");
    assert_eq!(&refused(heap, |heap| heap.reallocate(offset, 50_000)), error, "reallocate");
    assert_eq!(&refused(heap, |heap| heap.usable_size(offset)), error, "usable_size");
    assert_eq!(&refused(heap, |heap| heap.info(offset)), error, "info");
    assert_eq!(&refused(heap, |heap| heap.copy_in(offset, b"x")), error, "copy_in");
    assert_eq!(&refused(heap, |heap| heap.copy_out(offset, &mut byte)), error, "copy_out");
    assert_eq!(&refused(heap, |heap| heap.set_root("root", offset)), error, "set_root");
    assert_eq!(&refused(heap, |heap| heap.insert_root("root", offset)), error, "insert_root");
}

#[test]
fn offsets_that_name_no_block_are_refused_with_what_is_wrong_with_them() {
    let (_segment, heap) = small_heap("offsets");
    let large = heap.allocate(20_000).expect("room");
    let small = heap.allocate(64).expect("room");
    let data_start = large.get();
    let data_end = data_start + heap.total_size();
    for outside in [1, 8, 4096, data_start - 1, data_end, heap.capacity(), 1 << 50, u64::MAX] {
        all_say(&heap, at(outside), &invalid(at(outside), OffsetFault::Outside));
        let error = heap.resolve(at(outside)).expect_err("it has no address");
        assert_eq!(error, invalid(at(outside), OffsetFault::Outside));
    }
    for distance in [1, 8, 16, 63] {
        let inside = at(small.get() + distance);
        all_say(&heap, inside, &invalid(inside, OffsetFault::InsideBlock(small.get())));
    }
    for distance in [1, 16, 4095, 4096, 8192, 19_999, 20_479] {
        let inside = at(large.get() + distance);
        all_say(&heap, inside, &invalid(inside, OffsetFault::InsideBlock(large.get())));
    }
    let never = at(small.get() + 64 + 8);
    all_say(&heap, never, &invalid(never, OffsetFault::NotAllocated));
    for free in [data_end - 4096, data_end - 1, data_start + 100 * 4096] {
        all_say(&heap, at(free), &invalid(at(free), OffsetFault::NotAllocated));
    }
    let error = invalid(at(large.get() + 16), OffsetFault::InsideBlock(large.get())).to_string();
    assert!(error.contains(&format!("{:#x}", large.get())), "the message names the block: {error}");
    assert_emptied(&heap);
}

#[test]
fn a_block_that_is_freed_twice_is_a_double_free_whoever_freed_it_first() {
    let (segment, heap) = new_heap("double");
    let other = segment.open();
    // The neighbours keep the slab in being: once that is gone, there is no block to be freed twice.
    let blocks: Vec<Offset> = (0..4).map(|_| heap.allocate(100).expect("room")).collect();
    let [own, remote, ..] = blocks[..] else { panic!("there are four") };
    heap.deallocate(own).expect("free");
    other.deallocate(remote).expect("free");
    for freed in [own, remote] {
        let double = Error::DoubleFree { offset: freed.get() };
        all_say(&heap, freed, &double);
        all_say(&other, freed, &double);
    }
    let again: Vec<Offset> = (0..200).map(|_| heap.allocate(100).expect("room")).collect();
    assert!(again.contains(&own) && again.iter().filter(|block| **block == own).count() == 1, "a block is handed out once");

    let large = heap.allocate(100_000).expect("room");
    other.deallocate(large).expect("free");
    all_say(&heap, large, &invalid(large, OffsetFault::NotAllocated));
    all_say(&other, large, &invalid(large, OffsetFault::NotAllocated));
    assert_emptied(&heap);
    let gone = refused(&heap, |heap| heap.deallocate(own));
    assert!(
        gone == Error::DoubleFree { offset: own.get() } || gone == invalid(own, OffsetFault::NotAllocated),
        "with its slab gone, the block may be unknown: {gone:?}"
    );
}

#[test]
fn copies_that_do_not_fit_are_refused_and_write_nothing() {
    let (_segment, heap) = new_heap("bounds");
    for size in [100, 50_000] {
        let block = heap.allocate_zeroed(size).expect("room");
        let usable = heap.usable_size(block).expect("usable");
        let bounds = |first: usize, len: usize| {
            let (offset, first, len) = (block.get(), first as u64, len as u64);
            Error::OutOfBounds { offset, at: first, len, usable: usable as u64 }
        };
        let mut buffer = vec![7; usable + 1];
        assert_eq!(refused(&heap, |heap| heap.copy_in(block, &buffer)), bounds(0, usable + 1));
        for (first, len) in [(1, usable), (usable, 1), (usable + 1, 1), (usize::MAX, 2), (usize::MAX - 1, 1)] {
            assert_eq!(refused(&heap, |heap| heap.copy_in_at(block, first, &buffer[..len])), bounds(first, len));
            assert_eq!(refused(&heap, |heap| heap.copy_out_at(block, first, &mut buffer[..len])), bounds(first, len));
        }
        assert_eq!(refused(&heap, |heap| heap.copy_out(block, &mut buffer)), bounds(0, usable + 1));
        let mut all = vec![1; usable];
        heap.copy_out(block, &mut all).expect("the whole block can be read");
        assert!(all.iter().all(|byte| *byte == 0), "a copy that was refused has written something");
        heap.copy_in_at(block, usable, &[]).expect("no bytes fit anywhere");
        heap.copy_in_at(block, usable - 1, &[9]).expect("the last byte can be written");
    }
    assert_emptied(&heap);
}

#[test]
fn cells_that_are_full_empty_or_none_are_refused() {
    let (_segment, heap) = new_heap("cells");
    let cells = heap.allocate_zeroed(64).expect("room");
    let large_cells = heap.allocate_zeroed(100_000).expect("room");
    let holds = heap.allocate_into(cells, 100).expect("room");
    assert_eq!(heap.load_cell(cells), Ok(Some(holds)));
    let occupied = Error::CellOccupied { cell: cells.get(), holds: holds.get() };
    assert_eq!(refused(&heap, |heap| heap.allocate_into(cells, 100)), occupied);
    let second = at(cells.get() + 8);
    assert_eq!(heap.load_cell(second), Ok(None));
    assert_eq!(refused(&heap, |heap| heap.free_from(second)), Error::CellEmpty { cell: second.get() });
    for place in [at(large_cells.get() + 50_000), at(large_cells.get() + 99_992)] {
        heap.allocate_into(place, 100).expect("a cell may stand anywhere in a block");
        heap.free_from(place).expect("free");
    }

    let freed = heap.allocate(3000).expect("room");
    heap.deallocate(freed).expect("free");
    let bad = [
        at(8),
        at(u64::MAX - 7),
        at(u64::MAX),
        at(cells.get() + 1),
        at(cells.get() + 4),
        at(cells.get() + 64),
        freed,
        at(freed.get() + 8),
    ];
    for cell in bad {
        let bad = Error::BadCell { cell: cell.get() };
        assert_eq!(refused(&heap, |heap| heap.allocate_into(cell, 100)), bad);
        assert_eq!(refused(&heap, |heap| heap.free_from(cell)), bad);
        assert_eq!(refused(&heap, |heap| heap.load_cell(cell)), bad);
    }
    // A cell into which somebody wrote what is no block.
    heap.copy_in_at(cells, 16, &12_345u64.to_le_bytes()).expect("copy");
    let scribbled = at(cells.get() + 16);
    assert_eq!(refused(&heap, |heap| heap.free_from(scribbled)), invalid(at(12_345), OffsetFault::Outside));
    assert_eq!(heap.load_cell(scribbled), Ok(Some(at(12_345))), "the cell is as it was");
    let too_much = heap.total_size() as usize;
    let none = heap.load_cell(second);
    assert!(matches!(refused(&heap, |heap| heap.allocate_into(second, too_much)), Error::OutOfMemory { .. }));
    assert_eq!(heap.load_cell(second), none, "the cell is still empty");
    heap.free_from(cells).expect("free");
    assert_eq!(refused(&heap, |heap| heap.free_from(cells)), Error::CellEmpty { cell: cells.get() });
    assert_emptied(&heap);
}

#[test]
fn roots_that_are_unknown_taken_too_many_or_badly_named_are_refused() {
    let segment = Segment::new("roots");
    let heap = segment.create(&Heap::options().capacity(1 << 20).root_slots(3));
    let (first, second) = (heap.allocate(100).expect("room"), heap.allocate(100).expect("room"));
    let name = |name: &str| name.to_owned();
    assert_eq!(refused(&heap, |heap| heap.remove_root("a")), Error::RootUnknown { name: name("a") });
    assert_eq!(heap.root("a"), Ok(None));
    heap.insert_root("a", first).expect("insert");
    assert_eq!(refused(&heap, |heap| heap.insert_root("a", second)), Error::RootExists { name: name("a") });
    assert_eq!(heap.set_root("a", second), Ok(Some(first)));
    assert_eq!((heap.set_root("b", first), heap.set_root("c", first)), (Ok(None), Ok(None)));
    assert_eq!(refused(&heap, |heap| heap.insert_root("d", first)), Error::RootsFull { slots: 3 });
    assert_eq!(refused(&heap, |heap| heap.set_root("d", first)), Error::RootsFull { slots: 3 });
    assert_eq!(refused(&heap, |heap| heap.find_or_construct("d", 10, |_| Ok(()))), Error::RootsFull { slots: 3 });
    assert_eq!(heap.remove_root("b"), Ok(first));
    assert_eq!(refused(&heap, |heap| heap.remove_root("b")), Error::RootUnknown { name: name("b") });
    heap.insert_root("d", first).expect("a slot is free again");

    let long = "x".repeat(64);
    for bad in ["", long.as_str(), "a\nb", "\0", "\u{7f}", &"\u{e9}".repeat(32)] {
        let names_it = |error: Error| matches!(&error, Error::BadName { name, why } if name == bad && !why.is_empty());
        assert!(names_it(refused(&heap, |heap| heap.root(bad))), "{bad:?}");
        assert!(names_it(refused(&heap, |heap| heap.insert_root(bad, first))), "{bad:?}");
        assert!(names_it(refused(&heap, |heap| heap.set_root(bad, first))), "{bad:?}");
        assert!(names_it(refused(&heap, |heap| heap.remove_root(bad))), "{bad:?}");
        assert!(names_it(refused(&heap, |heap| heap.find_or_construct(bad, 10, |_| Ok(())))), "{bad:?}");
    }
    heap.remove_root("d").expect("remove");
    for good in [&"x".repeat(63), "a b/c.d", "\u{e9}\u{4e2d}"] {
        heap.insert_root(good, second).expect("a root's name may be any text");
        assert_eq!(heap.remove_root(good), Ok(second));
    }
    heap.deallocate(second).expect("free");
    assert_eq!(heap.root("a"), Ok(None), "a root whose block was freed leads nowhere");
    let root = heap.roots().expect("roots").into_iter().find(|root| root.name == "a").expect("it is still listed");
    assert!(!root.allocated && !root.constructing && root.block == Some(second), "{root:?}");
    assert_emptied(&heap);
}

#[test]
fn a_handle_that_was_opened_for_reading_writes_nothing() {
    let (segment, heap) = new_heap("read-only");
    let block = heap.allocate_zeroed(100).expect("room");
    heap.allocate_into(block, 50).expect("room");
    heap.set_root("root", block).expect("root");
    let reader = Heap::open_read_only(segment.name()).expect("open");
    let before = state_of(&heap);
    let calls: [fn(&Heap, Offset) -> shmheap::Result<()>; 14] = [
        |heap, _| heap.allocate(10).map(drop),
        |heap, _| heap.allocate(100_000).map(drop),
        |heap, _| heap.allocate_aligned(10, 64).map(drop),
        |heap, _| heap.allocate_zeroed(10).map(drop),
        |heap, block| heap.deallocate(block),
        |heap, block| heap.reallocate(block, 1000).map(drop),
        |heap, block| heap.copy_in(block, b"x"),
        |heap, block| heap.set_root("new", block).map(drop),
        |heap, block| heap.insert_root("new", block),
        |heap, _| heap.remove_root("root").map(drop),
        |heap, _| heap.find_or_construct("new", 10, |_| Ok(())).map(drop),
        |heap, block| heap.allocate_into(Offset::new(block.get() + 8).expect("not zero"), 10).map(drop),
        |heap, block| heap.free_from(block),
        |heap, _| heap.trim().and_then(|_| heap.recover()).map(drop),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call(&reader, block), Err(Error::ReadOnly), "call {number}");
    }
    assert_eq!(state_of(&heap), before);
    assert_eq!(state_of(&reader), before, "a reader sees what a writer sees");
    assert_eq!(reader.find_or_construct("root", 100, |_| Ok(())), Ok(block), "what exists is found for reading too");
    reader.validate().expect("valid");
    assert_emptied(&heap);
    assert_is_empty(&reader);
}
