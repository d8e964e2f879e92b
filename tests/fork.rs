//! Forked processes, which inherit their parent's attachment, and must neither keep its lanes alive nor end them.
//!
//! Each test forks in a worker: a process of its own, with no other test's threads in it.

#![allow(unsafe_code, reason = "fork has no safe interface")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use common::churn::{Churn, check_stamp, stamp};
use common::shared::Words;
use common::worker::{Worker, bound_lifetime, dispatch, hear, parameter, say};
use common::{PATIENCE, all_offsets, assert_emptied, assert_is_empty, lane_of, new_heap, until};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use shmheap::{Heap, Offset};

#[test]
fn worker_entry() {
    dispatch(&[
        ("share with a child", share_with_a_child),
        ("kill children", kill_children),
        ("leave a child behind", leave_a_child_behind),
        ("leave a program behind", leave_a_program_behind),
        ("wait for the end", wait_for_the_end),
        ("anonymous", anonymous),
        ("fork among threads", fork_among_threads),
        ("drop in the child", drop_in_the_child),
        ("freeze and fork", freeze_and_fork),
    ]);
}

/// A forked child, killed when it is forgotten.
struct Child {
    pid: Pid,
    reaped: bool,
}

impl Child {
    /// Runs `body` in a forked child, which then ends without returning to the test harness.
    fn start(body: impl FnOnce()) -> Self {
        // SAFETY: the worker's other threads (the harness's, which waits, and perhaps some that allocate) hold no lock that
        // the child takes but malloc's, which the C library looks after.
        match unsafe { fork() }.expect("the kernel forks") {
            ForkResult::Parent { child } => Self { pid: child, reaped: false },
            ForkResult::Child => {
                bound_lifetime();
                let status = if catch_unwind(AssertUnwindSafe(body)).is_ok() { 0 } else { 101 };
                // SAFETY: the call ends the process, without the exit handlers that are its parent's.
                unsafe { libc::_exit(status) }
            }
        }
    }

    fn wait(&mut self) -> WaitStatus {
        let mut status = WaitStatus::StillAlive;
        until("a child ends", || {
            status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).expect("the child is this process's");
            status != WaitStatus::StillAlive
        });
        self.reaped = true;
        status
    }

    /// Waits for the child to end in order.
    fn finish(mut self) {
        assert_eq!(self.wait(), WaitStatus::Exited(self.pid, 0), "a forked child failed");
    }

    fn kill(mut self) {
        kill(self.pid, Signal::SIGKILL).expect("the child is there");
        assert_eq!(self.wait(), WaitStatus::Signaled(self.pid, Signal::SIGKILL, false), "a forked child ended before");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

fn share_with_a_child() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let mut churn = Churn::new(&heap, 1, 100);
    (0..100).for_each(|_| churn.step());
    let for_the_child: Vec<Offset> = (1..50).map(|size| heap.allocate(size * 20).expect("room")).collect();
    let parent_lane = lane_of(&heap, std::process::id()).expect("the parent has a lane");
    let child = Child::start(|| {
        let mut churn = Churn::new(&heap, 2, 100);
        for_the_child.iter().for_each(|block| heap.deallocate(*block).expect("the child frees what its parent allocated"));
        (0..3000).for_each(|_| churn.step());
        let own = heap.lanes().expect("lanes").into_iter().find(|lane| lane.own).expect("the child has a lane");
        assert_eq!(own.pid, std::process::id());
        assert_ne!(own.lane, parent_lane.lane, "the child has a lane of its own");
        assert!(lane_of(&heap, parent_lane.pid).is_some_and(|lane| lane.alive && !lane.own), "its parent lives");
        churn.free_all();
        let left = heap.allocate(4000).expect("room");
        stamp(&heap, left, 4000, 3);
        heap.set_root("left by the child", left).expect("root");
    });
    (0..3000).for_each(|_| churn.step());
    child.finish();
    churn.check();
    let left = heap.root("left by the child").expect("roots").expect("the child has published a block");
    check_stamp(&heap, left, 4000, 3);
    heap.deallocate(left).expect("the parent frees what its child allocated");
    heap.validate().expect("valid");
    say("the child has ended");
    hear();
    churn.free_all();
}

#[test]
fn a_forked_child_allocates_and_exits_and_its_parent_goes_on_with_its_own_lane() {
    let (segment, heap) = new_heap("fork");
    let mut worker = Worker::start("share with a child", &[("HEAP", segment.name())]);
    worker.expect("the child has ended");
    let lanes = heap.lanes().expect("lanes");
    let (parents, others): (Vec<_>, Vec<_>) = lanes.into_iter().partition(|lane| lane.pid == worker.pid());
    assert!(parents.len() == 1 && parents[0].alive, "the child's end does not release its parent's lane: {parents:?}");
    assert!(others.iter().all(|lane| !lane.alive), "the child's lane is dead: {others:?}");
    worker.finish();
    heap.recover().expect("recover");
    assert_is_empty(&heap);
}

