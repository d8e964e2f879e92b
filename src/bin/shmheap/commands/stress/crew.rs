//! The workers as their parent sees them: processes that it starts, stops, kills, and reaps, each by its pid.
//!
//! Whatever way a crew ends, its processes end with it: `Drop` ends those that are left.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use shmheap::Heap;

use super::ground::Ground;
use crate::failure::Failure;
use crate::place::Place;

/// How long workers may take to end when they are asked to.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a signal may take to stop a process. (That one that sleeps in the kernel, waiting for a disk, stops later.)
const STOP_MAX: Duration = Duration::from_millis(200);
/// How often a waiting parent looks again.
const GLANCE: Duration = Duration::from_micros(100);

/// The workers of a run.
pub(crate) struct Crew<'a> {
    place: &'a Place,
    ground: &'a Ground,
    plain: bool,
    random: Rng,
    pids: Vec<Option<Pid>>,
    told: (Sender<String>, Receiver<String>),
    killed: u64,
    killed_with_lock: u64,
}

/// The program, to be run again with a hidden subcommand.
pub(crate) fn itself() -> Result<Command, Failure> {
    let path = std::env::current_exe().map_err(|error| Failure::cannot(format!("cannot find this program: {error}")))?;
    // A program whose file was replaced can be run all the same.
    Ok(Command::new(if path.exists() { path } else { "/proc/self/exe".into() }))
}

impl<'a> Crew<'a> {
    /// Nobody as yet.
    pub(crate) fn new(place: &'a Place, ground: &'a Ground, plain: bool, seed: u64) -> Self {
        let pids = vec![None; ground.workers()];
        Self { place, ground, plain, random: Rng::with_seed(seed), pids, told: channel(), killed: 0, killed_with_lock: 0 }
    }

    /// Starts a worker in each empty slot.
    pub(crate) fn fill(&mut self) -> Result<(), Failure> {
        (0..self.pids.len()).filter(|slot| self.pids[*slot].is_none()).collect::<Vec<_>>().into_iter().try_for_each(|slot| {
            self.pids[slot] = Some(self.start(slot)?);
            Ok(())
        })
    }

