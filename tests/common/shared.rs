//! Where processes meet: atomic words and a start event, in blocks of a heap, found by a root's name.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use raw_sync::Timeout;
use raw_sync::events::{Event, EventImpl, EventInit, EventState};
use shmheap::{Heap, Offset};

use super::until;

/// A block of atomic words.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    heap: Heap,
    block: Offset,
    count: usize,
}

impl Words {
    /// Allocates `count` words, all zero, and publishes them under `root`.
    pub(crate) fn create(heap: &Heap, root: &str, count: usize) -> Self {
        let block = heap.allocate_zeroed(count * 8).expect("there is room for the words");
        heap.insert_root(root, block).expect("the root is new");
        Self { heap: heap.clone(), block, count }
    }

    /// The words under `root`.
    pub(crate) fn open(heap: &Heap, root: &str) -> Self {
        let block = heap.root(root).expect("roots can be read").expect("the words are published");
        let count = heap.usable_size(block).expect("the words are allocated") / 8;
        Self { heap: heap.clone(), block, count }
    }

    pub(crate) fn block(&self) -> Offset {
        self.block
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Where a word stands in the region, as a cell.
    pub(crate) fn cell(&self, index: usize) -> Offset {
        let distance = u64::try_from(index * 8).expect("a usize fits");
        Offset::new(self.block.get() + distance).expect("an offset further on is not zero")
    }

    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "the block has {} words", self.count);
        let address = self.heap.resolve(self.cell(index)).expect("the block lies in the region");
        // SAFETY: the word lies in a block of at least `count` words, aligned to 8, which stays mapped as long as the
        // handle lives, and every process reaches it as an atomic word only.
        unsafe { AtomicU64::from_ptr(address.as_ptr().cast()) }
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::SeqCst);
    }

    pub(crate) fn add(&self, index: usize, value: u64) -> u64 {
        self.word(index).fetch_add(value, Ordering::SeqCst)
    }

    /// Waits until a word is at least `value`.
    pub(crate) fn await_at_least(&self, index: usize, value: u64) {
        until("a counter has gone on", || self.get(index) >= value);
    }

    /// Joins the others at a barrier of `parties` that counts arrivals in one word, for the `round`th time (from 1).
    pub(crate) fn meet(&self, index: usize, parties: u64, round: u64) {
        self.add(index, 1);
        self.await_at_least(index, parties * round);
    }
}

/// Root of the start event.
const GATE: &str = "start gate";

/// A manual-reset event in a block: all who wait at it start together.
pub(crate) struct Gate {
    event: Box<dyn EventImpl>,
    _heap: Heap,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// Puts a closed gate into the heap.
    pub(crate) fn place(heap: &Heap) -> Self {
        let block = heap.allocate_zeroed(Event::size_of(None) + 64).expect("there is room for an event");
        let address = heap.resolve(block).expect("a block has an address").as_ptr();
        // SAFETY: the block is ours, zeroed, aligned to 16, and longer than the event with its padding.
        let event = unsafe { Event::new(address, false) }.expect("an event can be made").0;
        heap.insert_root(GATE, block).expect("the root is new");
        Self { event, _heap: heap.clone() }
    }

    /// Lets everybody through, now and later.
    pub(crate) fn open(&self) {
        self.event.set(EventState::Signaled).expect("the event can be set");
    }

    /// In a worker: waits for the gate to open. The wait has no bound of its own (the crate's timed wait is not reliable);
    /// the test that started the worker ends it when its patience does.
    pub(crate) fn pass(heap: &Heap) {
        let block = heap.root(GATE).expect("roots can be read").expect("the gate is published");
        let address = heap.resolve(block).expect("a block has an address").as_ptr();
        // SAFETY: the root is published after the event in its block was made.
        let event = unsafe { Event::from_existing(address) }.expect("an event is there").0;
        event.wait(Timeout::Infinite).expect("the gate opens");
    }
}
