//! Processes that see the world differently: PID namespaces in which all are number 1, and a world without /proc.
//!
//! Namespaces need root; without it these tests say that they were skipped.

#![allow(unsafe_code, reason = "fork has no safe interface")]

mod common;

use std::time::{Duration, Instant};

use common::churn::{check_stamp, stamp};
use common::shared::Words;
use common::worker::{Worker, bound_lifetime, dispatch, hear, number, parameter, say};
use common::{PATIENCE, all_blocks, all_offsets, assert_emptied, is_root, lane_of, new_heap, until};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use shmheap::{Error, Heap};

/// More pages than a lane keeps: each allocation and each free takes the heap lock.
const LARGE: usize = 1100 << 10;

#[test]
fn worker_entry() {
    dispatch(&[
        ("first of its namespace", first_of_its_namespace),
        ("hot in its namespace", hot_in_its_namespace),
        ("without proc", without_proc),
    ]);
}

/// Says that the worker can do its work, or why not; false if not.
fn entered(outcome: Result<(), Errno>) -> bool {
    match outcome {
        Ok(()) => say("entered"),
        Err(errno) => say(&format!("skipped: no namespace is to be had here: {errno}")),
    }
    outcome.is_ok()
}

/// Starts a worker that begins with [`entered`]; `None` where that is not possible.
fn start(test: &str, role: &str, parameters: &[(&str, &str)]) -> Option<Worker> {
    if !is_root(test) {
        return None;
    }
    let mut worker = Worker::start(role, parameters);
    let entered = worker.line();
    if entered == "entered" {
        return Some(worker);
    }
    eprintln!("{test}: {entered}");
    worker.finish();
    None
}

/// Waits for the end of a forked child.
fn end_of(child: Pid) -> WaitStatus {
    let mut status = WaitStatus::StillAlive;
    until("a child ends", || {
        status = waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("the child is this process's");
        status != WaitStatus::StillAlive
    });
    status
}

/// Forks a child that runs `body` and ends.
fn in_child(body: impl FnOnce()) -> Pid {
    // SAFETY: the worker's other thread, the harness's, waits and holds no lock.
    match unsafe { fork() }.expect("the kernel forks") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            bound_lifetime();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: the call ends the process, without the exit handlers that are its parent's.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) }
        }
    }
}

/// Forks a child that is process 1 of a new namespace, holds blocks, and is killed when the test says so.
fn first_of_its_namespace() {
    if !entered(unshare(CloneFlags::CLONE_NEWPID)) {
        return;
    }
    let child = in_child(|| {
        assert_eq!(getpid().as_raw(), 1);
        let heap = Heap::open(&parameter("HEAP")).expect("open");
        for size in 1..=100 {
            let block = heap.allocate(size * 10).expect("room");
            stamp(&heap, block, size * 10, size as u64);
        }
        say("holding");
        std::thread::park_timeout(common::PATIENCE);
    });
    hear();
    kill(child, Signal::SIGKILL).expect("the child is there");
    assert_eq!(end_of(child), WaitStatus::Signaled(child, Signal::SIGKILL, false));
    say("killed");
}

/// Forks a child that is process 1 of a new namespace and does hardly anything but hold the heap lock. Stops it, lets it go
/// on and kills it as the test says.
fn hot_in_its_namespace() {
    if !entered(unshare(CloneFlags::CLONE_NEWPID)) {
        return;
    }
    let child = in_child(|| {
        assert_eq!(getpid().as_raw(), 1);
        let heap = Heap::open(&parameter("HEAP")).expect("open");
        let board = Words::open(&heap, "board");
        let index = usize::try_from(number("INDEX")).expect("a small number");
        // Nobody stops it if the test comes to no good end.
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let block = heap.allocate(LARGE).expect("room");
            heap.deallocate(block).expect("the block is ours");
            board.add(index, 1);
        }
    });
    while let Some(command) = hear() {
        match command.as_str() {
            "stop" => {
                kill(child, Signal::SIGSTOP).expect("the child is there");
                let flags = Some(WaitPidFlag::WUNTRACED);
                assert_eq!(waitpid(child, flags), Ok(WaitStatus::Stopped(child, Signal::SIGSTOP)));
            }
            "go on" => kill(child, Signal::SIGCONT).expect("the child is there"),
            _ => break,
        }
        say(&command);
    }
    kill(child, Signal::SIGKILL).expect("the child is there");
    assert_eq!(end_of(child), WaitStatus::Signaled(child, Signal::SIGKILL, false));
    say("killed");
}

