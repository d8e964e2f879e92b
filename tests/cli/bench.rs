//! `bench`: it measures, prints its table, and leaves nothing.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Ran, fine, json, program, run};

#[test]
fn the_table_has_a_line_for_each_load() {
    let printed = fine(&["bench", "--seconds", "0.1"]);
    for sign in ["SHMHEAP", "MALLOC", "RATIO", "64 B, allocated", "10,000 blocks", "2,000 live blocks", "another process"] {
        assert!(printed.contains(sign), "{sign}: {printed}");
    }
    assert!(printed.contains("scripts/bench.sh"), "it says where there is more: {printed}");
}

#[test]
fn what_was_measured_is_told_as_json() {
    let told = json(&["bench", "--for", "100ms"]);
    let rows = told["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        let (ours, theirs) = (number("shmheap_ns"), number("malloc_ns"));
        assert!(ours > 0.0 && theirs > 0.0 && (number("ratio") - ours / theirs).abs() < 0.01, "{row}");
    }
    assert!(told["rounds"].as_u64() >= Some(3), "{told}");
}

#[test]
fn ctrl_c_ends_it_early_and_nothing_is_left() {
    let mut command = program();
    command.args(["bench", "--seconds", "600"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("it can be started");
    let (pid, prefix) = (child.id(), format!("shmheap-bench-{}-", child.id()));
    let exists = || {
        let entries = std::fs::read_dir("/dev/shm").expect("it can be listed").flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count() != 0
    };
    let started = Instant::now();
    while !exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "it makes no heap");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).expect("it runs");
    let ran: Ran = child.wait_with_output().expect("it ends").into();
    assert_eq!((ran.code, exists()), (0, false), "{ran:?}");
}

#[test]
fn a_time_that_is_none_is_refused() {
    assert_eq!(run(&["bench", "--seconds", "long"]).code, 2);
}
