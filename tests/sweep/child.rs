//! A child process that stands still at every machine instruction, and can be doubled where it stands.
//!
//! The child asks to be traced and runs to its first [`marker`]. From there its parent lets it go on to the next marker, or
//! one instruction at a time. [`Child::fork_here`] makes the child fork at whatever instruction it stands, by lending it
//! a system call of the parent's choice: so one pass over an operation can let it go on, or die, at each instruction.
//!
//! Parent and child run on one processor: a step is then one switch of tasks, and nothing else happens meanwhile.

use std::arch::global_asm;
use std::ops::Range;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{SigHandler, Signal, kill, raise, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

/// An operation that takes more instructions than this is caught in a loop.
pub(crate) const STEPS_MAX: u64 = 20_000_000;
/// Seconds after which a child that was let go, and never came back, is ended.
const CHILD_SECONDS_MAX: u32 = 1800;

// A system call, and a trap behind it, for a child to be sent to.
global_asm!(".globl shmheap_sweep_syscall", "shmheap_sweep_syscall:", "syscall", "int3");

unsafe extern "C" {
    safe fn shmheap_sweep_syscall();
}

/// A process that is traced, and killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    /// The traced thread.
    thread: Pid,
    /// Its process.
    process: Pid,
}

/// What became of a child that was let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It has executed one instruction; `called` says that this was a system call.
    Instruction { called: bool },
    /// It stands at its next marker.
    Marker,
    /// It stands at the entry or the exit of a system call (only after [`Child::to_call`]).
    Call,
    /// The traced thread has ended.
    Ended,
    /// A signal ended it.
    Killed(Signal),
}

/// In a child: stands still until the parent lets it go on.
pub(crate) fn marker() {
    raise(Signal::SIGSTOP).expect("a process can stop itself");
}

/// In a child: makes the calling thread the one that is traced. [`marker`] comes next.
pub(crate) fn be_traced() {
    // Doubles are children of this process, which must not be disturbed by their ends, and never waits for them.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.expect("a signal can be ignored");
    ptrace::traceme().expect("the parent may trace");
}

/// The processor on which a sweep runs: the part's own, where several parts run side by side.
fn pin(part: usize) {
    let here = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(here) else { return };
    let processors: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    if one.set(processors[part % processors.len()]).is_ok() {
        let _ = sched_setaffinity(here, &one);
    }
}

/// Pins the calling process, and so the children that it forks, to one processor.
pub(crate) fn pin_to_one_processor(part: usize) {
    pin(part);
}

/// Forks a process that runs `body` and ends. It ends with its parent, and after a minute at the latest.
pub(crate) fn spawn(body: impl FnOnce()) -> Pid {
    // SAFETY: the parent has one thread, so the child finds every lock free.
    match unsafe { fork() }.expect("the kernel forks") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            alarm::set(CHILD_SECONDS_MAX);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // SAFETY: ends the child at once, without the exit handlers that are its parent's.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) }
        }
    }
}

impl Child {
    /// Forks a child that runs `body`, which calls [`be_traced`] and [`marker`]; returns when it stands at the marker.
    pub(crate) fn start(body: impl FnOnce()) -> Self {
        let process = spawn(body);
        // The thread that asked to be traced need not be the process's first.
        let thread = match waitpid(None, Some(WaitPidFlag::__WALL)).expect("there is a child") {
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => thread,
            other => panic!("a child did not come to its first marker: {other:?}"),
        };
        let child = Self { thread, process };
        let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::setoptions(thread, options).expect("the child can be traced");
        child
    }

    pub(crate) fn process(&self) -> Pid {
        self.process
    }

    fn wait(&self) -> Stop {
        match waitpid(self.thread, Some(WaitPidFlag::__WALL)).expect("the child is ours") {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => Stop::Instruction { called: false },
            WaitStatus::Stopped(_, Signal::SIGSTOP) => Stop::Marker,
            WaitStatus::PtraceSyscall(_) => Stop::Call,
            WaitStatus::Exited(..) => Stop::Ended,
            WaitStatus::Stopped(_, signal) | WaitStatus::Signaled(_, signal, _) => Stop::Killed(signal),
            other => panic!("a child stands for an unknown reason: {other:?}"),
        }
    }

