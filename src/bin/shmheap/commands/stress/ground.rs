//! What a run has in the heap, and how workers hand blocks to each other without locks of their own.
//!
//! | noun | |
//! |---|---|
//! | slot | a worker's number; whoever replaces a dead worker sits in its slot |
//! | control block | the one root of a run leads to it: whether to stop, the latest kill, for each slot a table and a board |
//! | table | the cells that a slot fills, in pairs: one for a block, one for its ticket |
//! | ticket | a small block that says: the block beside it is complete |
//! | board | numbers that a slot's workers tell the parent; they outlive the worker |
//!
//! G1. A pair has one producer, the slot whose table it is in, and one consumer. Without a ticket it is the producer's, with
//!     one it is the consumer's. The producer allocates the block, fills it, then allocates the ticket; the consumer frees
//!     the block, then the ticket. So each death leaves a pair of which it is clear whose it is and what is to be done.
//! G2. Whatever is allocated into a cell is reachable from the root: a run that ends frees all of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use shmheap::{Heap, Offset};

/// Pairs that a slot fills and empties itself.
pub(crate) const OWN: usize = 24;
/// Pairs that a slot fills and others empty.
const MAIL: usize = 24;
/// Pairs of a table.
pub(crate) const PAIRS: usize = OWN + MAIL;
/// Roots that whoever comes first constructs, and everybody checks.
pub(crate) const COMMON: usize = 4;
/// Bytes of a ticket.
pub(crate) const TICKET: usize = 16;

/// Words of a board before its times.
const COUNTERS: usize = 8;
/// How many times a board remembers: the latest.
const TIMES: usize = 1000;
const WORD: usize = 8;
/// Words of the control block before those of the slots: whether to stop, and when the latest kill was.
const CONTROL: usize = 2;
const LATEST_KILL: usize = 1;

/// A number on a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Calls of the heap that workers have made.
    Operations,
    /// Blocks that were checked, and found as they were written.
    Checked,
    /// Calls that found no room.
    Full,
    /// Times that were noted.
    Times,
}

/// One run of workers in a heap.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    id: String,
    control: Offset,
    workers: usize,
    tables: Vec<Offset>,
    boards: Vec<Offset>,
}

/// A call that was held up by the death of a lock holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldUp {
    /// Which takeover it was, modulo 2^20.
    pub(crate) takeover: u64,
    /// How long after the death it was done.
    pub(crate) nanoseconds: u64,
}

/// A pair of cells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) block: Offset,
    pub(crate) ticket: Offset,
    /// What tells this pair from all others, of other runs too.
    pub(crate) place: u64,
}

/// What stands in a pair, and so whose it is (G1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Empty,
    /// The producer is, or was, filling it.
    Begun(Offset),
    /// It is the consumer's.
    Full(Offset),
    /// The consumer is, or was, emptying it.
    Taken,
}

/// `index` words behind `start`.
fn word(start: Offset, index: usize) -> Offset {
    Offset::new(start.get() + (index * WORD) as u64).unwrap_or(start)
}

fn lost(what: &str) -> String {
    format!("{what} of the run cannot be found any more")
}

impl Ground {
    /// Makes what a run needs.
    pub(crate) fn create(heap: &Heap, id: &str, workers: usize) -> shmheap::Result<Self> {
        let control = heap.allocate_zeroed((CONTROL + 2 * workers) * WORD)?;
        if let Err(error) = heap.insert_root(id, control) {
            heap.deallocate(control)?;
            return Err(error);
        }
        let mut ground = Self { id: id.to_owned(), control, workers, tables: Vec::new(), boards: Vec::new() };
        for slot in 0..workers {
            let zeroed = |cell, words: usize| -> shmheap::Result<Offset> {
                let block = heap.allocate_into(cell, words * WORD)?;
                heap.copy_in(block, &vec![0; words * WORD])?;
                Ok(block)
            };
            let made = zeroed(ground.table_cell(slot), 2 * PAIRS)
                .and_then(|table| Ok((table, zeroed(ground.board_cell(slot), COUNTERS + TIMES)?)));
            match made {
                Ok((table, board)) => {
                    ground.tables.push(table);
                    ground.boards.push(board);
                }
                Err(error) => {
                    ground.remove(heap)?;
                    return Err(error);
                }
            }
        }
        Ok(ground)
    }

