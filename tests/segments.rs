//! Which heaps there are, and whether anybody has them attached, as one who attaches nothing sees it.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::worker::{Worker, dispatch, hear, parameter, say};
use common::{Segment, new_heap};
use shmheap::{Error, Heap, SegmentInfo, SegmentKind};

#[test]
fn worker_entry() {
    dispatch(&[("attach", attach), ("only look", only_look)]);
}

fn attach() {
    let _heap = Heap::open(&parameter("NAME")).expect("open");
    say("attached");
    hear();
}

fn only_look() {
    let _heap = Heap::open_read_only(&parameter("NAME")).expect("open");
    say("attached");
    hear();
}

fn listed(segment: &Segment) -> SegmentInfo {
    let all = Heap::segments().expect("/dev/shm can be listed");
    let listed = all.into_iter().find(|info| info.name == segment.name()).expect("it is listed");
    assert_eq!(Heap::segment(segment.name()).expect("it is there"), listed);
    listed
}

#[test]
fn a_heap_is_listed_with_its_owner_its_mode_and_its_size() {
    let (segment, heap) = new_heap("listed");
    let info = listed(&segment);
    assert_eq!((&info.kind, info.len, info.mode), (&SegmentKind::Heap, heap.capacity(), 0o600));
    assert_eq!(info.owner, nix::unistd::geteuid().as_raw());
    assert!(info.taken > 0 && info.taken < 1 << 20, "{info:?}");
}

#[test]
fn a_heap_is_attached_while_any_process_has_it_with_a_lane_or_without_one() {
    let (segment, heap) = new_heap("attached");
    assert_eq!(listed(&segment).attached, Some(true), "its creator has it attached");
    drop(heap);
    assert_eq!(listed(&segment).attached, Some(false));
    for role in ["attach", "only look"] {
        let mut worker = Worker::start(role, &[("NAME", segment.name())]);
        worker.expect("attached");
        assert_eq!(listed(&segment).attached, Some(true), "{role}");
        worker.kill();
        assert_eq!(listed(&segment).attached, Some(false), "who was killed has nothing attached: {role}");
    }
}

#[test]
fn what_is_no_heap_is_told_from_what_was_one() {
    let (foreign, broken, truncated, other) =
        (Segment::new("foreign"), Segment::new("broken"), Segment::new("truncated"), Segment::new("other"));
    std::fs::write(foreign.path(), vec![7; 1000]).expect("a segment");
    for segment in [&broken, &truncated, &other] {
        drop(segment.create(&Heap::options().capacity(1 << 20)));
    }
    let file = |segment: &Segment| File::options().write(true).open(segment.path()).expect("it is there");
    file(&broken).write_all_at(&[9], 0x40).expect("it can be written to");
    file(&truncated).set_len(8192).expect("it can be truncated");
    file(&other).write_all_at(&[99, 0, 0, 0], 0x08).expect("it can be written to");
    let kinds = [&foreign, &broken, &truncated, &other].map(|segment| listed(segment).kind);
    assert_eq!(kinds[0], SegmentKind::Foreign);
    assert!(matches!(&kinds[1], SegmentKind::Broken { why } if why.contains("checksum")), "{kinds:?}");
    assert!(matches!(&kinds[2], SegmentKind::Broken { why } if why.contains("truncated")), "{kinds:?}");
    assert_eq!(kinds[3], SegmentKind::OtherVersion { found: 99 });
    assert_eq!(listed(&foreign).attached, None);
    assert_eq!(listed(&broken).attached, Some(false));
    assert_eq!(listed(&other).attached, None, "users of another version need not have told");
    std::fs::remove_file(foreign.path()).expect("it is there");
    std::fs::create_dir(foreign.path()).expect("a folder");
    assert_eq!(listed(&foreign).kind, SegmentKind::Foreign, "a folder is no heap");
    std::fs::remove_dir(foreign.path()).expect("it is there");
    std::os::unix::fs::symlink(broken.path(), foreign.path()).expect("a link");
    assert_eq!(listed(&foreign).kind, SegmentKind::Foreign, "nor is a link to one");
    std::fs::remove_file(foreign.path()).expect("it is there");
    nix::unistd::mkfifo(foreign.path().as_str(), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert_eq!(listed(&foreign).kind, SegmentKind::Foreign, "nor is a pipe, which is not waited for");
}

#[test]
fn a_heap_of_another_version_is_attached_if_somebody_has_a_lane_of_it() {
    let (segment, heap) = new_heap("version");
    heap.allocate(1).expect("a lane");
    let file = File::options().write(true).open(segment.path()).expect("it is there");
    file.write_all_at(&[99, 0, 0, 0], 0x08).expect("it can be written to");
    assert_eq!(listed(&segment).attached, Some(true));
}

#[test]
fn a_copy_under_a_name_that_no_heap_can_have_is_no_heap() {
    let (segment, heap) = new_heap("copied");
    drop(heap);
    let copy = format!("/dev/shm/{} copied", segment.name());
    std::fs::copy(segment.path(), &copy).expect("it can be copied");
    let kind = Heap::segment(&format!("{} copied", segment.name())).map(|info| info.kind);
    std::fs::remove_file(copy).expect("it is there");
    assert_eq!(kind, Ok(SegmentKind::Foreign));
}

#[test]
fn a_lock_of_somebody_else_on_all_of_a_segment_keeps_nobody_from_attaching_it() {
    let (segment, heap) = new_heap("locked");
    drop(heap);
    let file = File::options().read(true).write(true).open(segment.path()).expect("it is there");
    let whole = libc::flock { l_type: libc::F_WRLCK as libc::c_short, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).expect("nobody else has it");
    Heap::open_read_only(segment.name()).expect("it can be looked at").stats().expect("stats");
}

#[test]
fn a_heap_in_a_file_is_told_of_like_a_segment() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a heap");
    let heap = Heap::options().capacity(1 << 20).create_file(&path).expect("a heap");
    let info = Heap::file_info(&path).expect("it is there");
    assert_eq!((&info.kind, info.attached, info.created_ms), (&SegmentKind::Heap, Some(true), Some(heap.created_ms())));
    drop(heap);
    let later = Heap::file_info(&path).expect("it is there");
    assert_eq!((later.attached, later.inode, later.device), (Some(false), info.inode, info.device));
    assert_eq!(later.instance, info.instance);
    std::fs::remove_file(&path).expect("it is there");
    drop(Heap::options().capacity(1 << 20).create_file(&path).expect("a heap"));
    let anew = Heap::file_info(&path).expect("it is there");
    assert_ne!(anew.instance, info.instance, "another one has its name");
    assert!(matches!(Heap::file_info(folder.path().join("none")), Err(Error::NotFound { .. })));
}