fn kill_children() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&heap, "board");
    let mut churn = Churn::new(&heap, 1, 100);
    for round in 0..40u64 {
        let before = board.get(0);
        let child = Child::start(|| {
            let mut churn = Churn::new(&heap, 100 + round, 30);
            loop {
                churn.step();
                board.add(0, 1);
            }
        });
        (0..50).for_each(|_| churn.step());
        board.await_at_least(0, before + 1 + round * 37 % 500);
        child.kill();
        (0..50).for_each(|_| churn.step());
        heap.validate().unwrap_or_else(|error| panic!("after kill {round}: {error}"));
    }
    churn.free_all();
}

#[test]
fn a_forked_child_that_is_killed_leaves_its_parent_and_the_heap_whole() {
    let (segment, heap) = new_heap("fork-kill");
    let board = Words::create(&heap, "board", 8);
    Worker::start("kill children", &[("HEAP", segment.name())]).finish();
    heap.validate().expect("valid");
    heap.recover().expect("recover");
    assert!(heap.blocks().all(|block| block.lane.is_none() || block.offset == board.block()), "orphans of the killed");
    assert!(all_offsets(&heap).len() <= 1 + 40 * 32, "each child held 30 blocks at most");
    assert_emptied(&heap);
}

fn leave_a_child_behind() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    heap.allocate(100).expect("room");
    let child_uses_it = parameter("CHILD") == "uses the heap";
    let _child = Child::start(|| {
        if child_uses_it {
            heap.allocate(200).expect("room");
        }
        say("the child is there");
        assert_eq!(hear(), None);
        let block = heap.allocate(5000).expect("the child can use the heap after its parent's death");
        heap.deallocate(block).expect("the block is ours");
        heap.validate().expect("valid");
        say("the child is done");
    });
    std::thread::park_timeout(PATIENCE);
}

fn parents_lane_dies_with_it_whatever_its_child(does: &str) {
    let (segment, heap) = new_heap("outlives");
    let mut worker = Worker::start("leave a child behind", &[("HEAP", segment.name()), ("CHILD", does)]);
    worker.expect("the child is there");
    assert!(lane_of(&heap, worker.pid()).expect("its lane").alive);
    worker.kill_and_listen();
    let dead = lane_of(&heap, worker.pid()).expect("its lane was not yet recovered");
    assert!(!dead.alive, "a child keeps the lane of its dead parent alive: {dead:?}");
    assert_eq!(heap.recover(), Ok(1));
    assert_eq!(lane_of(&heap, worker.pid()), None);
    let is_attached = || Heap::segment(segment.name()).expect("it is there").attached;
    drop(heap);
    assert_eq!(is_attached(), Some(true), "the child has it attached, with an open file of its own");
    worker.hang_up();
    worker.expect("the child is done");
    assert_eq!(worker.line_or_end(), None);
    until("nobody has it attached", || is_attached() == Some(false));
    let heap = segment.open();
    assert_emptied(&heap);
}

#[test]
fn a_child_that_outlives_its_killed_parent_does_not_keep_the_parents_lane_alive() {
    parents_lane_dies_with_it_whatever_its_child("does nothing");
}

#[test]
fn a_child_that_uses_the_heap_and_outlives_its_killed_parent_does_not_keep_the_parents_lane_alive() {
    parents_lane_dies_with_it_whatever_its_child("uses the heap");
}

fn leave_a_program_behind() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    heap.allocate(100).expect("room");
    let program = std::env::current_exe().expect("a program knows where it is");
    let arguments = ["worker_entry", "--exact", "--nocapture", "--test-threads=1"];
    let mut started = std::process::Command::new(program)
        .args(arguments)
        .env("SHMHEAP_TEST_WORKER", "wait for the end")
        .spawn()
        .expect("the program starts");
    started.wait().expect("the program is a child");
}

fn wait_for_the_end() {
    say("the program is there");
    assert_eq!(hear(), None);
    say("the program is done");
}

#[test]
fn a_program_that_was_started_by_a_killed_process_does_not_keep_its_lane_alive() {
    let (segment, heap) = new_heap("exec");
    let mut worker = Worker::start("leave a program behind", &[("HEAP", segment.name())]);
    worker.expect("the program is there");
    worker.kill_and_listen();
    assert!(!lane_of(&heap, worker.pid()).expect("its lane").alive, "a descriptor was inherited through exec");
    worker.hang_up();
    worker.expect("the program is done");
    assert_eq!(worker.line_or_end(), None);
    assert_emptied(&heap);
}

