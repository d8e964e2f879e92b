//! `validate`, `repair`, `recover`, `trim`, and every command on damaged heaps.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::harness::{Heap, fine, holder, json, program, refused, run};

/// Writes bytes into a segment, behind everybody's back.
pub(crate) fn scribble(heap: &Heap, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(heap.path()).expect("the segment is there");
    file.write_all_at(bytes, at).expect("it can be written to");
}

/// Makes a heap with some blocks, and damages the entry of its first page.
pub(crate) fn damaged(tag: &str) -> Heap {
    let heap = Heap::new(tag);
    fine(&["put", heap.name(), "greeting", "hello"]);
    let attached = heap.open();
    let entries = (attached.pages_start() + attached.total_size()).next_multiple_of(64);
    drop(attached);
    scribble(&heap, entries, &[0xff; 8]);
    heap
}

#[test]
fn a_sound_heap_is_told_from_a_damaged_one_which_is_repaired() {
    let heap = damaged("damaged");
    let found = run(&["validate", heap.name()]);
    assert_eq!(found.code, 1);
    assert!(found.stdout.contains("damaged") && found.stdout.contains("repair"), "{found:?}");
    let planned = run(&["repair", heap.name(), "--dry-run"]);
    assert_eq!(planned.code, 1);
    assert!(planned.stdout.contains("nothing was changed"), "{planned:?}");
    assert_eq!(run(&["validate", heap.name()]).code, 1, "nothing was changed");
    let done = fine(&["repair", heap.name()]);
    assert!(done.contains("quarantined") && done.contains("sound now"), "{done}");
    assert!(fine(&["validate", heap.name()]).contains("sound"));
    assert_eq!(json(&["repair", heap.name()])["changed"], false);
}

#[test]
fn a_heap_in_use_is_not_repaired() {
    let heap = Heap::new("busy");
    let attached = heap.open();
    attached.allocate(1).expect("a lane");
    let error = refused(3, &["repair", heap.name()]);
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
}

#[test]
fn unused_memory_is_given_back() {
    let heap = Heap::new("trim");
    let attached = heap.open();
    let block = attached.allocate_zeroed(4 << 20).expect("room");
    attached.deallocate(block).expect("it is freed");
    assert!(attached.stats().expect("stats").taken > 4 << 20);
    let trimmed = json(&["trim", heap.name()]);
    assert!(trimmed["given_back"].as_u64() >= Some(4 << 20) && trimmed["taken"].as_u64() < Some(1 << 20), "{trimmed}");
}

#[test]
fn the_dead_are_recovered_while_others_use_the_heap() {
    let heap = Heap::new("recover");
    let attached = heap.open();
    attached.allocate(1).expect("a lane");
    assert!(fine(&["recover", heap.name()]).contains("nobody has died"));
    holder(&heap).kill();
    assert!(fine(&["stat", heap.name()]).contains("dead"));
    assert!(fine(&["recover", heap.name()]).contains("recovered 1 lane"));
    let stats = attached.stats().expect("stats");
    assert_eq!((stats.lanes_alive, stats.lanes_dead, stats.allocated_blocks), (1, 0, 2));
}

/// Whatever stands in a segment, a command ends by itself with an exit code; `Ran` panics at a signal.
#[test]
fn no_command_crashes_on_a_heap_that_was_scribbled_on() {
    let commands: [&[&str]; 11] = [
        &["stat"],
        &["blocks", "--all"],
        &["roots"],
        &["validate"],
        &["get", "greeting"],
        &["dump", "greeting"],
        &["dump", "0xb000"],
        &["put", "new", "text"],
        &["repair", "--dry-run"],
        &["recover"],
        &["trim"],
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..12 {
        let heap = Heap::new("scribbled");
        fine(&["put", heap.name(), "greeting", "hello"]);
        let attached = heap.open();
        attached.allocate(100_000).expect("room");
        let tables = attached.pages_start() + attached.total_size();
        drop(attached);
        for _ in 0..1 + round % 4 {
            // In the superblock, the lanes, the roots, or the tables of the pages that are in use.
            let at = if next() % 2 == 0 { next() % 0x6000 } else { tables + next() % 0x400 };
            scribble(&heap, at & !7, &next().to_le_bytes());
        }
        for command in commands {
            let arguments: Vec<&str> =
                command.iter().take(1).copied().chain([heap.name()]).chain(command[1..].iter().copied()).collect();
            let ran = program().args(&arguments).output().expect("the program can be started");
            let code = ran.status.code();
            let text = String::from_utf8_lossy(&ran.stderr);
            assert!(matches!(code, Some(0..=3)), "round {round}: {arguments:?} ended with {:?}: {text}", ran.status);
            assert!(!text.contains("panicked"), "round {round}: {arguments:?}: {text}");
        }
        run(&["ls"]);
    }
}

#[test]
fn what_is_no_heap_is_named_as_such_by_every_command() {
    let heap = Heap::unborn("foreign");
    std::fs::write(heap.path(), vec![7; 10_000]).expect("a segment");
    for command in ["stat", "blocks", "roots", "validate", "repair", "recover", "trim"] {
        let error = refused(1, &[command, heap.name()]);
        assert!(error.contains("is no heap"), "{command}: {error}");
    }
    assert!(refused(3, &["rm", heap.name()]).contains("--any-kind"));
    assert!(run(&["ls", "--all"]).stdout.contains(&format!("{} (no heap)", heap.name())));
    fine(&["rm", "--any-kind", heap.name()]);
}
