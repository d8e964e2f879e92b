//! Errors of creating and opening: options out of range, and objects that are no heap, another's, or damaged.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use common::{Segment, assert_emptied, new_heap};
use shmheap::{Error, Heap, Memory, Offset};
use tempfile::TempDir;

/// Where the header's words stand, and its length without its checksum.
const MAGIC: u64 = 0x00;
const VERSION: u64 = 0x08;
const BYTE_ORDER: u64 = 0x0c;
const PAGE_SHIFT: u64 = 0x18;
const LANES: u64 = 0x1c;
const CREATED: u64 = 0x40;
const CHECKSUM: u64 = 0x78;

#[test]
fn options_out_of_range_are_refused() {
    let segment = Segment::new("options");
    let create = |options: shmheap::Options| options.create(segment.name()).expect_err("it is out of range");
    for (option, value, max) in
        [("lanes", 0, 4096), ("lanes", 4097, 4096), ("root_slots", 0, 65_536), ("root_slots", 65_537, 65_536)]
    {
        let options = Heap::options();
        let options = if option == "lanes" { options.lanes(value) } else { options.root_slots(value) };
        assert_eq!(create(options), Error::BadOption { option, value: u64::from(value), min: 1, max });
    }
    for capacity in [0, 1, 4096, 65_535 & !0xfff, (1 << 46) + 1, u64::MAX] {
        let error = create(Heap::options().capacity(capacity));
        assert!(
            matches!(error, Error::BadCapacity { capacity: found, why } if found == capacity && !why.is_empty()),
            "{error:?}"
        );
    }
    for page_size in [0, 1, 512, 2048, 5000, 12_288, 131_072, 1 << 40] {
        assert_eq!(create(Heap::options().page_size(page_size)), Error::WrongPageSize { page_size, min: 4096 });
    }
    let crowded = create(Heap::options().capacity(64 << 10).lanes(4096));
    assert!(matches!(crowded, Error::BadCapacity { capacity: 65_536, .. }), "{crowded:?}");
    assert!(!Path::new(&segment.path()).exists(), "nothing was left behind");
    assert!(matches!(Memory::zeroed(0), Err(Error::BadCapacity { capacity: 0, .. })));
    let memory = Memory::zeroed(1 << 20).expect("memory");
    let differs = Heap::options().capacity(2 << 20).create_in(memory.clone()).expect_err("the memory is smaller");
    assert_eq!(differs, Error::CapacityMismatch { expected: 2 << 20, actual: 1 << 20 });
    let none = Heap::options().open_in(memory).expect_err("there is no heap in it");
    assert!(matches!(none, Error::NotAHeap { .. }), "{none:?}");
    for capacity in [64 << 10, 65 << 10, 100_000, 1 << 20] {
        let heap = Heap::options().capacity(capacity).create(segment.name()).expect("that is a heap");
        heap.allocate(1000).expect("even the smallest has room");
        assert_emptied(&heap);
        heap.destroy().expect("destroy");
    }
}

/// A heap in a file of its own, with one large block at the start of its data and a root that leads there; detached.
struct Image {
    _directory: TempDir,
    path: PathBuf,
    block: Offset,
    total: u64,
}

impl Image {
    const CAPACITY: u64 = 1 << 20;

    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("heap");
        let heap = Heap::options().capacity(Self::CAPACITY).create_file(&path).expect("create");
        let block = heap.allocate(20_000).expect("room");
        heap.copy_in(block, b"precious").expect("copy");
        heap.set_root("root", block).expect("root");
        Self { _directory: directory, path, block, total: heap.total_size() }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.path).expect("the file is there")
    }

    fn read(&self, at: u64, bytes: &mut [u8]) {
        self.file().read_exact_at(bytes, at).expect("the file is long enough");
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file().write_all_at(bytes, at).expect("the file can be written");
    }

    /// Writes into the header, and puts its checksum right.
    fn forge(&self, at: u64, bytes: &[u8]) {
        self.write(at, bytes);
        let mut header = [0; CHECKSUM as usize];
        self.read(0, &mut header);
        self.write(CHECKSUM, &crc32fast::hash(&header).to_le_bytes());
    }

    /// What all ways of opening say, which must be the same.
    fn error(&self) -> Error {
        let error = Heap::options().open_file(&self.path).expect_err("it cannot be opened");
        let read_only = Heap::options().open_file_read_only(&self.path).expect_err("it cannot be opened");
        assert_eq!(error, read_only);
        error
    }

    fn assert_whole(&self) {
        let heap = Heap::options().open_file(&self.path).expect("it can be opened");
        heap.validate().expect("valid");
        let mut bytes = [0; 8];
        heap.copy_out(heap.root("root").expect("roots").expect("the root"), &mut bytes).expect("copy");
        assert_eq!(&bytes, b"precious");
    }
}

