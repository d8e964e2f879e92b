//! Roots shared by processes, and objects that are constructed once, whoever races, fails or dies.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::churn::{check_stamp, stamp};
use common::shared::{Gate, Words};
use common::worker::{Worker, dispatch, hear, number, parameter, say};
use common::{all_offsets, assert_emptied, lane_of, new_heap, state_of};
use shmheap::{Error, Heap, Offset, RootInfo};

#[test]
fn worker_entry() {
    dispatch(&[
        ("race to construct", race_to_construct),
        ("construct and wait", construct_and_wait),
        ("construct", construct),
        ("write roots", write_roots),
    ]);
}

/// Processes in a race, and its rounds.
const RACERS: usize = 8;
const ROUNDS: u64 = 50;

fn race_to_construct() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&heap, "board");
    Gate::pass(&heap);
    for round in 1..=ROUNDS {
        board.meet(0, RACERS as u64, round);
        let name = format!("object {round}");
        let constructor = |block: Offset| {
            board.add(1, 1);
            let mut bytes = [1; 700];
            heap.copy_out(block, &mut bytes)?;
            assert!(bytes.iter().all(|byte| *byte == 0), "the block is zeroed");
            stamp(&heap, block, 700, round);
            Ok(())
        };
        let block = heap.find_or_construct(&name, 700, constructor).expect("it is found or constructed");
        check_stamp(&heap, block, 700, round);
        board.add(2, block.get());
    }
}

#[test]
fn an_object_for_which_eight_processes_race_is_constructed_once() {
    let (segment, heap) = new_heap("race");
    let gate = Gate::place(&heap);
    let board = Words::create(&heap, "board", 8);
    let workers = Worker::start_many(RACERS, "race to construct", &[("HEAP", segment.name())]);
    gate.open();
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    assert_eq!(board.get(1), ROUNDS, "each object was constructed once");
    let blocks = (1..=ROUNDS).map(|round| heap.root(&format!("object {round}")).expect("roots").expect("it is there"));
    assert_eq!(board.get(2), blocks.map(|block| block.get() * RACERS as u64).sum::<u64>(), "all were given the same block");
    assert_eq!(all_offsets(&heap).len() as u64, ROUNDS + 2, "nothing was allocated in vain");
    heap.validate().expect("valid");
    drop(gate);
    assert_emptied(&heap);
}

/// Says so when it is in the constructor, and stays there until it hears something.
fn construct_and_wait() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let block = heap.find_or_construct("object", 5000, |block| {
        stamp(&heap, block, 5000, 1);
        say("constructing");
        hear();
        Ok(())
    });
    say(&format!("{:#x}", block.expect("it is constructed").get()));
}

fn construct() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    say("ready");
    let block = heap.find_or_construct("object", 5000, |block| {
        stamp(&heap, block, 5000, 2);
        Ok(())
    });
    say(&format!("{:#x}", block.expect("it is constructed").get()));
}

fn the_root(heap: &Heap) -> Option<RootInfo> {
    heap.roots().expect("roots").into_iter().find(|root| root.name == "object")
}

#[test]
fn others_wait_for_a_constructor_and_are_given_what_it_made() {
    let (segment, heap) = new_heap("wait");
    let mut first = Worker::start("construct and wait", &[("HEAP", segment.name())]);
    first.expect("constructing");
    let root = the_root(&heap).expect("a root under construction is listed");
    assert!(root.constructing && root.block.is_some(), "{root:?}");
    assert_eq!(heap.root("object"), Ok(None), "nobody is given half an object");
    assert!(matches!(heap.remove_root("object"), Err(Error::RootUnknown { name }) if name == "object"));
    let block = root.block.expect("it has a block");
    assert!(matches!(heap.set_root("object", block), Err(Error::RootExists { name }) if name == "object"));
    heap.validate().expect("valid");

    let mut second = Worker::start("construct", &[("HEAP", segment.name())]);
    second.expect("ready");
    first.tell("go on");
    let made = first.line();
    assert_eq!(second.line(), made);
    assert_eq!(format!("{:#x}", block.get()), made);
    check_stamp(&heap, block, 5000, 1);
    assert_eq!(heap.root("object"), Ok(Some(block)));
    first.finish();
    second.finish();
    assert_emptied(&heap);
}

#[test]
fn a_constructor_that_is_killed_in_the_middle_is_undone_and_the_next_one_constructs() {
    let (segment, heap) = new_heap("killed");
    for _ in 0..20 {
        let mut first = Worker::start("construct and wait", &[("HEAP", segment.name())]);
        first.expect("constructing");
        let mut second = Worker::start("construct", &[("HEAP", segment.name())]);
        second.expect("ready");
        first.kill();
        let made = second.line();
        second.finish();
        let roots = heap.roots().expect("roots");
        let block = heap.root("object").expect("roots").unwrap_or_else(|| panic!("{made} was made, but there is {roots:?}"));
        check_stamp(&heap, block, 5000, 2);
        assert_eq!(all_offsets(&heap), [block], "the block of the one that was killed is free");
        heap.validate().expect("valid");
        assert_eq!(heap.remove_root("object"), Ok(block));
        heap.deallocate(block).expect("the block is free to be freed");
    }
    assert_emptied(&heap);
}

#[test]
fn a_constructor_that_is_killed_with_nobody_waiting_is_undone_by_recover() {
    let (segment, heap) = new_heap("alone");
    let empty = state_of(&heap);
    let mut first = Worker::start("construct and wait", &[("HEAP", segment.name())]);
    first.expect("constructing");
    first.kill();
    assert!(the_root(&heap).is_some_and(|root| root.constructing));
    assert_eq!(heap.recover(), Ok(1));
    assert_eq!(state_of(&heap), empty);
    heap.validate().expect("valid");
}

