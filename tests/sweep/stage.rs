//! Where an operation takes place: a heap in a segment, brought into some state, in a process that is then watched.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::wait::{WaitStatus, waitpid};
use shmheap::{Error, Heap, Offset, Result};

use crate::board::{Board, outcome_of};
use crate::child::{self, Child};
use crate::common::{PATIENCE, Random, Segment, until};
use crate::operations::Operation;

/// Bytes of the swept heaps: small, because each is read at every step.
const CAPACITY: u64 = 128 << 10;

/// Where words stand, as docs/FORMAT.md draws them.
const LOCK_AT: u64 = 0x100;
const MERGE_HOLD_AT: u64 = 0x180;
const LANES_AT: u64 = 4096;
const LANE_RECORD_LEN: u64 = 512;
const INTENT_AT: u64 = 0x80;
const INTENT_TO_FREE: u64 = 2;
const MOVE_AT: u64 = 0x98;
const BUSY_AT: u64 = 0xc0;
const STOP_AT: u64 = 0xc8;

/// What an operation works on.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: String,
    /// The heap, while it is attached.
    pub(crate) heap: Option<Heap>,
    /// Blocks for the operation, by its own arrangement.
    pub(crate) blocks: Vec<Offset>,
}

impl Stage {
    pub(crate) fn heap(&self) -> &Heap {
        self.heap.as_ref().expect("the heap is attached")
    }

    pub(crate) fn first(&self) -> Offset {
        self.blocks[0]
    }

    /// Allocates blocks of these sizes, each filled with a pattern of its own.
    pub(crate) fn fill(&mut self, sizes: &[usize]) {
        self.blocks.extend(filled(self.heap(), sizes));
    }

    /// The same, allocated by a thread that has ended: orphans.
    pub(crate) fn fill_orphans(&mut self, sizes: &'static [usize]) {
        let other = self.heap().clone();
        let blocks = std::thread::spawn(move || filled(&other, sizes)).join().expect("the thread allocates");
        self.blocks.extend(blocks);
    }

    /// The same, in the lane of a thread that lives on.
    pub(crate) fn fill_anothers(&mut self, sizes: &'static [usize]) {
        let other = self.heap().clone();
        self.blocks.extend(in_a_parked_thread(move || filled(&other, sizes)));
    }

    /// The same, by a process that lives on as long as this one.
    pub(crate) fn fill_elsewhere(&mut self, sizes: &[usize]) {
        let (name, board) = (self.name.clone(), Board::new());
        child::spawn(|| {
            let heap = Heap::open(&name).expect("the heap is there");
            board.note_blocks(&filled(&heap, sizes));
            board.say("ready");
            std::thread::park_timeout(PATIENCE);
        });
        until("the other process has its blocks", || board.is_finished());
        self.blocks.extend(board.blocks());
    }

    /// The same, by a process that dies then.
    pub(crate) fn fill_and_die(&mut self, sizes: &[usize]) {
        let (name, board) = (self.name.clone(), Board::new());
        let victim = child::spawn(|| {
            let heap = Heap::open(&name).expect("the heap is there");
            board.note_blocks(&filled(&heap, sizes));
            // SAFETY: ends the process without telling the heap.
            unsafe { libc::_exit(0) }
        });
        assert_eq!(waitpid(victim, None), Ok(WaitStatus::Exited(victim, 0)), "the victim allocates");
        self.blocks.extend(board.blocks());
    }

    /// Allocates and frees blocks of these sizes: the lane keeps what it can.
    pub(crate) fn keep(&self, sizes: &[usize]) {
        freed_again(self.heap(), sizes);
    }

    /// The same, by the lane of a thread that lives on.
    pub(crate) fn keep_elsewhere(&self, sizes: &'static [usize]) {
        let other = self.heap().clone();
        in_a_parked_thread(move || freed_again(&other, sizes));
    }

    /// The same, by a process that dies then.
    pub(crate) fn keep_and_die(&self, sizes: &[usize]) {
        let name = self.name.clone();
        let victim = child::spawn(|| {
            freed_again(&Heap::open(&name).expect("the heap is there"), sizes);
            // SAFETY: ends the process without telling the heap.
            unsafe { libc::_exit(0) }
        });
        assert_eq!(waitpid(victim, None), Ok(WaitStatus::Exited(victim, 0)), "the victim allocates and frees");
    }

    /// As [`Self::fill_and_die`], and the dead one has just taken the heap lock.
    pub(crate) fn die_with_the_lock(&mut self) {
        self.claim();
        self.fill_and_die(&[64, 1024]);
        self.write_half(LOCK_AT, self.dead_lane() + 1);
    }

