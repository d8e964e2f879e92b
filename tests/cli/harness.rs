//! What the tests of the command share.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::worker::{Worker, hear, parameter, say};

/// A heap's name that no other test and no other run has. What stands there is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Heap {
    name: String,
}

impl Heap {
    /// A name under which there is nothing yet.
    pub(crate) fn unborn(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { name: format!("shmheap-test-{}-{number}-{tag}", std::process::id()) }
    }

    /// A new heap of 16 MiB.
    pub(crate) fn new(tag: &str) -> Self {
        let heap = Self::unborn(tag);
        drop(shmheap::Heap::options().capacity(16 << 20).create(heap.name()).expect("a heap is created"));
        heap
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(&self.name)
    }

    /// The heap, attached for reading and writing.
    pub(crate) fn open(&self) -> shmheap::Heap {
        shmheap::Heap::open(&self.name).expect("the heap is there")
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // Not by way of the program: what is tested does not clean up after its own test.
        let _ = std::fs::remove_file(self.path());
    }
}

/// A process that has a lane of the heap, and a block of 100 bytes; to be killed, or to end with the test.
pub(crate) fn holder(heap: &Heap) -> Worker {
    let mut worker = Worker::start("hold a lane", &[("NAME", heap.name())]);
    assert_eq!(worker.line(), "ready");
    worker
}

/// What that process does.
pub(crate) fn hold_a_lane() {
    let heap = shmheap::Heap::open(&parameter("NAME")).expect("the heap is there");
    heap.allocate(100).expect("room");
    say("ready");
    hear();
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
        let code = output.status.code().unwrap_or_else(|| panic!("the program was ended by a signal: {output:?}"));
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// The program, to be run.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shmheap"));
    command.env_remove("NO_COLOR").env("RUST_BACKTRACE", "0");
    command
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Ran {
    program().args(arguments).output().expect("the program can be started").into()
}

/// Runs it as if it printed to a terminal: what it is to say in colours keeps its escapes, and so does all else.
pub(crate) fn run_in_colour(arguments: &[&str]) -> Ran {
    program().env("CLICOLOR_FORCE", "1").args(arguments).output().expect("the program can be started").into()
}

/// Runs it; it must end with exit code 0 and say nothing on standard error. Returns what it printed.
#[track_caller]
pub(crate) fn fine(arguments: &[&str]) -> String {
    let ran = run(arguments);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?} printed {}", ran.stdout);
    ran.stdout
}

/// Runs it; it must end with this exit code. Returns what it said on standard error.
#[track_caller]
pub(crate) fn refused(code: i32, arguments: &[&str]) -> String {
    let ran = run(arguments);
    assert_eq!(ran.code, code, "{arguments:?} printed {}{}", ran.stdout, ran.stderr);
    ran.stderr
}

/// Runs it with `--json`; returns what it printed, parsed.
#[track_caller]
pub(crate) fn json(arguments: &[&str]) -> serde_json::Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&fine(&arguments)).expect("the program prints JSON")
}
