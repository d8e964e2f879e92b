//! Real kills: workers share a heap and work at random; one after the other is killed at a random moment and replaced.
//!
//! An oracle in memory of its own, outside of the heap, is told by each worker what it is about to do and what it has done.
//! Who replaces a dead worker checks everything that the dead one had; now and then all stand still, and the heap must hold
//! exactly what the oracle knows of. A worker has two kinds of blocks:
//!
//! - *published*: allocated into a cell and freed from it. Of these nothing may ever be lost or left over.
//! - *plain*: allocated, reallocated and freed, with their offsets in the oracle. A death between the call and the note leaves
//!   one block that nobody knows of, or none, and the oracle knows which deaths those were.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use shmheap::{Error, Heap, Offset};

use crate::child;
use crate::common::{PATIENCE, Random, Segment, until};

/// Cells of each worker, and mailboxes that all workers fill and empty.
const CELLS: usize = 48;
const MAILBOXES: usize = 16;
/// Plain blocks of each worker.
const PLAIN: usize = 24;
/// Kills between two looks at the whole heap.
const KILLS_PER_AUDIT: u64 = 500;
const CAPACITY: u64 = 8 << 20;
/// A worker rests after so many operations, on average, so that all of them together do not need more than the processors
/// give: else a kill is not carried out before the dead one's next turn, and times say nothing.
const BURST: usize = 12;
const REST: Duration = Duration::from_micros(80);

/// What a soak is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) kills: u64,
    pub(crate) seed: u64,
    /// Workers have plain blocks too.
    pub(crate) plain: bool,
}

/// What it found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) kills: u64,
    /// From the kill of a lock holder until somebody else had the lock, in microseconds.
    pub(crate) takeovers: Vec<u64>,
    pub(crate) operations: u64,
    /// Bytes that the emptied heap took before the first kill, and after the last.
    pub(crate) taken: [u64; 2],
    /// Blocks that deaths between a call and its note left, and how many such deaths there were.
    pub(crate) strays: [u64; 2],
}

/// State of a cell or a plain block, as the oracle knows it.
const EMPTY: u64 = 0;
const ALLOCATING: u64 = 1;
const LIVE: u64 = 2;
const FREEING: u64 = 3;
const MOVING: u64 = 4;

/// One block in the oracle.
#[derive(Clone, Copy)]
struct Entry<'a> {
    state: &'a AtomicU64,
    size: &'a AtomicU64,
    seed: &'a AtomicU64,
    offset: &'a AtomicU64,
}

/// The oracle: words that all processes share, apart from the heap.
struct Oracle {
    words: &'static [AtomicU64],
    plain: bool,
}

const ENTRY_WORDS: usize = 4;
const WORKER_WORDS: usize = 8 + (CELLS + PLAIN) * ENTRY_WORDS;
/// The first words: whether workers are to pause.
const PAUSE: usize = 0;
const COMMON_WORDS: usize = 8;

impl Oracle {
    fn new(workers: usize, plain: bool) -> Self {
        let len = (COMMON_WORDS + workers * WORKER_WORDS) * 8;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; it stays until the process ends.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED, "mmap");
        // SAFETY: `len` zeroed bytes that are reached as atomic words only, and are never unmapped.
        let words = unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), len / 8) };
        Self { words, plain }
    }

    fn worker(&self, worker: usize) -> &'static [AtomicU64] {
        let start = COMMON_WORDS + worker * WORKER_WORDS;
        &self.words[start..start + WORKER_WORDS]
    }

    /// Operations that the worker and its predecessors have done.
    fn operations(&self, worker: usize) -> &AtomicU64 {
        &self.worker(worker)[0]
    }

    /// The lane that the worker has, plus 1.
    fn lane(&self, worker: usize) -> &AtomicU64 {
        &self.worker(worker)[1]
    }

    /// Not 0 while the worker pauses.
    fn is_pausing(&self, worker: usize) -> &AtomicU64 {
        &self.worker(worker)[2]
    }

    fn entries(&self, worker: usize) -> impl Iterator<Item = Entry<'static>> {
        let words = &self.worker(worker)[8..];
        words.chunks_exact(ENTRY_WORDS).map(|words| Entry {
            state: &words[0],
            size: &words[1],
            seed: &words[2],
            offset: &words[3],
        })
    }

    fn cells(&self, worker: usize) -> impl Iterator<Item = (usize, Entry<'static>)> {
        self.entries(worker).take(CELLS).enumerate()
    }

    fn plain_blocks(&self, worker: usize) -> impl Iterator<Item = Entry<'static>> {
        self.entries(worker).skip(CELLS)
    }
}

