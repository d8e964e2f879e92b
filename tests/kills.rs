//! Processes that are killed at any moment, and what the others find.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::churn::{self, STOP, check_stamp, stamp};
use common::shared::Words;
use common::worker::{Worker, dispatch, hear, number, parameter, say};
use common::{PATIENCE, Random, Segment, all_offsets, assert_emptied, lane_of, new_heap};
use shmheap::{Error, Heap, Offset};

#[test]
fn worker_entry() {
    dispatch(&[
        ("churn until told", churn::until_told),
        ("hot", hot),
        ("hot cells", hot_cells),
        ("hold", hold),
        ("come and go", come_and_go),
        ("create and unlink", create_and_unlink),
    ]);
}

/// Blocks that the victims of the long test hold at a time, one after the other: offset, size and seed of each.
const SLOTS: usize = 64;
/// Set in a slot's offset while its block is being reallocated: whether that has happened, nobody can know.
const MOVING: u64 = 1;

/// Allocates, reallocates and frees as fast as it can, and notes in a table what it holds. It takes over the table of the
/// victim before it, and checks every block that it finds there.
fn hot() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let (board, table) = (Words::open(&heap, "board"), Words::open(&heap, "table"));
    let mut random = Random::new(number("SEED"));
    for slot in 0..SLOTS {
        let noted = table.get(3 * slot);
        if noted & MOVING != 0 {
            table.set(3 * slot, 0);
        } else if let Some(block) = Offset::new(noted) {
            check_stamp(&heap, block, table.get(3 * slot + 1) as usize, table.get(3 * slot + 2));
        }
    }
    loop {
        let slot = random.below(SLOTS);
        let size = if random.below(20) == 0 { 1 + random.below(150_000) } else { 1 + random.below(3000) };
        let noted = Offset::new(table.get(3 * slot));
        let block = match noted {
            None => heap.allocate(size).expect("room"),
            Some(block) if random.below(3) == 0 => {
                table.set(3 * slot, block.get() | MOVING);
                heap.reallocate(block, size).expect("room")
            }
            Some(block) => {
                table.set(3 * slot, 0);
                heap.deallocate(block).expect("the block is ours");
                board.add(0, 1);
                continue;
            }
        };
        let seed = random.next();
        stamp(&heap, block, size, seed);
        table.set(3 * slot + 1, size as u64);
        table.set(3 * slot + 2, seed);
        table.set(3 * slot, block.get());
        board.add(0, 1);
    }
}

#[test]
fn two_hundred_kills_in_a_hot_loop_lose_nothing_but_what_was_in_the_victims_hands() {
    const KILLS: u64 = 200;
    let (segment, heap) = new_heap("kills");
    let board = Words::create(&heap, "board", 8);
    let table = Words::create(&heap, "table", 3 * SLOTS);
    let survivor = Worker::start("churn until told", &[("HEAP", segment.name()), ("INDEX", "1")]);
    let mut random = Random::new(1);
    for kill in 0..KILLS {
        let (victim_before, survivor_before) = (board.get(0), board.get(1));
        let victim = Worker::start("hot", &[("HEAP", segment.name()), ("SEED", &kill.to_string())]);
        board.await_at_least(0, victim_before + 1 + random.below(2000) as u64);
        victim.kill();
        let started = Instant::now();
        for size in [40, 3000, 200_000] {
            let block = heap.allocate(size).expect("the heap goes on after a kill");
            heap.deallocate(block).expect("the block is ours");
        }
        heap.validate().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
        assert!(started.elapsed() < Duration::from_secs(4), "after kill {kill}, going on took {:?}", started.elapsed());
        board.await_at_least(1, survivor_before + 1);
    }
    board.set(STOP, 1);
    survivor.finish();
    heap.recover().expect("recover");
    assert!(heap.lanes().expect("lanes").iter().all(|lane| lane.own), "no dead lane is left");

    let mut known = BTreeSet::from([board.block(), table.block()]);
    for slot in 0..SLOTS {
        if let Some(block) = Offset::new(table.get(3 * slot)).filter(|block| block.get() & MOVING == 0) {
            check_stamp(&heap, block, table.get(3 * slot + 1) as usize, table.get(3 * slot + 2));
            known.insert(block);
        }
    }
    let found: BTreeSet<Offset> = all_offsets(&heap).into_iter().collect();
    assert!(known.is_subset(&found), "a block that was held is gone");
    // A kill can catch one block between the heap and the table, and two while one is reallocated.
    let strays = found.difference(&known).count();
    assert!(strays <= 2 * KILLS as usize, "{strays} blocks are nobody's");
    assert_emptied(&heap);
}

