//! Real kills: workers share a heap and work at random; one after the other is killed at a random moment and replaced.
//!
//! An oracle in memory of its own, outside of the heap, is told by each worker what it is about to do and what it has done.
//! Who replaces a dead worker checks everything that the dead one had; now and then all stand still, and the heap must hold
//! exactly what the oracle knows of. A worker has two kinds of blocks:
//!
//! - *published*: allocated into a cell and freed from it. Of these nothing may ever be lost or left over.
//! - *plain*: allocated, reallocated and freed, with their offsets in the oracle. A death between the call and the note
//!   leaves one block that nobody knows of, or none, and the oracle knows which deaths those were.

mod oracle;
mod worker;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use shmheap::{Error, Heap, Offset};

use crate::child;
use crate::common::{PATIENCE, Random, Segment};
use oracle::{EMPTY, Entry, LIVE, Oracle, PAUSE};
use worker::Worker;

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

fn cells_of(worker: usize) -> String {
    format!("cells {worker}")
}

const MAIL: &str = "mail";

fn cell(table: Offset, index: usize) -> Offset {
    Offset::new(table.get() + 8 * index as u64).expect("not zero")
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
