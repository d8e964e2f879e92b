//! Images: what was saved comes back, wherever it is loaded; what is damaged is refused; what changed is told.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Random, Segment, all_blocks, assert_emptied, new_heap, worker};
use shmheap::{Compression, Error, Heap, ImageInfo, Memory, Offset, Options, Progress, SaveOptions, diff, verify};

/// Whether this build can compress in this way.
fn is_built_in(compression: Compression) -> bool {
    let is_missing = (compression == Compression::Lz4 && !cfg!(feature = "lz4"))
        || (compression == Compression::Zstd && !cfg!(feature = "zstd"));
    !is_missing
}

const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

/// A directory of this test's own.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory is made")
}

/// The bytes with which a block of this number is filled.
fn pattern(number: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(number + 1);
    (0..len).map(|_| u8::try_from(random.next() >> 56).expect("eight bits")).collect()
}

/// Blocks of many sizes, some of which were freed again, and roots. What is there, by offset.
fn fill(heap: &Heap) -> BTreeMap<Offset, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    for number in 0..400u64 {
        let len = [1, 16, 100, 500, 3000, 20_000, 70_000][usize::try_from(number % 7).expect("small")];
        let Ok(block) = heap.allocate(len) else { continue };
        let bytes = pattern(number, heap.usable_size(block).expect("it was just allocated"));
        heap.copy_in(block, &bytes).expect("it fits");
        blocks.insert(block, bytes);
    }
    let freed: Vec<Offset> = blocks.keys().copied().step_by(3).collect();
    for block in freed {
        heap.deallocate(block).expect("it is allocated");
        blocks.remove(&block);
    }
    for (number, block) in blocks.keys().step_by(10).enumerate() {
        heap.set_root(&format!("root {number}"), *block).expect("there is a slot");
    }
    blocks
}

/// Checks that the heap holds exactly these blocks, with these bytes, and that it is whole.
fn assert_holds(heap: &Heap, blocks: &BTreeMap<Offset, Vec<u8>>) {
    heap.validate().expect("the heap is valid");
    let found: Vec<Offset> = all_blocks(heap).iter().map(|block| block.offset).collect();
    assert_eq!(found, blocks.keys().copied().collect::<Vec<_>>());
    for (block, bytes) in blocks {
        let mut back = vec![0; bytes.len()];
        heap.copy_out(*block, &mut back).expect("the block is there");
        assert_eq!(back, *bytes, "block {block}");
    }
    for (number, block) in blocks.keys().step_by(10).enumerate() {
        assert_eq!(heap.root(&format!("root {number}")), Ok(Some(*block)));
    }
}

/// Checks that the heap can be filled up and emptied.
fn assert_usable(heap: &Heap) {
    while heap.allocate(1000).is_ok() {}
    assert_emptied(heap);
}

fn small_heap() -> Heap {
    Heap::options().create_in(Memory::zeroed(64 << 10).expect("memory")).expect("a heap")
}

/// A small heap that holds a little of everything, and its image's path and bytes.
fn small_image(directory: &Path) -> (PathBuf, Vec<u8>) {
    let heap = small_heap();
    let block = heap.allocate(100).expect("room");
    heap.copy_in(block, &pattern(1, 100)).expect("it fits");
    heap.set_root("one", block).expect("a slot");
    heap.allocate(5000).expect("room");
    let path = directory.join("small.img");
    heap.save(&path).expect("it is saved");
    let bytes = std::fs::read(&path).expect("the image is there");
    (path, bytes)
}

#[test]
fn a_heap_comes_back_in_a_segment_a_file_and_in_memory_with_every_offset() {
    let directory = directory();
    let image = directory.path().join("heap.img");
    let (_segment, heap) = new_heap("save");
    let blocks = fill(&heap);
    for compression in COMPRESSIONS.into_iter().filter(|compression| is_built_in(*compression)) {
        let options = SaveOptions::new().compression(compression);
        heap.save_with(&image, &options, |_| ()).expect("it is saved");
        for capacity in [16u64 << 20, 40 << 20] {
            let options = Heap::options().capacity(capacity);
            let loaded = Segment::new("load");
            let in_segment = options.load(&image, loaded.name()).expect("it is loaded");
            let path = directory.path().join(format!("{compression}-{capacity}.heap"));
            let in_file = options.load_file(&image, &path).expect("it is loaded");
            let len = usize::try_from(capacity).expect("it fits");
            let in_memory = Heap::options().load_in(&image, Memory::zeroed(len).expect("memory")).expect("it is loaded");
            for heap in [in_segment, in_file, in_memory] {
                assert_eq!(heap.capacity(), capacity);
                assert_eq!(heap.lanes().expect("lanes"), [], "lanes are fresh");
                assert_holds(&heap, &blocks);
                assert_usable(&heap);
            }
        }
    }
}

