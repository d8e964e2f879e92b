//! Several processes in one heap: together, one after the other, and through different kinds of regions.

mod common;

use std::time::Instant;

use common::churn::{self, Churn, STOP, check_stamp, stamp};
use common::shared::{Gate, Words};
use common::worker::{Worker, dispatch, hear, number, parameter, say};
use common::{PATIENCE, Segment, all_offsets, assert_emptied, assert_is_empty, lane_of, new_heap, until};
use shmheap::{Error, Heap, Offset};

#[test]
fn worker_entry() {
    dispatch(&[
        ("churn", churn_some_steps),
        ("churn until told", churn::until_told),
        ("produce", produce),
        ("consume", consume),
        ("free every other", free_every_other),
        ("leave blocks", leave_blocks),
        ("file", use_file),
    ]);
}

/// Works for a number of steps, and leaves what it holds at the end in a list under a root.
fn churn_some_steps() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let index = number("INDEX");
    let mut churn = Churn::new(&heap, index + 1, 300);
    say("ready");
    Gate::pass(&heap);
    (0..number("STEPS")).for_each(|_| churn.step());
    churn.check();
    leave_list(&heap, &format!("list {index}"), &churn);
}

/// Publishes a block that lists what is held: count, then offset, size and seed of each.
fn leave_list(heap: &Heap, root: &str, churn: &Churn) {
    let list = Words::create(heap, root, 1 + 3 * churn.live().len());
    list.set(0, churn.live().len() as u64);
    for (index, held) in churn.live().iter().enumerate() {
        list.set(1 + 3 * index, held.block.get());
        list.set(2 + 3 * index, held.size as u64);
        list.set(3 + 3 * index, held.seed);
    }
}

/// Checks the bytes of every block on a list; returns where they are, and the list itself.
fn check_list(heap: &Heap, root: &str) -> Vec<Offset> {
    let list = Words::open(heap, root);
    let mut blocks = vec![list.block()];
    for index in 0..list.get(0) as usize {
        let block = Offset::new(list.get(1 + 3 * index)).expect("no list has a zero offset");
        check_stamp(heap, block, list.get(2 + 3 * index) as usize, list.get(3 + 3 * index));
        blocks.push(block);
    }
    blocks
}

#[test]
fn four_processes_allocate_reallocate_and_free_and_every_byte_stays_theirs() {
    let (segment, heap) = new_heap("four");
    let gate = Gate::place(&heap);
    let mut workers = Worker::start_many(4, "churn", &[("HEAP", segment.name()), ("STEPS", "30000")]);
    workers.iter_mut().for_each(|worker| worker.expect("ready"));
    gate.open();
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    heap.validate().expect("the heap is valid after its users have left");

    let mut expected: Vec<Offset> = (0..4).flat_map(|index| check_list(&heap, &format!("list {index}"))).collect();
    expected.push(heap.root("start gate").expect("roots").expect("the gate"));
    expected.sort();
    assert_eq!(all_offsets(&heap), expected, "the blocks on the lists are all the blocks that there are");
    drop(gate);
    assert_emptied(&heap);
}

/// Slots of the ring through which blocks are handed over: offset, size and seed in each; then the counts of both sides.
const RING_SLOTS: usize = 64;
const PRODUCED: usize = 3 * RING_SLOTS;
const CONSUMED: usize = PRODUCED + 1;

fn produce() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let ring = Words::open(&heap, "ring");
    Gate::pass(&heap);
    for count in 0..number("BLOCKS") {
        until("the ring has room", || count - ring.get(CONSUMED) < RING_SLOTS as u64);
        let size = 1 + (count.wrapping_mul(2_654_435_761) % 1500) as usize;
        let block = heap.allocate(size).expect("what the consumer frees comes back to the producer");
        stamp(&heap, block, size, count);
        let slot = 3 * (count as usize % RING_SLOTS);
        ring.set(slot, block.get());
        ring.set(slot + 1, size as u64);
        ring.set(slot + 2, count);
        ring.set(PRODUCED, count + 1);
    }
}

