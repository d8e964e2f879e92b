//! One worker of a soak: random operations on the heap, each announced to the oracle and noted there.

use std::sync::atomic::Ordering;

use shmheap::{Error, Heap, Offset};

use super::oracle::{ALLOCATING, EMPTY, FREEING, LIVE, MOVING, Oracle, PAUSE};
use super::{BURST, CELLS, MAIL, MAILBOXES, PLAIN, REST, cell, cells_of};
use crate::common::{Random, until};

/// A worker at work.
pub(super) struct Worker<'a> {
    oracle: &'a Oracle,
    index: usize,
    name: &'a str,
    heap: Heap,
    table: Offset,
    mail: Offset,
    random: Random,
}

impl<'a> Worker<'a> {
    pub(super) fn start(oracle: &'a Oracle, index: usize, name: &'a str, seed: u64) -> Self {
        let heap = Heap::open(name).expect("the heap can be attached");
        let root = |name: &str| heap.root(name).expect("roots").expect("the tables are published");
        let (table, mail) = (root(&cells_of(index)), root(MAIL));
        Self { oracle, index, name, heap, table, mail, random: Random::new(seed) }
    }

    /// Checks what the predecessor had, and settles what it had under way.
    fn inherit(&self) {
        for (index, entry) in self.oracle.cells(self.index) {
            let held = self.heap.load_cell(cell(self.table, index)).expect("the cell is there");
            match (entry.state(), held) {
                (EMPTY, None) => {}
                (LIVE, Some(block)) => entry.check(&self.heap, block),
                (ALLOCATING | FREEING, None) => entry.set_state(EMPTY),
                (ALLOCATING, Some(block)) => {
                    entry.mark(&self.heap, block);
                    entry.set_state(LIVE);
                }
                (FREEING, Some(block)) => {
                    entry.check(&self.heap, block);
                    entry.set_state(LIVE);
                }
                (state, held) => panic!("worker {}, cell {index}: state {state}, and it holds {held:?}", self.index),
            }
        }
        for entry in self.oracle.plain_blocks(self.index) {
            match (entry.state(), entry.offset()) {
                (LIVE, Some(block)) => entry.check(&self.heap, block),
                _ => entry.set_state(EMPTY),
            }
        }
    }

    fn random_size(&mut self) -> u64 {
        16 + match self.random.below(40) {
            0 => self.random.below(60_000),
            1..=6 => self.random.below(5_000),
            _ => self.random.below(400),
        } as u64
    }

    fn note_lane(&self) {
        let own = self.heap.lanes().expect("lanes").into_iter().find(|lane| lane.own);
        self.oracle.lane(self.index).store(own.map_or(0, |lane| u64::from(lane.lane) + 1), Ordering::SeqCst);
    }

    /// Works until it is killed.
    pub(super) fn run(&mut self) {
        self.inherit();
        for round in 0u64.. {
            if self.oracle.words[PAUSE].load(Ordering::SeqCst) != 0 {
                self.oracle.is_pausing(self.index).store(1, Ordering::SeqCst);
                until("the audit is over", || self.oracle.words[PAUSE].load(Ordering::SeqCst) == 0);
                self.oracle.is_pausing(self.index).store(0, Ordering::SeqCst);
            }
            self.step();
            if round == 0 {
                self.note_lane();
            }
            self.oracle.operations(self.index).fetch_add(1, Ordering::Relaxed);
            // Processors are shared with the others, with who kills, and with who dies.
            if self.random.below(BURST) == 0 {
                std::thread::sleep(REST);
            }
        }
    }

    fn step(&mut self) {
        let choice = self.random.below(if self.oracle.plain { 200 } else { 100 });
        match choice {
            0 => _ = self.heap.recover().expect("recover"),
            1 => self.heap.validate().expect("the heap is valid"),
            2 => _ = self.heap.trim().expect("trim"),
            3 => {
                self.heap = Heap::open(self.name).expect("the heap can be attached again");
                self.step_cell();
                self.note_lane();
            }
            4..=8 => {
                let name = format!("constructed {}", self.random.below(8));
                self.heap.find_or_construct(&name, 300, |_| Ok(())).expect("constructed");
            }
            9..=12 => {
                let name = format!("own {}", self.index);
                self.heap.set_root(&name, self.table).expect("a root");
            }
            13..=16 => match self.heap.remove_root(&format!("own {}", self.index)) {
                Ok(_) | Err(Error::RootUnknown { .. }) => {}
                Err(error) => panic!("remove_root: {error}"),
            },
            17..=40 => self.step_mail(),
            41..=99 => self.step_cell(),
            _ => self.step_plain(),
        }
    }

    fn step_mail(&mut self) {
        let (place, size) = (cell(self.mail, self.random.below(MAILBOXES)), self.random_size());
        let done = match self.random.below(2) {
            0 => self.heap.allocate_into(place, size as usize).map(drop),
            _ => self.heap.free_from(place),
        };
        match done {
            Ok(()) | Err(Error::CellOccupied { .. } | Error::CellEmpty { .. }) => {}
            Err(error) => panic!("mailbox: {error}"),
        }
    }

    fn step_cell(&mut self) {
        let (index, entry) = self.oracle.cells(self.index).nth(self.random.below(CELLS)).expect("a cell");
        let place = cell(self.table, index);
        if entry.state() == EMPTY {
            let size = self.random_size();
            entry.begin(size, self.random.next());
            let block = self.heap.allocate_into(place, size as usize).expect("room");
            entry.mark(&self.heap, block);
            entry.set_state(LIVE);
        } else {
            let block = self.heap.load_cell(place).expect("the cell is there").expect("it holds a block");
            entry.check(&self.heap, block);
            entry.set_state(FREEING);
            self.heap.free_from(place).expect("it holds a block");
            entry.set_state(EMPTY);
        }
    }

    fn step_plain(&mut self) {
        let entry = self.oracle.plain_blocks(self.index).nth(self.random.below(PLAIN)).expect("a plain block");
        let size = self.random_size();
        match entry.offset().filter(|_| entry.state() == LIVE) {
            None => {
                entry.begin(size, self.random.next());
                let block = self.heap.allocate(size as usize).expect("room");
                entry.mark(&self.heap, block);
                entry.offset.store(block.get(), Ordering::SeqCst);
            }
            Some(block) if self.random.below(3) == 0 => {
                entry.check(&self.heap, block);
                entry.set_state(MOVING);
                let block = self.heap.reallocate(block, size as usize).expect("room");
                entry.check_start(&self.heap, block);
                entry.size.store(size, Ordering::SeqCst);
                entry.mark(&self.heap, block);
                entry.offset.store(block.get(), Ordering::SeqCst);
            }
            Some(block) => {
                entry.check(&self.heap, block);
                entry.set_state(FREEING);
                self.heap.deallocate(block).expect("live");
                entry.set_state(EMPTY);
                return;
            }
        }
        entry.set_state(LIVE);
    }
}