    /// As [`Self::fill_and_die`], and the dead one was at work without the lock.
    pub(crate) fn die_busy(&mut self) {
        self.claim();
        self.fill_and_die(&[64, 1024]);
        self.write_word(LANES_AT + u64::from(self.dead_lane()) * LANE_RECORD_LEN + BUSY_AT, 1);
    }

    /// As [`Self::die_with_the_lock`], and the dead one has shut the gates of all lanes.
    pub(crate) fn die_freezing(&mut self) {
        self.die_with_the_lock();
        for lane in 1..=4 {
            self.write_word(LANES_AT + lane * LANE_RECORD_LEN + STOP_AT, 1);
        }
    }

    /// As [`Self::fill_and_die`]: somebody dies who was moving the first of the blocks, in this thread's slab, to a new one,
    /// has freed the old one already, and holds the lock and the hold on merging.
    pub(crate) fn die_in_a_move(&mut self) {
        let old = self.first();
        // Before anybody dies: a thread that claims a lane buries the dead.
        let other = self.heap().clone();
        std::thread::spawn(move || other.deallocate(old)).join().expect("the thread ends").expect("live");
        self.fill_and_die(&[2000]);
        let new = *self.blocks.last().expect("the dead one's block");
        let dead = self.dead_lane();
        let record = LANES_AT + LANE_RECORD_LEN * u64::from(dead);
        self.write_word(record + MOVE_AT + 8, new.get());
        self.write_word(record + MOVE_AT, old.get());
        self.write_word(record + INTENT_AT + 8, record + MOVE_AT);
        self.write_word(record + INTENT_AT + 16, old.get());
        self.write_word(record + INTENT_AT, INTENT_TO_FREE);
        self.write_word(MERGE_HOLD_AT, 1);
        self.write_half(LOCK_AT, dead + 1);
    }

    /// This thread's lane has a block that it allocated to replace the first one, and could not free again, for want of
    /// the lock.
    pub(crate) fn leave_a_move(&self, block: usize) {
        let own = self.heap().lanes().expect("lanes").into_iter().rfind(|lane| lane.own).expect("this thread has a lane");
        let record = LANES_AT + LANE_RECORD_LEN * u64::from(own.lane);
        self.write_word(record + MOVE_AT + 8, self.blocks[block].get());
        self.write_word(record + MOVE_AT, self.first().get());
    }

    fn dead_lane(&self) -> u32 {
        let dead = self.heap().lanes().expect("lanes").into_iter().find(|lane| !lane.alive).expect("somebody has died");
        u32::from(dead.lane)
    }

    fn write_half(&self, at: u64, value: u32) {
        self.write(at, &value.to_ne_bytes());
    }

    fn write_word(&self, at: u64, value: u64) {
        self.write(at, &value.to_ne_bytes());
    }

    /// Writes into the segment what the library would have written.
    fn write(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(format!("/dev/shm/{}", self.name)).expect("the segment is there");
        file.write_all_at(bytes, at).expect("the superblock and the lanes are there");
    }

    /// Claims a lane, and leaves no slab of the classes that matter.
    pub(crate) fn claim(&self) {
        let block = self.heap().allocate(3000).expect("room");
        self.heap().deallocate(block).expect("just allocated");
    }

    /// Allocates and frees: the bins are warm, and nothing more is live.
    pub(crate) fn warm(&self) {
        freed_again(self.heap(), &[16, 64, 512, 5000]);
    }

    /// A cell that holds a block of this size.
    pub(crate) fn publish(&mut self, size: usize) {
        let cell = self.heap().allocate_zeroed(64).expect("room");
        self.heap().allocate_into(cell, size).expect("room");
        self.blocks.push(cell);
    }

    pub(crate) fn free_all_but(&mut self, kept: usize) {
        let freed: Vec<Offset> = self.blocks.drain(kept..).collect();
        freed.iter().for_each(|block| self.heap().deallocate(*block).expect("live"));
    }
}

fn filled(heap: &Heap, sizes: &[usize]) -> Vec<Offset> {
    let fill = |(index, size): (usize, &usize)| {
        let block = heap.allocate(*size).expect("room for the preparation");
        let byte = u8::try_from(index % 251).expect("below 251").wrapping_add(1);
        heap.copy_in(block, &vec![byte; *size]).expect("the block is there");
        block
    };
    sizes.iter().enumerate().map(fill).collect()
}

fn freed_again(heap: &Heap, sizes: &[usize]) {
    filled(heap, sizes).iter().for_each(|block| heap.deallocate(*block).expect("just allocated"));
}