    fn start(&mut self, slot: usize) -> Result<Pid, Failure> {
        let mut command = itself()?;
        command.arg("__worker-of-stress").arg(self.place.argument()).arg(self.ground.id());
        command.arg(format!("--slot={slot}")).arg(format!("--workers={}", self.pids.len()));
        command.arg(format!("--seed={}", self.random.u64(..))).arg(format!("--parent={}", std::process::id()));
        if self.plain {
            command.arg("--plain");
        }
        // In a process group of its own: Ctrl-C is for the parent, which then ends its workers.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Failure::cannot(format!("cannot start a worker: {error}")))?;
        let (stdout, sender) = (child.stdout.take(), self.told.0.clone());
        std::thread::spawn(move || {
            let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines().map_while(Result::ok));
            // Nobody listens any more: then nobody has to be told.
            lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
        });
        Ok(Pid::from_raw(child.id() as i32))
    }

    pub(crate) fn killed(&self) -> u64 {
        self.killed
    }

    /// How many of the killed were seen to hold the heap lock.
    pub(crate) fn killed_with_lock(&self) -> u64 {
        self.killed_with_lock
    }

    /// The pid of a slot's worker.
    pub(crate) fn pid(&self, slot: usize) -> Option<Pid> {
        self.pids[slot]
    }

    /// Some slot in which there is a worker.
    fn random_slot(&mut self) -> Option<(usize, Pid)> {
        let alive: Vec<(usize, Pid)> = (0..).zip(&self.pids).filter_map(|(slot, pid)| Some((slot, (*pid)?))).collect();
        let chosen = self.random.usize(..alive.len().max(1));
        alive.get(chosen).copied()
    }

    /// Kills a worker, if possible one that holds the heap lock: stops one after the other, `tries` in all, looks, and lets
    /// those go on that do not hold it. Returns the slot, and whether its worker held the lock.
    pub(crate) fn strike(&mut self, heap: &Heap, tries: u32) -> Result<Option<(usize, bool)>, Failure> {
        for turn in 1.. {
            let Some((slot, pid)) = self.random_slot() else { return Ok(None) };
            let holds_lock = stop(pid) && holds_lock(heap, pid)?;
            if holds_lock || turn >= tries {
                self.ground.note_kill(heap)?;
                self.kill(slot);
                self.killed_with_lock += u64::from(holds_lock);
                return Ok(Some((slot, holds_lock)));
            }
            // A process that is gone is found when all are looked after.
            let _ = kill(pid, Signal::SIGCONT);
            std::thread::sleep(GLANCE);
        }
        Ok(None)
    }

    /// Kills a worker, as it is.
    pub(crate) fn kill(&mut self, slot: usize) {
        if let Some(pid) = self.pids[slot].take() {
            end(pid);
            self.killed += 1;
        }
    }

    /// Kills all workers.
    pub(crate) fn kill_all(&mut self) {
        (0..self.pids.len()).for_each(|slot| self.kill(slot));
    }

    /// What workers have told, and those that have ended without being asked to.
    pub(crate) fn look_after(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for (slot, pid) in self.pids.iter_mut().enumerate() {
            let Some(known) = *pid else { continue };
            let how = match waitpid(known, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => continue,
                // It says itself why.
                Ok(WaitStatus::Exited(_, 1)) => None,
                Ok(WaitStatus::Exited(_, code)) => Some(format!("with exit code {code}")),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("by signal {signal}, which was not sent from here")),
                other => Some(format!("in a way that was not expected: {other:?}")),
            };
            told.extend(how.map(|how| format!("worker {slot} (pid {known}) has ended {how}")));
            *pid = None;
        }
        told.extend(self.told.1.try_iter());
        told
    }

    /// Asks all workers to stop, and reaps them. Returns what was wrong, all that is still unread included.
    pub(crate) fn finish(&mut self, heap: &Heap) -> shmheap::Result<Vec<String>> {
        let mut wrong = self.look_after();
        self.ground.ask_to_stop(heap)?;
        let started = Instant::now();
        for (slot, pid) in self.pids.iter_mut().enumerate() {
            let Some(known) = pid.take() else { continue };
            loop {
                match waitpid(known, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, 0 | 1)) => break,
                    Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if started.elapsed() < PATIENCE => {
                        std::thread::sleep(GLANCE);
                    }
                    Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {
                        wrong.push(format!("worker {slot} (pid {known}) did not stop within {PATIENCE:?}"));
                        end(known);
                        break;
                    }
                    other => {
                        wrong.push(format!("worker {slot} (pid {known}) ended in a way that was not expected: {other:?}"));
                        break;
                    }
                }
            }
        }
        // Each worker's pipe has ended with it; when the last reader is gone, so is the last sender.
        self.told.0 = channel().0;
        wrong.extend(self.told.1.iter());
        Ok(wrong)
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        self.pids.iter_mut().filter_map(Option::take).for_each(end);
    }
}

/// Ends a process, stopped or not, and reaps it.
fn end(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
    while waitpid(pid, None) == Err(Errno::EINTR) {}
}

/// Stops a process; true once it stands still.
fn stop(pid: Pid) -> bool {
    if kill(pid, Signal::SIGSTOP).is_err() {
        return false;
    }
    let started = Instant::now();
    while started.elapsed() < STOP_MAX {
        // The process itself is left to `look_after`, if it has ended: only that it stopped is taken note of.
        match waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Stopped(..)) => return true,
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => std::thread::yield_now(),
            _ => return false,
        }
    }
    false
}

fn holds_lock(heap: &Heap, pid: Pid) -> Result<bool, Failure> {
    Ok(heap.lanes()?.iter().any(|lane| lane.holds_lock && lane.alive && lane.pid as i32 == pid.as_raw()))
}
