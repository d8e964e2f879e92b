//! What `rm` and `gc` do not remove, and what names of others do to a terminal.

use std::os::unix::fs::PermissionsExt;

use nix::unistd::geteuid;

use crate::harness::{Heap, fine, holder, program, refused, run_in_colour};

#[test]
fn a_heap_in_a_file_is_not_removed_while_somebody_has_it_attached() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("heap").display().to_string();
    fine(&["create", &path]);
    let attached = shmheap::Heap::options().open_file_read_only(&path).expect("it is there");
    assert!(refused(3, &["rm", &path]).contains("is in use"));
    drop(attached);
    fine(&["rm", &path]);
    std::fs::write(&path, "no heap").expect("a file");
    assert!(refused(3, &["rm", &path]).contains("is no heap"), "what is no heap stays");
}

#[test]
fn those_who_only_look_for_a_moment_do_not_keep_a_heap_from_being_removed() {
    let heap = Heap::new("looked-at");
    let mut looking: Vec<_> =
        (0..8).map(|_| program().args(["stat", heap.name()]).stdout(std::process::Stdio::null()).spawn()).collect();
    fine(&["rm", heap.name()]);
    for child in &mut looking {
        child.as_mut().expect("it was started").wait().expect("it ends");
    }
}

#[test]
fn what_may_not_be_read_is_removed_by_force_only() {
    if geteuid().is_root() {
        eprintln!("skipped: root may read everything");
        return;
    }
    let heap = Heap::new("closed");
    std::fs::set_permissions(heap.path(), std::fs::Permissions::from_mode(0o000)).expect("it is ours");
    assert!(refused(3, &["rm", heap.name()]).contains("cannot be told"));
    fine(&["rm", "--force", heap.name()]);
}

#[test]
fn a_process_is_named_only_if_it_is_that_of_the_heap() {
    let heap = Heap::new("named");
    let worker = holder(&heap);
    let shown = fine(&["stat", heap.name()]);
    let pid = worker.pid().to_string();
    let lane = shown.lines().find(|line| line.split_whitespace().nth(1) == Some(&pid)).expect("its lane is listed");
    assert!(lane.contains("alive") && lane.trim_end().ends_with("cli") || lane.contains("cli-"), "{shown}");
    assert!(refused(3, &["repair", heap.name()]).contains(&format!("kill {pid}")));
}

#[test]
fn control_characters_in_names_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("odd\u{1b}[31mname").display().to_string();
    fine(&["create", &path]);
    for command in [["stat", &path].as_slice(), &["ls", &path], &["validate", &path], &["rm", &path], &["stat", &path]] {
        let ran = run_in_colour(command);
        let said = ran.stdout + &ran.stderr;
        assert!(said.contains("odd\\u{1b}[31mname") && !said.contains("odd\u{1b}"), "{command:?}: {said:?}");
    }
}
