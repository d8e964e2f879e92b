//! Saving and loading: a death before and after every system call, and every failure of each.
//!
//! Whatever happens to who saves, the file is the old image or the new one, whole; and the next to save removes what was
//! left beside it. Whatever happens to who loads, there is no heap of the new name, or all of it.

use std::path::{Path, PathBuf};

use shmheap::{Heap, ImageInfo, Result, verify};

use crate::board::Board;
use crate::calls::{Calls, failure_of};
use crate::common::Segment;
use crate::operations::Operation;
use crate::stage::{self, Stage};

/// A capability that works on files: what it does, and what must hold however it ended.
struct Filing {
    operation: Operation,
    check: fn(&Place, &Rehearsed, Option<&str>) -> std::result::Result<(), String>,
}

const FILINGS: &[Filing] = &[
    Filing { operation: Operation::new("save, over an old image", with_old_image, save), check: check_saved },
    Filing { operation: Operation::new("save, frozen", with_old_image, save_frozen), check: check_saved },
    Filing { operation: Operation::new("load", with_old_image, load), check: check_loaded },
];

/// A segment, and beside it a directory for images and the name of a heap to be loaded; all gone when it is dropped.
struct Place {
    segment: Segment,
}

fn directory_of(name: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("{name}.d"))
}

fn image_of(name: &str) -> PathBuf {
    directory_of(name).join("heap.img")
}

fn loaded_name(name: &str) -> String {
    format!("{name}-loaded")
}

impl Place {
    fn new(tag: &str) -> Self {
        let segment = Segment::new(tag);
        std::fs::create_dir(directory_of(segment.name())).expect("a new directory");
        Self { segment }
    }

    fn image(&self) -> PathBuf {
        image_of(self.segment.name())
    }

    fn loaded(&self) -> String {
        loaded_name(self.segment.name())
    }

    /// Names in the directory, but for the image's.
    fn strays(&self) -> Vec<String> {
        let entries = std::fs::read_dir(directory_of(self.segment.name())).expect("it is there");
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != "heap.img").collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(directory_of(self.segment.name()));
        let _ = std::fs::remove_file(Path::new("/dev/shm").join(self.loaded()));
    }
}

fn with_old_image(stage: &mut Stage) {
    stage.fill(&[100, 5_000, 20_000]);
    stage.heap().set_root("first", stage.first()).expect("a slot");
    stage.heap().save(image_of(&stage.name)).expect("it is saved");
    stage.fill(&[64, 3_000]);
}

fn save(stage: &mut Stage) -> Result<()> {
    stage.heap().save(image_of(&stage.name)).map(drop)
}

fn save_frozen(stage: &mut Stage) -> Result<()> {
    stage.heap().freeze()?.save(image_of(&stage.name)).map(drop)
}

fn load(stage: &mut Stage) -> Result<()> {
    Heap::load(image_of(&stage.name), &loaded_name(&stage.name)).map(drop)
}

/// The images before and after an operation to which nothing happens.
struct Rehearsed {
    old: ImageInfo,
    new: ImageInfo,
}

/// An image without the moment at which it was saved.
fn timeless(info: ImageInfo) -> (u64, u64, u32, u64) {
    (info.blocks, info.used, info.roots, info.image_len)
}

fn verified(place: &Place) -> std::result::Result<ImageInfo, String> {
    verify(place.image()).map_err(|error| format!("the image is not whole: {error}"))
}

fn check_saved(place: &Place, rehearsed: &Rehearsed, outcome: Option<&str>) -> std::result::Result<(), String> {
    let found = timeless(verified(place)?);
    let (old, new) = (timeless(rehearsed.old.clone()), timeless(rehearsed.new.clone()));
    // The last step is the directory's: when that cannot be made durable, the new image is there and the call has failed.
    let is_right = match outcome {
        Some("ok") => found == new,
        _ => found == old || found == new,
    };
    if !is_right {
        return Err(format!("the image holds {found:?} instead of {old:?} or {new:?}"));
    }
    let strays = place.strays();
    if strays.len() > usize::from(outcome.is_none()) {
        return Err(format!("it left {strays:?}"));
    }
    Ok(())
}

fn check_loaded(place: &Place, rehearsed: &Rehearsed, outcome: Option<&str>) -> std::result::Result<(), String> {
    check_saved(place, rehearsed, Some("ok"))?;
    let is_there = Path::new("/dev/shm").join(place.loaded()).exists();
    if outcome.is_some() && is_there != (outcome == Some("ok")) {
        return Err(format!("a heap of the new name is there: {is_there}"));
    }
    if !is_there {
        return Ok(());
    }
    let heap = Heap::open(&place.loaded()).map_err(|error| format!("the loaded heap cannot be opened: {error}"))?;
    heap.validate().map_err(|error| format!("the loaded heap: {error}"))?;
    let blocks = heap.blocks().count() as u64;
    if blocks == rehearsed.old.blocks { Ok(()) } else { Err(format!("the loaded heap has {blocks} blocks")) }
}

