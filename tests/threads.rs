//! Threads: one handle in many, more of them than lanes, and what their ends leave.

mod common;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};

use common::churn::{Churn, check_stamp, stamp};
use common::{Segment, all_offsets, assert_is_empty, new_heap};
use shmheap::{Heap, Memory, Offset, Options};

#[test]
fn handles_can_be_cloned_sent_and_shared() {
    fn is_all_of_it<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    is_all_of_it::<Heap>();
    is_all_of_it::<Options>();
    is_all_of_it::<Offset>();
    is_all_of_it::<Memory>();
    is_all_of_it::<shmheap::Error>();
}

/// Random work in `threads` threads at once, which all exist before the first of them begins.
fn churn_in_threads(heap: &Heap, threads: usize, steps: usize, while_they_live: impl FnOnce()) {
    let (begin, end) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    let work = |seed: usize| {
        let mut churn = Churn::new(heap, seed as u64, 60);
        churn.step();
        begin.wait();
        (0..steps).for_each(|_| churn.step());
        end.wait();
        churn.free_all();
    };
    std::thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = (1..=threads).map(|seed| scope.spawn(move || work(seed))).collect();
        begin.wait();
        while_they_live();
        end.wait();
        // Not left to the scope: that would not wait for the ends of thread-locals.
        started.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
    });
}

#[test]
fn eight_threads_use_one_handle() {
    let (_segment, heap) = new_heap("eight");
    churn_in_threads(&heap, 8, 5000, || {
        let lanes = heap.lanes().expect("lanes");
        assert_eq!(lanes.iter().filter(|lane| lane.own && lane.alive).count(), 8, "each thread has a lane: {lanes:?}");
        heap.validate().expect("valid while they work");
    });
    assert_is_empty(&heap);
    assert!(heap.lanes().expect("lanes").len() <= 1, "their ends gave their lanes back");
}

#[test]
fn more_threads_than_lanes_work() {
    let segment = Segment::new("two-lanes");
    let heap = segment.create(&Heap::options().capacity(16 << 20).lanes(2));
    churn_in_threads(&heap, 8, 1500, || {
        let numbers: Vec<u16> =
            heap.lanes().expect("lanes").iter().map(|lane| lane.lane).filter(|lane| *lane != 0).collect();
        assert_eq!(numbers, [1, 2], "two threads have lanes, six have none");
        heap.validate().expect("valid while they work");
    });
    assert_is_empty(&heap);
}

#[test]
fn more_threads_than_lanes_work_in_two_attachments_of_one_heap() {
    let segment = Segment::new("one-lane");
    let heap = segment.create(&Heap::options().capacity(16 << 20).lanes(1));
    let other = segment.open();
    std::thread::scope(|scope| {
        scope.spawn(|| churn_in_threads(&heap, 3, 700, || ()));
        scope.spawn(|| churn_in_threads(&other, 3, 700, || ()));
    });
    assert_is_empty(&heap);
    assert_is_empty(&other);
}

#[test]
fn threads_in_the_callers_memory_work() {
    let heap = Heap::options().lanes(3).create_in(Memory::zeroed(8 << 20).expect("memory")).expect("create");
    churn_in_threads(&heap, 6, 1000, || heap.validate().expect("valid while they work"));
    assert_is_empty(&heap);
}

#[test]
fn the_end_of_a_thread_gives_its_lane_back() {
    let segment = Segment::new("ends");
    let heap = segment.create(&Heap::options().capacity(4 << 20).lanes(4));
    let numbers = || heap.lanes().expect("lanes").iter().map(|lane| lane.lane).collect::<Vec<_>>();
    let (allocated, leave) = (Barrier::new(5), Barrier::new(5));
    let sit = || {
        heap.allocate(100).expect("room");
        allocated.wait();
        leave.wait();
    };
    std::thread::scope(|scope| {
        let seated = [(); 4].map(|()| scope.spawn(sit));
        allocated.wait();
        assert_eq!(numbers(), [1, 2, 3, 4]);
        leave.wait();
        seated.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
    });
    assert_eq!(numbers(), [], "all lanes are free again");
    assert!(heap.blocks().all(|block| block.lane.is_none()), "the blocks are orphans");
    for _ in 0..50 {
        let lane = std::thread::scope(|scope| {
            let allocate = || heap.allocate(5000).and_then(|block| heap.info(block)).expect("room").lane;
            scope.spawn(allocate).join().expect("the thread ends")
        });
        assert_eq!(lane, Some(1), "each thread finds the lane that the one before it left");
    }
    heap.validate().expect("valid");
    all_offsets(&heap).into_iter().for_each(|block| heap.deallocate(block).expect("free"));
    assert_is_empty(&heap);
}

