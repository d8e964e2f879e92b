//! `gc`: what goes, and above all what stays.
//!
//! All of it on a stage, or for heaps by name: what is removed here must be the test's own.

use serde_json::Value;

use crate::harness::{Heap, fine, json, refused};
use crate::stage::Stage;

/// A stage with a leftover of each kind, and with what is none.
fn littered(test: &str) -> Option<Stage> {
    let mut stage = Stage::new(test, "64M")?;
    stage.prepare(&[
        "shmheap create sound && shmheap put sound greeting hello",
        "shmheap create short && truncate -s 8192 /dev/shm/short",
        // The format's version stands behind the mark of 8 bytes.
        "shmheap create other && printf '\\143' | dd of=/dev/shm/other bs=1 seek=8 conv=notrunc status=none",
        "echo foreign >/dev/shm/foreign",
        ": >/dev/shm/.shmheap-new-00",
    ]);
    Some(stage)
}

fn left(stage: &mut Stage) -> Vec<String> {
    stage.prepare(&["ls -A /dev/shm"]).lines().map(str::to_owned).collect()
}

#[test]
fn leftovers_go_and_all_else_stays() {
    let Some(mut stage) = littered("leftovers_go_and_all_else_stays") else { return };
    let before = left(&mut stage);
    let said = stage.prepare(&["shmheap gc --dry-run"]);
    assert!(said.contains("would remove short (") && said.contains("2 would go"), "{said}");
    assert_eq!(left(&mut stage), before, "a dry run removes nothing");
    let said = stage.prepare(&["shmheap gc"]);
    assert!(said.contains("nobody can open it: capacity mismatch") && said.contains("its creator died"), "{said}");
    assert_eq!(left(&mut stage), ["foreign", "other", "sound"]);
    assert_eq!(stage.prepare(&["shmheap gc"]), "nothing to remove\n");
}

#[test]
fn sound_heaps_and_those_of_other_versions_go_only_when_asked_for() {
    let Some(mut stage) = littered("sound_heaps_and_those_of_other_versions_go_only_when_asked_for") else { return };
    stage.prepare(&["shmheap gc"]);
    assert_eq!(stage.prepare(&["shmheap gc --detached --older-than 1h"]), "nothing to remove\n");
    let said = stage.prepare(&["shmheap gc --detached --older-than 0s --json"]);
    let report: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&report["removed"][0]["name"], &report["kept"]), (&"sound".into(), &Value::Array(vec![])), "{report:#}");
    assert_eq!(report["given_back"], report["removed"][0]["taken"]);
    assert!(report["given_back"].as_u64() > Some(0), "the memory is counted");
    assert_eq!(left(&mut stage), ["foreign", "other"]);
    assert!(stage.prepare(&["shmheap gc --other-versions"]).contains("removed other ("), "asked for");
    assert_eq!(left(&mut stage), ["foreign"]);
}

#[test]
fn what_somebody_has_attached_stays() {
    let heap = Heap::new("gc-attached");
    let attached = heap.open();
    assert_eq!(fine(&["gc", "--detached", heap.name()]), "nothing to remove\n");
    // Broken for whoever comes, but not for who is there.
    std::fs::File::options().write(true).open(heap.path()).and_then(|file| file.set_len(8 << 20)).expect("truncate");
    let report = json(&["gc", "--detached", heap.name()]);
    assert_eq!(report["kept"][0]["why"], "somebody has it attached", "{report:#}");
    assert!(heap.path().exists() && report["removed"] == Value::Array(vec![]));
    drop(attached);
    assert!(fine(&["gc", heap.name()]).starts_with(&format!("removed {}", heap.name())), "now it is a leftover");
    assert!(!heap.path().exists());
}

#[test]
fn what_belongs_to_others_goes_only_when_root_says_so() {
    let test = "what_belongs_to_others_goes_only_when_root_says_so";
    if !nix::unistd::geteuid().is_root() {
        let error = refused(3, &["gc", "--other-users", "--dry-run"]);
        assert!(error.contains("only root may") && error.contains("sudo shmheap gc"), "{error}");
        eprintln!("skipped: {test} needs root, to make what belongs to another user");
        return;
    }
    let Some(mut stage) = littered(test) else { return };
    stage.prepare(&["chown 65534 /dev/shm/short /dev/shm/sound /dev/shm/.shmheap-new-00"]);
    assert_eq!(stage.prepare(&["shmheap gc --detached"]), "nothing to remove\n");
    let said = stage.prepare(&["shmheap gc --detached --other-users"]);
    assert!(said.contains("3 removed") && said.contains("(of "), "{said}");
    assert_eq!(left(&mut stage), ["foreign", "other"]);
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    assert!(refused(2, &["gc", "--older-than", "1d"]).contains("--detached"));
    assert!(refused(2, &["gc", "--detached", "--older-than", "soon"]).contains("write seconds"));
    assert!(refused(2, &["gc", "./some/file"]).contains("only heaps in /dev/shm"));
    assert!(refused(3, &["gc", "no-such-heap-anywhere"]).contains("no heap named"));
}
