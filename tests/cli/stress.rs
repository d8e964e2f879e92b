//! `stress`: it finds nothing wrong where nothing is, finds what is wrong, and ends without leaving anything.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Heap, Ran, fine, json, program, refused, run};

/// How long something may take that takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a stress.
fn start(arguments: &[&str]) -> Child {
    let mut command = program();
    command.arg("stress").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program can be started")
}

fn end(child: Child) -> Ran {
    child.wait_with_output().expect("it ends").into()
}

/// The processes whose parent this is.
fn children(parent: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// True while there is a process of this number that has not ended.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until the workers of a stress are at work in a heap, and returns their root that is shared.
fn common_root(heap: &Heap) -> shmheap::Offset {
    let found = || {
        let heap = shmheap::Heap::open_read_only(heap.name()).ok()?;
        heap.roots().ok()?.into_iter().find(|root| root.name.ends_with("common 0") && !root.constructing)?.block
    };
    until("the workers construct what they share", || found().is_some());
    found().expect("it stays until the end")
}

#[test]
fn workers_that_live_leave_an_empty_heap() {
    let printed = fine(&["stress", "--workers", "3", "--seconds", "1", "--seed", "7"]);
    assert_eq!(printed.lines().last(), Some("failures 0"));
    for sign in ["3 processes", "seed 0x7", "kills           0", "0 B used, 1 free run, fragmentation 0", "0 unpublished"] {
        assert!(printed.contains(sign), "{sign}: {printed}");
    }
}

#[test]
fn workers_that_are_killed_leave_what_they_had_published() {
    let printed = json(&["stress", "-w", "4", "--kill", "--for", "3s"]);
    assert!(printed["kills"].as_u64() > Some(0), "somebody was killed: {printed}");
    assert!(printed["operations"].as_u64() > Some(1000) && printed["blocks_checked"].as_u64() > Some(100), "{printed}");
    assert_eq!(printed["failures"].as_array().map(Vec::len), Some(0), "{printed}");
    assert_eq!((&printed["at_the_end"]["used"], &printed["at_the_end"]["free_runs"]), (&0.into(), &1.into()));
    let name = printed["name"].as_str().expect("it has a name");
    assert!(!std::path::Path::new("/dev/shm").join(name).exists(), "{name} is removed");
}

#[test]
fn lock_holders_are_killed_and_others_take_over() {
    // Whom a kill meets is chance; so it is tried again where nobody had the lock.
    let takeovers = |_| json(&["stress", "-w", "4", "--kill", "-s", "2"])["takeovers"].as_u64().expect("a number");
    assert!((0..10).map(takeovers).any(|takeovers| takeovers > 0), "in ten runs nobody died with the lock");
}

#[test]
fn a_heap_that_was_there_is_left_as_it_was() {
    let heap = Heap::new("stress-there");
    let attached = heap.open();
    let block = attached.allocate(100).expect("room");
    attached.copy_in(block, b"not yours").expect("it fits");
    attached.set_root("mine", block).expect("a root");
    let printed = fine(&["stress", heap.name(), "--kill", "--seconds", "1"]);
    assert!(printed.contains("shared with whoever uses it"), "{printed}");
    let stats = attached.stats().expect("numbers");
    assert_eq!((stats.allocated_blocks, stats.roots), (1, 1), "{stats}");
    let mut text = [0; 9];
    attached.copy_out(block, &mut text).expect("it is there");
    assert_eq!(&text, b"not yours");
    attached.validate().expect("it is sound");
}

#[test]
fn a_heap_that_is_made_is_kept_if_asked_for() {
    let (kept, gone) = (Heap::unborn("stress-kept"), Heap::unborn("stress-gone"));
    fine(&["stress", kept.name(), "--capacity", "8M", "-w", "1", "-s", "0.2", "--keep"]);
    let stats = kept.open().stats().expect("numbers");
    assert_eq!((stats.capacity, stats.used), (8 << 20, 0));
    fine(&["stress", gone.name(), "-w", "1", "-s", "0.2"]);
    assert!(!gone.path().exists());
}

#[test]
fn a_full_heap_is_no_failure() {
    let heap = Heap::unborn("stress-small");
    let printed = fine(&["stress", heap.name(), "--capacity", "1M", "-w", "4", "--kill", "-s", "1"]);
    assert!(printed.contains("found no room"), "{printed}");
}

#[test]
fn ctrl_c_ends_it_cleanly() {
    let heap = Heap::unborn("stress-interrupted");
    let child = start(&[heap.name(), "--kill", "--seconds", "600"]);
    common_root(&heap);
    let workers = children(child.id());
    assert!(!workers.is_empty(), "it has workers");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
    let ran = end(child);
    assert_eq!((ran.code, ran.stdout.lines().last()), (0, Some("failures 0")), "{ran:?}");
    assert!(ran.stdout.contains("interrupted"), "{}", ran.stdout);
    assert!(!heap.path().exists() && !workers.into_iter().any(runs));
}

#[test]
fn workers_end_with_their_parent() {
    let heap = Heap::unborn("stress-orphaned");
    let mut child = start(&[heap.name(), "-w", "3", "--seconds", "600"]);
    common_root(&heap);
    // The first constructs it while the last has not been started yet.
    until("all workers are there", || children(child.id()).len() == 3);
    let workers = children(child.id());
    // One of them stands still when its parent dies, as it does while the parent looks for a lock holder.
    kill(Pid::from_raw(workers[0] as i32), Signal::SIGSTOP).expect("it runs");
    child.kill().expect("it runs");
    child.wait().expect("it has ended");
    until("the workers end", || !workers.iter().any(|pid| runs(*pid)));
    heap.open().validate().expect("what they have left is sound");
}

#[test]
fn a_changed_byte_is_a_failure() {
    let heap = Heap::unborn("stress-scribbled");
    let child = start(&[heap.name(), "--seconds", "2", "--seed", "0x5eed"]);
    let block = common_root(&heap);
    let scribbler = heap.open();
    let mut byte = [0];
    scribbler.copy_out_at(block, 13, &mut byte).expect("it is there");
    scribbler.copy_in_at(block, 13, &[!byte[0]]).expect("it is there");
    drop(scribbler);
    let ran = end(child);
    assert_eq!(ran.code, 1, "{ran:?}");
    let last = ran.stdout.lines().last().expect("it prints");
    assert!(
        last.strip_prefix("failures ").is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count >= 2)),
        "{last}"
    );
    for sign in ["failure: worker", "failure: at the end: root", "common 0", "byte 13 is", "seed 0x5eed"] {
        assert!(ran.stdout.contains(sign), "{sign}: {}", ran.stdout);
    }
}

