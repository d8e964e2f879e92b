//! Creating, opening, unlinking and destroying: who wins a race, and what a name leads to.

mod common;

use std::path::Path;

use common::shared::{Gate, Words};
use common::worker::{Worker, dispatch, number, parameter};
use common::{Segment, all_offsets, assert_emptied, assert_is_empty, new_heap};
use shmheap::{Error, Heap};

#[test]
fn worker_entry() {
    dispatch(&[
        ("race to create", race_to_create),
        ("race to open or create", race_to_open_or_create),
        ("race to unlink", race_to_unlink),
    ]);
}

/// Processes in a race, and its rounds.
const RACERS: usize = 8;
const ROUNDS: u64 = 30;

/// Words of the board: the barrier, and outcomes.
const BARRIER: usize = 0;
const WON: usize = 1;
const LOST: usize = 2;

/// The names that a race is about: each is unlinked when the test ends.
fn names(tag: &str) -> (Vec<Segment>, String) {
    let segments: Vec<Segment> = (0..ROUNDS).map(|_| Segment::new(tag)).collect();
    let list = segments.iter().map(Segment::name).collect::<Vec<_>>().join(" ");
    (segments, list)
}

/// Calls `race` for each name, when all racers have come to it.
fn each_round(mut race: impl FnMut(&Words, &str)) {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&heap, "board");
    Gate::pass(&heap);
    for (round, name) in (1..).zip(parameter("NAMES").split(' ')) {
        board.meet(BARRIER, RACERS as u64, round);
        race(&board, name);
    }
}

fn run_race(role: &str, names: &str) -> [u64; 2] {
    let (segment, heap) = new_heap("race");
    let gate = Gate::place(&heap);
    let board = Words::create(&heap, "board", 8);
    let workers = Worker::start_many(RACERS, role, &[("HEAP", segment.name()), ("NAMES", names)]);
    gate.open();
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    [board.get(WON), board.get(LOST)]
}

fn race_to_create() {
    each_round(|board, name| match Heap::options().capacity(1 << 20).create(name) {
        Ok(heap) => {
            heap.allocate(100 + number("INDEX") as usize).expect("room");
            board.add(WON, 1);
        }
        Err(error) => {
            assert_eq!(error, Error::AlreadyExists { name: name.to_owned() });
            let heap = Heap::open(name).expect("what exists already is whole");
            heap.validate().expect("valid");
            board.add(LOST, 1);
        }
    });
}

#[test]
fn of_eight_processes_that_create_the_same_heap_one_succeeds_and_the_others_find_it_whole() {
    let (segments, list) = names("create");
    let outcomes = run_race("race to create", &list);
    assert_eq!(outcomes, [ROUNDS, ROUNDS * (RACERS as u64 - 1)]);
    for segment in &segments {
        let heap = segment.open();
        assert_eq!(all_offsets(&heap).len(), 1, "the winner's block is there, once");
        assert_emptied(&heap);
    }
}

fn race_to_open_or_create() {
    each_round(|board, name| {
        let heap = Heap::options().capacity(1 << 20).open_or_create(name).expect("all get the heap");
        let block = heap.allocate(100).expect("room");
        heap.insert_root(&format!("racer {}", number("INDEX")), block).expect("the root is new");
        board.add(WON, 1);
    });
}

#[test]
fn eight_processes_that_open_or_create_the_same_heap_all_get_the_same() {
    let (segments, list) = names("open-or-create");
    let outcomes = run_race("race to open or create", &list);
    assert_eq!(outcomes, [ROUNDS * RACERS as u64, 0]);
    for segment in &segments {
        let heap = segment.open();
        heap.validate().expect("valid");
        assert_eq!(heap.roots().expect("roots").len(), RACERS, "all were in the same heap");
        assert_eq!(all_offsets(&heap).len(), RACERS);
        assert_emptied(&heap);
    }
}

/// Opens or creates, and unlinks what it finds, at the same time as everybody else.
fn race_to_unlink() {
    each_round(|board, name| {
        let heap = Heap::options().capacity(1 << 20).open_or_create(name).expect("there is always one to be had");
        let block = heap.allocate(1000).expect("room");
        heap.copy_in(block, b"mine").expect("copy");
        match Heap::unlink(name) {
            Ok(()) => board.add(WON, 1),
            Err(error) => {
                assert_eq!(error, Error::NotFound { name: name.to_owned() });
                board.add(LOST, 1)
            }
        };
        heap.validate().expect("an unlinked heap goes on");
        heap.deallocate(block).expect("the block is ours");
    });
}

