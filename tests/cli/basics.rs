//! `create`, `ls`, `rm`, `stat`.

use std::os::unix::fs::PermissionsExt;

use crate::harness::{Heap, fine, json, refused, run};

#[test]
fn a_heap_is_created_listed_and_removed() {
    let heap = Heap::unborn("basics");
    let name = heap.name();
    let made = fine(&["create", name, "--capacity", "8M", "--lanes", "5"]);
    assert!(made.contains("8 MiB") && made.contains("5 lanes"), "{made}");
    // Other tests' heaps are listed too, broken ones among them.
    let is_listed = || run(&["ls"]).stdout.lines().any(|line| line.starts_with(name) && line.contains("8 MiB"));
    assert!(is_listed());
    assert!(fine(&["ls", name]).lines().nth(1).is_some_and(|line| line.starts_with(name)));
    fine(&["rm", name]);
    assert!(!heap.path().exists() && !is_listed());
    assert!(refused(3, &["ls", name]).contains("no heap named"));
}

#[test]
fn what_is_in_use_is_removed_by_force_only() {
    let heap = Heap::new("in-use");
    let attached = heap.open();
    let error = refused(3, &["rm", heap.name()]);
    assert!(error.contains("is in use by") && error.contains("rm --force"), "{error}");
    assert_eq!(json(&["ls", heap.name()])["heaps"][0]["attached"], true);
    fine(&["rm", "--force", heap.name()]);
    attached.validate().expect("who has it attached keeps it");
}

#[test]
fn a_name_that_does_not_exist_is_told_with_those_that_are_like_it() {
    let heap = Heap::new("near");
    let misspelt = heap.name().replace("-near", "-naer");
    let error = refused(3, &["stat", &misspelt]);
    assert!(error.contains("no heap named") && error.contains(&format!("did you mean {}", heap.name())), "{error}");
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    assert_eq!(run(&["frobnicate"]).code, 2);
    assert_eq!(run(&["create", "a name with blanks"]).code, 2);
    assert!(refused(2, &["create", "x", "--capacity", "much"]).contains("write bytes, or 64K"));
}

#[test]
fn a_heap_that_lets_its_group_in_is_still_its_owners() {
    let heap = Heap::unborn("group");
    fine(&["create", heap.name(), "--mode", "660"]);
    fine(&["put", heap.name(), "greeting", "hello"]);
    fine(&["trim", heap.name()]);
    std::fs::set_permissions(heap.path(), std::fs::Permissions::from_mode(0o666)).expect("it is ours");
    assert!(refused(3, &["trim", heap.name()]).contains("chmod go-w"), "but not one that lets everybody in");
}
