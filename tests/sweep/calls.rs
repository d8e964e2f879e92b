//! Failing calls: each system call that an operation makes fails in turn, with each error that it can give.
//!
//! After that the operation has either succeeded all the same, or failed with an error that does not speak of corruption and
//! changed nothing: the same blocks and roots, no lane or lock held back, no descriptor or mapping left open, no
//! name left behind. And the heap goes on to work. A process that the failure aborts (the system gives it no private
//! memory) is a death like any other.

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::board::Board;
use crate::child::{Child, STEPS_MAX, Stop};
use crate::common::Segment;
use crate::crash::rehearse;
use crate::image::{Copy, Image, Window};
use crate::operations::Operation;
use crate::oracle::{Allowed, judge};
use crate::stage;
use crate::tokens::Tokens;

/// What can fail, with what; and whether the call is carried out all the same.
struct Failure {
    call: libc::c_long,
    errors: &'static [Errno],
    /// The kernel has closed a descriptor or removed a mapping whatever it says.
    is_done: bool,
}

const fn failure(call: libc::c_long, errors: &'static [Errno]) -> Failure {
    Failure { call, errors, is_done: false }
}

const FAILURES: &[Failure] = &[
    failure(
        libc::SYS_openat,
        &[
            Errno::EACCES,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOMEM,
            Errno::EINTR,
            Errno::ENOENT,
            Errno::ENOSPC,
            Errno::EOPNOTSUPP,
        ],
    ),
    failure(libc::SYS_fallocate, &[Errno::ENOSPC, Errno::EINTR, Errno::ENOMEM, Errno::EIO, Errno::EOPNOTSUPP]),
    failure(libc::SYS_fcntl, &[Errno::ENOLCK, Errno::EAGAIN, Errno::EINTR, Errno::EMFILE]),
    failure(libc::SYS_futex, &[Errno::EINTR, Errno::EAGAIN, Errno::ETIMEDOUT, Errno::ENOSYS]),
    failure(libc::SYS_mmap, &[Errno::ENOMEM, Errno::EAGAIN, Errno::ENFILE, Errno::EPERM]),
    failure(libc::SYS_mremap, &[Errno::ENOMEM]),
    failure(libc::SYS_mprotect, &[Errno::ENOMEM]),
    failure(libc::SYS_brk, &[Errno::ENOMEM]),
    failure(libc::SYS_madvise, &[Errno::EINVAL, Errno::ENOMEM, Errno::EFAULT, Errno::EAGAIN]),
    failure(libc::SYS_fstat, &[Errno::ENOMEM, Errno::EIO, Errno::EOVERFLOW]),
    failure(libc::SYS_newfstatat, &[Errno::ENOMEM, Errno::EIO, Errno::ENOENT, Errno::EACCES]),
    failure(libc::SYS_statx, &[Errno::ENOMEM, Errno::EIO, Errno::ENOENT, Errno::EACCES]),
    failure(libc::SYS_fstatfs, &[Errno::EIO, Errno::EINTR]),
    failure(libc::SYS_ftruncate, &[Errno::EFBIG, Errno::EIO, Errno::ENOSPC, Errno::EPERM]),
    failure(libc::SYS_fchmod, &[Errno::EPERM, Errno::EIO, Errno::EROFS]),
    failure(libc::SYS_linkat, &[Errno::EEXIST, Errno::ENOSPC, Errno::EPERM, Errno::EACCES, Errno::ENOENT, Errno::EIO]),
    failure(libc::SYS_unlink, &[Errno::ENOENT, Errno::EACCES, Errno::EIO]),
    failure(libc::SYS_unlinkat, &[Errno::ENOENT, Errno::EACCES, Errno::EIO]),
    failure(libc::SYS_read, &[Errno::EIO, Errno::EINTR]),
    failure(libc::SYS_pread64, &[Errno::EIO, Errno::EINTR]),
    failure(libc::SYS_pwrite64, &[Errno::ENOSPC, Errno::EIO, Errno::EINTR]),
    failure(libc::SYS_write, &[Errno::ENOSPC, Errno::EIO, Errno::EINTR, Errno::EDQUOT]),
    failure(libc::SYS_fsync, &[Errno::EIO, Errno::ENOSPC]),
    failure(libc::SYS_fdatasync, &[Errno::EIO, Errno::ENOSPC]),
    failure(libc::SYS_msync, &[Errno::EIO, Errno::ENOMEM]),
    failure(libc::SYS_rename, &[Errno::ENOSPC, Errno::EACCES, Errno::EROFS, Errno::EIO]),
    failure(libc::SYS_membarrier, &[Errno::ENOSYS, Errno::EINVAL]),
    failure(libc::SYS_lseek, &[Errno::ESPIPE]),
    failure(libc::SYS_getdents64, &[Errno::ENOENT, Errno::EIO]),
    failure(libc::SYS_readlink, &[Errno::ENOENT, Errno::EACCES]),
    failure(libc::SYS_getrandom, &[Errno::ENOSYS, Errno::EINTR, Errno::EAGAIN]),
    failure(libc::SYS_dup3, &[Errno::EMFILE, Errno::EINTR]),
    failure(libc::SYS_clock_nanosleep, &[Errno::EINTR]),
    failure(libc::SYS_nanosleep, &[Errno::EINTR]),
    Failure { call: libc::SYS_close, errors: &[Errno::EIO, Errno::EINTR], is_done: true },
    Failure { call: libc::SYS_munmap, errors: &[Errno::EINVAL], is_done: true },
];