#[test]
fn compression_that_was_not_built_in_names_its_feature() {
    let directory = directory();
    let heap = small_heap();
    for compression in COMPRESSIONS.into_iter().filter(|compression| !is_built_in(*compression)) {
        let options = SaveOptions::new().compression(compression);
        let error = heap.save_with(directory.path().join("x"), &options, |_| ()).expect_err("it cannot");
        assert!(matches!(error, Error::NeedsFeature { .. }), "{error}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0, "nothing was written");
}

#[test]
fn compressed_images_are_smaller() {
    let directory = directory();
    let (_segment, heap) = new_heap("compress");
    let block = heap.allocate(1 << 20).expect("room");
    heap.copy_in(block, &b"again and ".repeat(100_000)).expect("it fits");
    let save = |compression| {
        let options = SaveOptions::new().compression(compression);
        let info = heap.save_with(directory.path().join("x"), &options, |_| ()).expect("it is saved");
        assert_eq!(verify(directory.path().join("x")), Ok(info.clone()));
        info.image_len
    };
    let plain = save(Compression::None);
    for compression in COMPRESSIONS.into_iter().skip(1).filter(|compression| is_built_in(*compression)) {
        assert!(save(compression) * 10 < plain, "{compression}");
    }
}

#[test]
fn only_pages_in_use_are_written_and_nothing_of_free_blocks() {
    let directory = directory();
    let image = directory.path().join("heap.img");
    let (_segment, heap) = new_heap("sparse");
    let secret = heap.allocate(100).expect("room");
    let kept = heap.allocate(100).expect("room");
    heap.copy_in(secret, b"the password that was here").expect("it fits");
    heap.copy_in(kept, b"what is still here").expect("it fits");
    heap.deallocate(secret).expect("it is allocated");
    let info = heap.save(&image).expect("it is saved");
    let bytes = std::fs::read(&image).expect("the image is there");
    assert_eq!((info.blocks, info.used, info.image_len), (1, 112, bytes.len() as u64));
    assert!(bytes.len() < 20_000, "{} bytes for one block", bytes.len());
    let contains = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(contains(b"what is still here") && !contains(b"the password"));
}

#[test]
fn an_image_of_an_empty_heap_loads_as_one() {
    let directory = directory();
    let image = directory.path().join("empty.img");
    let info = small_heap().save(&image).expect("it is saved");
    assert_eq!((info.blocks, info.roots, info.data_len), (0, 0, 0));
    let heap = Heap::options().load_in(&image, Memory::zeroed(64 << 10).expect("memory")).expect("it is loaded");
    common::assert_is_empty(&heap);
}

#[test]
fn verify_tells_what_save_told() {
    let directory = directory();
    let image = directory.path().join("heap.img");
    let (_segment, heap) = new_heap("verify");
    let blocks = fill(&heap);
    let info = heap.save(&image).expect("it is saved");
    assert_eq!(info.blocks, blocks.len() as u64);
    assert_eq!(info.used, heap.used_size().expect("stats"));
    assert_eq!(u64::from(info.roots), heap.roots().expect("roots").len() as u64);
    assert_eq!(verify(&image), Ok(info));
}

#[test]
fn progress_rises_to_the_total() {
    let directory = directory();
    let image = directory.path().join("heap.img");
    let (_segment, heap) = new_heap("progress");
    fill(&heap);
    let mut told: Vec<Progress> = Vec::new();
    heap.save_with(&image, &SaveOptions::new(), |progress| told.push(progress)).expect("it is saved");
    let loaded = Segment::new("progress");
    let mut heard: Vec<Progress> = Vec::new();
    Options::new().load_with(&image, loaded.name(), |progress| heard.push(progress)).expect("it is loaded");
    let (mut of_file, mut of_memory): (Vec<Progress>, Vec<Progress>) = Default::default();
    let file = directory.path().join("loaded");
    Options::new().load_file_with(&image, &file, |progress| of_file.push(progress)).expect("it is loaded");
    let memory = Memory::zeroed(16 << 20).expect("memory");
    Options::new().load_in_with(&image, memory, |progress| of_memory.push(progress)).expect("it is loaded");
    for steps in [told, heard, of_file, of_memory] {
        assert!(steps.len() > 2 && steps.is_sorted_by_key(|step| step.done));
        assert!(steps.iter().all(|step| step.total == steps[0].total));
        assert_eq!(steps.last().map(|step| step.done), Some(steps[0].total));
    }
}

#[test]
fn every_changed_byte_of_an_image_is_refused() {
    let directory = directory();
    let (path, good) = small_image(directory.path());
    assert!(verify(&path).is_ok());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let loaded = Heap::options().load_bytes_in(&bad, Memory::zeroed(64 << 10).expect("memory"));
        assert!(loaded.is_err(), "byte {at} of {}", good.len());
    }
}

#[test]
fn an_image_cut_short_or_made_longer_is_refused() {
    let directory = directory();
    let (path, good) = small_image(directory.path());
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).expect("it is written");
        let error = verify(&path).expect_err("it is cut short");
        assert!(matches!(error, Error::CorruptImage { .. }), "{len}: {error}");
    }
    std::fs::write(&path, [good.as_slice(), b"x"].concat()).expect("it is written");
    let error = verify(&path).expect_err("there is something behind its end").to_string();
    assert!(error.contains("something follows"), "{error}");
}