    /// Finds what [`Self::create`] has made.
    pub(crate) fn find(heap: &Heap, id: &str, workers: usize) -> Result<Self, String> {
        let control = heap.root(id).map_err(|error| error.to_string())?.ok_or_else(|| lost("the root"))?;
        let mut ground = Self { id: id.to_owned(), control, workers, tables: Vec::new(), boards: Vec::new() };
        let load = |cell, what| heap.load_cell(cell).map_err(|error| error.to_string())?.ok_or_else(|| lost(what));
        for slot in 0..workers {
            ground.tables.push(load(ground.table_cell(slot), "a table")?);
            ground.boards.push(load(ground.board_cell(slot), "a board")?);
        }
        Ok(ground)
    }

    /// Frees tables and boards, and the control block. What the tables lead to must be freed before.
    pub(crate) fn remove(&self, heap: &Heap) -> shmheap::Result<()> {
        for slot in 0..self.workers {
            for cell in [self.table_cell(slot), self.board_cell(slot)] {
                if heap.load_cell(cell)?.is_some() {
                    heap.free_from(cell)?;
                }
            }
        }
        let control = heap.remove_root(&self.id)?;
        heap.deallocate(control)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// The root that leads to one of the slot's own blocks.
    pub(crate) fn favourite(&self, slot: usize) -> String {
        format!("{} favourite {slot}", self.id)
    }

    /// A root that whoever comes first constructs.
    pub(crate) fn common(&self, index: usize) -> String {
        format!("{} common {index}", self.id)
    }

    /// The seed of what a common root leads to, and its place.
    pub(crate) fn common_content(&self, index: usize) -> (u64, u64) {
        let place = self.place(usize::from(u16::MAX), index);
        // The low bits choose the smaller sizes.
        (Rng::with_seed(place).u64(..) & !0x3f | 0x20, place)
    }

    pub(crate) fn pair(&self, slot: usize, index: usize) -> Pair {
        let table = self.tables[slot];
        Pair { block: word(table, 2 * index), ticket: word(table, 2 * index + 1), place: self.place(slot, index) }
    }

    /// Whose blocks a pair's are to be freed by.
    pub(crate) fn consumer(&self, slot: usize, index: usize) -> usize {
        match index.checked_sub(OWN) {
            Some(mail) if self.workers > 1 => (slot + 1 + mail % (self.workers - 1)) % self.workers,
            _ => slot,
        }
    }

    fn place(&self, slot: usize, index: usize) -> u64 {
        let run = u64::from(crc32fast::hash(self.id.as_bytes()));
        run << 32 | (slot as u64) << 16 | index as u64
    }

    fn table_cell(&self, slot: usize) -> Offset {
        word(self.control, CONTROL + 2 * slot)
    }

    fn board_cell(&self, slot: usize) -> Offset {
        word(self.control, CONTROL + 2 * slot + 1)
    }
}

/// What parent and workers tell each other.
impl Ground {
    pub(crate) fn ask_to_stop(&self, heap: &Heap) -> shmheap::Result<()> {
        heap.copy_in(self.control, &1u64.to_ne_bytes())
    }

    pub(crate) fn is_to_stop(&self, heap: &Heap) -> shmheap::Result<bool> {
        let mut word = [0; WORD];
        heap.copy_out(self.control, &mut word)?;
        Ok(word != [0; WORD])
    }

    /// Tells that a worker is killed now.
    pub(crate) fn note_kill(&self, heap: &Heap) -> shmheap::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        heap.copy_in_at(self.control, LATEST_KILL * WORD, &(now.as_nanos() as u64).to_ne_bytes())
    }

