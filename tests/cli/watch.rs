//! `watch`: a line a second, and how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Heap, Ran, fine, program, refused, run};
use crate::top::corrupt;

/// The longest that a load lasts, should nobody end it.
const LOAD_MAX: Duration = Duration::from_secs(300);

/// The longest that a program may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A thread that allocates and frees blocks of one size, until this is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn on(heap: &Heap, size: usize) -> Self {
        let (heap, is_over) = (heap.open(), Arc::new(AtomicBool::new(false)));
        let is_over_there = Arc::clone(&is_over);
        let work = move || {
            let started = Instant::now();
            while !is_over_there.load(Ordering::Relaxed) && started.elapsed() < LOAD_MAX {
                let blocks: Vec<_> = (0..500).map(|_| heap.allocate(size).expect("room")).collect();
                blocks.into_iter().for_each(|block| heap.deallocate(block).expect("an allocated block"));
                // The other tests want the processors too.
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        Self { is_over, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking(), "the load has failed");
    }
}

/// A `watch` under way.
#[derive(Debug)]
struct Watching {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watching {
    /// Starts it, and returns it with its first line: it has opened the heap.
    fn start(heap: &Heap, more: &[&str]) -> (Self, String) {
        let mut command = program();
        command.args(["watch", heap.name()]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut watching = Self { child, lines };
        let first = watching.line();
        (watching, first)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the program prints UTF-8");
        line.trim_end().to_owned()
    }

    /// Everything that it prints from now on, and how it ends; which it must within [`PATIENCE`].
    fn end(mut self) -> (Vec<String>, Ran) {
        let reader = std::thread::spawn(move || self.lines.lines().collect::<Result<Vec<_>, _>>());
        let started = Instant::now();
        while self.child.try_wait().expect("it is a child").is_none() {
            if started.elapsed() > PATIENCE {
                self.child.kill().expect("it is running");
                panic!("watch goes on");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let lines = reader.join().expect("the reader ends with the program").expect("the program prints UTF-8");
        (lines, self.child.wait_with_output().expect("it has ended").into())
    }
}

#[test]
fn watch_prints_a_head_and_a_line_for_each_interval() {
    let heap = Heap::new("watch");
    let text = fine(&["watch", heap.name(), "--interval", "20ms", "--count", "3"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("TIME") && lines[0].ends_with("TAKEOVERS"), "{text}");
    for line in &lines[1..] {
        assert_eq!(line.chars().count(), lines[0].chars().count(), "{text}");
        let time = line.split_whitespace().next().expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('T'), "{line}");
    }
}

#[test]
fn watch_tells_the_rates_of_a_heap_at_work_as_json_lines() {
    let heap = Heap::new("watch-rates");
    let _load = Load::on(&heap, 100);
    let (mut watching, first) = Watching::start(&heap, &["-i", "50ms", "--json"]);
    let mut line = first;
    // The load may not have begun yet, and in so short a time may have been kept from running.
    for _ in 0..1000 {
        let value: Value = serde_json::from_str(&line).expect("each line is JSON");
        let is_above_zero = |what: &str| value[what].as_f64().expect("a number") > 0.0;
        if is_above_zero("allocations_per_second") && is_above_zero("frees_per_second") {
            assert_eq!((value["lanes_alive"].as_u64(), value["lanes_dead"].as_u64()), (Some(1), Some(0)), "{line}");
            assert_eq!(value["takeovers"].as_u64(), Some(0));
            kill(Pid::from_raw(watching.child.id() as i32), Signal::SIGTERM).expect("it is running");
            assert_eq!(watching.end().1.code, 0);
            return;
        }
        line = watching.line();
    }
    panic!("no rates were told: {line}");
}

#[test]
fn watch_ends_when_the_heap_is_removed_however_long_the_interval() {
    let heap = Heap::new("watch-removed");
    let (watching, _) = Watching::start(&heap, &["--interval", "24h"]);
    fine(&["rm", "--force", heap.name()]);
    let (lines, ran) = watching.end();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(lines.last().is_some_and(|line| line.ends_with("was removed")), "{lines:?}");
}

#[test]
fn watch_says_in_json_too_that_the_heap_was_removed() {
    let heap = Heap::new("watch-removed-json");
    let (watching, _) = Watching::start(&heap, &["--interval", "10ms", "--json"]);
    fine(&["rm", "--force", heap.name()]);
    let (lines, ran) = watching.end();
    let last: Value = serde_json::from_str(lines.last().expect("a last line")).expect("each line is JSON");
    assert_eq!((ran.code, &last["removed"], &last["name"]), (0, &Value::Bool(true), &Value::from(heap.name())));
}

#[test]
fn watch_ends_well_on_ctrl_c() {
    let heap = Heap::new("watch-ctrl-c");
    let (watching, _) = Watching::start(&heap, &["--interval", "24h"]);
    kill(Pid::from_raw(watching.child.id() as i32), Signal::SIGINT).expect("it is running");
    let (lines, ran) = watching.end();
    assert_eq!((ran.code, ran.stderr.as_str(), lines.len()), (0, "", 0));
}

#[test]
fn watch_ends_with_1_when_the_heap_gets_corrupt() {
    let heap = Heap::new("watch-corrupt");
    let (watching, _) = Watching::start(&heap, &["--interval", "10ms"]);
    corrupt(&heap);
    let ran = watching.end().1;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("is corrupt") && ran.stderr.contains("shmheap repair"), "{}", ran.stderr);
}

#[test]
fn watch_refuses_what_makes_no_sense() {
    let heap = Heap::new("watch-refused");
    assert!(refused(2, &["watch", heap.name(), "--interval", "1ms"]).contains("from 10ms to 24h"));
    assert!(refused(2, &["watch", heap.name(), "--interval", "1e30"]).contains("--interval"));
    assert_eq!(run(&["watch", heap.name(), "--count", "0"]).code, 2);
    let nothing = Heap::unborn("watch-nothing");
    assert!(refused(3, &["watch", nothing.name(), "-n", "1"]).contains("no heap named"));
}
