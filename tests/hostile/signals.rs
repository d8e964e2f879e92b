//! Which case is under way, told also by a signal that ends the program.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Most cases that are under way at a time.
const CASES: usize = 2;

/// A case of the sweep, as far as it must be told when it ends the program.
#[derive(Debug)]
pub(crate) struct Case {
    at: AtomicU64,
    change: AtomicU64,
    count: AtomicU64,
    is_under_way: AtomicBool,
}

static UNDER_WAY: [Case; CASES] = [const {
    Case { at: AtomicU64::new(0), change: AtomicU64::new(0), count: AtomicU64::new(0), is_under_way: AtomicBool::new(false) }
}; CASES];

/// The places for cases. From here on, a signal that ends the program says what is under way.
pub(crate) fn cases() -> &'static [Case] {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        let action = SigAction::new(SigHandler::Handler(tell), SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK, SigSet::empty());
        for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT, Signal::SIGILL, Signal::SIGFPE] {
            // SAFETY: the handler makes one system call on a buffer of its own.
            unsafe { sigaction(signal, &action) }.expect("a handler can be set");
        }
    });
    &UNDER_WAY
}

/// Writes down the cases, and returns: the signal comes again, and has its ordinary effect.
extern "C" fn tell(_signal: i32) {
    for case in &UNDER_WAY {
        let mut line = *b"finding: a signal, byte 0x0000, change 0x00\n";
        let digits = b"0123456789abcdef";
        let (at, change) = (case.at.load(Ordering::Relaxed), case.change.load(Ordering::Relaxed));
        for (place, shift) in [(26, 12), (27, 8), (28, 4), (29, 0)] {
            line[place] = digits[(at >> shift & 15) as usize];
        }
        for (place, shift) in [(41, 4), (42, 0)] {
            line[place] = digits[(change >> shift & 15) as usize];
        }
        // SAFETY: the buffer is on the stack, and has that length.
        let _ = unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    }
}

impl Case {
    /// A worker begins another case.
    pub(crate) fn begin(&self, at: u64, change: u8) {
        self.at.store(at, Ordering::Relaxed);
        self.change.store(u64::from(change), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.is_under_way.store(true, Ordering::Relaxed);
    }

    /// The worker has no more cases.
    pub(crate) fn end(&self) {
        self.is_under_way.store(false, Ordering::Relaxed);
    }

    /// How many cases have begun.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// True from the beginning of the first case to the end of the last.
    pub(crate) fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Relaxed)
    }

    /// The case in words.
    pub(crate) fn describe(&self) -> String {
        let (at, change) = (self.at.load(Ordering::Relaxed), self.change.load(Ordering::Relaxed));
        format!("byte {at:#06x} was changed by {change:#04x}")
    }
}