/// Fills and empties the cells of a table.
fn hot_cells() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let (board, cells) = (Words::open(&heap, "board"), Words::open(&heap, "cells"));
    let mut random = Random::new(number("SEED"));
    loop {
        let cell = cells.cell(random.below(cells.count()));
        if heap.load_cell(cell).expect("the cell can be read").is_some() {
            heap.free_from(cell).expect("the cell's block is freed");
        } else {
            let size = if random.below(10) == 0 { 1 + random.below(150_000) } else { 1 + random.below(2000) };
            heap.allocate_into(cell, size).expect("room");
        }
        board.add(0, 1);
    }
}

#[test]
fn a_process_killed_while_it_fills_and_empties_cells_leaves_exactly_what_is_in_them() {
    let (segment, heap) = new_heap("cells");
    let board = Words::create(&heap, "board", 8);
    let cells = Words::create(&heap, "cells", 40);
    let mut random = Random::new(2);
    for kill in 0..60u64 {
        let before = board.get(0);
        let victim = Worker::start("hot cells", &[("HEAP", segment.name()), ("SEED", &kill.to_string())]);
        board.await_at_least(0, before + 1 + random.below(1000) as u64);
        victim.kill();
        heap.recover().expect("recover");
        heap.validate().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
        let in_cells =
            (0..cells.count()).filter_map(|index| heap.load_cell(cells.cell(index)).expect("the cell can be read"));
        let expected: BTreeSet<Offset> = in_cells.chain([board.block(), cells.block()]).collect();
        let found: BTreeSet<Offset> = all_offsets(&heap).into_iter().collect();
        assert_eq!(found, expected, "after kill {kill}");
    }
    assert_emptied(&heap);
}

/// Holds blocks in three threads, and waits to be killed.
fn hold() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let ready = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..3usize {
            let (heap, ready) = (&heap, &ready);
            scope.spawn(move || {
                for size in 1..=100 {
                    let block = heap.allocate(size * (thread + 1)).expect("room");
                    stamp(heap, block, size * (thread + 1), (thread * 1000 + size) as u64);
                }
                heap.allocate(200_000).expect("room for a block with pages of its own");
                ready.wait();
                std::thread::park_timeout(PATIENCE);
            });
        }
        ready.wait();
        say("ready");
        hear();
    });
}

