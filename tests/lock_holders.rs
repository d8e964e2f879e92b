//! Holders of the heap lock that die or stand still.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::shared::Words;
use common::worker::{Worker, dispatch, hear, number, parameter, say};
use common::{PATIENCE, Random, Segment, all_offsets, assert_emptied, lane_of, new_heap, until};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use shmheap::{Error, Heap};

/// More pages than a lane keeps: each allocation and each free takes the heap lock.
const LARGE: usize = 1100 << 10;
/// How often a worker is stopped, at most, until it is caught with the lock.
const TRIES: u32 = 20_000;

#[test]
fn worker_entry() {
    dispatch(&[("hot large", hot_large), ("large process", large_process), ("wait once", wait_once)]);
}

/// Keeps the heap lock busy; counts its rounds in word `INDEX` of the board.
fn hot_large() {
    let heap = Heap::open(&parameter("HEAP")).expect("open");
    let board = Words::open(&heap, "board");
    let counter = board.word(usize::try_from(number("INDEX")).expect("a small number"));
    // Nobody stops it if the test comes to no good end.
    let started = Instant::now();
    while board.get(7) == 0 && started.elapsed() < PATIENCE {
        let block = heap.allocate(LARGE).expect("room");
        heap.deallocate(block).expect("the block is ours");
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

/// As [`hot_large`], in a process whose memory takes the kernel long to tear down.
fn large_process() {
    let ballast = vec![1u8; 1 << 30];
    hot_large();
    drop(ballast);
}

/// Takes the heap lock once, however long that takes.
fn wait_once() {
    let heap = Heap::options().lock_timeout(PATIENCE).open(&parameter("HEAP")).expect("open");
    heap.validate().expect("the thread has a lane from here on");
    say("ready");
    hear();
    let block = heap.allocate(LARGE).expect("the lock is to be had in the end");
    heap.deallocate(block).expect("the block is ours");
    say("done");
}

fn start_as(role: &str, heap: &Heap, index: usize) -> Worker {
    Worker::start(role, &[("HEAP", &heap.name()), ("INDEX", &index.to_string())])
}

fn start(heap: &Heap, index: usize) -> Worker {
    start_as("hot large", heap, index)
}

/// Stops the worker at random moments until it stands with the lock in its hands.
fn stop_with_the_lock(heap: &Heap, board: &Words, worker: &Worker, index: usize, random: &mut Random) {
    for _ in 0..TRIES {
        let rounds = random.below(20) as u64;
        board.await_at_least(index, board.get(index) + rounds);
        worker.stop();
        if lane_of(heap, worker.pid()).is_some_and(|lane| lane.holds_lock && lane.alive) {
            return;
        }
        worker.go_on();
    }
    panic!("a worker that hardly does anything but hold the lock was never caught with it");
}

#[test]
fn a_holder_that_is_killed_is_replaced_at_once_and_its_work_is_finished_or_undone() {
    // Room for what those leave who are killed between allocating and freeing.
    let segment = Segment::new("dead-holder");
    let heap = segment.create(&Heap::options().capacity(64 << 20));
    let board = Words::create(&heap, "board", 8);
    let mut random = Random::new(11);
    let waiting = start(&heap, 1);
    for kill in 0..25 {
        let before = board.get(0);
        let victim = start(&heap, 0);
        board.await_at_least(0, before + 1);
        stop_with_the_lock(&heap, &board, &victim, 0, &mut random);
        let pid = victim.pid();
        let waiting_before = board.get(1);
        victim.kill();
        let started = Instant::now();
        let block = heap.allocate(LARGE).expect("the lock is taken from the dead");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(2), "after kill {kill}, it took {took:?} to replace a dead holder");
        heap.deallocate(block).expect("the block is ours");
        heap.validate().unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
        heap.recover().expect("recover");
        assert_eq!(lane_of(&heap, pid), None, "nothing is left of the dead lane");
        board.await_at_least(1, waiting_before + 10);
    }
    board.set(7, 1);
    waiting.finish();
    let strays = all_offsets(&heap).len() - 1;
    assert!(strays <= 25, "{strays} blocks are nobody's, at most one a kill can be");
    assert_emptied(&heap);
}

#[test]
fn a_holder_that_is_stopped_gives_a_timeout_that_names_it_and_hinders_nobody_once_it_goes_on() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    let (segment, heap) = new_heap("stopped");
    let board = Words::create(&heap, "board", 8);
    let impatient = Heap::options().lock_timeout(TIMEOUT).open(segment.name()).expect("open");
    let small = impatient.allocate(64).expect("room: from here on this thread has a lane and a slab");
    let larger = impatient.allocate(300).expect("room: and a slab of a larger class");
    let of_pages = impatient.allocate(100_000).expect("room");
    impatient.deallocate(of_pages).expect("the block is ours, and its span is kept from here on");
    let anothers = heap.allocate(64).expect("room: this handle's lane is another one");
    let worker = start(&heap, 0);
    board.await_at_least(0, 1);
    stop_with_the_lock(&heap, &board, &worker, 0, &mut Random::new(12));

    for _ in 0..3 {
        let started = Instant::now();
        let error = impatient.allocate(LARGE).expect_err("the lock is held");
        let took = started.elapsed();
        let Error::LockTimeout { holder_pid, waited_ms } = error.clone() else { panic!("{error:?}") };
        assert_eq!(holder_pid, worker.pid());
        assert!((100..10_000).contains(&waited_ms), "{error}");
        assert!(took >= TIMEOUT && took < Duration::from_secs(10), "waited {took:?}");
        assert!(error.is_transient() && error.to_string().contains(&worker.pid().to_string()), "{error}");
    }
    impatient.deallocate(small).expect("the thread's own slab needs no lock");
    let small = impatient.allocate(64).expect("the thread's own slab needs no lock");
    let small = impatient.reallocate(small, 310).expect("nor does another of its slabs");
    let of_pages = impatient.allocate(100_000).expect("nor does a span that the lane keeps");
    impatient.deallocate(of_pages).expect("nor does keeping it again");
    impatient.deallocate(anothers).expect("nor does a free in another lane's slab");
    let again = impatient.deallocate(anothers);
    assert_eq!(again, Err(Error::DoubleFree { offset: anothers.get() }), "nor does saying that it is free already");
    let lane = lane_of(&heap, worker.pid()).expect("its lane is still there");
    assert!(lane.alive && lane.holds_lock, "a stopped process is not dead: {lane:?}");

    let before = board.get(0);
    worker.go_on();
    let block = heap.allocate(LARGE).expect("the lock is free again");
    heap.deallocate(block).expect("the block is ours");
    board.await_at_least(0, before + 10);
    board.set(7, 1);
    worker.finish();
    heap.validate().expect("valid");
    impatient.deallocate(small).expect("the block is ours");
    impatient.deallocate(larger).expect("the block is ours");
    assert_eq!(all_offsets(&heap), [board.block()], "the calls that timed out have allocated nothing");
    drop(impatient);
    assert_emptied(&heap);
}