    /// Lets the child go on to its next marker or its end.
    pub(crate) fn to_marker(&self) -> Stop {
        ptrace::cont(self.thread, None).expect("the child goes on");
        self.wait()
    }

    /// Lets the child execute one instruction.
    pub(crate) fn step(&self) -> Stop {
        ptrace::step(self.thread, None).expect("the child can be stepped");
        match self.wait() {
            Stop::Instruction { .. } => Stop::Instruction { called: self.has_just_called() },
            other => other,
        }
    }

    /// The processor leaves the address behind a system call in rcx.
    fn has_just_called(&self) -> bool {
        ptrace::getregs(self.thread).is_ok_and(|registers| registers.rcx == registers.rip)
    }

    /// Lets the child go on to the next entry or exit of a system call.
    pub(crate) fn to_call(&self) -> Stop {
        ptrace::syscall(self.thread, None).expect("the child goes on");
        self.wait()
    }

    pub(crate) fn registers(&self) -> libc::user_regs_struct {
        ptrace::getregs(self.thread).expect("a child that stands has registers")
    }

    pub(crate) fn set_registers(&self, registers: libc::user_regs_struct) {
        ptrace::setregs(self.thread, registers).expect("a child that stands can be changed");
    }

    /// Doubles the child where it stands. The double stands at the same instruction, with the same memory; it shares the
    /// open files, and with them the tokens.
    pub(crate) fn fork_here(&self) -> Self {
        let saved = self.registers();
        let call = shmheap_sweep_syscall as *const () as usize as u64;
        let clone = u64::try_from(libc::SYS_clone).expect("a small number");
        let flags = u64::try_from(libc::SIGCHLD).expect("a small number");
        let entry = libc::user_regs_struct { rax: clone, rdi: flags, rsi: 0, rdx: 0, r10: 0, r8: 0, rip: call, ..saved };
        // No system call is under way: the kernel must not restart one.
        self.set_registers(libc::user_regs_struct { orig_rax: u64::MAX, ..entry });
        ptrace::cont(self.thread, None).expect("the child goes on");
        let status = waitpid(self.thread, Some(WaitPidFlag::__WALL)).expect("the child is ours");
        let is_fork =
            matches!(status, WaitStatus::PtraceEvent(_, Signal::SIGTRAP, event) if event == Event::PTRACE_EVENT_FORK as i32);
        assert!(is_fork, "a child that was lent a fork did not fork: {status:?}");
        let number = ptrace::getevent(self.thread).expect("the event names the double");
        let double = Pid::from_raw(i32::try_from(number).expect("a pid is small"));
        ptrace::cont(self.thread, None).expect("the child goes on");
        assert_eq!(self.wait(), Stop::Instruction { called: false }, "the trap behind the lent call");
        let status = waitpid(double, Some(WaitPidFlag::__WALL)).expect("the double is traced");
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "the double stands: {status:?}");
        let restored = libc::user_regs_struct { orig_rax: u64::MAX, ..saved };
        self.set_registers(restored);
        let double = Self { thread: double, process: double };
        double.set_registers(restored);
        double
    }

    /// Where the kernel's code stands that reads the clock in the child's name (the vDSO).
    pub(crate) fn clock_code(&self) -> Range<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.process)).expect("the child has maps");
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap_or_default();
        let mut ends = line.split(['-', ' ']).map(|text| u64::from_str_radix(text, 16).unwrap_or(0));
        ends.next().unwrap_or(0)..ends.next().unwrap_or(0)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = kill(self.process, Signal::SIGKILL);
        let flags = Some(WaitPidFlag::__WALL);
        // A thread that is traced is waited for apart from its process, and before it.
        while matches!(waitpid(self.thread, flags), Ok(WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..))) {}
        if self.process != self.thread {
            while matches!(waitpid(self.process, flags), Ok(WaitStatus::Stopped(..))) {}
        }
    }
}
