//! A process that can do the same thing from the same state again and again.
//!
//! The partner prepares itself, and then forks a child for each run: the child has the partner's private memory (its bins)
//! and its open files (its tokens), does its work, and ends; the partner is as it was. The segment's bytes, which both
//! share, are put back by who asked for the run. The fork is the bare system call: the library's own handlers would
//! make the child forget its lanes, and it is to be the partner.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, alarm, pipe};

use crate::child;
use crate::common::PATIENCE;

/// Seconds after which a run counts as hung, and is ended.
const RUN_SECONDS_MAX: u32 = 20;

/// The partner, ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Partner {
    process: Pid,
    commands: File,
    answers: File,
}

impl Partner {
    /// Forks a partner. `prepare` runs once; what it returns is handed to `run`, in a child, for each command.
    pub(crate) fn start<T>(prepare: impl FnOnce() -> T, run: impl Fn(&mut T, u8)) -> Self {
        let (commands_in, commands) = pipe().expect("a pipe");
        let (answers, answers_in) = pipe().expect("a pipe");
        let process = child::spawn(|| {
            let (mut commands, mut answers) = (File::from(commands_in), File::from(answers_in));
            let mut state = prepare();
            let mut command = [0];
            answers.write_all(b"r").expect("the parent listens");
            while commands.read_exact(&mut command).is_ok() {
                alarm::set(PATIENCE.as_secs() as u32);
                let answer = run_in_child(|| run(&mut state, command[0]));
                answers.write_all(&[answer]).expect("the parent listens");
            }
        });
        let mut partner = Self { process, commands: File::from(commands), answers: File::from(answers) };
        assert_eq!(partner.answer(), b'r', "the partner is ready");
        partner
    }

    pub(crate) fn process(&self) -> Pid {
        self.process
    }

    fn answer(&mut self) -> u8 {
        let (started, mut answer) = (Instant::now(), [0]);
        self.answers.read_exact(&mut answer).unwrap_or_else(|_| panic!("the partner ended after {:?}", started.elapsed()));
        answer[0]
    }

    /// Starts a run.
    pub(crate) fn begin(&mut self, command: u8) {
        self.commands.write_all(&[command]).expect("the partner listens");
    }

    /// Waits for the end of a run; an error says that it did not end well.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        match self.answer() {
            b'0' => Ok(()),
            b'h' => Err(format!("it hung: it took more than {RUN_SECONDS_MAX} s")),
            _ => Err("it panicked, or a signal ended it".to_owned()),
        }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        let _ = kill(self.process, Signal::SIGKILL);
        let _ = waitpid(self.process, None);
    }
}

fn run_in_child(run: impl FnOnce()) -> u8 {
    // SAFETY: the partner has one thread. The child shares nothing with it but what is meant to be shared.
    let forked = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match i32::try_from(forked).expect("a pid is small") {
        0 => {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            alarm::set(RUN_SECONDS_MAX);
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) }
        }
        -1 => b'f',
        child => match waitpid(Pid::from_raw(child), None) {
            Ok(WaitStatus::Exited(_, 0)) => b'0',
            Ok(WaitStatus::Signaled(_, Signal::SIGALRM, _)) => b'h',
            _ => b'x',
        },
    }
}