#[test]
fn a_process_that_is_stopped_without_the_lock_hinders_nobody() {
    let (segment, heap) = new_heap("bystander");
    let board = Words::create(&heap, "board", 8);
    let impatient = Heap::options().lock_timeout(Duration::from_millis(500)).open(segment.name()).expect("open");
    let worker = start(&heap, 0);
    let mut checked = 0;
    for round in 0..50 {
        board.await_at_least(0, board.get(0) + round % 7);
        worker.stop();
        let lane = lane_of(&heap, worker.pid());
        if lane.is_none_or(|lane| !lane.holds_lock) {
            let block = impatient.allocate(LARGE).expect("nobody holds the lock");
            impatient.deallocate(block).expect("the block is ours");
            impatient.validate().expect("valid");
            checked += 1;
        }
        worker.go_on();
    }
    assert!(checked > 0, "the worker held the lock whenever it was stopped");
    board.set(7, 1);
    worker.finish();
    drop(impatient);
    assert_emptied(&heap);
}

/// The kernel drops a process's tokens after its memory, and a large process's memory takes long: meanwhile it is neither
/// dead nor does it go on. Who waits must not give up, nor take the lock before the process is gone.
#[test]
fn a_holder_whose_process_is_large_is_replaced_when_it_is_gone() {
    let (_segment, heap) = new_heap("large-holder");
    let board = Words::create(&heap, "board", 8);
    let mut random = Random::new(13);
    for round in 0..3 {
        let before = board.get(0);
        let victim = start_as("large process", &heap, 0);
        board.await_at_least(0, before + 1);
        stop_with_the_lock(&heap, &board, &victim, 0, &mut random);
        let pid = victim.pid();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("the victim is there");
        let block = heap.allocate(LARGE).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(lane_of(&heap, pid), None, "the dead lane was seen to");
        heap.deallocate(block).expect("the block is ours");
        heap.validate().expect("valid");
        drop(victim);
    }
    let strays = all_offsets(&heap).len() - 1;
    assert!(strays <= 3, "{strays} blocks are nobody's, at most one a kill can be");
    assert_emptied(&heap);
}