/// Runs `f` in a thread that then stays until its process ends.
fn in_a_parked_thread<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        send.send(f()).expect("somebody listens");
        loop {
            std::thread::park();
        }
    });
    receive.recv().expect("the thread does its work")
}

/// Work that comes before an operation's own preparation, so that the operation meets heaps of many kinds. Seed 0 is none.
pub(crate) fn vary(heap: &Heap, seed: u64) {
    if seed == 0 {
        return;
    }
    let mut random = Random::new(seed);
    let mut live = Vec::new();
    for _ in 0..random.below(40) {
        let size = match random.below(12) {
            0 => 4100 + random.below(5000),
            1..=3 => 200 + random.below(900),
            _ => 1 + random.below(200),
        };
        match random.below(8) {
            0 | 1 if !live.is_empty() => {
                let block = live.swap_remove(random.below(live.len()));
                heap.deallocate(block).expect("live");
            }
            2 if !live.is_empty() => {
                // By another thread: a remote free, or the other way round for an orphan.
                let (other, block) = (heap.clone(), live.swap_remove(random.below(live.len())));
                let free = move || other.deallocate(block);
                std::thread::spawn(free).join().expect("the thread ends").expect("live");
            }
            3 => {
                let other = heap.clone();
                let allocate = move || other.allocate(size);
                live.extend(std::thread::spawn(allocate).join().expect("the thread ends"));
            }
            4 if !live.is_empty() => {
                let name = format!("varied {}", random.below(4));
                heap.set_root(&name, live[random.below(live.len())]).expect("a slot");
            }
            _ => live.extend(heap.allocate(size)),
        }
        // What an operation needs is left to it.
        let used: u64 = heap.used_size().expect("stats");
        while used > CAPACITY / 5 && live.len() > 2 {
            heap.deallocate(live.remove(0)).expect("live");
            if heap.used_size().expect("stats") <= CAPACITY / 6 {
                break;
            }
        }
    }
    // A root must not lead to a block that is gone: it would lead to the next one at its place.
    for root in heap.roots().expect("roots").into_iter().filter(|root| !root.allocated) {
        heap.remove_root(&root.name).expect("a root");
    }
}

/// Sees whether the heap works, for a process whose operation is done.
pub(crate) fn probe(stage: &Stage) -> Result<()> {
    let Some(heap) = &stage.heap else { return Ok(()) };
    heap.recover()?;
    heap.validate()?;
    for size in [100, 1024, 9_000] {
        match heap.allocate(size) {
            Ok(block) => heap.deallocate(block)?,
            Err(Error::OutOfMemory { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    heap.validate()
}

/// Starts a child that brings a heap in `segment` into the operation's state, and returns when it stands right before the
/// operation. How that ends is said on the board.
pub(crate) fn start(operation: &Operation, seed: u64, segment: &Segment, board: &Board) -> Child {
    Child::start(|| {
        let stage = Stage { name: segment.name().to_owned(), heap: None, blocks: Vec::new() };
        let create = |lanes: u32| {
            Heap::options().capacity(CAPACITY).lanes(lanes).create(segment.name()).expect("a heap under a new name")
        };
        let prepared = move |mut stage: Stage| {
            if let Some(heap) = &stage.heap {
                vary(heap, seed);
            }
            (operation.prepare)(&mut stage);
            stage
        };
        if operation.creates {
            perform(operation, prepared(stage), board);
        } else if operation.laneless {
            // The only lane is taken by another thread, which prepares.
            let stage = Stage { heap: Some(create(1)), ..stage };
            let operation = *operation;
            let prepare = move || {
                let mut stage = stage;
                vary(stage.heap(), seed);
                (operation.prepare)(&mut stage);
                stage.claim();
                stage
            };
            perform(&operation, in_a_parked_thread(prepare), board);
        } else if operation.ends_thread {
            let heap = create(4);
            let stage = Stage { heap: Some(heap.clone()), ..stage };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut stage = prepared(stage);
                    child::be_traced();
                    child::marker();
                    board.say(&outcome_of(&(operation.act)(&mut stage)));
                });
            });
            std::thread::park_timeout(PATIENCE);
            drop(heap);
        } else {
            perform(operation, prepared(Stage { heap: Some(create(4)), ..stage }), board);
        }
    })
}

fn perform(operation: &Operation, mut stage: Stage, board: &Board) {
    child::be_traced();
    child::marker();
    let outcome: Result<()> = (operation.act)(&mut stage);
    board.say(&outcome_of(&outcome));
    child::marker();
    board.say(&outcome_of(&probe(&stage)));
    child::marker();
    // What is left is not the operation's.
    std::mem::forget(stage);
}