fn consume() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let ring = Words::open(&heap, "ring");
    Gate::pass(&heap);
    for count in 0..number("BLOCKS") {
        ring.await_at_least(PRODUCED, count + 1);
        let slot = 3 * (count as usize % RING_SLOTS);
        let block = Offset::new(ring.get(slot)).expect("the producer has stored an offset");
        assert_eq!(ring.get(slot + 2), count);
        check_stamp(&heap, block, ring.get(slot + 1) as usize, count);
        heap.deallocate(block).expect("a block that was handed over can be freed");
        ring.set(CONSUMED, count + 1);
    }
}

#[test]
fn blocks_that_another_process_frees_come_back_to_the_one_that_allocates() {
    let segment = Segment::new("handover");
    // Some 30 MiB go through 2 MiB: without reuse, the producer runs out.
    let heap = segment.create(&Heap::options().capacity(2 << 20));
    let gate = Gate::place(&heap);
    let ring = Words::create(&heap, "ring", CONSUMED + 1);
    let parameters = [("HEAP", segment.name()), ("BLOCKS", "40000")];
    let producer = Worker::start("produce", &parameters);
    let consumer = Worker::start("consume", &parameters);
    gate.open();
    producer.finish();
    consumer.finish();
    heap.validate().expect("the heap is valid");
    assert_eq!(heap.stats().expect("stats").allocated_blocks, 2, "the gate and the ring");
    drop((gate, ring));
    assert_emptied(&heap);
}

/// Blocks that two processes free at once, and how often.
const SHARED_OUT: usize = 20_000;
const SHARINGS: u64 = 10;

/// Frees the even or the odd blocks of a list, each time that there is a new one.
fn free_every_other() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let (board, list) = (Words::open(&heap, "board"), Words::open(&heap, "list"));
    let index = number("INDEX") as usize;
    for round in 1..=SHARINGS {
        board.await_at_least(0, round);
        board.meet(1, 2, round);
        for place in (index..SHARED_OUT).step_by(2) {
            let block = Offset::new(list.get(place)).expect("the list is full");
            heap.deallocate(block).expect("nobody else frees it");
        }
        board.add(2, 1);
    }
}

#[test]
fn neighbours_that_two_processes_free_at_once_are_both_free() {
    let (segment, heap) = new_heap("neighbours");
    let board = Words::create(&heap, "board", 8);
    let list = Words::create(&heap, "list", SHARED_OUT);
    let workers = Worker::start_many(2, "free every other", &[("HEAP", segment.name())]);
    for round in 1..=SHARINGS {
        (0..SHARED_OUT).for_each(|place| list.set(place, heap.allocate(16).expect("room").get()));
        board.set(0, round);
        board.await_at_least(2, 2 * round);
        assert_eq!(heap.stats().expect("stats").allocated_blocks, 2, "in round {round}, a block that was freed is not free");
    }
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    assert_emptied(&heap);
}

#[test]
fn a_process_attaches_validates_and_works_while_others_allocate() {
    let (segment, heap) = new_heap("attach");
    let board = Words::create(&heap, "board", 8);
    let workers = Worker::start_many(2, "churn until told", &[("HEAP", segment.name())]);
    for round in 0..100 {
        let before = [board.get(0), board.get(1)];
        let another = segment.open();
        let block = another.allocate(1000).expect("there is room");
        stamp(&another, block, 1000, round);
        another.validate().expect("the heap is valid while others work");
        assert!(another.stats().expect("stats").allocated_blocks >= 2);
        check_stamp(&another, block, 1000, round);
        another.deallocate(block).expect("the block is ours");
        // Both have worked in between.
        board.await_at_least(0, before[0] + 1);
        board.await_at_least(1, before[1] + 1);
    }
    board.set(STOP, 1);
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    assert_eq!(all_offsets(&heap), [board.block()]);
    assert_emptied(&heap);
}