impl Entry<'_> {
    fn state(&self) -> u64 {
        self.state.load(Ordering::SeqCst)
    }

    fn set_state(&self, state: u64) {
        self.state.store(state, Ordering::SeqCst);
    }

    fn begin(&self, size: u64, seed: u64) {
        self.size.store(size, Ordering::SeqCst);
        self.seed.store(seed, Ordering::SeqCst);
        self.set_state(ALLOCATING);
    }

    fn offset(&self) -> Option<Offset> {
        Offset::new(self.offset.load(Ordering::SeqCst))
    }

    /// Writes the entry's mark at both ends of a block.
    fn mark(&self, heap: &Heap, block: Offset) {
        let (size, seed) = (self.size.load(Ordering::SeqCst), self.seed.load(Ordering::SeqCst));
        for at in [0, size as usize - 8] {
            heap.copy_in_at(block, at, &seed.to_ne_bytes()).expect("a live block can be written");
        }
    }

    fn check(&self, heap: &Heap, block: Offset) {
        let (size, seed) = (self.size.load(Ordering::SeqCst), self.seed.load(Ordering::SeqCst));
        for at in [0, size as usize - 8] {
            let mut found = [0; 8];
            heap.copy_out_at(block, at, &mut found).expect("a live block can be read");
            assert_eq!(u64::from_ne_bytes(found), seed, "the block at {block}, {size} bytes, was overwritten at {at}");
        }
    }
}

fn cells_of(worker: usize) -> String {
    format!("cells {worker}")
}

const MAIL: &str = "mail";

fn cell(table: Offset, index: usize) -> Offset {
    Offset::new(table.get() + 8 * index as u64).expect("not zero")
}

/// A worker at work.
struct Worker<'a> {
    oracle: &'a Oracle,
    index: usize,
    name: &'a str,
    heap: Heap,
    table: Offset,
    mail: Offset,
    random: Random,
}

