//! Starts the workers of a measurement, threads or processes, and waits for them.

use std::os::fd::AsRawFd;

use anyhow::{Result, anyhow};

use crate::allocators::{Allocator, Attached, Job, Kind, Place};
use crate::board::{self, Board};
use crate::child::{Children, Task};
use crate::single::Elapsed;
use crate::workers::{self, TABLE_BYTES, WorkerTask};
use crate::workload::Together;

/// A measurement with several workers.
#[derive(Clone, Copy)]
pub(crate) struct Team<'a> {
    pub(crate) kind: Kind,
    /// The heap of a shared allocator, which `attached` has made.
    pub(crate) heap: &'a str,
    pub(crate) attached: &'a Attached,
    pub(crate) workers: usize,
    pub(crate) together: Together,
    pub(crate) repeats: usize,
}

impl Team<'_> {
    /// Time from the common start to the last worker's end, and the operations of all.
    pub(crate) fn measure(self) -> Result<Elapsed> {
        let memory = board::memory()?;
        let board = Board::map(memory.as_raw_fd())?;
        let table = if self.kind.is_shared() { self.attached.run(MakeTable) } else { 0 };
        let task = |index| WorkerTask {
            kind: self.kind,
            place: Place::Existing(self.heap.to_owned()),
            together: self.together,
            board: memory.as_raw_fd(),
            table,
            index,
            workers: self.workers,
            repeats: self.repeats,
        };
        let tasks: Vec<WorkerTask> = (0..self.workers).map(task).collect();
        if self.kind.is_shared() {
            in_processes(&tasks)?
        } else {
            in_threads(&tasks)?
        }
        if table != 0 {
            self.attached.run(FreeTable(table));
        }
        let (ns, operations) = board.outcome(self.workers)?;
        Ok(Elapsed { ns, operations })
    }
}

fn in_processes(tasks: &[WorkerTask]) -> Result<()> {
    let mut children = Children::default();
    for task in tasks {
        children.start(&Task::Worker(task.clone()))?;
    }
    children.wait().map(|_| ())
}

fn in_threads(tasks: &[WorkerTask]) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = tasks.iter().map(|task| scope.spawn(|| workers::run(task))).collect();
        // All are waited for before the first error is told.
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(|_| anyhow!("a worker panicked"))?)
    })
}

struct MakeTable;

impl Job for MakeTable {
    type Output = u64;

    fn run<A: Allocator>(self, allocator: &A) -> u64 {
        let block = allocator.allocate(TABLE_BYTES);
        // SAFETY: the block has so many bytes, and nobody knows of it yet.
        unsafe { allocator.address(block).write_bytes(0, TABLE_BYTES) };
        block
    }
}

struct FreeTable(u64);

impl Job for FreeTable {
    type Output = ();

    fn run<A: Allocator>(self, allocator: &A) {
        allocator.free(self.0, TABLE_BYTES);
    }
}
