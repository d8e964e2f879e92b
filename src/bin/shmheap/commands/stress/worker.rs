//! One worker: a process that allocates, fills, hands over, checks and frees blocks until it is told to stop, or killed.
//!
//! It is the program itself, started anew with a hidden subcommand. The kernel kills it when its parent dies.
//! What it finds wrong it prints, one line for each block.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::Args;
use fastrand::Rng;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use shmheap::{Error, Heap, Offset};

use super::ground::{COMMON, Counter, Ground, HeldUp, OWN, PAIRS, Pair, State, TICKET};
use super::pattern::{Pattern, size_of};
use crate::output::Output;
use crate::place::Place;
use crate::{Outcome, Verdict};

/// Most blocks that a worker has at one time that are published nowhere. A death leaves no more than these behind.
pub(crate) const PLAIN_MAX: usize = 16;
/// A worker rests after so many steps, on average, so that all of them together need no more than the processors give: else
/// whoever takes a dead one's lock waits for a processor first, and times say nothing.
const BURST: u64 = 16;
const REST: Duration = Duration::from_micros(100);

/// A worker of a stress, by number. For `shmheap stress` and `shmheap demo`, which start it.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    #[arg(value_parser = Place::parse)]
    place: Place,
    /// The root of the run
    run: String,
    #[arg(long)]
    slot: usize,
    #[arg(long)]
    workers: usize,
    #[arg(long)]
    seed: u64,
    /// The process with which this one ends
    #[arg(long)]
    parent: i32,
    /// Also have blocks that are published nowhere
    #[arg(long)]
    plain: bool,
}

/// Why a worker cannot go on.
#[derive(Debug)]
struct Stuck(String);

impl From<Error> for Stuck {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

struct Worker {
    heap: Heap,
    ground: Ground,
    slot: usize,
    seed: u64,
    plain: bool,
    random: Rng,
    pattern: Pattern,
    /// Calls made, blocks checked, calls without room: as they stand on the board, predecessors included.
    counts: [u64; 3],
    /// Places of which something wrong was told: of those that stay, it is told once.
    told: BTreeSet<u64>,
}

impl WorkerArguments {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        // Asked for first, and then looked whether it came too late.
        let asked = set_pdeathsig(Signal::SIGKILL);
        if asked.is_err() || getppid().as_raw() != self.parent {
            return Ok(Verdict::Wrong);
        }
        let (slot, seed) = (self.slot, self.seed);
        match self.work() {
            Ok(()) => Ok(Verdict::Fine),
            Err(Stuck(why)) => {
                output.line(&telling(slot, seed, &why))?;
                Ok(Verdict::Wrong)
            }
        }
    }

    fn work(self) -> Result<(), Stuck> {
        let Self { place, run, slot, workers, seed, plain, .. } = self;
        let heap = place.open().map_err(|failure| Stuck(failure.text().to_owned()))?;
        let ground = Ground::find(&heap, &run, workers).map_err(Stuck)?;
        let counters = [Counter::Operations, Counter::Checked, Counter::Full];
        let mut counts = [0; 3];
        for (count, counter) in counts.iter_mut().zip(counters) {
            *count = ground.counter(&heap, slot, counter)?;
        }
        let (random, pattern, told) = (Rng::with_seed(seed), Pattern::default(), BTreeSet::new());
        let mut worker = Worker { heap, ground, slot, seed, plain, random, pattern, counts, told };
        worker.inherit()?;
        while !worker.ground.is_to_stop(&worker.heap)? {
            worker.step()?;
            for (count, counter) in worker.counts.into_iter().zip(counters) {
                worker.ground.set_counter(&worker.heap, slot, counter, count)?;
            }
            if worker.random.u64(..BURST) == 0 {
                std::thread::sleep(REST);
            }
        }
        Ok(())
    }
}