impl<'a> Worker<'a> {
    fn start(oracle: &'a Oracle, index: usize, name: &'a str, seed: u64) -> Self {
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
    fn run(&mut self) {
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

/// The parent's side.
struct Soak<'a> {
    plan: Plan,
    segment: &'a Segment,
    oracle: Oracle,
    pids: Vec<Pid>,
    random: Random,
    report: Report,
    /// The heap's first 4096 bytes, to look at the lock without taking part.
    superblock: MmapRaw,
}

fn new_heap(segment: &Segment, workers: usize) {
    let heap = Heap::options().capacity(CAPACITY).lanes(workers as u32 + 4).create(segment.name()).expect("a new name");
    // Every page is used once, so that what the heap takes for its tables is the same from here on.
    let whole = heap.allocate(heap.largest_free().expect("stats") as usize).expect("all of it");
    heap.deallocate(whole).expect("just allocated");
    for worker in 0..workers {
        let table = heap.allocate_zeroed(CELLS * 8).expect("room");
        heap.set_root(&cells_of(worker), table).expect("a root");
    }
    let mail = heap.allocate_zeroed(MAILBOXES * 8).expect("room");
    heap.set_root(MAIL, mail).expect("a root");
}

impl Soak<'_> {
    fn spawn(&mut self, worker: usize) {
        let seed = self.random.next();
        let (oracle, name) = (&self.oracle, self.segment.name());
        oracle.lane(worker).store(0, Ordering::SeqCst);
        oracle.is_pausing(worker).store(0, Ordering::SeqCst);
        let pid = child::spawn(|| Worker::start(oracle, worker, name, seed).run());
        self.pids[worker] = pid;
    }

    /// The lane that the lock word names, plus 1 (docs/FORMAT.md draws the word).
    fn lock_holder(&self) -> u64 {
        // SAFETY: the superblock has 4096 bytes, all of which are mapped.
        let place = unsafe { self.superblock.as_mut_ptr().add(0x100) };
        // SAFETY: the word is mapped as long as the mapping lives, is aligned, and everybody reaches it as an atomic.
        let word = unsafe { AtomicU32::from_ptr(place.cast()) };
        u64::from(word.load(Ordering::SeqCst) & !(1 << 31))
    }

    /// Kills a worker, times the takeover if it died with the lock in its hands, and starts its replacement.
    fn kill_one(&mut self) -> Result<(), String> {
        let pause = Duration::from_micros(self.random.below(700) as u64);
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_micros(20));
        }
        let worker = self.random.below(self.plan.workers);
        let lane = self.oracle.lane(worker).load(Ordering::SeqCst);
        let started = Instant::now();
        kill(self.pids[worker], Signal::SIGKILL).map_err(|errno| format!("kill: {errno}"))?;
        match waitpid(self.pids[worker], None) {
            Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => {}
            other => return Err(format!("worker {worker} had ended before it was killed: {other:?}")),
        }
        if lane != 0 && self.lock_holder() == lane {
            while self.lock_holder() == lane {
                if started.elapsed() > PATIENCE {
                    return Err(format!("worker {worker} died with the lock, and nobody takes it"));
                }
                std::thread::yield_now();
            }
            let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.report.takeovers.push(took);
        }
        let uncertain = |entry: &Entry<'_>| !matches!(entry.state(), EMPTY | LIVE);
        self.report.strays[1] += self.oracle.plain_blocks(worker).filter(uncertain).count() as u64;
        self.report.kills += 1;
        self.spawn(worker);
        Ok(())
    }

    /// Lets everybody pause, and compares the heap with the oracle, block by block.
    fn audit(&mut self) -> Result<(), String> {
        self.oracle.words[PAUSE].store(1, Ordering::SeqCst);
        let started = Instant::now();
        for worker in 0..self.plan.workers {
            while self.oracle.is_pausing(worker).load(Ordering::SeqCst) == 0 {
                if let Ok(WaitStatus::StillAlive) = waitpid(self.pids[worker], Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                    std::thread::sleep(Duration::from_micros(50));
                } else {
                    return Err(format!("worker {worker} has failed"));
                }
                if started.elapsed() > PATIENCE {
                    return Err(format!("worker {worker} hangs"));
                }
            }
        }
        let heap = Heap::open(self.segment.name()).map_err(|error| format!("attach: {error}"))?;
        let told = |error: Error| format!("audit: {error}");
        heap.recover().map_err(told)?;
        heap.validate().map_err(told)?;
        let mut known = BTreeSet::new();
        for root in heap.roots().map_err(told)? {
            known.extend(root.block);
        }
        let tables = (0..self.plan.workers).map(|worker| (cells_of(worker), CELLS)).chain([(MAIL.to_owned(), MAILBOXES)]);
        for (name, count) in tables {
            let table = heap.root(&name).map_err(told)?.ok_or("a table has lost its root")?;
            for index in 0..count {
                known.extend(heap.load_cell(cell(table, index)).map_err(told)?);
            }
        }
        for worker in 0..self.plan.workers {
            known.extend(
                self.oracle.plain_blocks(worker).filter(|entry| entry.state() == LIVE).filter_map(|entry| entry.offset()),
            );
        }
        let found: BTreeSet<Offset> = heap.blocks().map(|block| block.offset).collect();
        if let Some(lost) = known.difference(&found).next() {
            return Err(format!("the block at {lost} is lost"));
        }
        for stray in found.difference(&known) {
            self.report.strays[0] += 1;
            heap.deallocate(*stray).map_err(told)?;
        }
        if self.report.strays[0] > self.report.strays[1] {
            return Err(format!(
                "{} blocks are nobody's, after {} deaths that could leave one",
                self.report.strays[0], self.report.strays[1]
            ));
        }
        drop(heap);
        self.oracle.words[PAUSE].store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Ends all workers, frees what they have published, and returns how many bytes the emptied heap takes.
    fn empty(&mut self) -> Result<u64, String> {
        self.audit()?;
        for pid in self.pids.drain(..) {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
        let heap = Heap::open(self.segment.name()).map_err(|error| format!("attach: {error}"))?;
        let told = |error: Error| format!("emptying: {error}");
        heap.recover().map_err(told)?;
        for root in heap.roots().map_err(told)? {
            heap.remove_root(&root.name).map_err(told)?;
        }
        let blocks: Vec<Offset> = heap.blocks().map(|block| block.offset).collect();
        for block in blocks {
            heap.deallocate(block).map_err(told)?;
        }
        heap.trim().map_err(told)?;
        heap.validate().map_err(told)?;
        let stats = heap.stats().map_err(told)?;
        if (stats.free, stats.free_blocks) != (stats.total, 1) {
            return Err(format!("something is lost in the emptied heap:\n{stats}"));
        }
        Ok(stats.taken)
    }
}

/// Lets workers work for a moment, without a kill, then with as many as planned.
fn run_once(plan: Plan, kills: u64) -> Result<(Report, u64), String> {
    let segment = Segment::new("soak");
    new_heap(&segment, plan.workers);
    let report = Report { kills: 0, takeovers: Vec::new(), operations: 0, taken: [0; 2], strays: [0; 2] };
    let file = File::open(segment.path()).map_err(|error| error.to_string())?;
    let superblock = MmapOptions::new().len(4096).map_raw_read_only(&file).map_err(|error| error.to_string())?;
    let (oracle, random) = (Oracle::new(plan.workers, plan.plain), Random::new(plan.seed + 1));
    let pids = vec![Pid::from_raw(0); plan.workers];
    let mut soak = Soak { plan, segment: &segment, oracle, pids, random, report, superblock };
    (0..plan.workers).for_each(|worker| soak.spawn(worker));
    std::thread::sleep(Duration::from_millis(50));
    for kill in 1..=kills {
        let done = soak.kill_one();
        let done = if kill % KILLS_PER_AUDIT == 0 { done.and_then(|()| soak.audit()) } else { done };
        if let Err(error) = done {
            end_all(&soak.pids);
            return Err(format!("after {kill} kills: {error}"));
        }
    }
    let taken = soak.empty().inspect_err(|_| end_all(&soak.pids))?;
    soak.report.operations = (0..plan.workers).map(|worker| soak.oracle.operations(worker).load(Ordering::SeqCst)).sum();
    Ok((soak.report, taken))
}

fn end_all(pids: &[Pid]) {
    for pid in pids {
        let _ = kill(*pid, Signal::SIGKILL);
        let _ = waitpid(*pid, None);
    }
}

/// Kills workers, and compares the memory that the emptied heap takes with that of one whose workers lived.
pub(crate) fn run(plan: Plan) -> Result<Report, String> {
    let told = |what: String| format!("kills, seed {}, {} workers: {what}", plan.seed, plan.workers);
    let (_, untouched) = run_once(plan, 0).map_err(told)?;
    let (mut report, taken) = run_once(plan, plan.kills).map_err(told)?;
    report.taken = [untouched, taken];
    if taken != untouched {
        return Err(told(format!("the emptied heap takes {taken} bytes, and {untouched} where nobody was killed")));
    }
    Ok(report)
}