/// After a death: the heap is whole, and whoever saves next leaves one image and nothing beside it.
fn check_left(place: &Place) -> std::result::Result<(), String> {
    let told = |error| format!("afterwards: {error}");
    let heap = Heap::open(place.segment.name()).map_err(told)?;
    heap.validate().map_err(told)?;
    heap.save(place.image()).map_err(told)?;
    verified(place)?;
    let strays = place.strays();
    if strays.is_empty() { Ok(()) } else { Err(format!("the next one to save left {strays:?}")) }
}

/// What happens to a system call.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    /// It fails, and is carried out all the same or not.
    Error(nix::errno::Errno, bool),
    /// It transfers half of the bytes.
    Short,
}

/// How many deaths and failures were tried.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) deaths: u64,
    pub(crate) failures: u64,
}

/// Sweeps everything here on the heaps of one seed.
pub(crate) fn sweep(seed: u64) -> std::result::Result<Tally, String> {
    let mut tally = Tally::default();
    for filing in FILINGS {
        let told = |what: String| format!("{}, seed {seed}: {what}", filing.operation.name);
        let rehearsed = rehearse(filing, seed).map_err(told)?;
        for number in 0.. {
            let at = |what: &str, error: String| told(format!("{what} system call {number}: {error}"));
            let Some(call) = die(filing, seed, number, false, &rehearsed).map_err(|e| at("killed before", e))? else {
                break;
            };
            die(filing, seed, number, true, &rehearsed).map_err(|error| at("killed after", error))?;
            tally.deaths += 2;
            let Some((errors, is_done)) = failure_of(call) else {
                return Err(at("unknown", format!("{call} is not in the table of failures")));
            };
            let mut mishaps: Vec<Mishap> = errors.iter().map(|error| Mishap::Error(*error, is_done)).collect();
            if [libc::SYS_write, libc::SYS_read, libc::SYS_pread64, libc::SYS_pwrite64].contains(&call) {
                mishaps.push(Mishap::Short);
            }
            for mishap in mishaps {
                let failed = fail(filing, seed, number, mishap, &rehearsed);
                failed.map_err(|what| at(&format!("with {mishap:?}, {call}"), what))?;
                tally.failures += 1;
            }
        }
    }
    Ok(tally)
}

fn start<'a>(filing: &'a Filing, seed: u64, place: &Place, board: &'a Board) -> Calls<'a> {
    board.clear();
    let child = stage::start(&filing.operation, seed, &place.segment, board);
    Calls { child, board, operation: &filing.operation }
}

fn rehearse(filing: &Filing, seed: u64) -> std::result::Result<Rehearsed, String> {
    let (place, board) = (Place::new("rehearsed"), Board::new());
    let calls = start(filing, seed, &place, &board);
    let old = verified(&place)?;
    calls.to_end()?;
    let (new, outcome) = (verified(&place)?, board.said());
    if outcome == "ok" { Ok(Rehearsed { old, new }) } else { Err(format!("it fails by itself: {outcome}")) }
}

/// Kills the process at its `number`th system call, before or after it is carried out; which call that is, if there are so
/// many.
fn die(
    filing: &Filing,
    seed: u64,
    number: u64,
    is_carried_out: bool,
    rehearsed: &Rehearsed,
) -> std::result::Result<Option<libc::c_long>, String> {
    let (place, board) = (Place::new("killed"), Board::new());
    let calls = start(filing, seed, &place, &board);
    for _ in 0..number {
        if calls.next()?.is_none() {
            return Ok(None);
        }
        calls.carry_out()?;
    }
    let Some(call) = calls.next()? else { return Ok(None) };
    if is_carried_out {
        calls.carry_out()?;
    }
    drop(calls);
    (filing.check)(&place, rehearsed, None)?;
    check_left(&place)?;
    Ok(Some(call))
}

fn fail(filing: &Filing, seed: u64, number: u64, mishap: Mishap, rehearsed: &Rehearsed) -> std::result::Result<(), String> {
    let (place, board) = (Place::new("failing"), Board::new());
    let calls = start(filing, seed, &place, &board);
    for _ in 0..number {
        calls.next()?;
        calls.carry_out()?;
    }
    calls.next()?;
    let happened = match mishap {
        Mishap::Error(error, is_done) => calls.fail(error, is_done),
        Mishap::Short => calls.shorten(),
    };
    let ended = happened.and_then(|()| calls.to_end());
    let outcome = board.said();
    match ended {
        // The system gave it no private memory: a death like any other.
        Err(why) if why.contains("SIGABRT") => return check_left(&place),
        Err(why) => return Err(why),
        Ok(()) if matches!(mishap, Mishap::Short) && outcome != "ok" => return Err(format!("it says {outcome}")),
        Ok(()) if outcome.contains("Corrupt") || outcome == "unfinished" => return Err(format!("it says {outcome}")),
        Ok(()) => {}
    }
    (filing.check)(&place, rehearsed, Some(outcome.as_str())).map_err(|what| format!("it says {outcome}; {what}"))?;
    drop(calls);
    check_left(&place)
}
