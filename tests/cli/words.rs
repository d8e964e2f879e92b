//! What the command says: remedies that help when they are followed to the letter, names that do not steer the terminal,
//! exit codes that mean something.
//!
//! Not here: what the commands refuse to do (each command's own file, and `removal`).

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use nix::unistd::geteuid;
use tempfile::tempdir;

use crate::check::{damaged, scribble};
use crate::common::worker::Worker;
use crate::harness::{self, Heap, Ran, fine, holder, json, refused, run, run_in_colour};
use crate::stage::Stage;

/// A command name that would turn the terminal red, and is no UTF-8.
const EVIL_COMM: &[u8] = b"\x1b[31m\xff)(evil";

/// Starts what a remedy proposes: its first command that begins like this, up to the next semicolon or line end.
#[track_caller]
fn follow(error: &str, start: &str) -> Ran {
    let at = error.find(start).unwrap_or_else(|| panic!("no {start} in: {error}"));
    let command = error[at..].split([';', '\n']).next().expect("there is a first part");
    run(&command.split_whitespace().skip(1).collect::<Vec<_>>())
}

/// As the worker that holds a lane, but named by somebody who means harm.
pub(crate) fn hold_a_lane_under_another_name() {
    fs::write("/proc/self/comm", EVIL_COMM).expect("a process names itself");
    harness::hold_a_lane();
}

#[test]
fn a_segments_name_does_not_steer_the_terminal() {
    let heap = Heap::unborn("evil\u{1b}[31m\u{7}");
    fs::write(heap.path(), "no heap").expect("a segment");
    let written_out = heap.name().replace('\u{1b}', "\\u{1b}").replace('\u{7}', "\\u{7}");
    let listed = run_in_colour(&["ls", "--all"]).stdout;
    assert!(listed.contains(&written_out) && !listed.contains(heap.name()), "{listed:?}");
    let missing = format!("/tmp/{}", heap.name());
    for arguments in [["stat", &missing], ["stat", heap.name()], ["rm", heap.name()]] {
        let error = run_in_colour(&arguments).stderr;
        assert!(error.contains("\\u{1b}[31m") && !error.contains(['\u{7}']) && !error.contains("evil\u{1b}"), "{error:?}");
    }
}

#[test]
fn a_process_is_seen_whatever_it_calls_itself_and_does_not_steer_the_terminal() {
    let heap = Heap::new("comm");
    let mut worker = Worker::start("hold a lane under another name", &[("NAME", heap.name())]);
    assert_eq!(worker.line(), "ready");
    let told = fine(&["stat", heap.name()]);
    assert!(told.lines().any(|line| line.starts_with("mapped by") && line.contains("\\u{1b}[31m")), "{told:?}");
    assert!(!told.contains('\u{1b}'), "{told:?}");
    let command = json(&["stat", heap.name()])["processes"][0]["command"].clone();
    assert!(command.as_str().is_some_and(|command| command.ends_with(")(evil")), "{command}");
}

/// A process in another container calls itself by a number that is somebody else's here.
#[test]
fn a_process_of_another_container_is_not_taken_for_the_one_that_has_its_number_here() {
    let heap = Heap::new("container");
    let worker = holder(&heap);
    let pid = json(&["stat", heap.name()])["lanes"][0]["pid"].as_u64().expect("a lane");
    let named = refused(3, &["repair", heap.name()]);
    assert!(named.contains(&format!("kill {pid}")), "{named}");
    // As if it had named itself from there: 1, which is always somebody.
    let segment = fs::read(heap.path()).expect("the segment is there");
    let number = u32::try_from(pid).expect("pids are small").to_le_bytes();
    let places = segment.chunks_exact(4).take(0x10000).enumerate().filter(|(_, word)| *word == number);
    for (index, _) in places {
        scribble(&heap, index as u64 * 4, &1u32.to_le_bytes());
    }
    let lane = json(&["stat", heap.name()])["lanes"][0].clone();
    assert_eq!((&lane["pid"], lane["command"].is_null(), &lane["state"]), (&1.into(), true, &"alive".into()));
    let error = refused(3, &["repair", heap.name()]);
    assert!(error.contains("another container") && !error.contains("kill 1"), "{error}");
    assert!(error.contains(&format!("mapped here: {pid} (")), "{error}");
    drop(worker);
}