/// Lets a traced process go on until it comes out of a wait on a futex because somebody woke it; false if it does
/// something else first. Calls `go_on` once it sleeps.
fn comes_out_woken(waiter: Pid, go_on: impl FnOnce()) -> bool {
    let mut go_on = Some(go_on);
    for _ in 0..TRIES {
        ptrace::syscall(waiter, None).expect("the waiter is traced");
        if let Some(go_on) = go_on.take_if(|_| sleeps_on_a_futex(waiter)) {
            go_on();
        }
        match waitpid(waiter, Some(WaitPidFlag::__WALL)).expect("the waiter is traced") {
            WaitStatus::PtraceSyscall(_) => {}
            _ => return false,
        }
        let registers = ptrace::getregs(waiter).expect("the waiter stands");
        let is_futex = registers.orig_rax == libc::SYS_futex.cast_unsigned();
        let entered = registers.rax == (-i64::from(libc::ENOSYS)).cast_unsigned();
        if is_futex && !entered && go_on.is_none() && registers.rax == 0 {
            return true;
        }
        if !is_futex && go_on.is_none() {
            return false;
        }
    }
    false
}

/// True if the thread sleeps in a wait on a futex; one that is stopped on its way there does not.
fn sleeps_on_a_futex(thread: Pid) -> bool {
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{thread}/{what}")).unwrap_or_default();
    let sleeps = |_| {
        let is_futex = read("syscall").split(' ').next() == Some(&libc::SYS_futex.to_string());
        is_futex && read("stat").rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    };
    (0..50).any(sleeps)
}

/// A read-only handle sees what a holder has half done, and must not take it for damage.
#[test]
fn who_only_reads_is_told_of_a_holder_that_stands_still_or_has_died() {
    let (segment, heap) = new_heap("half-done");
    let board = Words::create(&heap, "board", 8);
    let reader = Heap::options().lock_timeout(Duration::from_millis(50)).open_read_only(segment.name()).expect("open");
    // On a busy machine it takes a while to be sure that the holder has died.
    let patient = Heap::open_read_only(segment.name()).expect("open");
    let mut random = Random::new(14);
    let (mut stopped, mut died) = (0, 0);
    for round in 0..400 {
        let before = board.get(0);
        let victim = start(&heap, 0);
        board.await_at_least(0, before + 1);
        stop_with_the_lock(&heap, &board, &victim, 0, &mut random);
        let pid = victim.pid();
        match reader.validate() {
            Ok(()) => {}
            Err(Error::LockTimeout { holder_pid, .. }) if holder_pid == pid => stopped += 1,
            Err(error) => panic!("round {round}, while the holder stands still: {error}"),
        }
        victim.kill();
        match patient.validate() {
            Ok(()) => {}
            Err(Error::Unrecovered { holder_pid }) if holder_pid == pid => died += 1,
            Err(error) => panic!("round {round}, when the holder has died: {error}"),
        }
        heap.recover().expect("recover");
        patient.validate().expect("what was half done is done or undone");
        if stopped >= 3 && died >= 3 {
            assert_emptied(&heap);
            return;
        }
    }
    panic!("a holder was caught with something half done {stopped} times, and died so {died} times");
}

/// A wake-up goes to one waiter. If that one is killed before it takes the lock, nobody holds the lock and nobody is awake:
/// glibc's robust mutex leaves the others asleep for ever.
#[test]
fn a_waiter_that_is_killed_after_it_was_woken_leaves_the_lock_to_the_others() {
    let mut killed = 0;
    for round in 0..200 {
        let (_segment, heap) = new_heap(&format!("woken-{round}"));
        let board = Words::create(&heap, "board", 8);
        let holder = start(&heap, 0);
        let mut waiters = [0, 1].map(|_| Worker::start("wait once", &[("HEAP", &heap.name())]));
        waiters.iter_mut().for_each(|waiter| waiter.expect("ready"));
        board.await_at_least(0, 1);
        stop_with_the_lock(&heap, &board, &holder, 0, &mut Random::new(round));
        board.set(7, 1);
        let [mut victim, mut other] = waiters;
        let others_thread = role_thread(Pid::from_raw(other.pid().cast_signed()));
        let pid = Pid::from_raw(victim.pid().cast_signed());
        // The test harness runs the worker's role in a thread of its own.
        let thread = role_thread(pid);
        ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("a worker may be traced");
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stands");
        victim.tell("go");
        // The victim sleeps first, so that it is the one to be woken, unless its slice has ended meanwhile.
        let woken = comes_out_woken(thread, || {
            other.tell("go");
            until("the other waiter sleeps", || sleeps_on_a_futex(others_thread));
            holder.go_on();
        });
        killed += u32::from(woken);
        kill(pid, Signal::SIGKILL).expect("the victim is there");
        while let Ok(WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..)) = waitpid(thread, Some(WaitPidFlag::__WALL))
        {
        }
        drop(victim);
        other.expect("done");
        other.finish();
        holder.finish();
        heap.validate().expect("valid");
        if killed >= 5 {
            return;
        }
    }
    panic!("in 200 rounds, {killed} waiters were caught between being woken and taking the lock");
}

/// The youngest thread of a worker.
fn role_thread(process: Pid) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the worker is there").flatten();
    let numbers = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Pid::from_raw(numbers.max().expect("a process has a thread"))
}