#[test]
fn the_version_the_byte_order_and_the_page_size_of_a_header_are_looked_at_one_by_one() {
    let image = Image::new();
    image.assert_whole();
    for version in [0u32, 1, 2, 3, 77] {
        image.forge(VERSION, &version.to_le_bytes());
        assert_eq!(image.error(), Error::WrongVersion { found: version, supported: 4 });
    }
    image.forge(VERSION, &4u32.to_le_bytes());
    image.assert_whole();

    let mut order = [0; 4];
    image.read(BYTE_ORDER, &mut order);
    order.reverse();
    image.forge(BYTE_ORDER, &order);
    assert_eq!(image.error(), Error::WrongByteOrder);
    order.reverse();
    image.forge(BYTE_ORDER, &order);
    image.assert_whole();

    for (shift, page_size) in [(9u32, 512), (11, 2048), (17, 131_072), (63, 1 << 63), (64, 0)] {
        image.forge(PAGE_SHIFT, &shift.to_le_bytes());
        assert_eq!(image.error(), Error::WrongPageSize { page_size, min: 4096 });
    }
    image.forge(PAGE_SHIFT, &12u32.to_le_bytes());
    image.assert_whole();
}

#[test]
fn a_header_that_is_damaged_or_impossible_is_no_heap() {
    let image = Image::new();
    let not_a_heap = |image: &Image| match image.error() {
        Error::NotAHeap { name, why } => {
            assert_eq!(name, image.name());
            why
        }
        error => panic!("{error:?}"),
    };
    let mut good = [0; 4];
    let mut reasons = Vec::new();
    for at in [MAGIC, BYTE_ORDER, CREATED, CHECKSUM] {
        image.read(at, &mut good);
        image.write(at, &[good[0] ^ 1, good[1], good[2], good[3]]);
        reasons.push(not_a_heap(&image));
        image.write(at, &good);
        image.assert_whole();
    }
    assert_eq!(reasons[2], reasons[3], "a changed byte and a changed checksum are the same to the reader");
    assert!(reasons[0] != reasons[1] && reasons[1] != reasons[2], "{reasons:?}");
    for lanes in [0u32, 4097, u32::MAX] {
        image.forge(LANES, &lanes.to_le_bytes());
        not_a_heap(&image);
    }
}

#[test]
fn what_is_no_heap_at_all_is_said_to_be_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("thing");
    let look = |path: &Path| {
        for opened in [Heap::options().open_file(path), Heap::options().open_file_read_only(path)] {
            let error = opened.expect_err("it is no heap");
            let named =
                matches!(&error, Error::NotAHeap { name, why } if *name == path.display().to_string() && !why.is_empty());
            assert!(named, "{error:?}");
        }
    };
    for len in [0, 1, 100, 4095, 4096, 1 << 20] {
        fs::write(&path, vec![0; len]).expect("write");
        look(&path);
        fs::write(&path, vec![0xff; len]).expect("write");
        look(&path);
    }
    look(directory.path());
    let heap = directory.path().join("heap");
    drop(Heap::options().capacity(1 << 20).create_file(&heap).expect("create"));
    let link = directory.path().join("link");
    symlink(&heap, &link).expect("symlink");
    look(&link);
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    look(&pipe);

    let (segment, other) = (Segment::new("link"), new_heap("target"));
    symlink(other.0.path(), segment.path()).expect("symlink");
    let error = Heap::open(segment.name()).expect_err("a link is not followed");
    assert!(matches!(&error, Error::NotAHeap { name, .. } if name == segment.name()), "{error:?}");
    let exists = Heap::options().create(segment.name()).expect_err("something has the name");
    assert_eq!(exists, Error::AlreadyExists { name: segment.name().to_owned() });
    let dangling = Segment::new("dangling");
    symlink("/dev/shm/leads-nowhere", dangling.path()).expect("symlink");
    let exists = Heap::options().create(dangling.name()).expect_err("something has the name");
    assert_eq!(exists, Error::AlreadyExists { name: dangling.name().to_owned() });
}

#[test]
fn files_that_are_not_there_or_cannot_be_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let name_of = |path: &Path| path.display().to_string();
    let none = directory.path().join("none");
    let not_found = Error::NotFound { name: name_of(&none) };
    assert_eq!(Heap::options().open_file(&none).expect_err("it is not there"), not_found);
    assert_eq!(Heap::options().open_file_read_only(&none).expect_err("it is not there"), not_found);
    let deep = directory.path().join("no/such/directory");
    let error = Heap::options().create_file(&deep).expect_err("its directory is not there");
    assert_eq!(error, Error::NotFound { name: name_of(&deep) });
    let file = directory.path().join("file");
    fs::write(&file, b"not a directory").expect("write");
    assert_eq!(Heap::options().create_file(&file).expect_err("it exists"), Error::AlreadyExists { name: name_of(&file) });
    let error = Heap::options().open_file(file.join("heap")).expect_err("a file is no directory");
    assert!(matches!(error, Error::System { call, errno: libc::ENOTDIR } if !call.is_empty()), "{error:?}");
    assert!(error.to_string().contains("Not a directory"), "{error}");
    assert_eq!(fs::read(&file).expect("read"), b"not a directory");
    let names: Vec<_> = fs::read_dir(directory.path()).expect("list").collect();
    assert_eq!(names.len(), 1, "nothing was left behind: {names:?}");
}

