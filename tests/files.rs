//! Heaps in files: flushed, cut off from power, truncated, unlinked.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Random, Segment, all_blocks, assert_emptied, new_heap, worker};
use shmheap::{Error, Heap, Offset};

const CAPACITY: u64 = 1 << 20;
/// Where words stand, as docs/FORMAT.md draws them.
const BOOT_ID_AT: u64 = 0x80;
const CLEAN_AT: u64 = 0x90;
/// What the disk is written in.
const SECTOR: usize = 512;

struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory is made") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn create(&self) -> Heap {
        Heap::options().capacity(CAPACITY).create_file(self.path("heap")).expect("a new file")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path("heap")).expect("it is there")
    }

    /// A file with these bytes, as another boot would find it.
    fn after_power_cut(&self, name: &str, mut bytes: Vec<u8>) -> PathBuf {
        let at = usize::try_from(BOOT_ID_AT).expect("small");
        bytes[at..at + 8].copy_from_slice(&7u64.to_ne_bytes());
        let path = self.path(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("it is written");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        path
    }
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).expect("small");
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn clean(path: &Path) -> u64 {
    let mut bytes = [0; 8];
    File::open(path).expect("it is there").read_exact_at(&mut bytes, CLEAN_AT).expect("it is long enough");
    u64::from_ne_bytes(bytes)
}

/// Allocates and frees; the blocks that are left have roots.
fn change(heap: &Heap, random: &mut Random, round: usize) {
    let mut blocks: Vec<Offset> = Vec::new();
    for _ in 0..200 {
        match heap.allocate(1 + random.below(9000)) {
            Ok(block) => blocks.push(block),
            Err(_) => break,
        }
    }
    for _ in 0..blocks.len() / 2 {
        heap.deallocate(blocks.swap_remove(random.below(blocks.len()))).expect("it is allocated");
    }
    if let Some(block) = blocks.first() {
        heap.set_root(&format!("round {}", round % 8), *block).expect("a slot");
    }
    blocks.iter().skip(30).for_each(|block| heap.deallocate(*block).expect("it is allocated"));
}

#[test]
fn a_flushed_heap_is_clean_until_somebody_uses_it() {
    let disk = Disk::new();
    let heap = disk.create();
    let block = heap.allocate(100).expect("room");
    assert_eq!(clean(&disk.path("heap")), 0);
    heap.flush().expect("it is flushed");
    assert_eq!(clean(&disk.path("heap")), 1);
    assert_eq!(heap.stats().expect("stats").allocated_blocks, 1);
    assert_eq!(clean(&disk.path("heap")), 1, "looking is no use");
    heap.deallocate(block).expect("it is allocated");
    assert_eq!(clean(&disk.path("heap")), 0);
    heap.flush().expect("it is flushed");
    heap.flush().expect("it is flushed again");
    assert_eq!(clean(&disk.path("heap")), 1);
    drop(heap);
    let heap = Heap::options().open_file(disk.path("heap")).expect("it is there");
    assert_emptied(&heap);
}

#[test]
fn a_flush_with_other_processes_attached_is_clean_and_they_go_on() {
    let disk = Disk::new();
    let heap = disk.create();
    let path = disk.path("heap");
    let mut other = worker::Worker::start("use", &[("PATH", path.to_str().expect("a name"))]);
    other.expect("used");
    heap.flush().expect("it is flushed");
    assert_eq!(clean(&path), 1);
    other.tell("again");
    other.expect("used");
    assert_eq!(clean(&path), 0, "it was used");
    heap.flush().expect("it is flushed");
    let left = all_blocks(&heap);
    let found = Heap::options().open_file(disk.after_power_cut("cut", disk.bytes())).expect("it was clean");
    assert_eq!(all_blocks(&found).len(), left.len());
    assert_emptied(&found);
    other.hang_up();
    other.finish();
    assert_emptied(&heap);
}

fn use_role() {
    let heap = Heap::options().open_file(worker::parameter("PATH")).expect("it is there");
    loop {
        let block = heap.allocate(100).expect("room");
        heap.allocate(3000).expect("room");
        heap.deallocate(block).expect("it is allocated");
        worker::say("used");
        if worker::hear().is_none() {
            break;
        }
    }
}

#[test]
fn after_a_clean_flush_a_power_cut_changes_nothing() {
    let disk = Disk::new();
    let heap = disk.create();
    change(&heap, &mut Random::new(1), 0);
    heap.flush().expect("it is flushed");
    let blocks = all_blocks(&heap);
    let roots = heap.roots().expect("roots");
    let found = Heap::options().open_file(disk.after_power_cut("cut", disk.bytes())).expect("it was clean");
    found.validate().expect("it is valid");
    let places = |blocks: &[shmheap::BlockInfo]| blocks.iter().map(|block| block.offset).collect::<Vec<_>>();
    assert_eq!(places(&all_blocks(&found)), places(&blocks));
    assert_eq!(found.roots().expect("roots").len(), roots.len());
    assert_emptied(&found);
}

