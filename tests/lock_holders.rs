//! Holders of the heap lock that die or stand still.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::shared::Words;
use common::worker::{Worker, dispatch, number, parameter};
use common::{Random, all_offsets, assert_emptied, lane_of, new_heap};
use shmheap::{Error, Heap};

/// A size with pages of its own: each allocation and each free takes the heap lock.
const LARGE: usize = 256 << 10;
/// How often a worker is stopped, at most, until it is caught with the lock.
const TRIES: u32 = 20_000;

#[test]
fn worker_entry() {
    dispatch(&[("hot large", hot_large)]);
}

/// Keeps the heap lock busy; counts its rounds in word `INDEX` of the board.
fn hot_large() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&heap, "board");
    let counter = board.word(usize::try_from(number("INDEX")).expect("a small number"));
    while board.get(7) == 0 {
        let block = heap.allocate(LARGE).expect("room");
        heap.deallocate(block).expect("the block is ours");
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

fn start(heap: &Heap, index: usize) -> Worker {
    Worker::start("hot large", &[("HEAP", &heap.name()), ("INDEX", &index.to_string())])
}

/// Stops the worker at random moments until it stands with the lock in its hands.
fn stop_with_the_lock(heap: &Heap, board: &Words, worker: &Worker, index: usize, random: &mut Random) {
    for _ in 0..TRIES {
        let rounds = random.below(20) as u64;
        board.await_at_least(index, board.get(index) + rounds);
        worker.stop();
        if lane_of(heap, worker.pid()).is_some_and(|lane| lane.holds_lock && lane.alive) {
            return;
        }
        worker.go_on();
    }
    panic!("a worker that hardly does anything but hold the lock was never caught with it");
}

#[test]
fn a_holder_that_is_killed_is_replaced_at_once_and_its_work_is_finished_or_undone() {
    let (_segment, heap) = new_heap("dead-holder");
    let board = Words::create(&heap, "board", 8);
    let mut random = Random::new(11);
    let waiting = start(&heap, 1);
    for kill in 0..25 {
        let before = board.get(0);
        let victim = start(&heap, 0);
        board.await_at_least(0, before + 1);
        stop_with_the_lock(&heap, &board, &victim, 0, &mut random);
        let pid = victim.pid();
        let waiting_before = board.get(1);
        victim.kill();
        let started = Instant::now();
        let block = heap.allocate(LARGE).expect("the lock is taken from the dead");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(2), "after kill {kill}, it took {took:?} to replace a dead holder");
        heap.deallocate(block).expect("the block is ours");
        heap.validate().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
        heap.recover().expect("recover");
        assert_eq!(lane_of(&heap, pid), None, "nothing is left of the dead lane");
        board.await_at_least(1, waiting_before + 10);
    }
    board.set(7, 1);
    waiting.finish();
    let strays = all_offsets(&heap).len() - 1;
    assert!(strays <= 25, "{strays} blocks are nobody's, at most one a kill can be");
    assert_emptied(&heap);
}

#[test]
fn a_holder_that_is_stopped_gives_a_timeout_that_names_it_and_hinders_nobody_once_it_goes_on() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    let (segment, heap) = new_heap("stopped");
    let board = Words::create(&heap, "board", 8);
    let impatient = Heap::options().lock_timeout(TIMEOUT).open(segment.name()).expect("open");
    let small = impatient.allocate(64).expect("room: from here on this thread has a lane and a slab");
    let worker = start(&heap, 0);
    board.await_at_least(0, 1);
    stop_with_the_lock(&heap, &board, &worker, 0, &mut Random::new(12));

    for _ in 0..3 {
        let started = Instant::now();
        let error = impatient.allocate(LARGE).expect_err("the lock is held");
        let took = started.elapsed();
        let Error::LockTimeout { holder_pid, waited_ms } = error.clone() else { panic!("{error:?}") };
        assert_eq!(holder_pid, worker.pid());
        assert!((100..10_000).contains(&waited_ms), "{error}");
        assert!(took >= TIMEOUT && took < Duration::from_secs(10), "waited {took:?}");
        assert!(error.is_transient() && error.to_string().contains(&worker.pid().to_string()), "{error}");
    }
    impatient.deallocate(small).expect("the thread's own slab needs no lock");
    let small = impatient.allocate(64).expect("the thread's own slab needs no lock");
    let lane = lane_of(&heap, worker.pid()).expect("its lane is still there");
    assert!(lane.alive && lane.holds_lock, "a stopped process is not dead: {lane:?}");

    let before = board.get(0);
    worker.go_on();
    let block = heap.allocate(LARGE).expect("the lock is free again");
    heap.deallocate(block).expect("the block is ours");
    board.await_at_least(0, before + 10);
    board.set(7, 1);
    worker.finish();
    heap.validate().expect("valid");
    impatient.deallocate(small).expect("the block is ours");
    assert_eq!(all_offsets(&heap), [board.block()], "the calls that timed out have allocated nothing");
    drop(impatient);
    assert_emptied(&heap);
}

#[test]
fn a_process_that_is_stopped_without_the_lock_hinders_nobody() {
    let (segment, heap) = new_heap("bystander");
    let board = Words::create(&heap, "board", 8);
    let impatient = Heap::options().lock_timeout(Duration::from_millis(500)).open(segment.name()).expect("open");
    let worker = start(&heap, 0);
    let mut checked = 0;
    for round in 0..50 {
        board.await_at_least(0, board.get(0) + round % 7);
        worker.stop();
        let lane = lane_of(&heap, worker.pid());
        if lane.is_none_or(|lane| !lane.holds_lock) {
            let block = impatient.allocate(LARGE).expect("nobody holds the lock");
            impatient.deallocate(block).expect("the block is ours");
            impatient.validate().expect("valid");
            checked += 1;
        }
        worker.go_on();
    }
    assert!(checked > 0, "the worker held the lock whenever it was stopped");
    board.set(7, 1);
    worker.finish();
    drop(impatient);
    assert_emptied(&heap);
}