fn leave_blocks() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let index = number("INDEX");
    let mut churn = Churn::new(&heap, 1000 + index, 200);
    (0..2000).for_each(|_| churn.step());
    leave_list(&heap, &format!("list {index}"), &churn);
}

#[test]
fn after_all_have_exited_the_heap_is_there_and_freeing_everything_leaves_one_free_block() {
    let (segment, heap) = new_heap("afterwards");
    drop(heap);
    let workers = Worker::start_many(3, "leave blocks", &[("HEAP", segment.name())]);
    workers.into_iter().for_each(|worker| drop(worker.finish()));

    let heap = segment.open();
    heap.validate().expect("the heap is valid");
    let mut expected: Vec<Offset> = (0..3).flat_map(|index| check_list(&heap, &format!("list {index}"))).collect();
    assert!(expected.len() > 100, "the workers have left many blocks");
    expected.sort();
    assert_eq!(all_offsets(&heap), expected);
    for block in expected {
        heap.deallocate(block).expect("the blocks of those who have left can be freed");
    }
    assert_is_empty(&heap);
}

#[test]
fn a_process_that_ends_in_order_leaves_no_lane() {
    let (segment, heap) = new_heap("lanes");
    let worker = Worker::start_many(1, "leave blocks", &[("HEAP", segment.name())]).remove(0);
    let pid = worker.pid();
    worker.finish();
    assert_eq!(lane_of(&heap, pid), None, "its lane went with its last handle");
    assert_eq!(heap.recover(), Ok(0));
    assert!(heap.blocks().all(|block| block.lane.is_none() || block.large), "the blocks are orphans");
    assert_emptied(&heap);
}

#[test]
fn a_heap_attached_twice_in_one_process_is_one_heap() {
    let (segment, first) = new_heap("twice");
    let second = segment.open();
    let from_first: Vec<Offset> = (1..200).map(|size| first.allocate(size * 7).expect("room")).collect();
    let from_second: Vec<Offset> = (1..200).map(|size| second.allocate(size * 7).expect("room")).collect();
    assert!(from_first.iter().all(|block| !from_second.contains(block)), "no block is handed out twice");
    first.copy_in(from_first[0], b"seen by both").expect("copy");
    let mut bytes = [0; 7];
    second.copy_out(from_first[0], &mut bytes[..4]).expect("copy");
    assert_eq!(&bytes[..4], b"seen");

    for (seen_by, other) in [(&first, &second), (&second, &first)] {
        let lanes = seen_by.lanes().expect("lanes");
        assert_eq!(lanes.len(), 2, "{lanes:?}");
        assert!(lanes.iter().all(|lane| lane.alive && lane.pid == std::process::id()), "{lanes:?}");
        assert_eq!(lanes.iter().filter(|lane| lane.own).count(), 1, "{lanes:?}");
        assert_eq!(seen_by.recover(), Ok(0), "a living lane is nobody's to recover");
        other.validate().expect("valid");
    }
    from_first.iter().for_each(|block| second.deallocate(*block).expect("the second frees what the first allocated"));
    from_second.iter().for_each(|block| first.deallocate(*block).expect("the first frees what the second allocated"));
    assert_is_empty(&first);
    drop(second);
    assert_eq!(first.lanes().expect("lanes").len(), 1, "the second's lane went with it");
    let again = first.allocate(100).expect("the first goes on");
    first.deallocate(again).expect("free");
    assert_is_empty(&first);
}

