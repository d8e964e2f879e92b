//! A process that scribbles on a segment while others are at work in it.
//!
//! Nobody can promise those others anything but this: each call answers, with success or an error, and the process lives. A
//! worker that dies by a signal, panics, or does not come to an end once the scribbling has ended fails the test.
//!
//! Workers meet through pipes: nothing in the segment can be relied on.
//!
//! Not here: the same without other processes, so that it can be repeated exactly (tests/hostile/main.rs).

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::worker::{Worker, dispatch, number, parameter, say};
use common::{Random, Segment};
use shmheap::{Heap, Offset, Options};

/// Capacity of the heaps here: small, so that every part of them is hit.
const CAPACITY: u64 = 256 << 10;
/// Where the pages of such a heap begin and end.
const PAGES: std::ops::Range<u64> = 0x3000..0x3e000;
/// How long a call waits for a lock word that names somebody alive.
const LOCK_TIMEOUT: Duration = Duration::from_millis(2);
/// Workers beside the one who scribbles.
const WORKERS: usize = 3;
/// Words that are written in each round.
const WORDS: u32 = 200_000;
/// Between so many words the scribbler heals the region's header, so that it can be attached, and lets the lock go.
const WORDS_PER_HEALING: u32 = 50;
/// A worker does at least so much, and goes on for as long as somebody scribbles.
const STEPS_MIN: u32 = 500;

#[test]
fn worker_entry() {
    dispatch(&[("scribble", scribble), ("work", work)]);
}

fn options() -> Options {
    Heap::options().lock_timeout(LOCK_TIMEOUT)
}

/// Writes random words: over everything but the pages, or over everything.
fn scribble() {
    let file = OpenOptions::new().read(true).write(true).open(format!("/dev/shm/{}", parameter("HEAP"))).expect("a file");
    let (mut random, spares_pages) = (Random::new(number("SEED")), number("PAGES") == 0);
    let mut header = [0; 128];
    file.read_exact_at(&mut header, 0).expect("a header");
    say("begun");
    for round in 0..WORDS {
        if round % WORDS_PER_HEALING == 0 {
            heal(&file, &header);
        }
        // The metadata is a small part of the whole, and what matters most.
        let at = match random.below(4) {
            0 => 8 * random.below(0x500 / 8) as u64,
            1 => 8 * random.below(PAGES.start as usize / 8) as u64,
            2 => PAGES.end + 8 * random.below((CAPACITY - PAGES.end) as usize / 8) as u64,
            _ => 8 * random.below(CAPACITY as usize / 8) as u64,
        };
        if spares_pages && PAGES.contains(&at) {
            continue;
        }
        file.write_all_at(&any_word(&mut random, &file, at).to_ne_bytes(), at).expect("a write");
    }
    heal(&file, &header);
}

/// A word as bad as any: noise, small numbers, and what is there with one bit changed.
fn any_word(random: &mut Random, file: &File, at: u64) -> u64 {
    match random.below(6) {
        0 => random.next(),
        1 => random.below(64) as u64,
        2 => 0,
        // What a page entry looks like.
        3 => {
            random.below(6) as u64
                | (random.below(24) << 8) as u64
                | (random.below(6) << 16) as u64
                | (random.next() & 63) << 32
        }
        _ => {
            let mut now = [0; 8];
            file.read_exact_at(&mut now, at).expect("a read");
            u64::from_ne_bytes(now) ^ 1 << random.below(64)
        }
    }
}

/// Puts the header back, and empties the half that is the lock.
fn heal(file: &File, header: &[u8]) {
    file.write_all_at(header, 0).expect("a write");
    file.write_all_at(&[0; 4], 0x100).expect("a write");
}

/// Calls whatever there is, until the test hangs up; then says how many calls were made, and how many of them failed.
fn work() {
    let name = parameter("HEAP");
    let mut random = Random::new(number("SEED") + number("INDEX"));
    let stop = stop_flag();
    let (mut heap, mut known, mut counts) = (options().open(&name).ok(), Vec::new(), [0u32; 2]);
    say("begun");
    let mut steps = 0;
    while steps < STEPS_MIN || !stop.load(Ordering::Acquire) {
        steps += 1;
        let Some(attached) = &heap else {
            // What stands there now cannot be attached; some later time it can.
            heap = options().open(&name).ok();
            counts[usize::from(heap.is_none())] += 1;
            continue;
        };
        let is_ok = call(attached, &mut random, &mut known);
        counts[usize::from(!is_ok)] += 1;
        if random.below(400) == 0 {
            heap = None;
        } else if random.below(100) == 0 {
            let reader = options().open_read_only(&name);
            counts[usize::from(reader.and_then(|reader| reader.validate()).is_err())] += 1;
        }
    }
    say(&format!("{} {}", counts[0], counts[1]));
}

