//! `demo`: the tour comes to its end, and leaves nothing.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{fine, json, program, run};

/// Whether the tour of this name has left anything behind.
#[track_caller]
fn expect_gone(name: &str) {
    for name in [name.to_owned(), format!("{name}-copy")] {
        assert!(!Path::new("/dev/shm").join(&name).exists(), "{name} is left");
    }
}

#[test]
fn the_tour_ends_with_a_valid_heap_and_leaves_nothing() {
    let printed = fine(&["demo", "--quick"]);
    assert_eq!(printed.lines().last(), Some("the heap is valid"));
    for sign in ["1. A heap", "2. 4 processes", "kill -KILL", "every byte as it was written", "0 B used, 1 free run"] {
        assert!(printed.contains(sign), "{sign}: {printed}");
    }
    let after = printed.split("/dev/shm/").nth(1).expect("it names the heap");
    expect_gone(after.split(':').next().expect("a name"));
}

#[test]
fn the_facts_of_the_tour_are_told_as_json() {
    let told = json(&["demo", "--quick"]);
    assert_eq!((&told["valid"], told["wrong"].as_array().map(Vec::len)), (&true.into(), Some(0)), "{told}");
    let steps = told["steps"].as_array().expect("steps");
    assert_eq!(steps.iter().map(|step| step["step"].as_u64()).collect::<Vec<_>>(), (1..=7).map(Some).collect::<Vec<_>>());
    let fact = |step: usize, name: &str| steps[step - 1]["facts"][name].as_u64().unwrap_or_else(|| panic!("{name}: {told}"));
    assert!(fact(2, "operations") > 0 && fact(3, "operations_since") > 0);
    assert!(fact(5, "intact") > 0);
    assert_eq!(fact(5, "intact"), fact(6, "intact"), "the copy has what the heap had");
    assert_eq!((fact(7, "used"), fact(7, "free_runs"), fact(7, "fragmentation")), (0, 1, 0));
    expect_gone(steps[0]["facts"]["name"].as_str().expect("a name"));
}

#[test]
fn where_no_image_can_be_saved_the_tour_says_so() {
    let output = program().args(["demo", "--quick"]).env("TMPDIR", "/nonexistent").output().expect("it can be started");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot make a folder for the image"), "{output:?}");
    assert_eq!(run(&["demo", "surplus"]).code, 2);
}

#[test]
fn a_tour_that_is_interrupted_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child =
        program().arg("demo").env("TMPDIR", folder.path()).stdout(Stdio::piped()).spawn().expect("it can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("/dev/shm/")).expect("it names the heap");
    lines.find(|line| line.starts_with("2.")).expect("its workers are at work");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
    // What it still has to say is read, so that it can end.
    assert!(lines.all(|line| !line.contains("the heap is valid")), "it does not go on to its end");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let after = line.split("/dev/shm/").nth(1).expect("it was found");
    expect_gone(after.split(':').next().expect("a name"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "the image's folder is gone");
}
