//! Freezing: while somebody freezes the heap nobody else allocates or frees, and nobody waits for ever.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::shared::Words;
use common::{Random, all_blocks, assert_emptied, new_heap, until, worker};
use shmheap::{Error, Heap, Memory, Offset};

/// Word of the shared block that counts what the workers have done.
const DONE: usize = 0;
/// Word of the shared block that ends them.
const STOP: usize = 1;

/// Allocates and frees its own blocks and, through the other words of the shared block, those of the others.
fn churn_role() {
    let heap = Heap::open(&worker::parameter("NAME")).expect("the heap is there");
    let words = Words::open(&heap, "words");
    let mut random = Random::new(u64::from(std::process::id()));
    let mut blocks: Vec<Offset> = Vec::new();
    worker::say("at work");
    let started = Instant::now();
    while words.get(STOP) == 0 && started.elapsed() < common::PATIENCE {
        let passed_on = words.word(2 + random.below(6));
        match random.below(4) {
            0 => blocks.extend(heap.allocate(1 + random.below(300)).ok()),
            1 => {
                let mine = heap.allocate(1 + random.below(50_000)).map_or(0, Offset::get);
                if let Some(theirs) = Offset::new(passed_on.swap(mine, Ordering::AcqRel)) {
                    heap.deallocate(theirs).expect("it was passed on by who allocated it");
                }
            }
            2 if !blocks.is_empty() => {
                let index = random.below(blocks.len());
                blocks[index] = heap.reallocate(blocks[index], 1 + random.below(600)).expect("there is room");
            }
            _ if !blocks.is_empty() => {
                heap.deallocate(blocks.swap_remove(random.below(blocks.len()))).expect("it is allocated");
            }
            _ => {}
        }
        if blocks.len() > 500 {
            blocks.drain(..).for_each(|block| heap.deallocate(block).expect("it is allocated"));
        }
        words.add(DONE, 1);
    }
}

/// Freezes the heap and says so; ends, or is ended, with the heap frozen.
fn freeze_role() {
    let heap = Heap::open(&worker::parameter("NAME")).expect("the heap is there");
    let frozen = heap.freeze().expect("it is frozen");
    worker::say("frozen");
    worker::hear();
    drop(frozen);
    worker::say("thawed");
    worker::hear();
}

#[test]
fn while_the_heap_is_frozen_no_other_process_allocates_or_frees() {
    let (segment, heap) = new_heap("frozen");
    let words = Words::create(&heap, "words", 8);
    let mut workers = worker::Worker::start_many(3, "churn", &[("NAME", segment.name())]);
    workers.iter_mut().for_each(|worker| worker.expect("at work"));
    for _ in 0..20 {
        let frozen = heap.freeze().expect("it is frozen");
        let (before, done) = (all_blocks(&heap), words.get(DONE));
        // Long enough for each of them to run, had it not been stopped.
        until("a while has passed", {
            let started = Instant::now();
            move || started.elapsed() > Duration::from_millis(20)
        });
        assert_eq!(all_blocks(&heap), before, "blocks came or went while the heap was frozen");
        // Each may have ended a call that it was in when it was stopped.
        assert!(words.get(DONE) - done <= 6, "they went on");
        drop(frozen);
        let done = words.get(DONE);
        until("they go on", || words.get(DONE) > done + 100);
    }
    words.set(STOP, 1);
    workers.into_iter().for_each(|worker| assert_eq!(worker.finish(), Vec::<String>::new()));
    assert_emptied(&heap);
}

#[test]
fn a_freezer_that_is_killed_lets_the_others_go_on() {
    let (segment, heap) = new_heap("killed");
    let own = heap.allocate(100).expect("room");
    let mut freezer = worker::Worker::start("freeze", &[("NAME", segment.name())]);
    freezer.expect("frozen");
    freezer.kill();
    let started = Instant::now();
    heap.deallocate(own).expect("it is allocated");
    heap.allocate(100).expect("room");
    assert!(started.elapsed() < Duration::from_secs(4), "the time-out was waited for");
    heap.validate().expect("the heap is valid");
    drop(heap.freeze().expect("it can be frozen again"));
    assert_emptied(&heap);
}

