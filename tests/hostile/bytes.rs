//! Every single-byte change of a valid region, each followed by every operation.
//!
//! A *case* is one byte of one region with another value. There are two regions: one that is in use while the byte changes,
//! with slabs of the user's own, orphans, a large block, a cell, roots and kept spans; and one that was left by somebody
//! who died, and is attached with the byte changed (the latter only for bytes that mean something). A case fails by a panic,
//! by a signal, or by lasting too long.
//!
//! The short form takes eight changes of each byte of metadata and of some others. The full form (`SHMHEAP_BYTES=full`, what
//! `scripts/fuzz.sh --bytes` runs) takes all 255 of every byte; `SHMHEAP_BYTES_FROM` names the byte at which it begins.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::signals;
use super::targets::{Actor, Ground, Input, Operation, Template};

/// Longest that a case may last. Most take some microseconds; where the lock word is changed, each operation may wait
/// for its time-out of a millisecond.
const CASE_TIME_MAX: Duration = Duration::from_secs(10);
/// How often the watch looks.
const WATCH_PAUSE: Duration = Duration::from_millis(50);
/// After so many findings the rest is not looked at.
const FINDINGS_MAX: u64 = 20;
/// Threads that the sweep is divided among.
const WORKERS: u64 = 2;
/// A worker takes so many bytes of the region at a time.
const STRIDE: u64 = 64;
/// Of the bytes that hold no metadata, the short form takes one in so many.
const SAMPLE: u64 = 61;
/// Bytes of the superblock that say nothing.
const SILENT: std::ops::Range<u64> = 0x418..0x1000;

/// What is done with the heap that is in use, before the byte changes.
const BEFORE: [(Operation, &[u8]); 9] = [
    (Operation::Allocate, &[100, 0]),
    (Operation::Allocate, &[44, 1]),
    (Operation::Allocate, &[20, 0]),
    (Operation::Allocate, &[0x70, 0x97]),
    (Operation::Allocate, &[0, 2]),
    (Operation::Allocate, &[0, 2]),
    (Operation::Deallocate, &[13]),
    (Operation::Allocate, &[200, 2]),
    (Operation::Deallocate, &[15]),
];

/// Every operation, after the byte has changed.
const AFTER: [(Operation, &[u8]); 63] = [
    (Operation::Allocate, &[16, 0]),
    (Operation::Allocate, &[90, 0]),
    (Operation::Deallocate, &[9]),
    (Operation::Deallocate, &[10]),
    (Operation::Reallocate, &[11, 200, 0]),
    (Operation::CopyIn, &[0, 1, 0, 40, 0, 7]),
    (Operation::CopyOut, &[4, 3, 0, 40, 0]),
    (Operation::CopyOut, &[2, 40, 0x80, 40, 0]),
    (Operation::CopyIn, &[12, 40, 0x80, 40, 0, 5]),
    (Operation::CopyOut, &[12, 39, 0x80, 40, 0]),
    (Operation::Info, &[0]),
    (Operation::Info, &[0xa0, 1]),
    (Operation::Resolve, &[3]),
    (Operation::LoadCell, &[6]),
    (Operation::AllocateZeroed, &[60, 0]),
    (Operation::AllocateAligned, &[9, 60, 1]),
    (Operation::AllocateInto, &[0xa6, 1, 33, 0]),
    (Operation::FreeFrom, &[6]),
    (Operation::FreeFrom, &[0xa6, 1]),
    (Operation::Root, &[0]),
    (Operation::SetRoot, &[1, 3]),
    (Operation::InsertRoot, &[6, 4]),
    (Operation::RemoveRoot, &[2]),
    (Operation::FindOrConstruct, &[7, 1, 1, 50, 0]),
    (Operation::FindOrConstruct, &[3, 1, 0, 50, 0]),
    (Operation::FindOrConstruct, &[4, 0, 1, 50, 0]),
    (Operation::Roots, &[]),
    (Operation::Blocks, &[]),
    (Operation::Stats, &[]),
    (Operation::Lanes, &[]),
    (Operation::DumpStats, &[]),
    (Operation::Validate, &[]),
    (Operation::Findings, &[]),
    (Operation::Save, &[]),
    (Operation::Freeze, &[]),
    (Operation::Allocate, &[0x80, 0x93]),
    (Operation::Reallocate, &[1, 0x80, 0x8f]),
    (Operation::Reallocate, &[5, 0x20, 0x88]),
    (Operation::Reallocate, &[7, 10, 0]),
    // A second party frees what the first one has, and the first goes on.
    (Operation::Switch, &[]),
    (Operation::Allocate, &[16, 0]),
    (Operation::Deallocate, &[11]),
    (Operation::Deallocate, &[12]),
    (Operation::Deallocate, &[13]),
    (Operation::FreeFrom, &[6]),
    (Operation::Reallocate, &[14, 0, 1]),
    (Operation::Switch, &[]),
    (Operation::Allocate, &[0, 2]),
    (Operation::Deallocate, &[0]),
    (Operation::Deallocate, &[1]),
    (Operation::Deallocate, &[2]),
    (Operation::Deallocate, &[3]),
    (Operation::Allocate, &[10, 0xc0]),
    (Operation::Allocate, &[12, 0xc0]),
    (Operation::Trim, &[]),
    (Operation::Recover, &[]),
    (Operation::Reopen, &[]),
    (Operation::Validate, &[]),
    (Operation::Recover, &[]),
    (Operation::Allocate, &[100, 0]),
    (Operation::Deallocate, &[4]),
    (Operation::Stats, &[]),
    (Operation::Repair, &[]),
];

