//! Waiting on a word and waking those who wait, between processes.
//!
//! Both calls use the shared form of the futex (no `FUTEX_PRIVATE_FLAG`): the waiters may be in other processes. Both
//! are hints. Whoever waits looks again after a slice of time, so a wake that never comes (its sender was killed)
//! costs that slice and nothing more.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` holds `expected`, for `at_most`; may return early for no reason.
pub(crate) fn wait(word: &AtomicU32, expected: u32, at_most: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(at_most.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(at_most.subsec_nanos().cast_signed()),
    };
    // SAFETY: `word` is a live, aligned 32-bit word and `timeout` lives through the call; a failed wait has no effect.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout);
    }
}

/// Wakes at most `count` of those who wait on `word`.
pub(crate) fn wake(word: &AtomicU32, count: i32) {
    // SAFETY: `word` is a live, aligned 32-bit word; the call reads nothing but its address.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count);
    }
}