#[test]
fn heaps_that_are_unlinked_while_others_open_them_stay_whole_for_those_who_have_them() {
    let (segments, list) = names("unlink");
    let [unlinked, missed] = run_race("race to unlink", &list);
    assert_eq!(unlinked + missed, ROUNDS * RACERS as u64);
    assert!(unlinked >= ROUNDS, "each name was unlinked by at least one");
    for segment in &segments {
        assert!(!Path::new(&segment.path()).exists(), "who came last has unlinked it");
    }
}

#[test]
fn a_heap_exists_once_and_opening_finds_it() {
    let segment = Segment::new("once");
    let not_found = Error::NotFound { name: segment.name().to_owned() };
    assert_eq!(Heap::open(segment.name()).expect_err("there is none yet"), not_found);
    assert_eq!(Heap::open_read_only(segment.name()).expect_err("there is none yet"), not_found);
    assert_eq!(Heap::unlink(segment.name()), Err(not_found.clone()));
    let heap = segment.create(&Heap::options().capacity(1 << 20));
    assert_eq!(heap.name(), segment.name());
    let exists = Error::AlreadyExists { name: segment.name().to_owned() };
    assert_eq!(Heap::options().create(segment.name()).expect_err("it exists"), exists);
    let block = heap.allocate(10).expect("room");
    let again = Heap::options().open_or_create(segment.name()).expect("it is opened");
    assert!(again.info(block).is_ok());
    again.deallocate(block).expect("free");
    assert_is_empty(&heap);
    heap.destroy().expect("destroy");
    assert_eq!(Heap::open(segment.name()).expect_err("it is gone"), not_found);
}

#[test]
fn those_who_are_attached_go_on_after_an_unlink_and_a_new_heap_may_take_the_name() {
    let (segment, heap) = new_heap("unlink");
    let other = segment.open();
    let block = heap.allocate(1000).expect("room");
    Heap::unlink(segment.name()).expect("unlink");
    let not_found = Error::NotFound { name: segment.name().to_owned() };
    assert_eq!(Heap::open(segment.name()).expect_err("the name is gone"), not_found);
    assert_eq!(Heap::unlink(segment.name()), Err(not_found.clone()));
    other.copy_in(block, b"still here").expect("copy");
    let large = other.allocate(1 << 20).expect("an unlinked heap still grows");
    heap.deallocate(large).expect("free");
    heap.validate().expect("valid");

    let new = segment.create(&Heap::options().capacity(1 << 20));
    assert_eq!(all_offsets(&new), [], "the new heap is another one");
    assert_eq!(heap.destroy(), Err(not_found), "the old one does not take the new one's name away");
    assert_eq!(all_offsets(&segment.open()), []);
    other.deallocate(block).expect("free");
    assert_is_empty(&other);
    new.destroy().expect("destroy");
    assert!(!Path::new(&segment.path()).exists());
}

#[test]
fn a_heap_that_was_destroyed_serves_its_other_handles_to_the_end() {
    let (segment, heap) = new_heap("destroy");
    let clone = heap.clone();
    let block = heap.allocate(100).expect("room");
    heap.destroy().expect("destroy");
    assert!(!Path::new(&segment.path()).exists());
    clone.copy_in(block, b"bytes").expect("copy");
    clone.deallocate(block).expect("free");
    assert_is_empty(&clone);
}

#[test]
fn options_shape_a_heap_and_opening_takes_them_from_its_header() {
    let segment = Segment::new("options");
    let heap = segment.create(&Heap::options().capacity((1 << 20) + 1).page_size(8192).lanes(3).root_slots(5));
    assert_eq!(heap.capacity(), (1 << 20) + 4096, "the capacity is rounded up to 4096");
    let opened = segment.open();
    assert_eq!((opened.capacity(), opened.total_size()), (heap.capacity(), heap.total_size()));
    assert_eq!(opened.total_size() % 8192, 0);
    let block = opened.allocate(10).expect("room");
    for slot in 0..5 {
        opened.insert_root(&slot.to_string(), block).expect("there are five slots");
    }
    assert_eq!(opened.insert_root("sixth", block), Err(Error::RootsFull { slots: 5 }));
    let asked = Heap::options().capacity((1 << 20) + 1).open(segment.name()).expect("the capacity that was asked for");
    drop(asked);
    assert_emptied(&heap);
}