#[test]
fn what_cannot_be_loaded_says_why_and_leaves_no_name() {
    let directory = directory();
    let (path, good) = small_image(directory.path());
    let segment = Segment::new("refused");
    let missing = Heap::load(directory.path().join("nowhere"), segment.name());
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    let small = Heap::options().capacity(32 << 10).load(&path, segment.name());
    assert!(matches!(small, Err(Error::BadCapacity { .. })), "{small:?}");
    std::fs::write(&path, b"no image at all, but long enough for its header".repeat(10)).expect("it is written");
    let foreign = Heap::load(&path, segment.name());
    assert!(matches!(foreign, Err(Error::NotAnImage { .. })), "{foreign:?}");
    let mut newer = good.clone();
    newer[8] = 9;
    std::fs::write(&path, &newer).expect("it is written");
    let newer = Heap::load(&path, segment.name());
    assert!(matches!(newer, Err(Error::WrongImageVersion { found: 9, .. })), "{newer:?}");
    let mut damaged = good;
    let last = damaged.len() - 100;
    damaged[last] ^= 1;
    std::fs::write(&path, &damaged).expect("it is written");
    let damaged = Heap::load(&path, segment.name());
    assert!(matches!(damaged, Err(Error::CorruptImage { .. })), "{damaged:?}");
    assert!(!Path::new(&segment.path()).exists(), "no half of a heap has a name");
}

#[test]
fn a_name_that_is_taken_stays_what_it_is() {
    let directory = directory();
    let (path, _) = small_image(directory.path());
    let (segment, heap) = new_heap("taken");
    let blocks = fill(&heap);
    assert!(matches!(Heap::load(&path, segment.name()), Err(Error::AlreadyExists { .. })));
    assert_holds(&heap, &blocks);
}

#[test]
fn an_image_that_is_replaced_keeps_its_mode_and_leaves_nothing_beside_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    let image = directory.path().join("heap.img");
    let mode = || std::fs::metadata(&image).expect("it is there").permissions().mode() & 0o777;
    let heap = small_heap();
    heap.save(&image).expect("it is saved");
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o640)).expect("it is ours");
    heap.allocate(100).expect("room");
    assert_eq!(heap.save(&image).map(|info| info.blocks), Ok(1));
    assert_eq!(mode(), 0o640);
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 1);
}

#[test]
fn where_an_image_cannot_be_written_the_error_says_so() {
    let directory = directory();
    let heap = small_heap();
    let nowhere = heap.save(directory.path().join("missing/heap.img"));
    assert!(matches!(nowhere, Err(Error::NotFound { .. })), "{nowhere:?}");
    let a_directory = heap.save(directory.path());
    assert!(matches!(a_directory, Err(Error::NotAnImage { .. })), "{a_directory:?}");
}

#[test]
fn a_read_only_handle_saves_too() {
    let directory = directory();
    let image = directory.path().join("heap.img");
    let (segment, heap) = new_heap("read-only");
    let blocks = fill(&heap);
    let lanes = heap.lanes().expect("lanes").len();
    Heap::open_read_only(segment.name()).expect("it is there").save(&image).expect("it is saved");
    assert_eq!(heap.lanes().expect("lanes").len(), lanes, "it has taken no lane");
    let loaded = Segment::new("loaded");
    assert_holds(&Heap::load(&image, loaded.name()).expect("it is loaded"), &blocks);
}