#[test]
fn a_freezer_that_does_not_let_go_is_named_after_the_time_out() {
    let (segment, heap) = new_heap("named");
    let mut freezer = worker::Worker::start("freeze", &[("NAME", segment.name())]);
    freezer.expect("frozen");
    let patient = Heap::options().lock_timeout(Duration::from_millis(50)).open(segment.name()).expect("it is there");
    let pid = freezer.pid();
    let is_named = |error: Error| assert!(matches!(error, Error::LockTimeout { holder_pid, .. } if holder_pid == pid));
    is_named(patient.allocate(100).expect_err("the heap is frozen"));
    is_named(patient.freeze().map(|_| ()).expect_err("the heap is frozen"));
    freezer.tell("go on");
    freezer.expect("thawed");
    assert!(patient.allocate(100).is_ok());
    freezer.hang_up();
    freezer.finish();
    drop(patient);
    assert_emptied(&heap);
}

#[test]
fn a_stopped_process_that_is_in_no_call_does_not_keep_others_from_freezing() {
    let (segment, heap) = new_heap("stopped");
    let mut other = worker::Worker::start("freeze", &[("NAME", segment.name())]);
    other.expect("frozen");
    other.tell("go on");
    other.expect("thawed");
    other.stop();
    drop(heap.freeze().expect("it is frozen"));
    other.go_on();
    other.hang_up();
    other.finish();
    assert_emptied(&heap);
}

#[test]
fn the_thread_that_freezes_is_told_so_instead_of_waiting_for_itself() {
    let heap = Heap::options().create_in(Memory::zeroed(1 << 20).expect("memory")).expect("a heap");
    let block = heap.allocate(100).expect("room");
    heap.set_root("block", block).expect("a slot");
    let frozen = heap.freeze().expect("it is frozen");
    assert_eq!(heap.allocate(100), Err(Error::Frozen));
    assert_eq!(heap.allocate(100_000), Err(Error::Frozen));
    assert_eq!(heap.deallocate(block), Err(Error::Frozen));
    assert_eq!(heap.reallocate(block, 200), Err(Error::Frozen));
    assert_eq!(heap.remove_root("block"), Err(Error::Frozen));
    assert_eq!(heap.validate(), Err(Error::Frozen));
    assert_eq!(heap.freeze().map(|_| ()).expect_err("once is enough"), Error::Frozen);
    assert_eq!(heap.root("block"), Ok(Some(block)), "what needs no lock works");
    assert_eq!(heap.stats().map(|stats| stats.allocated_blocks), Ok(1));
    drop(frozen);
    assert_eq!(heap.deallocate(block), Ok(()));
    heap.remove_root("block").expect("it is there");
    assert_emptied(&heap);
}

#[test]
fn other_threads_of_the_process_wait_and_threads_without_a_lane_can_freeze() {
    let options = Heap::options().lanes(1);
    let heap = options.create_in(Memory::zeroed(1 << 20).expect("memory")).expect("a heap");
    let seated = heap.allocate(100).expect("room");
    let (is_frozen, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let frozen = heap.freeze().expect("a thread without a lane freezes");
            is_frozen.store(true, Ordering::Release);
            assert_eq!(heap.allocate(1), Err(Error::Frozen));
            let started = Instant::now();
            until("a while has passed", || started.elapsed() > Duration::from_millis(30));
            assert_eq!(count.load(Ordering::Acquire), 0, "the other one has gone on");
            drop(frozen);
        });
        until("the heap is frozen", || is_frozen.load(Ordering::Acquire));
        heap.deallocate(seated).expect("it is allocated");
        count.fetch_add(1, Ordering::Release);
    });
    assert_emptied(&heap);
}

#[test]
fn a_constructor_that_takes_its_time_or_panics_keeps_nobody_from_freezing() {
    let heap = Heap::options().create_in(Memory::zeroed(1 << 20).expect("memory")).expect("a heap");
    let (is_constructing, may_end) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let construct = |block| {
                heap.copy_in(block, b"made")?;
                is_constructing.store(true, Ordering::Release);
                until("it may end", || may_end.load(Ordering::Acquire));
                heap.deallocate(heap.allocate(100)?)
            };
            heap.find_or_construct("slow", 100, construct).expect("it is constructed");
        });
        until("it is being constructed", || is_constructing.load(Ordering::Acquire));
        drop(heap.freeze().expect("a constructor is no call in flight"));
        may_end.store(true, Ordering::Release);
    });
    let other = heap.clone();
    let panics = move || other.find_or_construct("never", 100, |_| std::panic::resume_unwind(Box::new("no")));
    assert!(std::thread::spawn(panics).join().is_err(), "the panic goes on");
    drop(heap.freeze().expect("nobody is inside any more"));
    assert_eq!(heap.root("never"), Ok(None));
    heap.remove_root("slow").expect("it is there");
    assert_emptied(&heap);
}

#[test]
fn worker_entry() {
    worker::dispatch(&[("churn", churn_role), ("freeze", freeze_role)]);
}
