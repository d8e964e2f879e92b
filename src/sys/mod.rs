//! The operating system, and nothing else: objects that can be mapped, the futex lock, lane tokens, fork, threads.
//!
//! Every unsafe system call of the library is in this room or in `region`. Nothing here knows what an offset or a
//! heap is; lanes are plain numbers.
//!
//! Not here: mapping an object into memory (`region`), what is at stake when a lane dies (`recovery`).

#![allow(
    unsafe_code,
    reason = "this room makes the system calls that have no safe wrapper, and keeps thread-local seats and private memory"
)]

pub(crate) mod clock;
pub(crate) mod futex;
pub(crate) mod gate;
pub(crate) mod lines;
pub(crate) mod lock;
pub(crate) mod object;
pub(crate) mod replacement;
pub(crate) mod seat;
pub(crate) mod segments;
pub(crate) mod token;

use crate::error::Error;

/// The kernel's page size in bytes.
pub(crate) fn os_page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// The error for a system call that failed in no way that has a variant of its own.
pub(crate) fn system(call: &'static str, errno: nix::errno::Errno) -> Error {
    Error::System { call, errno: errno as i32 }
}