#[test]
fn a_worker_that_somebody_else_kills_is_a_failure() {
    let heap = Heap::unborn("stress-murdered");
    let child = start(&[heap.name(), "--seconds", "2", "--json"]);
    common_root(&heap);
    let worker = *children(child.id()).first().expect("it has workers");
    kill(Pid::from_raw(worker as i32), Signal::SIGKILL).expect("it runs");
    let ran = end(child);
    assert!(ran.code == 1 && ran.stdout.contains("SIGKILL, which was not sent from here"), "{ran:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for arguments in [["--workers", "0"], ["--seconds", "soon"], ["--capacity", "much"], ["--seed", "x"]] {
        assert_eq!(run(&["stress", arguments[0], arguments[1]]).code, 2, "{arguments:?}");
    }
    let foreign = Heap::unborn("stress-foreign");
    fs::write(foreign.path(), [7; 5000]).expect("a file can be made");
    let error = refused(1, &["stress", foreign.name(), "-s", "1"]);
    assert!(error.contains("is no heap"), "{error}");
    assert_eq!(fs::read(foreign.path()).expect("it is still there"), [7; 5000]);
}

#[test]
fn a_heap_without_room_for_the_workers_is_a_matter_of_usage() {
    assert!(run(&["stress", "--capacity", "256K"]).stderr.contains("1M is the least"));
}
