//! What goes on in a heap, as those see it who only watch.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::worker::{Worker, dispatch, hear, parameter, say};
use common::{Segment, new_heap};
use shmheap::{Activity, Change, Error, Heap, LockStats, Offset};

/// For those who are not to wait for long.
const TIMEOUT: Duration = Duration::from_millis(50);
/// More pages than a lane keeps: each allocation and each free takes the heap lock.
const LARGE: usize = 1100 << 10;
/// Where the lane records start, how long they are, and where the counters stand in one.
const LANES_AT: u64 = 4096;
const LANE_RECORD_LEN: u64 = 512;
const COUNTERS_AT: u64 = 0x100;
/// Where the superblock counts what became of those who wanted the lock.
const LOCK_STATS_AT: u64 = 0x400;

#[test]
fn worker_entry() {
    dispatch(&[("hold", hold)]);
}

/// Holds the heap lock until it is killed.
fn hold() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let _frozen = heap.freeze().expect("the lock is free");
    say("ready");
    hear();
}

fn look(heap: &Heap) -> Activity {
    heap.activity().expect("a sound heap tells what goes on")
}

/// What a lane has counted, and has now, of one size.
fn of(activity: &Activity, lane: u16, size: Option<u64>) -> (u64, u64) {
    let lane = activity.lanes.iter().find(|found| found.lane == lane);
    let class = lane.and_then(|lane| lane.classes.iter().find(|class| class.size == size));
    class.map_or((0, 0), |class| (u64::from(class.allocated_ever), class.allocated))
}

/// The changes as tuples: lane, size, allocated, freed.
fn told(changes: &[Change]) -> Vec<(u16, Option<u64>, u64, u64)> {
    changes.iter().map(|change| (change.lane, change.size, change.allocated, change.freed)).collect()
}

/// The lane of the only thread of this attachment that has one.
fn own_lane(heap: &Heap) -> u16 {
    let lanes = heap.lanes().expect("the lanes can be listed");
    lanes.iter().find(|lane| lane.own).expect("a thread that has allocated has a lane").lane
}

fn allocate_many(heap: &Heap, size: usize, count: usize) -> Vec<Offset> {
    (0..count).map(|_| heap.allocate(size).expect("room")).collect()
}

fn free_all(heap: &Heap, blocks: Vec<Offset>) {
    blocks.into_iter().for_each(|block| heap.deallocate(block).expect("the block is ours"));
}

#[test]
fn a_thread_that_looks_sees_all_that_it_has_done_by_size() {
    let (_segment, heap) = new_heap("own");
    let cells = heap.allocate_zeroed(512).expect("room");
    let lane = own_lane(&heap);
    let before = look(&heap);
    free_all(&heap, allocate_many(&heap, 100, 1000));
    let kept = allocate_many(&heap, 100, 70);
    for _ in 0..777 {
        heap.deallocate(heap.allocate(48).expect("room")).expect("the block is ours");
    }
    heap.allocate_into(cells, 300).expect("room");
    heap.allocate_aligned(250, 256).expect("room");
    heap.find_or_construct("it", 150, |_| Ok(())).expect("room");
    let large = [heap.allocate(100_000).expect("room"), heap.allocate(LARGE).expect("room")];
    free_all(&heap, large.to_vec());
    heap.allocate(100_000).expect("room in the span that is kept");
    let expected = [
        (lane, Some(48), 777, 777),
        (lane, Some(112), 1070, 1000),
        (lane, Some(160), 1, 0),
        (lane, Some(256), 1, 0),
        (lane, Some(320), 1, 0),
        (lane, None, 3, 2),
    ];
    let after = look(&heap);
    assert_eq!(told(&after.since(&before)), expected);
    assert_eq!(after.since(&after), []);
    assert_eq!((of(&after, lane, Some(112)).1, kept.len()), (70, 70));
    let live_bytes: u64 = after.lanes.iter().flat_map(|lane| &lane.classes).map(|class| class.allocated_bytes).sum();
    assert_eq!(Ok(live_bytes), heap.used_size());
}

#[test]
fn a_reallocation_that_moves_its_block_is_an_allocation_and_a_free() {
    let (_segment, heap) = new_heap("moves");
    let block = heap.allocate(100).expect("room");
    let lane = own_lane(&heap);
    let before = look(&heap);
    let block = heap.reallocate(block, 110).expect("the same class");
    let block = heap.reallocate(block, 1000).expect("room");
    let block = heap.reallocate(block, 100_000).expect("room");
    let block = heap.reallocate(block, 110_000).expect("room behind it");
    heap.reallocate(block, 10).expect("room");
    let moved = [(lane, Some(16), 1, 0), (lane, Some(112), 0, 1), (lane, Some(1024), 1, 1), (lane, None, 1, 1)];
    assert_eq!(told(&look(&heap).since(&before)), moved);
}