#[test]
fn a_region_that_is_not_as_long_as_its_header_or_the_options_say_is_refused() {
    let image = Image::new();
    for actual in [Image::CAPACITY - 1, Image::CAPACITY / 2, 8192, 4096, Image::CAPACITY + 1, Image::CAPACITY * 2] {
        let copy = Image::new();
        copy.file().set_len(actual).expect("truncate");
        assert_eq!(copy.error(), Error::CapacityMismatch { expected: Image::CAPACITY, actual });
    }
    for asked in [64 << 10, Image::CAPACITY / 2, Image::CAPACITY + 4096, 1 << 40] {
        let error = Heap::options().capacity(asked).open_file(&image.path).expect_err("it has another capacity");
        assert_eq!(error, Error::CapacityMismatch { expected: asked, actual: Image::CAPACITY });
    }
    Heap::options().capacity(Image::CAPACITY).open_file(&image.path).expect("it has the capacity that is asked for");
    let (segment, heap) = new_heap("capacity");
    let options = Heap::options().capacity(1 << 20);
    let expected = Error::CapacityMismatch { expected: 1 << 20, actual: heap.capacity() };
    assert_eq!(options.open(segment.name()).expect_err("another capacity"), expected);
    assert_eq!(options.open_or_create(segment.name()).expect_err("another capacity"), expected);
    assert_eq!(options.open_read_only(segment.name()).expect_err("another capacity"), expected);
    image.assert_whole();
}

#[test]
fn a_page_entry_that_was_scribbled_on_is_corrupt_and_says_where() {
    let image = Image::new();
    // The page table follows the pages, on a cache line of its own; the block has its first page.
    let entry = (image.block.get() + image.total).next_multiple_of(64);
    let mut good = [0; 8];
    image.read(entry, &mut good);
    for (bad, also_deallocate) in [(good[0] | 0xf, true), (good[0] & 0xf0 | 3, false)] {
        image.write(entry, &[bad]);
        for heap in [Heap::options().open_file(&image.path), Heap::options().open_file_read_only(&image.path)] {
            let heap = heap.expect("the header is whole");
            let Err(Error::Corrupt(corruption)) = heap.validate() else { panic!("{:?}", heap.validate()) };
            assert_eq!(corruption.at, entry, "{corruption}");
            assert!(!corruption.what.is_empty() && Error::Corrupt(corruption).to_string().contains(corruption.what));
            if also_deallocate && !heap.is_read_only() {
                assert!(matches!(heap.info(image.block), Err(Error::Corrupt(found)) if found.at == entry));
                assert!(matches!(heap.deallocate(image.block), Err(Error::Corrupt(found)) if found.at == entry));
                assert!(matches!(heap.copy_in(image.block, b"x"), Err(Error::Corrupt(found)) if found.at == entry));
            }
        }
        image.write(entry, &good);
        image.assert_whole();
    }
}

#[test]
fn a_header_that_changes_while_the_heap_is_attached_is_corrupt() {
    let image = Image::new();
    let heap = Heap::options().open_file(&image.path).expect("open");
    let mut good = [0; 4];
    for at in [MAGIC, LANES, CREATED] {
        image.read(at, &mut good);
        image.write(at, &[good[0] ^ 0x55]);
        let Err(Error::Corrupt(corruption)) = heap.validate() else { panic!("{:?}", heap.validate()) };
        assert_eq!(corruption.at, 0, "{corruption}");
        heap.allocate(100).and_then(|block| heap.deallocate(block)).expect("what was read at attach goes on being used");
        image.write(at, &good);
        heap.validate().expect("valid again");
    }
    assert_emptied(&heap);
}

#[test]
fn errors_that_can_pass_by_themselves_are_told_from_those_that_cannot() {
    let name = || "name".to_owned();
    let lasting = [
        Error::ZeroSize,
        Error::ReadOnly,
        Error::Severed,
        Error::WrongByteOrder,
        Error::NotFound { name: name() },
        Error::AlreadyExists { name: name() },
        Error::DoubleFree { offset: 1 },
        Error::RootsFull { slots: 1 },
        Error::TooLarge { requested: 2, max: 1 },
    ];
    assert!(lasting.iter().all(|error| !error.is_transient()));
    let passing = [Error::NoSpace { needed: 2, available: 1 }, Error::LockTimeout { holder_pid: 1, waited_ms: 1 }];
    assert!(passing.iter().all(Error::is_transient));
}