#[test]
fn diff_names_what_was_allocated_freed_and_changed() {
    let directory = directory();
    let (before, after) = (directory.path().join("before.img"), directory.path().join("after.img"));
    let (_segment, heap) = new_heap("diff");
    let blocks: Vec<Offset> = fill(&heap).into_keys().collect();
    heap.set_root("goes", blocks[0]).expect("a slot");
    heap.set_root("moves", blocks[0]).expect("a slot");
    heap.save(&before).expect("it is saved");
    assert!(diff(&before, &before).expect("they are alike").is_empty());

    let (freed, large) = (blocks[1], *blocks.last().expect("there are some"));
    heap.deallocate(freed).expect("it is allocated");
    let changed = [blocks[2], large];
    for block in changed {
        let last = heap.usable_size(block).expect("it is allocated") - 1;
        let mut byte = [0];
        heap.copy_out_at(block, last, &mut byte).expect("it is there");
        heap.copy_in_at(block, last, &[!byte[0]]).expect("it is there");
    }
    let new = heap.allocate(40_000).expect("room");
    heap.remove_root("goes").expect("it is there");
    heap.set_root("moves", blocks[2]).expect("it is there");
    heap.set_root("comes", new).expect("a slot");
    heap.save(&after).expect("it is saved");

    let found = diff(&before, &after).expect("they are alike");
    let offsets = |blocks: &[shmheap::ImageBlock]| blocks.iter().map(|block| block.offset).collect::<Vec<_>>();
    assert_eq!((offsets(&found.allocated), offsets(&found.freed)), (vec![new], vec![freed]));
    assert_eq!(offsets(&found.changed), changed);
    assert_eq!(found.unchanged, blocks.len() as u64 - 3);
    assert_eq!((found.roots_added, found.roots_removed), (vec!["comes".to_owned()], vec!["goes".to_owned()]));
    assert_eq!(found.roots_changed, ["moves"]);

    let other = directory.path().join("other.img");
    small_heap().save(&other).expect("it is saved");
    assert!(matches!(diff(&before, &other), Err(Error::BadOption { .. })));
}

/// What workers do while the heap is saved: allocate and free as fast as they can.
fn churn_role() {
    let heap = Heap::open(&worker::parameter("NAME")).expect("the heap is there");
    let mut random = Random::new(u64::from(std::process::id()));
    let mut blocks: Vec<Offset> = Vec::new();
    worker::say("at work");
    let mut rounds = 0u64;
    while heap.root("stop").expect("roots can be read").is_none() && rounds < 1 << 32 {
        rounds += 1;
        if blocks.len() < 200 || random.below(2) == 0 {
            blocks.extend(heap.allocate(1 + random.below(40_000)).ok());
        } else {
            let block = blocks.swap_remove(random.below(blocks.len()));
            heap.deallocate(block).expect("it is allocated");
        }
        if blocks.len() > 300 {
            blocks.drain(200..).for_each(|block| heap.deallocate(block).expect("it is allocated"));
        }
    }
    worker::say(&rounds.to_string());
}

#[test]
fn a_heap_that_others_are_using_is_saved_whole() {
    let directory = directory();
    let image = directory.path().join("heap.img");
    let (segment, heap) = new_heap("live");
    let mut workers = worker::Worker::start_many(2, "churn", &[("NAME", segment.name())]);
    workers.iter_mut().for_each(|worker| worker.expect("at work"));
    for round in 0..20 {
        let saved: ImageInfo = match round % 2 {
            0 => heap.save(&image).expect("it is saved"),
            _ => heap.freeze().expect("it is frozen").save(&image).expect("it is saved"),
        };
        assert_eq!(verify(&image), Ok(saved));
        let loaded = Heap::options().load_in(&image, Memory::zeroed(16 << 20).expect("memory")).expect("it is loaded");
        assert_usable(&loaded);
    }
    heap.set_root("stop", heap.allocate(16).expect("room")).expect("a slot");
    for worker in &mut workers {
        assert_ne!(worker.line(), "0", "it was at work");
    }
    workers.into_iter().for_each(|worker| assert_eq!(worker.finish(), Vec::<String>::new()));
    assert_emptied(&heap);
}

#[test]
fn worker_entry() {
    worker::dispatch(&[("churn", churn_role)]);
}