#[test]
fn who_only_reads_sees_all_that_each_lane_has_done() {
    let (segment, heap) = new_heap("watched");
    let watch = Heap::open_read_only(segment.name()).expect("open");
    assert_eq!(watch.activity().expect("nobody has a lane").lanes.len(), 1, "the shared lane");
    let before = look(&watch);
    std::thread::scope(|scope| {
        let mut parked = Vec::new();
        for rounds in [1000u64, 3000] {
            let (ready, wait) = channel();
            let (go_on, told_to) = channel::<()>();
            let heap = &heap;
            let thread = scope.spawn(move || {
                // Batches, hot pairs, and pairs between which other blocks stay.
                let mut blocks = Vec::new();
                for round in 0..rounds {
                    blocks.push(heap.allocate(64).expect("room"));
                    heap.deallocate(heap.allocate(200).expect("room")).expect("the block is ours");
                    let pair = heap.allocate(16).expect("room");
                    if round % 3 != 0 {
                        heap.deallocate(pair).expect("the block is ours");
                    }
                }
                ready.send(()).expect("the test waits");
                let _ = told_to.recv();
                free_all(heap, blocks);
            });
            wait.recv().expect("the thread has done its rounds");
            parked.push((rounds, go_on, thread));
        }
        let now = look(&watch);
        let lanes: Vec<u16> = now.lanes.iter().map(|lane| lane.lane).collect();
        assert_eq!(lanes, [0, 1, 2]);
        let seen = |size, rounds: u64| {
            let counted: Vec<u64> = [1, 2].map(|lane| of(&now, lane, Some(size)).0).to_vec();
            assert_eq!(
                counted.iter().filter(|count| **count == rounds).count(),
                1,
                "{rounds} blocks of {size}: {counted:?}"
            );
        };
        for (rounds, ..) in &parked {
            [64, 224, 16].into_iter().for_each(|size| seen(size, *rounds));
        }
        let live: Vec<u64> = [64, 224].map(|size| [1, 2].map(|lane| of(&now, lane, Some(size)).1).iter().sum()).to_vec();
        assert_eq!(live, [4000, 0]);
        let freed: u64 = now.since(&before).iter().filter(|row| row.size == Some(224)).map(|row| row.freed).sum();
        assert_eq!(freed, 4000);
        // Joined by hand: the end of a scope does not wait for what the threads' ends do.
        for (_, go_on, thread) in parked {
            drop(go_on);
            thread.join().expect("the thread frees its blocks");
        }
    });
    let end = look(&watch);
    let counted = [64, 224, 16].map(|size| [1, 2].map(|lane| of(&end, lane, Some(size)).0).iter().sum::<u64>());
    assert_eq!(counted, [4000; 3], "what a lane has counted stays when it ends");
}

#[test]
fn those_without_a_lane_are_counted_together() {
    let segment = Segment::new("laneless");
    let heap = segment.create(&Heap::options().capacity(16 << 20).lanes(1));
    heap.allocate(100).expect("room: the only lane is this thread's");
    let before = look(&heap);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let blocks = allocate_many(&heap, 100, 50);
                heap.allocate(100_000).expect("room");
                free_all(&heap, blocks);
            });
        }
    });
    assert_eq!(told(&look(&heap).since(&before)), [(0, Some(112), 150, 150), (0, None, 3, 0)]);
    assert_eq!(of(&look(&heap), 0, None), (3, 3));
}

#[test]
fn blocks_that_change_their_lane_are_neither_allocated_nor_freed() {
    let (_segment, heap) = new_heap("adopted");
    heap.allocate(16).expect("room: this thread's lane is the first");
    let before = look(&heap);
    let work = || {
        free_all(&heap, allocate_many(&heap, 1000, 30));
        allocate_many(&heap, 1000, 501)
    };
    let blocks = std::thread::scope(|scope| scope.spawn(work).join().expect("the thread allocates"));
    let ended = look(&heap);
    assert_eq!(told(&ended.since(&before)), [(2, Some(1024), 531, 30)]);
    assert_eq!(of(&ended, 0, Some(1024)), (0, 501), "they are orphans");
    // The slabs of the first and the last block are adopted, and two blocks freed.
    heap.deallocate(blocks[0]).expect("the block is ours");
    heap.deallocate(blocks[500]).expect("the block is ours");
    let adopted = look(&heap);
    let freed: u64 = adopted.since(&ended).iter().map(|change| change.freed).sum();
    let allocated: u64 = adopted.since(&ended).iter().map(|change| change.allocated).sum();
    assert_eq!((allocated, freed), (0, 2));
    assert!(of(&adopted, 1, Some(1024)).1 > 0, "this thread's lane has them now");
}