/// How a worker tells what is wrong.
fn telling(slot: usize, seed: u64, what: &str) -> String {
    format!("worker {slot}, seed {seed:#x}: {what}")
}

impl Worker {
    /// Settles what a dead predecessor had under way, and checks what it had published.
    fn inherit(&mut self) -> Result<(), Stuck> {
        for index in 0..PAIRS {
            let pair = self.ground.pair(self.slot, index);
            match pair.state(&self.heap)? {
                State::Begun(_) => self.heap.free_from(pair.block)?,
                State::Full(block) if index < OWN => self.check(block, pair.place),
                State::Taken if index < OWN => self.heap.free_from(pair.ticket)?,
                _ => {}
            }
        }
        if let Some(block) = self.heap.root(&self.ground.favourite(self.slot))? {
            let mut own = (0..OWN).map(|index| self.ground.pair(self.slot, index));
            if !own.any(|pair| matches!(pair.state(&self.heap), Ok(State::Full(found)) if found == block)) {
                self.tell(u64::MAX, format!("the favourite leads to {block}, which is none of the blocks in the table"));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Stuck> {
        match self.random.u8(..200) {
            0 => self.timed(|heap| heap.trim()).map(drop),
            1 => Ok(self.heap.validate()?),
            2..=9 => self.choose_favourite(),
            10..=12 => self.forget_favourite(None),
            13..=19 => self.visit_common(),
            20..=79 if self.plain => self.have_plain_blocks(),
            20..=129 => self.visit_own_pair(),
            _ => self.empty_anothers_pair(),
        }
    }

    /// Calls the heap. Where a lock holder has died meanwhile, and somebody slept for the lock, notes how long the call
    /// took: from the death on, since before it the holder was stopped, which is the parent's doing.
    fn timed<T>(&mut self, call: impl FnOnce(&Heap) -> shmheap::Result<T>) -> Result<Option<T>, Stuck> {
        let before = self.heap.lock_stats();
        let started = Instant::now();
        let done = call(&self.heap);
        let took = started.elapsed();
        let after = self.heap.lock_stats();
        self.counts[0] += 1;
        if after.takeovers > before.takeovers && after.waits > before.waits {
            let time = took.min(self.ground.since_kill(&self.heap)?);
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.ground.note_time(&self.heap, self.slot, HeldUp { takeover: after.takeovers, nanoseconds })?;
        }
        match done {
            Ok(value) => Ok(Some(value)),
            // Others may fill the heap; that is no failure.
            Err(Error::NoSpace { .. } | Error::OutOfMemory { .. } | Error::RootsFull { .. }) => {
                self.counts[2] += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Fills one of the pairs of the own table, or empties one that nobody else does.
    fn visit_own_pair(&mut self) -> Result<(), Stuck> {
        let index = self.random.usize(..PAIRS);
        let pair = self.ground.pair(self.slot, index);
        match pair.state(&self.heap)? {
            State::Empty | State::Begun(_) => self.fill(pair),
            State::Full(block) if index < OWN => {
                self.forget_favourite(Some(block))?;
                self.empty(pair, block)
            }
            State::Taken if index < OWN => self.timed(|heap| heap.free_from(pair.ticket)).map(drop),
            _ => Ok(()),
        }
    }

    fn fill(&mut self, pair: Pair) -> Result<(), Stuck> {
        // There may be a block without a ticket, of which nobody knows how large it was to be.
        if matches!(pair.state(&self.heap)?, State::Begun(_)) {
            self.timed(|heap| heap.free_from(pair.block))?;
        }
        let seed = self.random.u64(..);
        if let Some(block) = self.timed(|heap| heap.allocate_into(pair.block, size_of(seed)))? {
            self.pattern.write(&self.heap, block, seed, pair.place)?;
            self.timed(|heap| heap.allocate_into(pair.ticket, TICKET))?;
        }
        Ok(())
    }

    fn empty(&mut self, pair: Pair, block: Offset) -> Result<(), Stuck> {
        self.check(block, pair.place);
        self.timed(|heap| heap.free_from(pair.block))?;
        self.timed(|heap| heap.free_from(pair.ticket))?;
        Ok(())
    }

    /// Empties a pair that another worker has filled for this one.
    fn empty_anothers_pair(&mut self) -> Result<(), Stuck> {
        let workers = self.ground.workers();
        let from = (self.slot + 1 + self.random.usize(..workers)) % workers;
        let index = OWN + self.random.usize(..PAIRS - OWN);
        if self.ground.consumer(from, index) != self.slot {
            return self.visit_own_pair();
        }
        let pair = self.ground.pair(from, index);
        match pair.state(&self.heap)? {
            State::Full(block) => self.empty(pair, block),
            State::Taken => self.timed(|heap| heap.free_from(pair.ticket)).map(drop),
            State::Empty | State::Begun(_) => Ok(()),
        }
    }

    /// Makes the favourite lead to some block of the own table.
    fn choose_favourite(&mut self) -> Result<(), Stuck> {
        let pair = self.ground.pair(self.slot, self.random.usize(..OWN));
        if let State::Full(block) = pair.state(&self.heap)? {
            let name = self.ground.favourite(self.slot);
            self.timed(|heap| heap.set_root(&name, block))?;
        }
        Ok(())
    }

    /// Removes the favourite, if it leads to this block or no block is given.
    fn forget_favourite(&mut self, block: Option<Offset>) -> Result<(), Stuck> {
        let name = self.ground.favourite(self.slot);
        let leads_to = self.heap.root(&name)?;
        if leads_to.is_some() && (block.is_none() || leads_to == block) {
            self.timed(|heap| heap.remove_root(&name))?;
        }
        Ok(())
    }

    /// Finds or constructs what all workers share, and checks it.
    fn visit_common(&mut self) -> Result<(), Stuck> {
        let index = self.random.usize(..COMMON);
        let (name, (seed, place)) = (self.ground.common(index), self.ground.common_content(index));
        let mut pattern = std::mem::take(&mut self.pattern);
        let found =
            self.timed(|heap| heap.find_or_construct(&name, size_of(seed), |block| pattern.write(heap, block, seed, place)));
        self.pattern = pattern;
        if let Some(block) = found? {
            self.check(block, place);
        }
        Ok(())
    }

    /// Allocates some blocks that nobody else knows of, moves some, and frees them in another order.
    fn have_plain_blocks(&mut self) -> Result<(), Stuck> {
        let mut blocks = Vec::new();
        for _ in 0..self.random.usize(1..PLAIN_MAX) {
            let seed = self.random.u64(..);
            match self.timed(|heap| heap.allocate(size_of(seed)))? {
                Some(block) => {
                    self.pattern.write(&self.heap, block, seed, seed)?;
                    blocks.push((block, seed));
                }
                None => break,
            }
        }
        while !blocks.is_empty() {
            let (block, seed) = blocks.swap_remove(self.random.usize(..blocks.len()));
            let block = match self.random.u8(..4) {
                0 => self.timed(|heap| heap.reallocate(block, 2 * size_of(seed)))?.unwrap_or(block),
                _ => block,
            };
            self.check(block, seed);
            self.timed(|heap| heap.deallocate(block))?;
        }
        Ok(())
    }

    fn check(&mut self, block: Offset, place: u64) {
        match self.pattern.check(&self.heap, block, place) {
            Ok(_) => self.counts[1] += 1,
            Err(what) => self.tell(place, what),
        }
    }

    /// Tells of something wrong at a place; of what stays there, once.
    fn tell(&mut self, place: u64, what: String) {
        if self.told.insert(place) {
            // If nobody listens, the parent is gone, and so is this process in a moment.
            let _ = Output::new(false).line(&telling(self.slot, self.seed, &what));
        }
    }
}