fn anonymous() {
    let heap = Heap::options().capacity(8 << 20).create_anonymous().expect("create");
    let board = Words::create(&heap, "board", 64);
    let children: Vec<Child> = (0..4usize)
        .map(|index| {
            Child::start(|| {
                let mut churn = Churn::new(&heap, index as u64 + 1, 100);
                (0..3000).for_each(|_| churn.step());
                churn.free_all();
                let handed_over = heap.allocate(1000 * (index + 1)).expect("room");
                stamp(&heap, handed_over, 1000 * (index + 1), index as u64);
                board.set(index, handed_over.get());
            })
        })
        .collect();
    children.into_iter().for_each(Child::finish);
    heap.validate().expect("valid");
    for index in 0..4usize {
        let block = Offset::new(board.get(index)).expect("each child has handed a block over");
        check_stamp(&heap, block, 1000 * (index + 1), index as u64);
    }
    heap.recover().expect("recover");
    assert_eq!(all_offsets(&heap).len(), 5);
    assert_emptied(&heap);
    say("all is well");
}

#[test]
fn forked_processes_share_a_heap_without_a_name() {
    let mut worker = Worker::start("anonymous", &[]);
    worker.expect("all is well");
    worker.finish();
}

fn fork_among_threads() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (heap, done) = (&heap, &done);
            scope.spawn(move || {
                let mut churn = Churn::new(heap, 10 + thread, 100);
                while !done.load(Ordering::Relaxed) {
                    churn.step();
                }
                churn.free_all();
            });
        }
        for round in 0..30 {
            let child = Child::start(|| {
                let mut churn = Churn::new(&heap, 100 + round, 50);
                (0..200).for_each(|_| churn.step());
                churn.free_all();
            });
            child.finish();
            heap.validate().unwrap_or_else(|error| panic!("after fork {round}: {error}"));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_process_forks_while_its_other_threads_allocate() {
    let (segment, heap) = new_heap("fork-threads");
    Worker::start("fork among threads", &[("HEAP", segment.name())]).finish();
    heap.recover().expect("recover");
    assert_is_empty(&heap);
}

fn drop_in_the_child() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let block = heap.allocate(300).expect("room");
    // SAFETY: the worker's other thread, the harness's, waits and holds no lock.
    match unsafe { fork() }.expect("the kernel forks") {
        ForkResult::Child => {
            drop(heap);
            // SAFETY: the call ends the process.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => Child { pid: child, reaped: false }.finish(),
    }
    say("the child has ended");
    hear();
    heap.deallocate(block).expect("the block is still ours");
}

#[test]
fn a_child_that_drops_the_handle_takes_nothing_from_its_parent() {
    let (segment, heap) = new_heap("fork-drop");
    let mut worker = Worker::start("drop in the child", &[("HEAP", segment.name())]);
    worker.expect("the child has ended");
    let lane = lane_of(&heap, worker.pid()).expect("the parent still has its lane");
    assert!(lane.alive && lane.bytes_held >= 300, "{lane:?}");
    assert_eq!(heap.recover(), Ok(0));
    worker.finish();
    assert_is_empty(&heap);
}

/// The child drops its copy of what its parent holds.
fn freeze_and_fork() {
    let heap = Heap::open(&parameter("NAME")).expect("the heap is there");
    let mut frozen = Some(heap.freeze().expect("it is frozen"));
    Child::start(|| drop(frozen.take())).finish();
    assert!(frozen.is_some(), "the child has taken its own copy");
    say("frozen still");
    hear();
}

#[test]
fn a_forked_child_does_not_thaw_what_its_parent_has_frozen() {
    let (segment, heap) = new_heap("frozen");
    let mut freezer = Worker::start("freeze and fork", &[("NAME", segment.name())]);
    freezer.expect("frozen still");
    let timeout = std::time::Duration::from_millis(50);
    let patient = Heap::options().lock_timeout(timeout).open(segment.name()).expect("it is there");
    let refused = patient.allocate(100).expect_err("the heap is frozen");
    assert!(matches!(refused, shmheap::Error::LockTimeout { holder_pid, .. } if holder_pid == freezer.pid()), "{refused}");
    freezer.kill();
    assert!(patient.allocate(100).is_ok(), "with its parent gone, the heap is not frozen any more");
    drop(patient);
    assert_emptied(&heap);
}
