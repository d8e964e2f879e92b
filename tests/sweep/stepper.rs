//! A child that is stepped through one operation, and the memory that it shares with its parent.

use std::ptr::NonNull;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use shmheap::{Heap, Memory};

use crate::operations::Operation;

/// An operation that takes longer than this is caught in a loop.
const STEPS_MAX: u64 = 20_000_000;

/// Memory that parent and child map at the same address.
#[derive(Debug)]
pub(crate) struct Shared {
    base: NonNull<u8>,
    len: usize,
}

impl Shared {
    pub(crate) fn new(len: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED, "mmap");
        Self { base: NonNull::new(address.cast()).expect("mmap gives no null"), len }
    }

    fn memory(&self) -> Memory {
        // SAFETY: the mapping lives until `self` is dropped, after every heap in it: heaps here never outlive the call
        // that attaches them.
        unsafe { Memory::from_raw_parts(self.base, self.len) }.expect("mappings are aligned to pages")
    }

    /// Attaches the heap in this memory, which recovers what the dead left.
    pub(crate) fn attach(&self) -> Heap {
        Heap::options().open_in(self.memory()).expect("a crash state can be attached")
    }

    fn create(&self) -> Heap {
        Heap::options().create_in(self.memory()).expect("the memory is large enough")
    }

    /// The bytes, while nobody changes them.
    fn view(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped at `base`. The only other writer is the child, which is stopped, or the heap of
        // an attachment that the caller is not using at this moment.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.view().to_vec()
    }

    pub(crate) fn differs_from(&self, bytes: &[u8]) -> bool {
        self.view() != bytes
    }

    pub(crate) fn copy_from(&self, other: &Self) {
        // SAFETY: both are mapped with the same length and do not overlap; nobody uses this one now.
        unsafe { self.base.as_ptr().copy_from_nonoverlapping(other.base.as_ptr(), self.len) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no heap in it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What the parent is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stepped {
    /// The child stands right before the operation.
    Ready,
    /// The child has executed one more instruction.
    Instruction,
}

/// Runs the operation in a child without stepping; calls `look` right before and right after it.
pub(crate) fn run_through<T>(region: &Shared, operation: &Operation, mut look: impl FnMut() -> T) -> [T; 2] {
    let child = start(region, operation);
    wait_for_marker(child);
    let before = look();
    ptrace::cont(child, None).expect("the child goes on");
    wait_for_marker(child);
    let after = look();
    finish(child);
    [before, after]
}

/// Steps a child through the operation; calls `look` before it, and after every instruction.
pub(crate) fn step_through(region: &Shared, operation: &Operation, mut look: impl FnMut(Stepped)) {
    let child = start(region, operation);
    wait_for_marker(child);
    look(Stepped::Ready);
    for _ in 0..STEPS_MAX {
        ptrace::step(child, None).expect("the child can be stepped");
        match waitpid(child, None).expect("the child is ours") {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => look(Stepped::Instruction),
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                finish(child);
                return;
            }
            other => panic!("{}: the child ended: {other:?}", operation.name),
        }
    }
    finish(child);
    panic!("{}: more than {STEPS_MAX} steps", operation.name);
}

fn wait_for_marker(child: Pid) {
    match waitpid(child, None).expect("the child is ours") {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => panic!("the child did not reach its marker: {other:?}"),
    }
}

/// Kills the child, which is stopped, and waits for its end.
fn finish(child: Pid) {
    ptrace::kill(child).expect("the child can be killed");
    waitpid(child, None).expect("the child is ours");
}

/// Forks a child that prepares, stops, acts, and stops again. Both run on one processor, so that a step is one switch.
fn start(region: &Shared, operation: &Operation) -> Pid {
    let here = Pid::from_raw(0);
    let allowed = sched_getaffinity(here).expect("own affinity");
    let mut one = CpuSet::new();
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).expect("some processor");
    one.set(cpu).expect("a processor that is allowed");
    // SAFETY: the child runs the library and the operation on memory that it shares or copied, and ends by a signal; the
    // allocator of the C library may be used after a fork.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            let _ = sched_setaffinity(here, &one);
            child
        }
        ForkResult::Child => {
            let _ = sched_setaffinity(here, &one);
            run_child(region, operation);
            // SAFETY: ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
    }
}

fn run_child(region: &Shared, operation: &Operation) {
    ptrace::traceme().expect("the parent may trace");
    if operation.attach_in_act {
        raise(Signal::SIGSTOP).expect("a stop");
        let heap = region.attach();
        raise(Signal::SIGSTOP).expect("a stop");
        drop(heap);
        return;
    }
    let mut heap = Some(region.create());
    let blocks = heap.as_ref().map(operation.prepare).unwrap_or_default();
    raise(Signal::SIGSTOP).expect("a stop");
    (operation.act)(&mut heap, &blocks);
    raise(Signal::SIGSTOP).expect("a stop");
}