#[test]
fn a_constructor_that_is_stopped_gives_a_timeout_that_names_it() {
    let (segment, heap) = new_heap("stopped");
    let mut first = Worker::start("construct and wait", &[("HEAP", segment.name())]);
    first.expect("constructing");
    first.stop();
    let impatient = Heap::options().lock_timeout(Duration::from_millis(100)).open(segment.name()).expect("open");
    let error = impatient.find_or_construct("object", 5000, |_| panic!("somebody else is at it")).expect_err("it is stuck");
    assert!(
        matches!(error, Error::LockTimeout { holder_pid, waited_ms: 100..10_000 } if holder_pid == first.pid()),
        "{error}"
    );
    first.tell("go on");
    first.go_on();
    let made = first.line();
    let block = heap.find_or_construct("object", 5000, |_| panic!("it exists")).expect("it is there now");
    assert_eq!(format!("{:#x}", block.get()), made);
    first.finish();
    drop(impatient);
    assert_emptied(&heap);
}

#[test]
fn a_constructor_that_fails_is_undone_and_its_error_comes_back() {
    let (_segment, heap) = new_heap("fails");
    let kept = heap.allocate(10).expect("room");
    let before = state_of(&heap);
    let error = heap.find_or_construct("object", 100, |block| {
        assert!(heap.info(block).is_ok_and(|info| info.size >= 100));
        heap.allocate(usize::MAX / 2).map(drop)
    });
    assert!(matches!(error, Err(Error::TooLarge { .. })), "{error:?}");
    assert_eq!(state_of(&heap), before, "nothing is left of it");
    heap.validate().expect("valid");
    let block = heap.find_or_construct("object", 100, |_| Ok(())).expect("the next one constructs");
    assert_eq!(heap.root("object"), Ok(Some(block)));
    heap.deallocate(kept).expect("free");
    assert_emptied(&heap);
}

#[test]
fn a_constructor_that_panics_is_undone() {
    let (_segment, heap) = new_heap("panics");
    let before = state_of(&heap);
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _ = heap.find_or_construct("object", 100, |_| std::panic::resume_unwind(Box::new("no")));
    }));
    assert!(unwound.is_err(), "the panic reaches the caller");
    heap.allocate(10).and_then(|block| heap.deallocate(block)).expect("the heap goes on");
    assert_eq!(state_of(&heap), before, "nothing is left of it");
    heap.validate().expect("valid");
    heap.find_or_construct("object", 100, |_| Ok(())).expect("the next one constructs");
    assert_emptied(&heap);
}

#[test]
fn a_constructor_may_use_the_heap_and_construct_other_objects() {
    let (_segment, heap) = new_heap("nested");
    let outer = heap.find_or_construct("outer", 64, |outer| {
        let inner = heap.find_or_construct("inner", 64, |inner| heap.copy_in(inner, b"inner"))?;
        heap.copy_in(outer, &inner.get().to_le_bytes())?;
        heap.allocate_into(Offset::new(outer.get() + 8).expect("not zero"), 500).map(drop)
    });
    let outer = outer.expect("it is constructed");
    let mut bytes = [0; 8];
    heap.copy_out(outer, &mut bytes).expect("copy");
    assert_eq!(heap.root("inner"), Ok(Offset::new(u64::from_le_bytes(bytes))));
    heap.validate().expect("valid");
    assert_eq!(all_offsets(&heap).len(), 3);
    assert_emptied(&heap);
}

/// Inserts, replaces and removes roots that other workers insert, replace and remove too.
fn write_roots() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let index = number("INDEX");
    let mine = heap.allocate(64).expect("room");
    heap.copy_in(mine, &index.to_le_bytes()).expect("copy");
    Gate::pass(&heap);
    for round in 0..2000 {
        let name = format!("contested {}", (round * 7 + index) % 5);
        let outcome = match round % 3 {
            0 => heap.insert_root(&name, mine),
            1 => heap.set_root(&name, mine).map(drop),
            _ => heap.remove_root(&name).map(drop),
        };
        assert!(matches!(outcome, Ok(()) | Err(Error::RootExists { .. } | Error::RootUnknown { .. })), "{outcome:?}");
        if let Some(block) = heap.root(&name).expect("roots can be read") {
            let mut bytes = [0; 8];
            heap.copy_out(block, &mut bytes).expect("a root leads to a block");
            assert!(u64::from_le_bytes(bytes) < 4, "a root leads to a block of one of the workers");
        }
    }
    heap.set_root(&format!("own {index}"), mine).expect("the name is nobody else's");
}

#[test]
fn four_processes_write_the_same_roots_and_the_table_stays_sound() {
    let (segment, heap) = new_heap("roots");
    let gate = Gate::place(&heap);
    let workers = Worker::start_many(4, "write roots", &[("HEAP", segment.name())]);
    let pids: Vec<u32> = workers.iter().map(Worker::pid).collect();
    gate.open();
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    heap.validate().expect("valid");
    assert!(pids.iter().all(|pid| lane_of(&heap, *pid).is_none()));
    for index in 0..4u64 {
        let block = heap.root(&format!("own {index}")).expect("roots").expect("it was set at the end");
        let mut bytes = [0; 8];
        heap.copy_out(block, &mut bytes).expect("copy");
        assert_eq!(u64::from_le_bytes(bytes), index);
    }
    drop(gate);
    assert_emptied(&heap);
}