/// Both holder and waiter are process 1, thread 1, each in its own namespace: glibc's robust mutex takes the one for the
/// other.
#[test]
fn a_lock_passes_between_two_processes_with_the_same_pid_only_when_its_holder_lets_go_or_dies() {
    let test = "a_lock_passes_between_two_processes_with_the_same_pid_only_when_its_holder_lets_go_or_dies";
    let (segment, heap) = new_heap("same-pid-lock");
    let board = Words::create(&heap, "board", 8);
    let impatient = Heap::options().lock_timeout(Duration::from_millis(50)).open(segment.name()).expect("open");
    impatient.validate().expect("the thread has a lane from here on");
    let start = |index: &str| start(test, "hot in its namespace", &[("HEAP", segment.name()), ("INDEX", index)]);
    let Some(mut holder) = start("0") else { return };
    board.await_at_least(0, 1);
    let lanes = heap.lanes().expect("lanes");
    let first = lanes.iter().find(|lane| lane.pid == 1).expect("the holder has a lane").lane;
    let Some(mut waiter) = start("1") else { return };
    board.await_at_least(1, 1);
    let is_stopped_with_the_lock = |_| {
        holder.tell("stop");
        holder.expect("stop");
        let holds = heap.lanes().expect("lanes").iter().any(|lane| lane.lane == first && lane.holds_lock);
        if !holds {
            holder.tell("go on");
            holder.expect("go on");
        }
        holds
    };
    assert!((0..20_000).any(is_stopped_with_the_lock), "the holder was never caught with the lock");
    let before = board.get(1);
    for _ in 0..3 {
        let error = impatient.allocate(LARGE).expect_err("the holder is alive");
        assert!(matches!(error, Error::LockTimeout { holder_pid: 1, .. }), "{error:?}");
    }
    assert!(board.get(1) <= before + 1, "the waiter got past a living holder");
    holder.tell("kill");
    holder.expect("killed");
    board.await_at_least(1, before + 100);
    let lanes = heap.lanes().expect("lanes");
    assert!(lanes.iter().any(|lane| lane.pid == 1 && lane.alive && lane.lane != first), "the waiter lives: {lanes:?}");
    waiter.tell("kill");
    waiter.expect("killed");
    drop(impatient);
    heap.recover().expect("recover");
    let strays = all_offsets(&heap).len() - 1;
    assert!(strays <= 2, "{strays} blocks are nobody's, at most one a kill can be");
    holder.finish();
    waiter.finish();
    assert_emptied(&heap);
}

#[test]
fn of_two_processes_with_the_same_pid_in_two_namespaces_the_one_that_dies_is_the_one_that_is_recovered() {
    let test = "of_two_processes_with_the_same_pid_in_two_namespaces_the_one_that_dies_is_the_one_that_is_recovered";
    let (segment, heap) = new_heap("same-pid");
    let start = || start(test, "first of its namespace", &[("HEAP", segment.name())]);
    let Some(mut first) = start() else { return };
    first.expect("holding");
    let first_lane = heap.lanes().expect("lanes")[0].lane;
    let Some(mut second) = start() else { return };
    second.expect("holding");
    let lanes = heap.lanes().expect("lanes");
    assert_eq!(lanes.len(), 2, "{lanes:?}");
    assert!(lanes.iter().all(|lane| lane.pid == 1 && lane.alive), "both are number 1, and live: {lanes:?}");

    first.tell("kill it");
    first.expect("killed");
    for lane in heap.lanes().expect("lanes") {
        assert_eq!(lane.alive, lane.lane != first_lane, "only the first is dead: {lane:?}");
    }
    assert_eq!(heap.recover(), Ok(1));
    let (orphans, held): (Vec<_>, Vec<_>) = all_blocks(&heap).into_iter().partition(|block| block.lane.is_none());
    assert_eq!((orphans.len(), held.len()), (100, 100));
    for blocks in [&orphans, &held] {
        let mut sizes: Vec<_> = blocks.iter().map(|block| block.size).collect();
        sizes.sort();
        assert!(sizes.iter().zip(1..).all(|(size, number)| *size >= number * 10), "{sizes:?}");
    }
    second.tell("kill it");
    second.expect("killed");
    assert_eq!(heap.recover(), Ok(1));
    first.finish();
    second.finish();
    assert_emptied(&heap);
}

/// Hides /proc behind an empty file system, and forks: the child cannot open by way of its descriptors.
fn without_proc() {
    let nothing: Option<&str> = None;
    let hidden = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing))
        .and_then(|()| mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), nothing));
    if !entered(hidden) {
        return;
    }
    let heap = Heap::open(&parameter("HEAP")).expect("a heap can be opened without /proc");
    let block = heap.allocate(1000).expect("room");
    stamp(&heap, block, 1000, 1);
    let child = in_child(|| {
        assert_eq!(heap.allocate(10), Err(Error::Severed));
        assert_eq!(heap.allocate(1 << 20), Err(Error::Severed));
        assert_eq!(heap.deallocate(block), Err(Error::Severed));
        assert_eq!(heap.set_root("child", block), Err(Error::Severed));
        assert_eq!(heap.recover(), Err(Error::Severed));
        let anew = Heap::open(&parameter("HEAP")).expect("the remedy is to open it anew");
        check_stamp(&anew, block, 1000, 1);
        let own = anew.allocate(500).expect("room");
        anew.set_root("child", own).expect("root");
    });
    assert_eq!(end_of(child), WaitStatus::Exited(child, 0));
    check_stamp(&heap, block, 1000, 1);
    heap.deallocate(block).expect("the parent goes on");
    say("the child has ended");
    hear();
}

#[test]
fn a_forked_child_that_cannot_be_told_from_its_parent_is_severed_and_may_open_the_heap_anew() {
    let test = "a_forked_child_that_cannot_be_told_from_its_parent_is_severed_and_may_open_the_heap_anew";
    let (segment, heap) = new_heap("severed");
    let Some(mut worker) = start(test, "without proc", &[("HEAP", segment.name())]) else { return };
    worker.expect("the child has ended");
    assert!(lane_of(&heap, worker.pid()).is_some_and(|lane| lane.alive), "its parent's lane is still its parent's");
    worker.finish();
    heap.recover().expect("recover");
    let childs = heap.root("child").expect("roots").expect("the child has left a block");
    assert_eq!(all_offsets(&heap), [childs]);
    assert_emptied(&heap);
}
