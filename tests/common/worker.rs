//! Workers: this test program, run once more by itself in a role.
//!
//! Each test program has a test `worker_entry` that calls [`dispatch`]: it does nothing unless the environment names a role.
//! A worker says lines to the test that started it, and hears lines from it, through pipes. Its end is waited for through a
//! pidfd. A worker that is forgotten ends itself after [`LIFETIME_SECONDS_MAX`].

use std::collections::VecDeque;
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm};

use super::{PATIENCE, until};

/// What a worker does, by name.
pub(crate) type Role = (&'static str, fn());

const ROLE: &str = "SHMHEAP_TEST_WORKER";
/// A worker's parameters have this prefix in the environment.
const PARAMETER: &str = "SHMHEAP_TEST_";
/// Begins each line that a worker says: what the test harness prints has no such mark.
const MARK: &str = "@@ ";
/// A worker whose parent was killed must not stay for ever.
const LIFETIME_SECONDS_MAX: u32 = 180;

/// The body of each program's `worker_entry`.
pub(crate) fn dispatch(roles: &[Role]) {
    let Ok(role) = std::env::var(ROLE) else { return };
    bound_lifetime();
    let (_, run) = roles.iter().find(|(name, _)| *name == role).expect("the role is one of this program's");
    run();
}

/// Ends the calling process when it has lived too long. A forked child calls it anew: alarms are not inherited.
pub(crate) fn bound_lifetime() {
    alarm::set(LIFETIME_SECONDS_MAX);
}

/// In a worker: a parameter.
pub(crate) fn parameter(name: &str) -> String {
    std::env::var(format!("{PARAMETER}{name}")).expect("the worker has this parameter")
}

/// In a worker: a parameter that is a number.
pub(crate) fn number(name: &str) -> u64 {
    parameter(name).parse().expect("the parameter is a number")
}

/// In a worker: says a line to the test.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").expect("the test listens");
    out.flush().expect("the test listens");
}

/// In a worker: waits for a line from the test; `None` when the test will say nothing more.
pub(crate) fn hear() -> Option<String> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line).expect("the pipe can be read");
    (read != 0).then(|| line.trim_end().to_owned())
}

/// A process of this test.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    pidfd: OwnedFd,
    input: Option<ChildStdin>,
    output: ChildStdout,
    pending: Vec<u8>,
    lines: VecDeque<String>,
    what: String,
}

impl Worker {
    /// Starts a worker in `role`, with these parameters.
    pub(crate) fn start(role: &str, parameters: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().expect("a test program knows where it is");
        let mut command = Command::new(program);
        command.args(["worker_entry", "--exact", "--nocapture", "--test-threads=1"]).env(ROLE, role);
        for (name, value) in parameters {
            command.env(format!("{PARAMETER}{name}"), value);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the test program can start itself");
        let pidfd = open_pidfd(child.id());
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("the output is a pipe"));
        Self { child, pidfd, input, output, pending: Vec::new(), lines: VecDeque::new(), what: role.to_owned() }
    }

    /// Starts `count` workers in the same role; each has its number as the parameter `INDEX`.
    pub(crate) fn start_many(count: usize, role: &str, parameters: &[(&str, &str)]) -> Vec<Self> {
        let start = |index: usize| {
            let index = index.to_string();
            let with_index: Vec<_> = parameters.iter().copied().chain([("INDEX", index.as_str())]).collect();
            Self::start(role, &with_index)
        };
        (0..count).map(start).collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is small"))
    }

    /// The next line that the worker says; fails the test if it ends or is silent for too long.
    pub(crate) fn line(&mut self) -> String {
        self.line_or_end().unwrap_or_else(|| panic!("worker {} ended before it said what was expected", self.what))
    }

    /// Waits for the worker to say exactly this.
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.line(), line, "worker {} says something else", self.what);
    }

    /// The next line, or `None` once nobody holds the other end of the pipe.
    pub(crate) fn line_or_end(&mut self) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            assert!(poll_readable(self.output.as_raw_fd(), deadline), "worker {} is silent", self.what);
            let mut bytes = [0; 4096];
            let count = self.output.read(&mut bytes).expect("the pipe can be read");
            if count == 0 {
                return None;
            }
            self.pending.extend_from_slice(&bytes[..count]);
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = self.pending.drain(..=end).collect();
                let text = String::from_utf8_lossy(&whole);
                self.lines.extend(text.split_once(MARK).map(|(_, said)| said.trim_end().to_owned()));
            }
        }
    }

    /// Says a line to the worker.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the worker's input is open");
        writeln!(input, "{line}").expect("the worker listens");
    }

    /// Lets the worker know that nothing more will be said.
    pub(crate) fn hang_up(&mut self) {
        self.input = None;
    }

    fn signal(&self, signal: Signal) {
        kill(self.nix_pid(), signal).expect("the worker is there, alive or not waited for");
    }

    /// Kills the worker (SIGKILL) and waits for its end.
    pub(crate) fn kill(mut self) {
        self.kill_and_listen();
    }

    /// As [`Self::kill`]; children of the worker may still be heard.
    pub(crate) fn kill_and_listen(&mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.reap();
        assert!(!status.success(), "worker {} ended before it was killed", self.what);
    }

    /// Stops the worker (SIGSTOP), and waits until it stands.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        until("the worker stands", || {
            let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
            match waitpid(self.nix_pid(), Some(flags)).expect("the worker is a child of this process") {
                WaitStatus::Stopped(..) => true,
                WaitStatus::StillAlive => false,
                ended => panic!("worker {} has ended: {ended:?}", self.what),
            }
        });
    }

    /// Lets a stopped worker go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits for the worker to end by itself, in order; returns what it said and nobody has heard yet.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.hang_up();
        let lines = std::iter::from_fn(|| self.line_or_end()).collect();
        let status = self.reap();
        assert!(status.success(), "worker {} failed: {status}", self.what);
        lines
    }

    fn reap(&mut self) -> ExitStatus {
        assert!(poll_readable(self.pidfd.as_raw_fd(), Instant::now() + PATIENCE), "worker {} does not end", self.what);
        self.child.wait().expect("the worker is a child of this process")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn open_pidfd(pid: u32) -> OwnedFd {
    // SAFETY: the call has two integers and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).expect("the kernel has pidfd_open (Linux 5.3)");
    // SAFETY: the descriptor is new, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Waits until the descriptor can be read (for a pidfd: until the process has ended); false after the deadline.
fn poll_readable(fd: RawFd, deadline: Instant) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return false;
        }
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: the pointer leads to one entry, and the count says one.
        if unsafe { libc::poll(&raw mut entry, 1, left_ms) } > 0 {
            return true;
        }
    }
}