#[test]
fn what_cannot_be_opened_is_removed_as_the_remedy_says() {
    let heap = Heap::new("cut");
    fs::File::options().write(true).open(heap.path()).and_then(|file| file.set_len(8 << 20)).expect("it is cut");
    refused(1, &["validate", heap.name()]);
    let error = refused(1, &["stat", heap.name()]);
    assert_eq!(follow(&error, "shmheap rm").code, 0, "{error}");
    fs::write(heap.path(), "no heap").expect("a segment");
    let error = refused(3, &["create", heap.name()]);
    assert_eq!(follow(&error, "shmheap rm").code, 0, "{error}");
    fine(&["create", heap.name(), "--capacity", "1M"]);
    let error = refused(3, &["create", heap.name()]);
    assert_eq!((follow(&error, "shmheap stat").code, follow(&error, "shmheap rm").code), (0, 0), "{error}");
}

#[test]
fn a_heap_in_a_file_that_all_may_write_to_is_named_by_its_path() {
    let folder = tempdir().expect("a folder");
    let path = folder.path().join("heap").display().to_string();
    fine(&["create", &path, "--capacity", "1M"]);
    fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("the file is ours");
    let error = refused(3, &["put", &path, "root", "text"]);
    assert!(error.contains(&format!("chmod go-w {path}")), "{error}");
}

#[test]
fn a_user_without_a_name_is_written_as_sudo_takes_it() {
    let heap = Heap::new("nameless");
    if !geteuid().is_root() {
        eprintln!("skipped: this needs root, to give a heap to somebody else");
        return;
    }
    chown(heap.path(), Some(54_321), None).expect("root gives it away");
    let error = refused(3, &["trim", heap.name()]);
    assert!(error.contains("sudo -u '#54321'"), "{error}");
}

#[test]
fn a_remedy_is_a_command_and_no_call() {
    let heap = Heap::unborn("roots-full");
    fine(&["create", heap.name(), "--capacity", "1M", "--root-slots", "1"]);
    let slots = json(&["stat", heap.name()])["root_slots"].as_u64().expect("a number");
    let put = |number: u64| run(&["put", heap.name(), &format!("root-{number}"), "text"]);
    assert!((0..slots).all(|number| put(number).code == 0));
    let full = put(slots);
    assert!(full.code == 3 && full.stderr.contains("shmheap del") && !full.stderr.contains("::"), "{full:?}");
}

#[test]
fn a_damaged_heap_is_told_from_a_sound_one_by_stat() {
    let heap = Heap::new("sound");
    assert!(fine(&["stat", heap.name()]).lines().any(|line| line.starts_with("state ") && line.ends_with("sound")));
    assert_eq!(json(&["stat", heap.name()])["findings"], 0);
    let heap = damaged("unsound");
    let told = run(&["stat", heap.name()]);
    let remedy = format!("shmheap validate {} lists them", heap.name());
    assert!(told.code == 1 && told.stdout.contains("damaged: ") && told.stdout.contains(&remedy), "{told:?}");
    let ran = run(&["stat", heap.name(), "--json"]);
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).expect("the program prints JSON");
    assert!(ran.code == 1 && told["findings"].as_u64() > Some(0), "{told}");
}