/// True once the test has hung up.
fn stop_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    std::thread::spawn(move || {
        while common::worker::hear().is_some() {}
        set.store(true, Ordering::Release);
    });
    flag
}

/// One random call; false if it failed.
fn call(heap: &Heap, random: &mut Random, known: &mut Vec<Offset>) -> bool {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let size_max = if random.below(8) == 0 { 20_000 } else { 700 };
    let (name, size) = (NAMES[random.below(4)], 1 + random.below(size_max));
    let any = Offset::new(16 * (random.next() % (CAPACITY / 16))).unwrap_or(Offset::new(8).expect("8 is not 0"));
    let index = random.below(known.len().max(1));
    let block = if random.below(8) == 0 { any } else { known.get(index).copied().unwrap_or(any) };
    let made = match random.below(17) {
        0..=3 => heap.allocate(size),
        4 => heap.allocate_into(block, size),
        5 => heap.reallocate(block, size),
        6 => heap.find_or_construct(name, size, |_| Ok(())),
        kind => return look_or_free(heap, kind, name, block, known),
    };
    if let Ok(block) = made {
        // Whoever is given a block writes to it.
        assert!(heap.resolve(block).is_ok(), "{block} does not lie in the pages");
        known.push(block);
        known.truncate(200);
    }
    made.is_ok()
}

fn look_or_free(heap: &Heap, kind: usize, name: &str, block: Offset, known: &mut Vec<Offset>) -> bool {
    match kind {
        7..=9 => {
            known.retain(|other| *other != block);
            heap.deallocate(block).is_ok()
        }
        10 => heap.set_root(name, block).is_ok(),
        11 => heap.remove_root(name).is_ok() & heap.roots().is_ok(),
        12 => heap.validate().is_ok(),
        13 => heap.stats().is_ok() & heap.dump_stats().is_ok() & (heap.blocks().count() < CAPACITY as usize),
        14 => heap.trim().is_ok() & heap.recover().is_ok(),
        // Into a file that cannot be made: all that is read of the heap is read.
        15 => heap.freeze().is_ok() & heap.findings().is_ok() & heap.save("/dev/null/nowhere").is_err(),
        _ => {
            heap.copy_in(block, &[7; 100]).is_ok()
                & heap.copy_out(block, &mut [0; 100]).is_ok()
                & heap.free_from(block).is_ok()
        }
    }
}

/// Lets one scribble while others work; returns how many of their calls succeeded and failed.
fn scribble_among_workers(tag: &str, pages: &str, seed: u64) -> [u64; 2] {
    let segment = Segment::new(tag);
    let heap = segment.create(&options().capacity(CAPACITY).lanes(4).root_slots(16));
    let block = heap.allocate(100).expect("room");
    heap.set_root("a", block).expect("a slot");
    drop(heap);
    // Other words are written with another number in SHMHEAP_SEED.
    let run: u64 = std::env::var("SHMHEAP_SEED").map_or(0, |run| run.parse().expect("a number"));
    let seed = (seed + 10 * run).to_string();
    let parameters = [("HEAP", segment.name()), ("SEED", seed.as_str()), ("PAGES", pages)];
    let mut workers = Worker::start_many(WORKERS, "work", &parameters);
    workers.iter_mut().for_each(|worker| worker.expect("begun"));
    let mut scribbler = Worker::start("scribble", &parameters);
    scribbler.expect("begun");
    scribbler.finish();
    // Each is now told to come to an end, and has `PATIENCE` for it.
    workers.iter_mut().for_each(Worker::hang_up);
    let lines: Vec<String> = workers.into_iter().flat_map(Worker::finish).collect();
    let counts: Vec<u64> =
        lines.iter().flat_map(|line| line.split(' ')).map(|count| count.parse().expect("a count")).collect();
    assert_eq!(counts.len(), 2 * WORKERS, "each worker says what it did");

    // What is left can be opened, or is refused, at once.
    let started = Instant::now();
    if let Ok(heap) = options().open(segment.name()) {
        let _ = (heap.validate(), heap.stats(), heap.allocate(100), heap.recover(), heap.trim());
    }
    assert!(started.elapsed() < Duration::from_secs(5), "a scribbled heap is told from a sound one without much ado");
    [0, 1].map(|kind| counts.iter().skip(kind).step_by(2).sum())
}

#[test]
fn those_who_work_beside_one_who_scribbles_on_metadata_get_answers() {
    let [succeeded, failed] = scribble_among_workers("metadata", "0", 1);
    assert!(succeeded > 100 && failed > 1000, "{succeeded} calls succeeded, {failed} failed: both were to be seen");
}

#[test]
fn those_who_work_beside_one_who_scribbles_on_everything_get_answers() {
    let [succeeded, failed] = scribble_among_workers("everything", "1", 2);
    assert!(succeeded > 100 && failed > 1000, "{succeeded} calls succeeded, {failed} failed: both were to be seen");
}