#[test]
fn what_a_killed_process_held_is_shown_under_its_dead_lanes_and_kept_as_orphans() {
    let (segment, heap) = new_heap("held");
    let own = heap.allocate(500).expect("room");
    let mut victim = Worker::start("hold", &[("HEAP", segment.name())]);
    victim.expect("ready");
    let pid = victim.pid();
    assert!(heap.lanes().expect("lanes").iter().all(|lane| lane.alive));
    victim.kill();

    let (mine, theirs): (Vec<_>, Vec<_>) = heap.lanes().expect("lanes").into_iter().partition(|lane| lane.pid != pid);
    assert_eq!((mine.len(), theirs.len()), (1, 3), "{mine:?} {theirs:?}");
    assert!(mine[0].alive && mine[0].own && theirs.iter().all(|lane| !lane.alive && !lane.own), "{mine:?} {theirs:?}");
    let blocks: Vec<_> = heap.blocks().filter(|block| block.offset != own).collect();
    assert_eq!(blocks.len(), 303, "no block is lost");
    for lane in &theirs {
        let held = blocks.iter().filter(|block| block.lane == Some(lane.lane));
        assert_eq!(held.clone().count(), 101);
        assert_eq!(lane.bytes_held, held.map(|block| block.size).sum::<u64>(), "{lane:?}");
        assert!(lane.slabs > 0 && !lane.holds_lock, "{lane:?}");
    }
    let stats = heap.stats().expect("stats");
    assert_eq!((stats.lanes_alive, stats.lanes_dead), (1, 3), "{stats}");

    assert_eq!(heap.recover(), Ok(3));
    assert_eq!(heap.lanes().expect("lanes").len(), 1, "only our own lane is left");
    let orphans: Vec<_> = heap.blocks().filter(|block| block.offset != own).collect();
    assert!(orphans.iter().all(|block| block.lane.is_none()), "the blocks are orphans");
    assert_eq!(
        orphans.iter().map(|block| block.offset).collect::<Vec<_>>(),
        blocks.iter().map(|block| block.offset).collect::<Vec<_>>()
    );
    assert_eq!(heap.recover(), Ok(0), "nothing is left to recover");
    heap.validate().expect("valid");
    assert_emptied(&heap);
}

/// Attaches, allocates, frees and detaches, over and over.
fn come_and_go() {
    let observer = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&observer, "board");
    for round in 0u64.. {
        let heap = Heap::open(&parameter("HEAP")).expect("open");
        let block = heap.allocate(1 + (round as usize * 7919) % 50_000).expect("room");
        heap.deallocate(block).expect("the block is ours");
        drop(heap);
        board.add(0, 1);
    }
}

#[test]
fn a_process_killed_while_it_attaches_or_detaches_leaves_a_heap_that_can_be_attached() {
    let (segment, heap) = new_heap("come-and-go");
    let board = Words::create(&heap, "board", 8);
    let mut random = Random::new(3);
    for kill in 0..40 {
        let before = board.get(0);
        let victim = Worker::start("come and go", &[("HEAP", segment.name())]);
        board.await_at_least(0, before + 1 + random.below(60) as u64);
        let pid = victim.pid();
        victim.kill();
        let another = segment.open();
        another.validate().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
        assert_eq!(lane_of(&another, pid), None, "attaching has seen to the dead");
        let strays: Vec<Offset> = all_offsets(&another).into_iter().filter(|block| *block != board.block()).collect();
        assert!(strays.len() <= 1, "after kill {kill}, {strays:?} are nobody's");
        strays.into_iter().for_each(|block| another.deallocate(block).expect("an orphan can be freed"));
    }
    assert_emptied(&heap);
}

/// Creates a heap under a name and removes the name, over and over.
fn create_and_unlink() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&heap, "board");
    loop {
        let made = Heap::options().capacity(1 << 20).create(&parameter("NAME")).expect("nobody else uses the name");
        made.allocate(100).expect("room");
        Heap::unlink(&parameter("NAME")).expect("the name is there");
        board.add(0, 1);
    }
}

#[test]
fn a_creator_killed_at_any_moment_leaves_a_whole_heap_or_none() {
    let (segment, heap) = new_heap("board");
    let contested = Segment::new("contested");
    let board = Words::create(&heap, "board", 8);
    let mut random = Random::new(4);
    for kill in 0..40 {
        let before = board.get(0);
        let victim = Worker::start("create and unlink", &[("HEAP", segment.name()), ("NAME", contested.name())]);
        board.await_at_least(0, before + 1 + random.below(100) as u64);
        victim.kill();
        match Heap::open(contested.name()) {
            Ok(whole) => {
                whole.validate().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
                assert_eq!(whole.capacity(), 1 << 20);
                whole.destroy().expect("the name is ours to remove");
            }
            Err(error) => assert_eq!(error, Error::NotFound { name: contested.name().to_owned() }, "after kill {kill}"),
        }
    }
    drop(board);
    assert_emptied(&heap);
}