#[test]
fn the_help_of_a_command_is_the_whole_of_it() {
    assert!(fine(&["gc", "--help"]).contains("Heaps are meant to outlive their users"));
    for (command, says) in [("validate", "Exit code 1"), ("doctor", "exit code is 1"), ("diff", "Exit code 1")] {
        let help = fine(&[command, "--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(says), "{command}: {help}");
    }
    let folder = tempdir().expect("a folder");
    fine(&["man", &folder.path().display().to_string()]);
    let page = fs::read_to_string(folder.path().join("shmheap-gc.1")).expect("it has a page");
    assert!(page.contains("meant to outlive"), "{page}");
}

#[test]
fn what_the_program_starts_itself_as_is_neither_proposed_nor_guessed() {
    for word in ["work", "worker-of-stress", "partner", "__work"] {
        let error = refused(2, &[word]);
        assert!(error.contains("unrecognized") && !error.contains("similar"), "{error}");
    }
}

/// That the system would not open it now says nothing of the heap.
#[test]
fn a_heap_for_which_there_is_no_room_in_memory_is_not_called_broken() {
    let heap = Heap::unborn("large");
    drop(shmheap::Heap::options().capacity(2 << 30).create(heap.name()).expect("a heap is created"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -v 1000000; exec \"$0\" ls \"$1\"", env!("CARGO_BIN_EXE_shmheap"), heap.name()]);
    let ran = Ran::from(shell.output().expect("a shell"));
    assert!(ran.code == 0 && ran.stdout.contains("(not looked into: "), "{ran:?}");
}

#[test]
fn a_heap_is_listed_by_any_way_of_naming_it() {
    let heap = Heap::new("ways");
    for name in [heap.name().to_owned(), format!("/{}", heap.name()), heap.path().display().to_string()] {
        let listed = json(&["ls", &name]);
        assert!(listed["heaps"][0]["capacity"] == 16 << 20 && listed["heaps"][0]["used"] == 0, "{listed}");
    }
    assert!(refused(3, &["ls", "/tmp/no/such/heap"]).contains("there is no file"));
    let folder = tempdir().expect("a folder");
    let file = folder.path().join("foreign").display().to_string();
    fs::write(&file, vec![7; 10_000]).expect("a file");
    assert!(fine(&["ls", &file]).contains("(no heap)"));
}

#[test]
fn one_thing_is_named_in_the_singular() {
    let heap = Heap::unborn("one");
    let made = fine(&["create", heap.name(), "--capacity", "1M", "--lanes", "1"]);
    assert!(made.contains(", 1 lane, "), "{made}");
}

#[test]
fn heaps_that_one_may_not_read_are_counted() {
    let Some(mut stage) = Stage::new("heaps_that_one_may_not_read_are_counted", "32m") else { return };
    stage.prepare(&["shmheap create secret --capacity 1M", "chmod 600 /dev/shm/secret"]);
    if stage.run("setpriv --reuid=65534 --clear-groups true").code != 0 {
        eprintln!("skipped: this needs root, to become somebody else");
        return;
    }
    let listed = stage.prepare(&["setpriv --reuid=65534 --clear-groups shmheap ls"]);
    assert!(listed.contains("1 that you may not read"), "{listed}");
    assert!(stage.prepare(&["setpriv --reuid=65534 --clear-groups shmheap ls --json"]).contains("\"closed\": 1"));
}

#[test]
fn without_a_place_for_heaps_it_is_said_how_to_make_one() {
    let Some(mut stage) = Stage::new("without_a_place_for_heaps_it_is_said_how_to_make_one", "32m") else { return };
    let ended = stage.run("mount -o remount,ro /dev/shm && shmheap create orders --capacity 1M");
    assert!(ended.code == 3 && ended.text.contains("mount -o remount,rw /dev/shm"), "{}", ended.text);
    let without = "mount -t tmpfs tmpfs /dev && { shmheap create orders; code=$?; shmheap ls; umount /dev; (exit $code); }";
    let ended = stage.run(without);
    let told = ended.text.matches("there is no /dev/shm").count();
    assert!(ended.code == 3 && told == 2 && ended.text.contains("mount -t tmpfs"), "{}", ended.text);
}