    /// How long ago the latest kill was.
    pub(crate) fn since_kill(&self, heap: &Heap) -> shmheap::Result<Duration> {
        let mut then = [0; WORD];
        heap.copy_out_at(self.control, LATEST_KILL * WORD, &mut then)?;
        let then = UNIX_EPOCH + Duration::from_nanos(u64::from_ne_bytes(then));
        Ok(SystemTime::now().duration_since(then).unwrap_or_default())
    }

    pub(crate) fn counter(&self, heap: &Heap, slot: usize, counter: Counter) -> shmheap::Result<u64> {
        let mut number = [0; WORD];
        heap.copy_out_at(self.boards[slot], counter as usize * WORD, &mut number)?;
        Ok(u64::from_ne_bytes(number))
    }

    /// The sum of a counter over all slots.
    pub(crate) fn total(&self, heap: &Heap, counter: Counter) -> shmheap::Result<u64> {
        (0..self.workers).map(|slot| self.counter(heap, slot, counter)).sum()
    }

    pub(crate) fn set_counter(&self, heap: &Heap, slot: usize, counter: Counter, number: u64) -> shmheap::Result<()> {
        heap.copy_in_at(self.boards[slot], counter as usize * WORD, &number.to_ne_bytes())
    }

    /// Notes how long a call was held up by which takeover. Only the slot's worker writes its board, so nothing is lost
    /// but by its death.
    pub(crate) fn note_time(&self, heap: &Heap, slot: usize, time: HeldUp) -> shmheap::Result<()> {
        let count = self.counter(heap, slot, Counter::Times)?;
        let at = (COUNTERS + count as usize % TIMES) * WORD;
        heap.copy_in_at(self.boards[slot], at, &time.as_word().to_ne_bytes())?;
        self.set_counter(heap, slot, Counter::Times, count + 1)
    }

    /// The times that a slot has noted from number `from` on, as far as they are still there, and how many it has noted.
    pub(crate) fn times(&self, heap: &Heap, slot: usize, from: u64) -> shmheap::Result<(Vec<HeldUp>, u64)> {
        let count = self.counter(heap, slot, Counter::Times)?;
        let first = from.max(count.saturating_sub(TIMES as u64));
        let time = |number: u64| {
            let mut time = [0; WORD];
            heap.copy_out_at(self.boards[slot], (COUNTERS + number as usize % TIMES) * WORD, &mut time)?;
            Ok(HeldUp::from_word(u64::from_ne_bytes(time)))
        };
        Ok(((first..count).map(time).collect::<shmheap::Result<_>>()?, count))
    }
}

impl HeldUp {
    const TIME_BITS: u32 = 44;

    fn as_word(self) -> u64 {
        self.takeover << Self::TIME_BITS | self.nanoseconds.min((1 << Self::TIME_BITS) - 1)
    }

    fn from_word(word: u64) -> Self {
        Self { takeover: word >> Self::TIME_BITS, nanoseconds: word & ((1 << Self::TIME_BITS) - 1) }
    }
}

impl Pair {
    pub(crate) fn state(&self, heap: &Heap) -> shmheap::Result<State> {
        // The ticket is read first: once it is there the block is, until the consumer itself frees it.
        let ticket = heap.load_cell(self.ticket)?;
        let block = heap.load_cell(self.block)?;
        Ok(match (block, ticket) {
            (None, None) => State::Empty,
            (Some(block), None) => State::Begun(block),
            (Some(block), Some(_)) => State::Full(block),
            (None, Some(_)) => State::Taken,
        })
    }

    /// Frees what there is, in whatever state it is.
    pub(crate) fn clear(&self, heap: &Heap) -> shmheap::Result<()> {
        for cell in [self.block, self.ticket] {
            if heap.load_cell(cell)?.is_some() {
                heap.free_from(cell)?;
            }
        }
        Ok(())
    }
}