/// Calls that cannot fail, or whose failure nobody can do anything about: the end of a thread, signals, identity.
const UNFAILING: &[libc::c_long] = &[
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_sched_getaffinity,
];

/// What a process has open.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    mappings: usize,
}

/// A lane whose token the process has, and that it has not claimed; there should be none.
fn stray_token(process: Pid, segment: &Segment, image: &Image) -> Option<i64> {
    let lanes = Tokens::of(process, &segment.path()).held().into_iter().flat_map(|(start, end)| start..=end);
    lanes.map(|byte| byte - (1 << 40)).find(|lane| !image.is_claimed(*lane))
}

fn holdings(process: Pid, segment: &Segment) -> Holdings {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process is there").count();
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("the process is there");
    let is_ours = |line: &&str| line.contains(segment.name()) || line.contains("/dev/shm/#");
    Holdings { descriptors, mappings: maps.lines().filter(is_ours).count() }
}

fn temporary_names() -> Vec<String> {
    let names = std::fs::read_dir("/dev/shm").expect("it can be listed").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(".shmheap-new-")).collect()
}

/// An operation under way, at its next system call that can fail.
pub(crate) struct Calls<'a> {
    pub(crate) child: Child,
    pub(crate) board: &'a Board,
    pub(crate) operation: &'a Operation,
}

impl Calls<'_> {
    /// Goes on to the entry of the next system call of the operation; `None` when it has ended, `Err` if it was killed.
    pub(crate) fn next(&self) -> Result<Option<libc::c_long>, String> {
        for _ in 0..STEPS_MAX {
            match self.child.to_call() {
                Stop::Call => {}
                Stop::Marker | Stop::Ended => return Ok(None),
                other => return Err(format!("{other:?}")),
            }
            // An operation that ends its thread goes on after it has said how it ended.
            if self.board.is_finished() && !self.operation.ends_thread {
                return Ok(None);
            }
            let call = i64::try_from(self.child.registers().orig_rax).unwrap_or(-1);
            if UNFAILING.contains(&call) {
                if matches!(self.child.to_call(), Stop::Ended) {
                    return Ok(None);
                }
                continue;
            }
            return Ok(Some(call));
        }
        Err("it makes more system calls than there can be".to_owned())
    }

    /// Lets the call at whose entry the child stands do its work.
    pub(crate) fn carry_out(&self) -> Result<(), String> {
        match self.child.to_call() {
            Stop::Call => Ok(()),
            other => Err(format!("in a system call: {other:?}")),
        }
    }

    /// Makes the call at whose entry the child stands fail.
    pub(crate) fn fail(&self, error: Errno, is_done: bool) -> Result<(), String> {
        if !is_done {
            self.child.set_registers(libc::user_regs_struct { orig_rax: u64::MAX, ..self.child.registers() });
        }
        self.carry_out()?;
        let answer = i64::from(error as i32).wrapping_neg().cast_unsigned();
        self.child.set_registers(libc::user_regs_struct { rax: answer, ..self.child.registers() });
        Ok(())
    }

    /// Lets the call at whose entry the child stands transfer half of the bytes that it was to.
    pub(crate) fn shorten(&self) -> Result<(), String> {
        let registers = self.child.registers();
        self.child.set_registers(libc::user_regs_struct { rdx: registers.rdx.div_ceil(2), ..registers });
        self.carry_out()
    }

    /// Goes on to the end of the operation.
    pub(crate) fn to_end(&self) -> Result<(), String> {
        match self.child.to_marker() {
            Stop::Marker | Stop::Ended => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }
}