/// What a power cut leaves of a heap in use: of each sector of the file the state of one moment or another.
#[test]
fn after_a_power_cut_in_use_a_heap_is_whole_or_is_refused() {
    let disk = Disk::new();
    let heap = disk.create();
    let mut random = Random::new(3);
    let (mut whole, mut refused) = (0, 0);
    for round in 0..60 {
        change(&heap, &mut random, round);
        let before = disk.bytes();
        change(&heap, &mut random, round + 1);
        let after = disk.bytes();
        assert_eq!(word(&after, CLEAN_AT), 0);
        let mut mixed = after.clone();
        let share = 1 + random.below(20);
        for (page, old) in mixed.chunks_mut(SECTOR).zip(before.chunks(SECTOR)) {
            if random.below(20) < share {
                page.copy_from_slice(old);
            }
        }
        let path = disk.after_power_cut("cut", mixed);
        match Heap::options().open_file(&path) {
            Ok(found) => {
                whole += 1;
                found.validate().expect("it was checked when it was opened");
                assert_emptied(&found);
            }
            Err(Error::Unclean { .. }) => refused += 1,
            Err(other) => panic!("round {round}: {other}"),
        }
    }
    assert!(whole != 0 && refused != 0, "whole {whole}, refused {refused}: both must have been seen");
}

#[test]
fn the_error_after_a_power_cut_names_the_file_and_the_remedy() {
    let disk = Disk::new();
    let heap = disk.create();
    heap.allocate(100).expect("room");
    let mut bytes = disk.bytes();
    // The first page's entry gets a state that nobody writes.
    let pages_end = bytes.len() - 30_000;
    let entry = (pages_end..bytes.len()).step_by(8).find(|at| bytes[*at] & 0xf == 1).expect("there is a slab");
    bytes[entry] = 0xf;
    let path = disk.after_power_cut("cut", bytes);
    let error = Heap::options().open_file(&path).expect_err("it does not fit together").to_string();
    assert!(error.contains("cut") && error.contains("load the last image"), "{error}");
}

#[test]
fn a_heap_is_not_saved_over_itself() {
    let disk = Disk::new();
    let heap = disk.create();
    std::os::unix::fs::symlink(disk.path("heap"), disk.path("link")).expect("a new name");
    for name in ["heap", "link"] {
        let error = heap.save(disk.path(name)).expect_err("it would replace the heap").to_string();
        assert!(error.contains("the heap's own file"), "{name}: {error}");
    }
    drop(heap);
    assert_emptied(&Heap::options().open_file(disk.path("heap")).expect("it is still there"));
}

#[test]
fn flushing_a_segment_does_nothing_and_succeeds() {
    let (_segment, heap) = new_heap("segment");
    heap.flush().expect("there is nothing to do");
    assert_emptied(&heap);
}

#[test]
fn a_segment_that_shrank_is_named_instead_of_a_signal() {
    let (segment, heap) = new_heap("shrunk");
    let block = heap.allocate(100).expect("room");
    let len = heap.capacity();
    let file = File::options().write(true).open(segment.path()).expect("it is there");
    // Only the last OS page is gone: nothing that is touched below.
    file.set_len(len - 4096).expect("it is ours");
    let is_named = |error: Error| {
        assert!(
            matches!(&error, Error::Shrunk { name, expected, actual }
            if name == segment.name() && *expected == len && *actual == len - 4096),
            "{error}"
        );
    };
    is_named(heap.validate().expect_err("it shrank"));
    is_named(heap.stats().expect_err("it shrank"));
    is_named(heap.trim().expect_err("it shrank"));
    is_named(heap.recover().map(|_| ()).expect_err("it shrank"));
    is_named(heap.allocate(5 << 20).map(|_| ()).expect_err("it shrank"));
    is_named(heap.save("/dev/null/x").map(|_| ()).expect_err("it shrank"));
    assert!(matches!(Heap::open(segment.name()), Err(Error::CapacityMismatch { .. })));
    file.set_len(len).expect("it is ours");
    heap.deallocate(block).expect("it is allocated");
}

#[test]
fn an_unlinked_heap_says_so_and_can_still_be_saved() {
    let (segment, heap) = new_heap("unlinked");
    let block = heap.allocate(100).expect("room");
    heap.set_root("kept", block).expect("a slot");
    assert_eq!(heap.is_unlinked(), Ok(false));
    Heap::unlink(segment.name()).expect("it is there");
    assert_eq!(heap.is_unlinked(), Ok(true));
    assert!(heap.dump_stats().expect("stats").contains("unlinked"));
    let image = Disk::new();
    heap.save(image.path("rescued.img")).expect("it is saved");
    drop(heap);
    let again = Segment::new("rescued");
    assert_eq!(Heap::load(image.path("rescued.img"), again.name()).and_then(|heap| heap.root("kept")), Ok(Some(block)));
}

#[test]
fn worker_entry() {
    worker::dispatch(&[("use", use_role)]);
}