#[test]
fn threads_free_each_others_blocks() {
    let (_segment, heap) = new_heap("exchange");
    let count = 4usize;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::sync_channel::<(Offset, u64)>(64)).unzip();
    std::thread::scope(|scope| {
        for (index, receiver) in receivers.into_iter().enumerate() {
            let to_the_next = senders[(index + 1) % count].clone();
            let heap = &heap;
            scope.spawn(move || {
                for (block, seed) in receiver {
                    check_stamp(heap, block, 1 + (seed % 900) as usize, seed);
                    heap.deallocate(block).expect("a block that was handed over can be freed");
                }
            });
            scope.spawn(move || {
                for round in 0..5000u64 {
                    let seed = round * 4 + index as u64;
                    let block = heap.allocate(1 + (seed % 900) as usize).expect("room");
                    stamp(heap, block, 1 + (seed % 900) as usize, seed);
                    to_the_next.send((block, seed)).expect("the next thread receives");
                }
            });
        }
        drop(senders);
    });
    assert_is_empty(&heap);
}

#[test]
fn the_last_handle_takes_the_lanes_of_threads_that_live_on_with_it() {
    let (_segment, watching) = new_heap("live-on");
    let heap = Heap::open(&watching.name()).expect("open");
    let (allocated, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let thread = {
        let (heap, allocated, leave) = (heap.clone(), allocated.clone(), leave.clone());
        std::thread::spawn(move || {
            heap.allocate(100).expect("room");
            drop(heap);
            allocated.wait();
            leave.wait();
        })
    };
    allocated.wait();
    assert_eq!(watching.lanes().expect("lanes").len(), 1, "the thread has its lane as long as there is a handle");
    drop(heap);
    assert_eq!(watching.lanes().expect("lanes"), []);
    leave.wait();
    thread.join().expect("its end disturbs nobody");
    watching.validate().expect("valid");
    assert_eq!(all_offsets(&watching).len(), 1, "the block is still there");
}

#[test]
fn a_thread_uses_many_heaps_one_after_the_other() {
    for round in 0..30u64 {
        let (_segment, heap) = new_heap("many");
        let mut churn = Churn::new(&heap, round, 50);
        (0..200).for_each(|_| churn.step());
        let lanes = heap.lanes().expect("lanes");
        assert!(lanes.len() == 1 && lanes[0].own && lanes[0].lane == 1, "{lanes:?}");
        churn.free_all();
        assert_is_empty(&heap);
    }
}

#[test]
fn a_thread_uses_many_heaps_at_once() {
    let heaps: Vec<_> = (0..10).map(|_| new_heap("at-once")).collect();
    let mut churns: Vec<Churn> = (1..).zip(&heaps).map(|(seed, (_, heap))| Churn::new(heap, seed, 50)).collect();
    (0..300).for_each(|_| churns.iter_mut().for_each(Churn::step));
    churns.iter_mut().for_each(Churn::free_all);
    heaps.iter().for_each(|(_, heap)| assert_is_empty(heap));
}

/// Frees a block and allocates another when its thread ends.
struct AtTheEnd {
    heap: Heap,
    block: Offset,
    done: Arc<AtomicBool>,
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        self.heap.deallocate(self.block).expect("a thread that ends can free");
        let block = self.heap.allocate(3000).expect("a thread that ends can allocate");
        self.heap.deallocate(block).expect("and free");
        self.done.store(true, Ordering::SeqCst);
    }
}

thread_local! {
    static AT_THE_END: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
}

#[test]
fn a_thread_that_ends_may_still_free_and_allocate() {
    // Thread-locals end in the order of their first use: the library's before ours, or after.
    for ours_first in [false, true] {
        let (_segment, heap) = new_heap("at-the-end");
        let block = heap.allocate(100).expect("room");
        let done = Arc::new(AtomicBool::new(false));
        let at_the_end = AtTheEnd { heap: heap.clone(), block, done: done.clone() };
        let in_thread = heap.clone();
        let thread = std::thread::spawn(move || {
            if ours_first {
                AT_THE_END.with(|_| ());
            }
            let own = in_thread.allocate(200).expect("room");
            AT_THE_END.with(|slot| *slot.borrow_mut() = Some(at_the_end));
            in_thread.deallocate(own).expect("free");
        });
        thread.join().expect("the thread ends");
        assert!(done.load(Ordering::SeqCst));
        heap.validate().expect("valid");
        assert_is_empty(&heap);
        assert!(heap.lanes().expect("lanes").iter().all(|lane| lane.alive), "no lane is left behind");
    }
}

#[test]
fn an_object_for_which_eight_threads_race_is_constructed_once() {
    let segment = Segment::new("construct");
    let heap = segment.create(&Heap::options().capacity(4 << 20).lanes(4));
    let constructed = AtomicU32::new(0);
    let begin = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..50u64 {
                    begin.wait();
                    let construct = |block| {
                        constructed.fetch_add(1, Ordering::SeqCst);
                        stamp(&heap, block, 300, round);
                        Ok(())
                    };
                    let block = heap.find_or_construct(&format!("object {round}"), 300, construct).expect("it is there");
                    check_stamp(&heap, block, 300, round);
                }
            });
        }
    });
    assert_eq!(constructed.load(Ordering::SeqCst), 50);
    assert_eq!(all_offsets(&heap).len(), 50);
    heap.validate().expect("valid");
}
