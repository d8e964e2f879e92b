//! Who may open what: owners, permission bits, and names. Acting as another user needs root; without it those tests say
//! that they were skipped.

mod common;

use std::fs::{Permissions, metadata, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::worker::{Worker, dispatch, number, parameter, say};
use common::{Segment, all_offsets, assert_emptied, is_root, new_heap};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use shmheap::{Error, Heap, Offset, OwnerTrust};

/// A user that is neither root nor anybody who owns files.
const NOBODY: u32 = 65_534;

#[test]
fn worker_entry() {
    dispatch(&[("open as nobody", open_as_nobody), ("create as nobody", create_as_nobody)]);
}

fn become_nobody() {
    setgroups(&[]).expect("root may leave its groups");
    setgid(Gid::from_raw(NOBODY)).expect("root may become anybody");
    setuid(Uid::from_raw(NOBODY)).expect("root may become anybody");
}

fn open_as_nobody() {
    become_nobody();
    let name = parameter("HEAP");
    let trust = if number("TRUST") == 1 { OwnerTrust::User(0) } else { OwnerTrust::SameUser };
    let options = Heap::options().trust(trust).mode(0o666);
    let attempt = |heap: shmheap::Result<Heap>| match heap.and_then(|heap| heap.allocate(100)) {
        Ok(_) => say("allocated"),
        Err(error) => say(&format!("{error:?}")),
    };
    attempt(options.open(&name));
    attempt(options.open_read_only(&name));
    attempt(options.open_or_create(&name));
    attempt(Heap::unlink(&name).and_then(|()| Heap::open(&name)));
}

fn create_as_nobody() {
    become_nobody();
    let heap = Heap::options().capacity(1 << 20).mode(0o666).create(&parameter("HEAP")).expect("nobody can have a heap too");
    let block = heap.allocate(100).expect("room");
    heap.set_root("block", block).expect("root");
    heap.validate().expect("valid");
    let denied = Heap::options().create_file(parameter("FILE")).expect_err("the directory is not nobody's");
    say(&format!("{denied:?}"));
}

fn what_nobody_is_told(segment: &Segment, trusts_root: bool) -> [String; 4] {
    let trust = if trusts_root { "1" } else { "0" };
    let mut worker = Worker::start("open as nobody", &[("HEAP", segment.name()), ("TRUST", trust)]);
    let told = std::array::from_fn(|_| worker.line());
    worker.finish();
    told
}

#[test]
fn another_user_cannot_open_a_heap_with_the_default_mode() {
    if !is_root("another_user_cannot_open_a_heap_with_the_default_mode") {
        return;
    }
    let (segment, heap) = new_heap("private");
    let denied = Error::PermissionDenied { name: segment.name().to_owned(), owner: 0, mode: 0o600 };
    assert_eq!(what_nobody_is_told(&segment, true), [(); 4].map(|()| format!("{denied:?}")));
    assert_eq!(all_offsets(&heap), []);
    assert!(Heap::open(segment.name()).is_ok(), "nobody has unlinked it");
}

#[test]
fn another_user_opens_a_heap_that_is_open_to_all_only_by_trusting_its_owner() {
    if !is_root("another_user_opens_a_heap_that_is_open_to_all_only_by_trusting_its_owner") {
        return;
    }
    let segment = Segment::new("open-to-all");
    let heap = segment.create(&Heap::options().capacity(1 << 20).mode(0o666));
    let wrong = Error::WrongOwner { name: segment.name().to_owned(), owner: 0, trusted: NOBODY };
    let [open, read_only, open_or_create, unlink] = what_nobody_is_told(&segment, false);
    assert_eq!([open, read_only, open_or_create], [(); 3].map(|()| format!("{wrong:?}")));
    let denied = Error::PermissionDenied { name: segment.name().to_owned(), owner: 0, mode: 0o666 };
    assert_eq!(unlink, format!("{denied:?}"), "/dev/shm is sticky");
    assert_eq!(all_offsets(&heap), []);

    let [open, read_only, open_or_create, _] = what_nobody_is_told(&segment, true);
    assert_eq!([open.as_str(), read_only.as_str(), open_or_create.as_str()], ["allocated", "ReadOnly", "allocated"]);
    heap.validate().expect("valid");
    assert_eq!(all_offsets(&heap).len(), 2);
    assert_emptied(&heap);
}

#[test]
fn a_heap_of_another_user_is_opened_only_by_trusting_that_user_and_its_mode() {
    if !is_root("a_heap_of_another_user_is_opened_only_by_trusting_that_user_and_its_mode") {
        return;
    }
    let segment = Segment::new("nobodys");
    let directory = tempfile::tempdir().expect("a directory, open to its owner only");
    let file = directory.path().join("heap");
    let file = file.to_str().expect("a temporary path is text");
    let mut worker = Worker::start("create as nobody", &[("HEAP", segment.name()), ("FILE", file)]);
    let denied = Error::PermissionDenied { name: file.to_owned(), owner: u32::MAX, mode: 0 };
    let told = worker.line();
    assert!(told.starts_with("PermissionDenied") && told.contains(file), "{told}, not {denied:?}");
    worker.finish();
    let name = segment.name();
    assert_eq!(metadata(segment.path()).expect("it is there").uid(), NOBODY);

    let open = |trust: OwnerTrust, mode: u32| Heap::options().trust(trust).mode(mode).open(name);
    let wrong_owner = Error::WrongOwner { name: name.to_owned(), owner: NOBODY, trusted: 0 };
    assert_eq!(Heap::open(name).expect_err("it is not root's"), wrong_owner);
    assert_eq!(Heap::open_read_only(name).expect_err("it is not root's"), wrong_owner);
    assert_eq!(open(OwnerTrust::SameUser, 0o666).expect_err("it is not root's"), wrong_owner);
    let other = Error::WrongOwner { name: name.to_owned(), owner: NOBODY, trusted: 7 };
    assert_eq!(open(OwnerTrust::User(7), 0o666).expect_err("it is not theirs"), other);
    for trust in [OwnerTrust::User(NOBODY), OwnerTrust::Anyone] {
        let error = open(trust, 0o600).expect_err("everybody may write to it");
        assert!(matches!(&error, Error::WrongMode { mode: 0o666, .. }), "{error:?}");
        let heap = open(trust, 0o666).expect("its owner and its mode are trusted");
        heap.validate().expect("valid");
        assert!(heap.root("block").expect("roots").is_some());
    }
    assert_emptied(&open(OwnerTrust::Anyone, 0o666).expect("open"));
}

#[test]
fn a_heap_that_others_may_write_to_is_opened_only_where_that_is_allowed() {
    let (segment, heap) = new_heap("mode");
    let name = segment.name();
    let mode_is = |mode: u32| set_permissions(segment.path(), Permissions::from_mode(mode)).expect("chmod");
    let mode_of = |error: Error| match error {
        Error::WrongMode { name: found, mode, allowed } => {
            assert_eq!(found, name);
            assert_ne!(mode & 0o022 & !allowed, 0, "it lets others in beyond what is allowed");
            mode
        }
        error => panic!("{error:?}"),
    };
    for (mode, allowed) in [(0o666, 0o666), (0o660, 0o660), (0o620, 0o622), (0o602, 0o602)] {
        mode_is(mode);
        assert_eq!(mode_of(Heap::open(name).expect_err("others may write to it")), mode);
        assert_eq!(mode_of(Heap::open_read_only(name).expect_err("others may write to it")), mode);
        assert_eq!(mode_of(Heap::options().open_or_create(name).expect_err("others may write to it")), mode);
        Heap::options().mode(allowed).open(name).expect("that is allowed");
    }
    mode_is(0o666);
    assert_eq!(mode_of(Heap::options().mode(0o660).open(name).expect_err("not only the group may write")), 0o666);
    for harmless in [0o644, 0o640, 0o604] {
        mode_is(harmless);
        Heap::open(name).expect("others may only read it");
    }
    assert_emptied(&heap);
}

#[test]
fn a_heap_has_the_mode_that_was_asked_for_whatever_the_umask() {
    for mode in [0o600, 0o640, 0o660, 0o666] {
        let segment = Segment::new("mode-of");
        let heap = segment.create(&Heap::options().capacity(1 << 20).mode(mode));
        let found = metadata(segment.path()).expect("it is there");
        assert_eq!((found.mode() & 0o7777, found.uid()), (mode, geteuid().as_raw()));
        drop(heap);
        Heap::options().mode(mode).open(segment.name()).expect("whoever asks for the mode can open it");
    }
    let (segment, _heap) = new_heap("default-mode");
    assert_eq!(metadata(segment.path()).expect("it is there").mode() & 0o7777, 0o600);
}

#[test]
fn names_that_break_the_rules_are_refused_by_every_call() {
    let too_long = "x".repeat(201);
    let bad = ["", ".", "..", ".hidden", "a/b", "/a", "../a", "a b", "a\0b", "a\n", "heap\u{e9}", "a*b", too_long.as_str()];
    for name in bad {
        let calls: [(&str, shmheap::Result<()>); 5] = [
            ("create", Heap::options().create(name).map(drop)),
            ("open", Heap::open(name).map(drop)),
            ("open_or_create", Heap::options().open_or_create(name).map(drop)),
            ("open_read_only", Heap::open_read_only(name).map(drop)),
            ("unlink", Heap::unlink(name)),
        ];
        for (call, outcome) in calls {
            let error = outcome.expect_err("a bad name is refused");
            assert!(
                matches!(&error, Error::BadName { name: found, why } if found == name && !why.is_empty()),
                "{call}: {error:?}"
            );
        }
    }
}

#[test]
fn names_that_keep_the_rules_are_accepted() {
    for segment in [Segment::with_len(200), Segment::new("A-Z.a-z_0-9.-_"), Segment::new("shmheap-new-")] {
        let heap = segment.create(&Heap::options().capacity(1 << 20));
        assert_eq!(heap.name(), segment.name());
        assert_eq!(metadata(segment.path()).expect("it is under its name").len(), 1 << 20);
        heap.destroy().expect("destroy");
    }
}

#[test]
fn an_address_and_its_offset_lead_to_each_other_in_every_attachment() {
    let (segment, heap) = new_heap("addresses");
    let other = segment.open();
    let block = heap.allocate(10_000).expect("room");
    let (here, there) = (heap.resolve(block).expect("address"), other.resolve(block).expect("address"));
    assert_ne!(here, there, "two attachments are mapped at two addresses");
    assert_eq!((heap.offset_of(here), other.offset_of(there)), (Ok(block), Ok(block)));
    let inside = Offset::new(block.get() + 9999).expect("not zero");
    assert_eq!(heap.resolve(inside).and_then(|address| heap.offset_of(address)), Ok(inside));
    for foreign in [there, std::ptr::NonNull::dangling()] {
        let address = foreign.addr().get() as u64;
        assert_eq!(heap.offset_of(foreign), Err(Error::ForeignPointer { address }));
    }
    assert_emptied(&heap);
}