/// The errors with which a call can fail, and whether it is carried out all the same; `None` if the table does not know it.
pub(crate) fn failure_of(call: libc::c_long) -> Option<(&'static [Errno], bool)> {
    FAILURES.iter().find(|failure| failure.call == call).map(|failure| (failure.errors, failure.is_done))
}

/// Lets every system call of an operation fail in turn; returns how many failures that were.
pub(crate) fn sweep(operation: &Operation, seed: u64) -> Result<u64, String> {
    let (copy, board) = (Copy::new("copy"), Board::new());
    let told = |what: String| format!("{}, seed {seed}: {what}", operation.name);
    let allowed = rehearse(operation, seed, &copy).map_err(told)?;
    let mut failures = 0;
    for number in 0.. {
        let Some(call) = call_of(operation, seed, &board, number).map_err(told)? else { break };
        let Some(failure) = FAILURES.iter().find(|failure| failure.call == call) else {
            return Err(told(format!("its system call {number} is {call}, of which the table of failures does not know")));
        };
        for error in failure.errors {
            let told = |what: String| told(format!("system call {number} ({call}) fails with {error}: {what}"));
            fail_one(operation, seed, number, failure, *error, &allowed, &copy).map_err(told)?;
            failures += 1;
        }
    }
    Ok(failures)
}

/// Which system call an operation makes as its `number`th.
fn call_of(operation: &Operation, seed: u64, board: &Board, number: u64) -> Result<Option<libc::c_long>, String> {
    board.clear();
    let segment = Segment::new("counted");
    let calls = Calls { child: stage::start(operation, seed, &segment, board), board, operation };
    for _ in 0..number {
        if calls.next()?.is_none() {
            return Ok(None);
        }
        calls.carry_out()?;
    }
    calls.next()
}

fn fail_one(
    operation: &Operation,
    seed: u64,
    number: u64,
    failure: &Failure,
    error: Errno,
    allowed: &Allowed,
    copy: &Copy,
) -> Result<(), String> {
    let (segment, board) = (Segment::new("failing"), Board::new());
    let calls = Calls { child: stage::start(operation, seed, &segment, &board), board: &board, operation };
    let before = holdings(calls.child.process(), &segment);
    let names = temporary_names();
    for _ in 0..number {
        calls.next()?;
        calls.carry_out()?;
    }
    calls.next()?;
    let ended = calls.fail(error, failure.is_done).and_then(|()| calls.to_end());
    let image = Window::open(&segment).map(|window| window.image());
    let outcome = board.said();
    match ended {
        Err(why) if why.contains("SIGABRT") => return judge(image.as_ref(), copy, allowed),
        Err(why) => return Err(why),
        Ok(()) => {}
    }
    if temporary_names() != names {
        return Err(format!("it left a temporary name behind, and says {outcome}"));
    }
    if let Some(image) = &image {
        copy.put(image);
        let validated = copy.open_read_only().and_then(|heap| heap.validate());
        validated.map_err(|error| format!("it says {outcome}, and then, validate: {error}"))?;
    }
    let is_done = outcome == "ok";
    // Having failed, it has changed nothing, to the letter; having succeeded, it may have found another place.
    let only = if is_done { &allowed.after } else { &allowed.before };
    let allowed = Allowed { before: only.clone(), after: only.clone(), only_after: is_done, fills: is_done };
    judge(image.as_ref(), copy, &allowed).map_err(|what| format!("it says {outcome}, and then: {what}"))?;
    if let Some(lane) = image.as_ref().and_then(|image| stray_token(calls.child.process(), &segment, image)) {
        return Err(format!("it says {outcome}, and keeps the token of lane {lane}, which it has not claimed"));
    }
    if outcome == "ok" || operation.ends_thread {
        return Ok(());
    }
    if outcome.contains("Corrupt") || outcome == "unfinished" {
        return Err(format!("it says {outcome}"));
    }
    let after = holdings(calls.child.process(), &segment);
    if after != before {
        return Err(format!("it says {outcome}, and holds {after:?} instead of {before:?}"));
    }
    calls.to_end()?;
    let probed = board.said();
    if probed != "ok" {
        return Err(format!("it says {outcome}, and then the heap does not work: {probed}"));
    }
    Ok(())
}
