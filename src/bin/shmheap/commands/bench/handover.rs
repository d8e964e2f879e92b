//! One allocates, another frees: with the heap another process, with malloc another thread.

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use clap::Args;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use shmheap::{Heap, Offset};

use super::super::stress::crew::itself;
use crate::failure::Failure;
use crate::output::Output;
use crate::place::Place;
use crate::{Outcome, Verdict};

pub(super) const NAME: &str = "256 B, freed by another process (malloc: another thread)";
const SIZE: usize = 256;
/// Blocks that are handed over together, and how often in one round.
const HANDFUL: usize = 256;
const HANDFULS: usize = 64;
const WORD: usize = size_of::<u64>();

/// The process that frees. For `shmheap bench`, which starts it.
#[derive(Debug, Args)]
pub(crate) struct Partner {
    #[arg(value_parser = Place::parse)]
    place: Place,
    /// The process with which this one ends
    #[arg(long)]
    parent: i32,
}

impl Partner {
    /// Frees the blocks whose offsets come in; after a round of them it says so with one byte.
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let asked = set_pdeathsig(Signal::SIGKILL);
        if asked.is_err() || getppid().as_raw() != self.parent {
            return Ok(Verdict::Wrong);
        }
        let heap = self.place.open()?;
        let (mut stdin, mut offsets) = (std::io::stdin().lock(), [0; HANDFUL * WORD]);
        for handful in 1.. {
            // Its end is the end of the measurement.
            if stdin.read_exact(&mut offsets).is_err() {
                break;
            }
            for word in offsets.as_chunks::<WORD>().0 {
                if let Some(block) = Offset::new(u64::from_ne_bytes(*word)) {
                    heap.deallocate(block)?;
                }
            }
            if handful % HANDFULS == 0 {
                output.bytes(&[1])?;
            }
        }
        Ok(Verdict::Fine)
    }
}

/// The other process, as this one sees it.
pub(super) struct Process {
    child: Child,
    offsets: Option<ChildStdin>,
    done: Option<ChildStdout>,
}

impl Process {
    pub(super) fn start(place: &Place) -> Result<Self, Failure> {
        let mut command = itself()?;
        command.arg("__partner-of-bench").arg(place.argument());
        command.arg(format!("--parent={}", std::process::id()));
        // In a process group of its own: Ctrl-C is for the parent, which ends it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Failure::cannot(format!("cannot start a process: {error}")))?;
        let (offsets, done) = (child.stdin.take(), child.stdout.take());
        Ok(Self { child, offsets, done })
    }

    /// One round; returns nanoseconds per operation.
    pub(super) fn measure(&mut self, heap: &Heap) -> Result<f64, Failure> {
        let gone = |error: std::io::Error| Failure::cannot(format!("the process that frees has ended: {error}"));
        let (Some(offsets), Some(done)) = (&mut self.offsets, &mut self.done) else { return Ok(0.0) };
        let mut words = Vec::with_capacity(HANDFUL * WORD);
        let started = Instant::now();
        for _ in 0..HANDFULS {
            words.clear();
            for _ in 0..HANDFUL {
                words.extend_from_slice(&heap.allocate(SIZE)?.get().to_ne_bytes());
            }
            offsets.write_all(&words).map_err(gone)?;
        }
        done.read_exact(&mut [0]).map_err(gone)?;
        Ok(per_operation(started))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends when nothing more can come.
        self.offsets = None;
        let _ = self.child.wait();
    }
}

type Blocks = Vec<Box<[MaybeUninit<u8>]>>;

/// The thread that frees what malloc gave.
pub(super) struct Thread {
    blocks: SyncSender<Blocks>,
    done: Receiver<()>,
}

impl Thread {
    pub(super) fn start() -> Self {
        // As many blocks may be under way as a pipe holds offsets.
        let (blocks, received) = sync_channel::<Blocks>(32);
        let (ready, done) = sync_channel(1);
        std::thread::spawn(move || {
            for (handful, blocks) in (1..).zip(received) {
                drop(blocks);
                if handful % HANDFULS == 0 && ready.send(()).is_err() {
                    break;
                }
            }
        });
        Self { blocks, done }
    }

    pub(super) fn measure(&self) -> Result<f64, Failure> {
        let gone = |_| Failure::cannot("the thread that frees has ended");
        let started = Instant::now();
        for _ in 0..HANDFULS {
            let blocks = (0..HANDFUL).map(|_| Box::new_uninit_slice(SIZE)).collect();
            self.blocks.send(blocks).map_err(|_| gone(()))?;
        }
        self.done.recv().map_err(|_| gone(()))?;
        Ok(per_operation(started))
    }
}

fn per_operation(started: Instant) -> f64 {
    started.elapsed().as_nanos() as f64 / (2 * HANDFUL * HANDFULS) as f64
}
