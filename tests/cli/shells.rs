//! Completions, man pages, help.

use crate::harness::{Heap, fine, program, refused, run};

#[test]
fn names_complete_from_the_heaps_that_exist() {
    let heap = Heap::new("completed");
    let start = &heap.name()[..heap.name().len() - 3];
    let completed = program()
        .env("COMPLETE", "fish")
        .args(["--", "shmheap", "stat", start])
        .output()
        .expect("the program can be started");
    assert!(String::from_utf8_lossy(&completed.stdout).contains(heap.name()), "{completed:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(fine(&["completions", shell]).contains("COMPLETE"), "{shell}");
    }
    assert!(refused(2, &["completions", "csh"]).contains("bash"));
}

#[test]
fn each_subcommand_has_a_man_page_and_a_help() {
    let folder = tempfile::tempdir().expect("a folder");
    fine(&["man", &folder.path().display().to_string()]);
    let help = run(&["help"]).stdout;
    let names = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What does not fit into a line goes on in the next, further to the right.
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<&str> = names.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 15, "{help}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let page = std::fs::read_to_string(folder.path().join(format!("shmheap-{name}.1"))).expect("each has a page");
        assert!(page.contains("SYNOPSIS"), "{name}");
        assert!(fine(&[name, "--help"]).contains("Usage:"), "{name}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let heap = Heap::new("pipe");
    let damaged = crate::check::damaged("pipe-damaged");
    let unheard = program().args(["validate", damaged.name()]).stdout(closed_pipe()).status().expect("it can be started");
    assert_eq!(unheard.code(), Some(1), "what was found is told all the same");
    let mut child = program()
        .args(["blocks", heap.name()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program can be started");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn roots_complete_from_the_heap_that_is_named_before() {
    let heap = Heap::new("roots");
    fine(&["put", heap.name(), "greeting", "hello"]);
    let completed = program()
        .env("COMPLETE", "fish")
        .args(["--", "shmheap", "get", heap.name(), "gre"])
        .output()
        .expect("the program can be started");
    assert!(String::from_utf8_lossy(&completed.stdout).starts_with("greeting"), "{completed:?}");
}

#[test]
fn who_prints_line_after_line_ends_when_nobody_reads_any_more() {
    let heap = Heap::new("unread");
    let mut child = program()
        .args(["watch", heap.name(), "--interval", "10ms"])
        .stdout(closed_pipe())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program can be started");
    let started = std::time::Instant::now();
    let ended = loop {
        match child.try_wait().expect("it is ours") {
            Some(status) => break Some(status),
            None if started.elapsed() > crate::common::PATIENCE => break None,
            None => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    let _ = child.kill();
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "it goes on and on");
}

/// The end of a pipe from which nobody reads.
fn closed_pipe() -> std::process::Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}
