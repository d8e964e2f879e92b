//! The tokens of a process that stands still, in the hands of its parent.
//!
//! A token is a lock on an open file (docs/FORMAT.md). The parent has the very same open files by `pidfd_getfd`, so it can
//! let the tokens go, which is all that a death changes for the others, and take them again.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::Pid;

/// Bytes of the object that may be locked.
const TOKENS: (i64, i64) = ((1 << 40) - 1, 1 << 40 | 0xffff);

/// The open files of one process that lead to a segment, and which bytes are locked through each.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<(OwnedFd, Vec<(i64, i64)>)>);

impl Tokens {
    /// What `process` holds on the object at `path` now.
    pub(crate) fn of(process: Pid, path: &str) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("the process is there");
        let identity = |path: &str| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let object = identity(path);
        // Not by the link's text: who creates an object has opened it before it had a name.
        let leads_there = |number: &i32| identity(&format!("/proc/{process}/fd/{number}")) == object;
        let numbers = descriptors.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let held = |number: i32| {
            let file = duplicate(process, number);
            let locked = locked_through(&file);
            (file, locked)
        };
        Self(numbers.filter(leads_there).map(held).collect())
    }

    /// Which bytes are locked.
    pub(crate) fn held(&self) -> Vec<(i64, i64)> {
        self.0.iter().flat_map(|(_, locked)| locked.clone()).collect()
    }

    /// To everybody else the process is dead.
    pub(crate) fn let_go(&self) {
        for (file, _) in &self.0 {
            set(file, libc::F_UNLCK, TOKENS);
        }
    }

    /// The process has the tokens again that it had.
    pub(crate) fn take(&self) {
        for (file, locked) in &self.0 {
            locked.iter().for_each(|range| set(file, libc::F_WRLCK, *range));
        }
    }
}

fn duplicate(process: Pid, number: i32) -> OwnedFd {
    // SAFETY: the call has integers for arguments and touches no memory of this process.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
    let pidfd = i32::try_from(pidfd).ok().filter(|fd| *fd >= 0).expect("the kernel has pidfd_open (Linux 5.3)");
    // SAFETY: the descriptor is new, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: as for the first call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).expect("the kernel has pidfd_getfd (Linux 5.6)");
    // SAFETY: as for the first descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The kernel tells in /proc which ranges are locked through an open file. (The lock that all who are attached share, and
/// that nothing depends on, is one for reading.)
fn locked_through(file: &OwnedFd) -> Vec<(i64, i64)> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).expect("the descriptor is open");
    let range = |line: &str| {
        let mut words = line.split_whitespace().rev();
        let (end, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((start, end))
    };
    text.lines()
        .filter(|line| line.starts_with("lock:") && line.contains("OFDLCK") && line.contains("WRITE"))
        .filter_map(range)
        .collect()
}

fn set(file: &OwnedFd, kind: libc::c_int, (start, end): (i64, i64)) {
    // SAFETY: `flock` consists of integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).expect("a small constant");
    lock.l_start = start;
    lock.l_len = end - start + 1;
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else holds these tokens");
}
