//! What `rm` and `gc` do not remove, and what names of others do to a terminal.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::harness::{Heap, Ran, fine, holder, program, refused, run_in_colour};

/// The uid, and the gid, of one who owns nothing.
const NOBODY: u32 = 65_534;

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

/// Runs the program as a user who has no power over others: the caller, or for root nobody.
fn run_without_power(program_of_all: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program_of_all);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.args(arguments).output().expect("the program can be started").into()
}

/// The program where everybody may start it.
fn program_of_all() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("shmheap");
    std::fs::copy(env!("CARGO_BIN_EXE_shmheap"), &program).expect("the program can be copied");
    for path in [folder.path(), &program] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
    }
    (folder, program)
}

#[test]
fn what_may_not_be_read_is_removed_by_force_only() {
    let (_folder, program) = program_of_all();
    let heap = Heap::new("closed");
    std::fs::set_permissions(heap.path(), Permissions::from_mode(0o000)).expect("it is ours");
    if geteuid().is_root() {
        chown(heap.path(), Some(NOBODY), Some(NOBODY)).expect("root gives it away");
    }
    let refused = run_without_power(&program, &["rm", heap.name()]);
    assert!(refused.code == 3 && refused.stderr.contains("cannot be told"), "{refused:?}");
    assert!(refused.stderr.contains(&format!("shmheap rm --force {}", heap.name())), "{refused:?}");
    assert!(heap.path().exists());
    assert_eq!(run_without_power(&program, &["rm", "--force", heap.name()]).code, 0);
    assert!(!heap.path().exists());
}

#[test]
fn what_belongs_to_others_is_not_removed_by_force_either() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root has something that belongs to others than who is to remove it");
        return;
    }
    let (_folder, program) = program_of_all();
    let heap = Heap::new("of-root");
    let refused = run_without_power(&program, &["rm", "--force", heap.name()]);
    assert!(refused.code == 3 && refused.stderr.contains("belongs to root"), "{refused:?}");
    assert!(refused.stderr.contains("sudo -u root") && heap.path().exists(), "{refused:?}");
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