#[test]
fn a_name_that_does_not_exist_or_cannot_is_refused() {
    let segment = Segment::new("nobody");
    assert_eq!(Heap::segment(segment.name()), Err(Error::NotFound { name: segment.name().to_owned() }));
    assert!(matches!(Heap::segment("../etc/passwd"), Err(Error::BadName { .. })));
}

#[test]
fn what_was_looked_at_is_removed_and_nothing_else() {
    let segment = Segment::new("same");
    let options = Heap::options().capacity(1 << 20);
    let look = || Heap::segment(segment.name()).expect("it is there");
    drop(segment.create(&options));
    let earlier = look();
    Heap::unlink(segment.name()).expect("it is there");
    assert_eq!(Heap::unlink_if_same(&earlier), Ok(false), "it was gone already");
    drop(segment.create(&options));
    assert_eq!(Heap::unlink_if_same(&earlier), Ok(false), "another heap has its name");
    let found = look();
    let heap = Heap::open(segment.name()).expect("it is there");
    assert_eq!(Heap::unlink_if_same(&found), Ok(false), "somebody has attached it since");
    let mut worker = Worker::start("only look", &[("NAME", segment.name())]);
    worker.expect("attached");
    drop(heap);
    assert_eq!(Heap::unlink_if_same(&found), Ok(false), "if only to look");
    worker.kill();
    File::options().write(true).open(segment.path()).expect("it is there").set_len(8192).expect("it can be truncated");
    assert_eq!(Heap::unlink_if_same(&found), Ok(false), "it is no sound heap any more");
    assert_eq!(Heap::unlink_if_same(&look()), Ok(true));
    assert!(!std::path::Path::new(&segment.path()).exists());
}

#[test]
fn what_is_in_use_is_removed_by_who_has_seen_that() {
    let (segment, heap) = new_heap("seen");
    let found = listed(&segment);
    assert_eq!((found.attached, Heap::unlink_if_same(&found)), (Some(true), Ok(true)));
    heap.validate().expect("who has it attached keeps it");
    assert_eq!(
        Heap::segment(segment.name()).map(|info| info.kind),
        Err(Error::NotFound { name: segment.name().to_owned() })
    );
}

#[test]
fn a_file_is_removed_whatever_its_path_consists_of() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"a \xff heap"));
    drop(Heap::options().capacity(1 << 20).create_file(&path).expect("a heap"));
    let found = Heap::file_info(&path).expect("it is there");
    std::fs::rename(&path, folder.path().join("elsewhere")).expect("it can be renamed");
    drop(Heap::options().capacity(1 << 20).create_file(&path).expect("a heap"));
    assert_eq!((Heap::unlink_if_same(&found), path.exists()), (Ok(false), true), "another one has its path");
    let found = Heap::file_info(&path).expect("it is there");
    assert_eq!((Heap::unlink_if_same(&found), path.exists()), (Ok(true), false));
}

#[test]
fn names_of_creators_that_died_are_removed_and_those_of_the_living_are_not() {
    let name = |tag: &str| format!(".shmheap-new-{tag}-{}", std::process::id());
    let (left, living, other) = (name("left"), name("living"), format!(".other-{}", std::process::id()));
    let path = |name: &str| format!("/dev/shm/{name}");
    for name in [&left, &living, &other] {
        std::fs::write(path(name), "half a heap").expect("a segment");
    }
    // A creator holds a lock on one byte far behind the end of what it creates.
    let held = File::options().read(true).write(true).open(path(&living)).expect("it is there");
    let lock =
        libc::flock { l_type: libc::F_WRLCK as libc::c_short, l_whence: 0, l_start: (1 << 40) - 1, l_len: 1, l_pid: 0 };
    nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("nobody else has it");
    let segments = Heap::segments().expect("they can be listed");
    let state = |name: &str| segments.iter().find(|info| info.name == *name).map(|info| (info.kind.clone(), info.attached));
    assert_eq!(state(&left), Some((SegmentKind::Temporary, Some(false))));
    assert_eq!(state(&living), Some((SegmentKind::Temporary, Some(true))));
    let found = |name: &str| segments.iter().find(|info| info.name == *name).expect("it is listed");
    assert_eq!([&left, &living].map(|name| Heap::unlink_if_same(found(name))), [Ok(true), Ok(false)]);
    let exists = |name: &str| std::path::Path::new(&path(name)).exists();
    assert_eq!([&left, &living, &other].map(|name| exists(name)), [false, true, true]);
    drop(held);
    let found = Heap::segment(&living).expect("it is there");
    assert_eq!(Heap::unlink_if_same(&found), Ok(true), "its creator has died by now");
    std::fs::remove_file(path(&other)).expect("it is there");
}