/// The regions, and which cases there are.
struct Sweep {
    left: Template,
    dead: Template,
    is_full: bool,
    /// The next byte that nobody has taken.
    next: AtomicU64,
    cases: AtomicU64,
    findings: AtomicU64,
}

impl Sweep {
    fn is_metadata(&self, at: u64) -> bool {
        self.left.layout().is_metadata(at) && !SILENT.contains(&at)
    }

    /// The values of the byte at `at` that are tried, as what they differ in from the one that is there.
    fn changes(&self, at: u64) -> Box<dyn Iterator<Item = u8>> {
        match () {
            () if self.is_full => Box::new(1..=255),
            () if self.is_metadata(at) => Box::new((0..8).map(|bit| 1 << bit)),
            () if at.is_multiple_of(SAMPLE) => Box::new([1, 0x80].into_iter()),
            () => Box::new(std::iter::empty()),
        }
    }

    /// Takes bytes of the region until none is left.
    fn work(&self, case: &signals::Case) {
        let ground = Ground::new(self.left.bytes().len());
        let len = self.left.layout().capacity;
        loop {
            let start = self.next.fetch_add(STRIDE, Ordering::Relaxed);
            if start >= len || self.findings.load(Ordering::Relaxed) >= FINDINGS_MAX {
                return case.end();
            }
            for at in start..(start + STRIDE).min(len) {
                for change in self.changes(at) {
                    case.begin(at, change);
                    let regions = 1 + u64::from(self.is_metadata(at));
                    let run = AssertUnwindSafe(|| run_case(self, &ground, at, change));
                    if catch_unwind(run).is_err() {
                        eprintln!("finding: a panic after byte {at:#x} was changed by {change:#04x}");
                        self.findings.fetch_add(1, Ordering::Relaxed);
                    }
                    self.cases.fetch_add(regions, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Runs one change on the region that is in use, and on the one that was left.
fn run_case(sweep: &Sweep, ground: &Ground, at: u64, change: u8) {
    ground.reset(&sweep.left);
    let mut actor = Actor::enter(ground).expect("a valid heap can be attached");
    perform(&mut actor, &BEFORE);
    flip(ground, at, change);
    perform(&mut actor, &AFTER);
    drop(actor);
    if !sweep.is_metadata(at) {
        return;
    }

    ground.reset(&sweep.dead);
    flip(ground, at, change);
    // Refusing to attach is an answer too.
    if let Ok(mut actor) = Actor::enter(ground) {
        perform(&mut actor, &AFTER);
    }
}

fn flip(ground: &Ground, at: u64, change: u8) {
    let now = ground.word(at & !7).load(Ordering::Relaxed).to_ne_bytes()[(at % 8) as usize];
    ground.set_byte(at, now ^ change);
}

fn perform(actor: &mut Actor<'_>, steps: &[(Operation, &[u8])]) {
    let _ = steps.iter().all(|(operation, bytes)| actor.perform(*operation, &mut Input::new(bytes)));
}

#[test]
fn a_changed_byte_is_an_error_or_no_harm_whatever_is_called_then() {
    let is_full = std::env::var("SHMHEAP_BYTES").is_ok_and(|form| form == "full");
    let from = std::env::var("SHMHEAP_BYTES_FROM").map_or(0, |from| from.parse().expect("a number of bytes"));
    let sweep = Sweep {
        left: Template::left(),
        dead: Template::dead(),
        is_full,
        next: AtomicU64::new(from),
        cases: AtomicU64::new(0),
        findings: AtomicU64::new(0),
    };
    let (started, is_over) = (Instant::now(), AtomicBool::new(false));
    thread::scope(|scope| {
        let workers: Vec<_> =
            signals::cases().iter().take(WORKERS as usize).map(|case| scope.spawn(|| sweep.work(case))).collect();
        scope.spawn(|| watch(&sweep, started, &is_over));
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_over.store(true, Ordering::Release);
        ended.into_iter().for_each(|ended| ended.expect("panics are caught case by case"));
    });
    let (cases, findings) = (sweep.cases.into_inner(), sweep.findings.into_inner());
    println!("single-byte changes {cases}  findings {findings}");
    assert_eq!(findings, 0, "changed bytes made the library panic");
    let least = if is_full { (65_536 - from) * 255 } else { 50_000 };
    assert!(cases >= least, "{cases} cases are fewer than there are");
}

/// Ends the program if a case does not end; nothing else could. Tells how far the full form has come.
fn watch(sweep: &Sweep, started: Instant, is_over: &AtomicBool) {
    let mut seen: Vec<(u64, Instant)> = signals::cases().iter().map(|case| (case.count(), Instant::now())).collect();
    let mut told = Duration::ZERO;
    while !is_over.load(Ordering::Acquire) {
        thread::sleep(WATCH_PAUSE);
        for (case, (count, since)) in signals::cases().iter().zip(&mut seen) {
            let now = case.count();
            if now != *count {
                (*count, *since) = (now, Instant::now());
            }
            if case.is_under_way() && since.elapsed() > CASE_TIME_MAX {
                eprintln!("finding: no end after {}", case.describe());
                std::process::exit(1);
            }
        }
        if sweep.is_full && started.elapsed() >= told + Duration::from_secs(60) {
            told = started.elapsed();
            eprintln!("{} of 65536 bytes after {} s", sweep.next.load(Ordering::Relaxed), told.as_secs());
        }
    }
}