#[test]
fn two_heaps_in_one_process_do_not_mix() {
    let (_a_segment, a) = new_heap("left");
    let (_b_segment, b) = new_heap("right");
    let mut left = Churn::new(&a, 1, 200);
    let mut right = Churn::new(&b, 2, 200);
    for _ in 0..5000 {
        left.step();
        right.step();
    }
    let address = b.resolve(right.live()[0].block).expect("an address");
    assert!(
        matches!(a.offset_of(address), Err(Error::ForeignPointer { address: found }) if found == address.addr().get() as u64)
    );
    left.free_all();
    assert_is_empty(&a);
    assert_eq!(b.stats().expect("stats").allocated_blocks, right.live().len() as u64);
    right.free_all();
    assert_is_empty(&b);
}

fn use_file() {
    let heap = Heap::options().open_file(parameter("FILE")).expect("open");
    let theirs = heap.root("from the test").expect("roots").expect("the test has published a block");
    check_stamp(&heap, theirs, 5000, 1);
    heap.deallocate(theirs).expect("the test's block can be freed here");
    let ours = heap.allocate(70_000).expect("room");
    stamp(&heap, ours, 70_000, 2);
    heap.set_root("from the worker", ours).expect("root");
    say("ready");
    assert_eq!(hear(), None);
    heap.validate().expect("valid");
}

#[test]
fn a_file_is_a_heap_that_two_processes_share() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("heap");
    let heap = Heap::options().capacity(4 << 20).create_file(&path).expect("create");
    let block = heap.allocate(5000).expect("room");
    stamp(&heap, block, 5000, 1);
    heap.set_root("from the test", block).expect("root");
    let mut worker = Worker::start("file", &[("FILE", path.to_str().expect("a temporary path is text"))]);
    worker.expect("ready");
    assert_eq!(heap.root("from the test"), Ok(None), "its block has been freed");
    let theirs = heap.root("from the worker").expect("roots").expect("the worker has published a block");
    check_stamp(&heap, theirs, 70_000, 2);
    worker.finish();
    drop(heap);

    let heap = Heap::options().open_file(&path).expect("the file outlives both");
    check_stamp(&heap, theirs, 70_000, 2);
    assert_emptied(&heap);
    heap.destroy().expect("destroy");
    assert!(!path.exists());
}

#[test]
fn a_read_only_attachment_reads_and_validates_while_another_process_allocates() {
    let (segment, heap) = new_heap("reader");
    let board = Words::create(&heap, "board", 8);
    let block = heap.allocate(3000).expect("room");
    stamp(&heap, block, 3000, 5);
    heap.set_root("block", block).expect("root");
    let workers = Worker::start_many(2, "churn until told", &[("HEAP", segment.name())]);
    let reader = Heap::open_read_only(segment.name()).expect("open");
    assert!(reader.is_read_only() && !heap.is_read_only());
    let lanes_before = heap.lanes().expect("lanes").len();
    let started = Instant::now();
    for _ in 0..100 {
        let before = [board.get(0), board.get(1)];
        assert_eq!(reader.root("block"), Ok(Some(block)));
        check_stamp(&reader, block, 3000, 5);
        reader.validate().expect("the heap is valid while others work");
        let stats = reader.stats().expect("stats");
        assert!(stats.allocated_blocks >= 2 && stats.used <= stats.total, "{stats}");
        assert!(reader.blocks().any(|found| found.offset == block));
        board.await_at_least(0, before[0] + 1);
        board.await_at_least(1, before[1] + 1);
    }
    assert!(started.elapsed() < PATIENCE);
    assert!(heap.lanes().expect("lanes").len() <= lanes_before + 2, "a reader takes no lane");
    assert_eq!(reader.allocate(1), Err(Error::ReadOnly));
    assert_eq!(reader.deallocate(block), Err(Error::ReadOnly));
    assert_eq!(reader.copy_in(block, b"x"), Err(Error::ReadOnly));
    assert_eq!(reader.set_root("other", block), Err(Error::ReadOnly));
    assert_eq!(reader.recover(), Err(Error::ReadOnly));
    board.set(STOP, 1);
    workers.into_iter().for_each(|worker| drop(worker.finish()));
    drop(reader);
    assert_emptied(&heap);
}