#[test]
fn whatever_stands_in_the_counters_does_no_harm() {
    let (segment, heap) = new_heap("scribbled");
    let file = OpenOptions::new().write(true).open(segment.path()).expect("the segment is a file");
    let block = heap.allocate(100).expect("room");
    let lane = own_lane(&heap);
    let sound = look(&heap);
    let mut looks = vec![Activity::default(), sound.clone()];
    for value in [u32::MAX, 0, 1 << 31, u32::MAX - 5] {
        for number in 0..=heap.lanes().expect("the lanes can be listed").len() as u64 {
            for counter in 0..64 {
                let at = LANES_AT + number * LANE_RECORD_LEN + COUNTERS_AT + 4 * counter;
                file.write_all_at(&value.to_ne_bytes(), at).expect("a write");
            }
        }
        let wide = u64::from(value) << 32 | u64::from(value);
        for at in [0, 8, 16] {
            file.write_all_at(&wide.to_ne_bytes(), LOCK_STATS_AT + at).expect("a write");
        }
        assert_eq!(heap.lock_stats().takeovers, wide);
        looks.push(look(&heap));
        heap.validate().expect("counters are not what a heap is made of");
        heap.deallocate(heap.allocate(1000).expect("room")).expect("the block is ours");
        heap.deallocate(heap.allocate(100_000).expect("room")).expect("the block is ours");
    }
    for (one, other) in looks.iter().flat_map(|one| looks.iter().map(move |other| (one, other))) {
        let _ = (one.since(other), one.lock.since(&other.lock));
    }
    // The last value is six below the end.
    let before = look(&heap);
    let ten = allocate_many(&heap, 100, 10);
    let after = look(&heap);
    assert_eq!(of(&after, lane, Some(112)), (4, 11));
    assert_eq!(told(&after.since(&before)), [(lane, Some(112), 10, 0)]);
    free_all(&heap, ten);
    heap.deallocate(block).expect("the block is ours");
    heap.validate().expect("valid");
}

#[test]
fn a_loaded_heap_begins_to_count_anew() {
    let (_segment, heap) = new_heap("saved");
    allocate_many(&heap, 100, 200);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    heap.save(&path).expect("save");
    let loaded = Segment::new("loaded");
    let heap = Heap::load(&path, loaded.name()).expect("load");
    let activity = look(&heap);
    assert_eq!((of(&activity, 0, Some(112)), activity.lanes.len()), ((0, 200), 1));
    assert_eq!(activity.lock, LockStats::default());
}

#[test]
fn waits_for_the_lock_and_takeovers_are_counted() {
    let (segment, heap) = new_heap("waits");
    let watch = Heap::open_read_only(segment.name()).expect("open");
    let impatient = Heap::options().lock_timeout(TIMEOUT).open(segment.name()).expect("open");
    heap.deallocate(heap.allocate(LARGE).expect("room")).expect("the block is ours");
    impatient.deallocate(impatient.allocate(LARGE).expect("room")).expect("the block is ours");
    assert_eq!(watch.lock_stats(), LockStats::default(), "nobody was in the way");

    let mut holder = Worker::start("hold", &[("HEAP", segment.name())]);
    holder.expect("ready");
    let started = Instant::now();
    for _ in 0..3 {
        let error = impatient.allocate(LARGE).expect_err("the lock is held");
        assert!(matches!(error, Error::LockTimeout { .. }), "{error}");
    }
    let (took, stats) = (started.elapsed(), watch.lock_stats());
    assert_eq!((stats.waits, stats.takeovers), (3, 0), "{stats:?}");
    assert!((2 * TIMEOUT..=took).contains(&stats.waited), "{stats:?} in {took:?}");

    holder.kill();
    heap.deallocate(heap.allocate(LARGE).expect("the lock is taken from the dead")).expect("the block is ours");
    let change = watch.lock_stats().since(&stats);
    assert_eq!((change.waits, change.takeovers), (1, 1), "{change:?}");
    assert_eq!(look(&watch).lock, watch.lock_stats());
}

/// A heap that is frozen stays as it is, the counters included.
#[test]
fn nothing_is_counted_while_the_heap_is_frozen() {
    let (segment, _creator) = new_heap("frozen");
    let heap = Heap::options().lock_timeout(TIMEOUT).open(segment.name()).expect("open");
    allocate_many(&heap, 64, 10);
    let mut worker = Worker::start("hold", &[("HEAP", segment.name())]);
    worker.expect("ready");
    let file = OpenOptions::new().read(true).open(segment.path()).expect("it is there");
    let lanes = || {
        let mut bytes = vec![0; 8 * LANE_RECORD_LEN as usize];
        file.read_exact_at(&mut bytes, LANES_AT).expect("it can be read");
        // Whoever finds its gate shut says so in its own record, for a moment, at 0xc0.
        bytes
            .chunks(LANE_RECORD_LEN as usize)
            .flat_map(|record| record[COUNTERS_AT as usize..].to_vec())
            .collect::<Vec<u8>>()
    };
    let before = lanes();
    look(&heap);
    let error = heap.allocate(64).expect_err("the gate is shut");
    assert!(matches!(error, Error::LockTimeout { .. }), "{error}");
    assert_eq!(lanes(), before);
    worker.kill();
    heap.allocate(64).expect("the lock is taken from the dead");
    assert_ne!(lanes(), before);
}
