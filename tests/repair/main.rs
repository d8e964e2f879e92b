//! Damaged heaps are made whole: each invariant broken on purpose, and random words anywhere but in the header.

mod damage;
mod random;
mod region;

use std::fs;

use region::{LOCK, Places, RECOVERING, Region, word};
use shmheap::{Error, Heap, Memory, Remedy};

#[test]
fn the_places_are_those_of_the_library() {
    let region = Region::new(false);
    let places = region.places;
    let heap = Heap::options().open_file(region.damaged(&[])).expect("it is sound");
    assert_eq!(heap.total_size(), places.pages * region::PAGE);
    assert!(places.end <= region::CAPACITY);
    let first = heap.blocks().next().expect("it holds blocks");
    assert_eq!(region.entry(places.page_of(first.offset)) & 0xf, 1);
}

#[test]
fn a_sound_heap_needs_no_repair() {
    let region = Region::new(false);
    let path = region.damaged(&[]);
    let report = region.repair(&path);
    assert_eq!((report.is_clean(), report.actions.len(), report.unlisted), (true, 0, 0), "{report}");
    assert!(fs::read(&path).expect("it is there") == region.sound, "a repair of a sound heap writes nothing");
    region.expect_usable(&path, &report);
}

#[test]
fn what_a_dead_process_left_is_recovered_and_told() {
    let region = Region::new(true);
    let path = region.damaged(&[]);
    let report = region.repair(&path);
    let told: Vec<_> = report.actions.iter().map(|action| (action.found.at, action.remedy)).collect();
    assert_eq!(told, [(Places::lane(1), Remedy::Recovered)], "{report}");
    region.expect_usable(&path, &report);
}

#[test]
fn a_heap_in_use_is_not_repaired() {
    let region = Region::new(false);
    let path = region.damaged(&[(LOCK, 999)]);
    let heap = Heap::options().open_file(region.damaged(&[])).expect("it is sound");
    let idle = Heap::options().repair_file(&path).expect("nobody has a lane");
    assert!(idle.is_clean(), "{idle}");
    heap.allocate(10).expect("room");
    for dry_run in [true, false] {
        let before = fs::read(&path).expect("it is there");
        let error = Heap::options().dry_run(dry_run).repair_file(&path).expect_err("this thread has a lane");
        assert_eq!(error, Error::InUse { name: path.display().to_string(), pid: std::process::id() });
        assert!(fs::read(&path).expect("it is there") == before, "a repair that is refused changes nothing");
    }
    heap.validate().expect("the user of the heap notices nothing");
    drop(heap);
    let after = Heap::options().repair_file(&path).expect("nobody is left");
    assert!(after.is_clean(), "{after}");
}

#[test]
fn a_repair_that_died_is_done_again() {
    let region = Region::new(true);
    let places = region.places;
    let page = region.page(20_000);
    // Killed in the middle of a quarantine: the first page claims all, the second has the entry that it had.
    let damage = [(RECOVERING, 1), (LOCK, 1), (places.entry(page), 2 | 9 << 32)];
    let path = region.damaged(&damage);
    let report = region.repair(&path);
    let (start, pages_len) = (region.block(20_000), 5 * region::PAGE);
    let is_done = |remedy| matches!(remedy, Remedy::Quarantined { block, len } if (block, len) == (start, pages_len));
    assert!(report.actions.iter().any(|action| is_done(action.remedy)), "{report}");
    region.expect_usable(&path, &report);
}

#[test]
fn a_heap_whose_header_is_damaged_is_left_alone() {
    let region = Region::new(false);
    let path = region.damaged(&[(0x18, word(&region.sound, 0x18) ^ 1)]);
    let before = fs::read(&path).expect("it is there");
    let error = Heap::options().repair_file(&path).expect_err("the header cannot be repaired");
    assert!(matches!(error, Error::NotAHeap { .. }), "{error:?}");
    assert!(fs::read(&path).expect("it is there") == before);
}

#[test]
fn a_heap_in_memory_is_repaired_when_nobody_has_a_lane() {
    let memory = Memory::zeroed(1 << 20).expect("memory");
    let heap = Heap::options().create_in(memory.clone()).expect("a heap fits");
    let block = heap.allocate(100).expect("room");
    heap.copy_in(block, b"hello").expect("it is allocated");
    let error = Heap::options().repair_in(memory.clone()).expect_err("this thread has a lane");
    assert_eq!(error, Error::InUse { name: "(memory)".to_owned(), pid: std::process::id() });
    drop(heap);
    let planned = Heap::options().dry_run(true).repair_in(memory.clone()).expect("nobody has a lane");
    assert_eq!(Heap::options().repair_in(memory.clone()), Ok(planned));
    let heap = Heap::options().open_in(memory).expect("it is sound");
    let mut text = [0; 5];
    heap.copy_out(block, &mut text).expect("it is allocated");
    assert_eq!(&text, b"hello");
}

#[test]
fn a_named_heap_is_repaired_and_its_name_stays() {
    let name = format!("shmheap-test-repair-{}", std::process::id());
    let heap = Heap::options().capacity(1 << 20).create(&name).expect("a heap is created");
    let block = heap.allocate(5000).expect("room");
    heap.set_root("block", block).expect("a root");
    drop(heap);
    let planned = Heap::options().dry_run(true).repair(&name);
    let done = Heap::options().repair(&name);
    let found = Heap::open(&name).and_then(|heap| heap.root("block"));
    Heap::unlink(&name).expect("it is there");
    assert_eq!((&planned, found), (&done, Ok(Some(block))));
    assert!(done.is_ok_and(|report| report.is_clean()));
    assert!(matches!(Heap::options().repair(&name), Err(Error::NotFound { .. })));
}
