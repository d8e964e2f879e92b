//! The board: what the processes of one replay share. All of it lies in the heap itself, in blocks that roots lead to.
//!
//! | root | what its block holds |
//! |---|---|
//! | `gate` | where the workers wait for each other before they start |
//! | `tally/N` | what worker N has done so far |
//! | `ring/N` | parcels on their way to worker N, see [`ring`](crate::ring) |
//! | `survivors/N` | parcels that worker N never freed because the trace never does |
//!
//! Other processes see these blocks change, so they are reached as slices of atomic words only, see [`words`].

#![allow(unsafe_code, reason = "the processes wait for each other's words, which takes atomics in the heap")]

use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use shmheap::{Heap, Offset};

use crate::Result;
use crate::parcel::{self, Parcel};
use crate::ring::Ring;

/// Makes what `processes` workers need before they start. The finisher frees it.
pub(crate) fn set_up(heap: &Heap, processes: u32) -> Result<()> {
    let gate = publish(heap, Gate::ROOT, Gate::WORDS)?;
    Gate::over(gate)?.processes.store(processes.into(), Ordering::Relaxed);
    for index in 0..processes {
        publish(heap, &format!("tally/{index}"), Tally::WORDS)?;
        publish(heap, &format!("ring/{index}"), Ring::WORDS)?;
    }
    Ok(())
}

/// Makes a block of zeros to which the root `name` leads.
fn publish<'heap>(heap: &'heap Heap, name: &str, len: usize) -> Result<&'heap [AtomicU64]> {
    let block = heap.allocate_zeroed(len * size_of::<AtomicU64>())?;
    heap.insert_root(name, block)?;
    words(heap, block)
}

/// The words of the block that the root `name` leads to.
pub(crate) fn find<'heap>(heap: &'heap Heap, name: &str) -> Result<&'heap [AtomicU64]> {
    let block = heap.root(name)?.ok_or_else(|| format!("the heap has no root {name}"))?;
    words(heap, block)
}

/// A block as words.
fn words(heap: &Heap, block: Offset) -> Result<&[AtomicU64]> {
    let len = heap.usable_size(block)? / size_of::<AtomicU64>();
    let first = heap.resolve(block)?.cast::<AtomicU64>();
    // SAFETY: the block has `len` words, starts at a multiple of 16 as every block does, and stays mapped for as long as
    // `heap` is borrowed. A replay reaches the blocks of its roots through here alone, thus by atomic words alone.
    Ok(unsafe { slice::from_raw_parts(first.as_ptr(), len) })
}

/// Where the workers wait, so that they replay at the same time although they start one after the other.
#[derive(Debug)]
pub(crate) struct Gate<'heap> {
    processes: &'heap AtomicU64,
    arrived: &'heap AtomicU64,
    open: &'heap AtomicU64,
}

impl<'heap> Gate<'heap> {
    const ROOT: &'static str = "gate";
    const WORDS: usize = 3;

    pub(crate) fn find(heap: &'heap Heap) -> Result<Self> {
        Self::over(find(heap, Self::ROOT)?)
    }

    fn over(words: &'heap [AtomicU64]) -> Result<Self> {
        let [processes, arrived, open, ..] = words else { return Err("the gate's block is too small".into()) };
        Ok(Self { processes, arrived, open })
    }

    /// How many workers replay in this heap.
    pub(crate) fn processes(&self) -> u32 {
        self.processes.load(Ordering::Relaxed) as u32
    }

    /// How many workers wait here.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// Lets them go.
    pub(crate) fn open(&self) {
        self.open.store(1, Ordering::Release);
    }

    /// Waits until the parent opens the gate.
    pub(crate) fn pass(&self) -> Result<()> {
        self.arrived.fetch_add(1, Ordering::Release);
        let mut patience = Patience::new();
        while self.open.load(Ordering::Acquire) == 0 {
            patience.wait("the other workers to arrive", self.arrived())?;
        }
        Ok(())
    }
}

/// What one worker tells the other processes; nobody else writes it.
#[derive(Debug)]
pub(crate) struct Tally<'heap>(&'heap [AtomicU64]);

/// A word of a tally.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    /// Records in the trace.
    Records,
    /// Records replayed.
    Replayed,
    /// 1 once nothing more will be put into the ring of the next worker.
    Finished,
    /// Time from the opened gate to the last parcel, in nanoseconds.
    Nanoseconds,
    /// Frees handed to the next worker.
    HandedOver,
    /// Frees that would have been handed over, had the ring not been full.
    RingFull,
    /// Frees of what the trace never allocated.
    Unknown,
}

impl<'heap> Tally<'heap> {
    /// A whole pair of cache lines, so that no worker slows another down by counting.
    const WORDS: usize = 16;

    pub(crate) fn find(heap: &'heap Heap, worker: u32) -> Result<Self> {
        Ok(Self(find(heap, &format!("tally/{worker}"))?))
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        // ORDERING: Acquire pairs with the Release in `add`: whoever sees `Finished` sees the ring's last parcel.
        self.0[count as usize].load(Ordering::Acquire)
    }

    /// Adds to a count. Only the tally's own worker does, so a load and a store will do.
    pub(crate) fn add(&self, count: Count, more: u64) {
        let word = &self.0[count as usize];
        // ORDERING: Release pairs with the Acquire in `get`.
        word.store(word.load(Ordering::Relaxed) + more, Ordering::Release);
    }
}

/// Words before the first parcel of a table of survivors: how many there are.
const TABLE_HEAD: usize = 1;

/// Leaves to the finisher what `worker` never freed.
pub(crate) fn leave_survivors(heap: &Heap, worker: u32, survivors: &[Parcel]) -> Result<()> {
    let len = TABLE_HEAD + survivors.len() * parcel::WORDS;
    let (head, slots) = publish(heap, &format!("survivors/{worker}"), len)?.split_at(TABLE_HEAD);
    head[0].store(survivors.len() as u64, Ordering::Relaxed);
    // Relaxed is enough: the finisher starts when this process has exited.
    slots.as_chunks().0.iter().zip(survivors).for_each(|(slot, survivor)| survivor.store(slot));
    Ok(())
}

/// What `worker` never freed.
pub(crate) fn survivors(heap: &Heap, worker: u32) -> Result<Vec<Parcel>> {
    let (head, slots) = find(heap, &format!("survivors/{worker}"))?.split_at(TABLE_HEAD);
    let count = head[0].load(Ordering::Relaxed) as usize;
    slots.as_chunks().0.iter().take(count).map(Parcel::load).collect()
}

/// A bound for every wait for another process: it may take as long as it likes, but it must get on.
#[derive(Debug)]
pub(crate) struct Patience {
    progress: u64,
    since: Instant,
}

impl Patience {
    const LIMIT: Duration = Duration::from_secs(60);
    const NAP: Duration = Duration::from_millis(1);

    pub(crate) fn new() -> Self {
        Self { progress: 0, since: Instant::now() }
    }

    /// Sleeps a little; an error if `progress`, a number that changes as the other gets on, has long been the same.
    pub(crate) fn wait(&mut self, what: &str, progress: u64) -> Result<()> {
        if progress != self.progress {
            *self = Self { progress, since: Instant::now() };
        }
        if self.since.elapsed() > Self::LIMIT {
            return Err(format!("waited {:?} for {what}, which did not get on", Self::LIMIT).into());
        }
        std::thread::sleep(Self::NAP);
        Ok(())
    }
}
