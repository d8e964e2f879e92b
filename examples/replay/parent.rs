//! The parent: creates the heap, starts the other processes, watches them, and leaves nothing behind.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shmheap::Heap;

use crate::board::{self, Count, Gate, Patience, Tally};
use crate::{FINISH, Result, WORKER};

/// Room for one worker, unless a capacity is given. Pages that are never used take no memory.
const CAPACITY_PER_WORKER: u64 = 64 << 20;

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) processes: u32,
    pub(crate) capacity: Option<u64>,
    pub(crate) file: PathBuf,
}

/// Carries the plan out.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let Plan { processes, capacity, file } = plan;
    let signals = hold_signals()?;
    let moment = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let name = format!("shmheap-replay-{}-{moment:x}", std::process::id());
    let heap = Heap::options()
        .capacity(capacity.unwrap_or(CAPACITY_PER_WORKER * (1 + u64::from(*processes))))
        .root_slots(4 * (1 + processes))
        .create(&name)?;
    let _unlink = UnlinkAtEnd(&name);
    println!("replaying {} in {processes} processes through heap {name}", file.display());

    board::set_up(&heap, *processes)?;
    let mut workers = Children::default();
    for index in 0..*processes {
        workers.start(&[WORKER.as_ref(), index.to_string().as_ref(), name.as_ref(), file.as_ref()])?;
    }
    watch(workers, &heap, &signals)?;

    // Between these two nobody has the heap attached; it is there by its name alone.
    drop(heap);
    let mut finisher = Children::default();
    finisher.start(&[FINISH.as_ref(), name.as_ref()])?;
    finisher.wait("the finisher", &signals, || 0)
}

/// Lets the workers go once all have arrived, and shows how far they are until all have exited.
fn watch(mut workers: Children, heap: &Heap, signals: &SignalFd) -> Result<()> {
    let gate = Gate::find(heap)?;
    let tallies = (0..gate.processes()).map(|worker| Tally::find(heap, worker)).collect::<Result<Vec<_>>>()?;
    let sum = |count| tallies.iter().map(|tally| tally.get(count)).sum::<u64>();
    // Where stderr is no terminal, nothing is drawn.
    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len} records, {elapsed}")?)
        .with_finish(ProgressFinish::AndClear);
    workers.wait("the workers", signals, || {
        let (arrived, replayed) = (gate.arrived(), sum(Count::Replayed));
        if arrived == tallies.len() as u64 {
            gate.open();
        }
        bar.set_length(sum(Count::Records));
        bar.set_position(replayed);
        arrived + replayed
    })
}

/// Processes that are killed when nobody waits for them any more.
#[derive(Debug, Default)]
struct Children(Vec<Child>);

impl Children {
    /// Starts this program once more.
    fn start(&mut self, arguments: &[&OsStr]) -> Result<()> {
        self.0.push(Command::new(std::env::current_exe()?).args(arguments).spawn()?);
        Ok(())
    }

    /// Waits until all have exited; an error as soon as one fails, a signal comes, or `progress` stands still.
    fn wait(&mut self, who: &str, signals: &SignalFd, mut progress: impl FnMut() -> u64) -> Result<()> {
        let mut patience = Patience::new();
        while self.any_runs()? {
            if let Some(signal) = signals.read_signal()? {
                return Err(format!("ended by {}", Signal::try_from(signal.ssi_signo as i32)?).into());
            }
            patience.wait(who, progress())?;
        }
        Ok(())
    }

    fn any_runs(&mut self) -> Result<bool> {
        let mut any_runs = false;
        for child in &mut self.0 {
            match child.try_wait()? {
                None => any_runs = true,
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("process {} failed: {status}", child.id()).into()),
            }
        }
        Ok(any_runs)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Both fail only for a process that has exited and been waited for already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Unlinks the heap of this name at the end of the scope, however that is reached.
#[derive(Debug)]
struct UnlinkAtEnd<'name>(&'name str);

impl Drop for UnlinkAtEnd<'_> {
    fn drop(&mut self) {
        if let Err(error) = Heap::unlink(self.0) {
            eprintln!("replay: could not unlink the heap: {error}");
        }
    }
}

/// Makes the signals that would end this process wait until they are read, so that it can clean up first.
fn hold_signals() -> Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
