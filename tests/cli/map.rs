//! `map`: the picture on a terminal and without one, its files, its zoom, its numbers.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use serde_json::Value;
use shmheap::Offset;

use crate::harness::{Heap, fine, json, program, refused, run};

/// A heap with a hundred blocks of 300 bytes, three of 1000, the second of which is free, and a large one. It stays
/// attached. Returns the places of those of 1000 bytes and of the large one.
fn lively(tag: &str) -> (Heap, shmheap::Heap, Vec<Offset>) {
    let heap = Heap::new(tag);
    let attached = heap.open();
    for _ in 0..100 {
        attached.allocate(300).expect("a block");
    }
    let mut blocks: Vec<Offset> = (0..3).map(|_| attached.allocate(1000).expect("a block")).collect();
    attached.deallocate(blocks.remove(1)).expect("it was allocated");
    blocks.push(attached.allocate(500_000).expect("a large block"));
    (heap, attached, blocks)
}

/// The rows of cells of a picture without colours.
fn cells(picture: &str) -> String {
    let rows = picture.lines().filter(|line| line.starts_with("0x") && !line.contains(" lies in "));
    rows.filter_map(|row| row.rsplit(' ').next()).collect()
}

/// Runs the program with colours, though nobody looks.
fn coloured(arguments: &[&str], terminal: &str) -> String {
    let output = program().args(arguments).env("CLICOLOR_FORCE", "1").env("COLORTERM", terminal).output();
    String::from_utf8(output.expect("it can be started").stdout).expect("UTF-8")
}

fn files_in(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    entries.map(|name| name.into_string().expect("UTF-8")).collect()
}

#[test]
fn a_heap_is_drawn_with_letters_where_there_are_no_colours() {
    let (heap, _attached, _blocks) = lively("map-letters");
    let picture = fine(&["map", heap.name()]);
    assert!(
        picture.starts_with(heap.name()) && picture.contains("16 MiB: ") && picture.contains("fragmentation"),
        "{picture}"
    );
    assert!(!picture.contains('\u{1b}') && picture.is_ascii(), "{picture}");
    assert!(picture.lines().all(|line| line.chars().count() <= 110), "{picture}");
    let cells = cells(&picture);
    // 16 MiB in cells of 16 KiB: the large block has 500,000 bytes.
    assert!(picture.contains("One cell is 16 KiB, 4 pages"), "{picture}");
    assert_eq!(cells.len(), 1024);
    assert!((30..=31).contains(&cells.matches('#').count()), "{picture}");
    assert!(cells.starts_with('=') && cells.ends_with('=') && cells.contains("...."), "{picture}");
    assert!((2..=3).contains(&cells.matches('C').count()), "{picture}");
    for entry in ["cC slab, blocks to 1 KiB", "# large block", ". free, no memory taken", "= metadata"] {
        assert!(picture.contains(entry), "{entry} in {picture}");
    }
}

#[test]
fn what_has_no_owner_any_more_is_marked() {
    let (heap, attached, _blocks) = lively("map-ownerless");
    assert!(!fine(&["map", heap.name()]).contains("orphan: "));
    drop(attached);
    let picture = fine(&["map", heap.name()]);
    let cells = cells(&picture);
    assert!(picture.contains("orphan: its owner has gone") && cells.contains('@'), "{picture}");
    assert!(cells.contains(['w', 'W']) && !cells.contains(['c', 'C', '#']), "{picture}");
}

#[test]
fn colours_are_as_many_as_the_terminal_has() {
    let (heap, _attached, _blocks) = lively("map-colours");
    let arguments = ["map", heap.name()];
    let (all, few) = (coloured(&arguments, "truecolor"), coloured(&arguments, ""));
    assert!(all.contains("38;2;180;192;210") && !all.contains("38;5;"), "{all}");
    assert!(few.contains("38;5;") && !few.contains("38;2;"), "{few}");
    // 1024 or 2048 cells, two in a character.
    let halves = all.matches('\u{2580}').count();
    assert!((512..=1024).contains(&halves) && few.matches('\u{2580}').count() == halves, "{halves}");
    assert!(!run(&arguments).stdout.contains('\u{2580}'));
}

#[test]
fn the_picture_is_written_as_svg_and_png_as_a_whole() {
    let (heap, _attached, _blocks) = lively("map-files");
    let folder = tempfile::tempdir().expect("a folder");
    let [svg, png, link] = ["map.svg", "map.png", "link.svg"].map(|name| folder.path().join(name));
    std::fs::write(&svg, "what stood there before").expect("a file");
    symlink("map.svg", &link).expect("a link");
    // Who has the old file open keeps it: it is replaced, not written over.
    let old = std::fs::File::open(&svg).expect("the old file");
    let [svg_text, png_text, link_text] = [&svg, &png, &link].map(|path| path.to_str().expect("UTF-8"));
    let said = fine(&["map", heap.name(), "--svg", svg_text, "--png", png_text]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().next().is_some_and(|line| line.starts_with(svg_text)) && said.contains("KiB"), "{said}");
    let drawing = std::fs::read_to_string(&svg).expect("it was written");
    assert!(drawing.starts_with("<svg") && drawing.ends_with("</svg>\n") && drawing.contains("large block"), "{drawing}");
    assert_eq!(std::io::read_to_string(old).expect("the old file"), "what stood there before");
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&png).expect("it was written")));
    let mut reader = decoder.read_info().expect("it is a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it fits into memory")];
    let frame = reader.next_frame(&mut pixels).expect("it is a whole one");
    assert!(frame.width > 1000 && frame.height > 500, "{frame:?}");
    let colours: BTreeSet<&[u8]> = pixels.chunks(3).collect();
    for colour in [[0x22, 0x26, 0x2c], [0x6a, 0x5d, 0x52], [0xf4, 0xf5, 0xf7], [0xff, 0xff, 0xff]] {
        assert!(colours.contains(&colour[..]), "{colour:x?} was painted");
    }
    let written = json(&["map", heap.name(), "--svg", link_text]);
    assert_eq!(written["written"][0]["bytes"], drawing.len());
    assert!(link.is_symlink() && std::fs::read_to_string(&svg).is_ok_and(|again| again == drawing), "a link stays one");
    assert_eq!(files_in(folder.path()), ["link.svg", "map.png", "map.svg"].map(String::from).into(), "nothing else is left");
}

#[test]
fn a_file_that_cannot_be_written_is_told_with_its_path_and_why() {
    let (heap, _attached, _blocks) = lively("map-refused");
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("nowhere/map.png");
    let nowhere = nowhere.to_str().expect("UTF-8");
    let error = refused(3, &["map", heap.name(), "--png", nowhere]);
    assert!(error.contains(&format!("cannot write {nowhere}: No such file")), "{error}");
    let error = refused(3, &["map", heap.name(), "--svg", folder.path().to_str().expect("UTF-8")]);
    assert!(error.contains("it is a directory"), "{error}");
    assert!(files_in(folder.path()).is_empty());
}

#[test]
fn the_span_around_an_offset_is_shown_block_by_block() {
    let (heap, attached, blocks) = lively("map-zoom");
    let inside = format!("{:#x}", blocks[1].get() + 5);
    let slab = fine(&["map", heap.name(), "--at", &inside]);
    assert!(slab.contains("blocks of 1 KiB in") && slab.contains(", 2 allocated, of lane 1 (pid "), "{slab}");
    assert!(
        slab.contains(&format!("{inside} lies in block 2, which starts at {:#x}: allocated", blocks[1].get())),
        "{slab}"
    );
    assert!(cells(&slab).starts_with("C.C."), "{slab}");
    let told = json(&["map", heap.name(), "--slab", &inside]);
    assert_eq!(
        (told["kind"].as_str(), told["block_size"].as_u64(), told["asked"].as_u64()),
        (Some("slab"), Some(1024), Some(2))
    );
    let allocated: Vec<u64> = told["blocks"]
        .as_array()
        .expect("blocks")
        .iter()
        .filter(|block| block["allocated"] == true)
        .filter_map(|block| block["offset"].as_u64())
        .collect();
    assert_eq!(allocated, [blocks[0].get(), blocks[1].get()]);

    let large = blocks[2].get();
    let shown = fine(&["map", heap.name(), "--at", &(large + 100_000).to_string()]);
    assert!(shown.contains(&format!("large block at {large:#x}")) && shown.contains("492 KiB, of lane 1"), "{shown}");
    drop(attached);
    assert_eq!(json(&["map", heap.name(), "--at", &large.to_string()])["orphan"], true);
}

#[test]
fn an_offset_at_which_no_page_is_makes_no_sense() {
    let heap = Heap::new("map-outside");
    for at in ["0", "0xffffffffffffffff", "16777215"] {
        let error = refused(2, &["map", heap.name(), "--at", at]);
        assert!(error.contains("lies outside the pages") && error.contains("shmheap map"), "{error}");
    }
    assert!(refused(2, &["map", heap.name(), "--at", "here"]).contains("0x3039"));
}

#[test]
fn the_spans_are_told_as_numbers() {
    let (heap, attached, blocks) = lively("map-numbers");
    let told = json(&["map", heap.name()]);
    let spans = told["spans"].as_array().expect("spans");
    let sum: u64 = spans.iter().filter_map(|span| span["len"].as_u64()).sum();
    assert_eq!((Some(sum), told["capacity"].as_u64()), (told["pages_bytes"].as_u64(), Some(16 << 20)));
    assert_eq!((&told["damage"], told["used"].as_u64()), (&Value::Null, attached.used_size().ok()));
    let at = |offset: Offset| spans.iter().find(|span| span["offset"].as_u64() == Some(offset.get())).expect("a span");
    let slab = at(blocks[0]);
    assert_eq!((slab["kind"].as_str(), slab["allocated"].as_u64(), slab["lane"].as_u64()), (Some("slab"), Some(2), Some(1)));
    assert_eq!((at(blocks[2])["kind"].as_str(), at(blocks[2])["block_size"].is_null()), (Some("large"), true));
}

/// Changes a word of a segment.
fn scribble(heap: &Heap, at: u64, word: u64) {
    let file = std::fs::File::options().write(true).open(heap.path()).expect("the segment");
    file.write_all_at(&word.to_ne_bytes(), at).expect("it can be changed");
}

/// Where the page table's entry for a page stands (docs/FORMAT.md).
fn entry_of(heap: &shmheap::Heap, page: Offset) -> u64 {
    let table = (heap.pages_start() + heap.total_size()).next_multiple_of(64);
    table + (page.get() - heap.pages_start()) / heap.page_size() * 8
}

#[test]
fn a_damaged_heap_is_drawn_as_far_as_it_goes() {
    let (heap, attached, blocks) = lively("map-damaged");
    let entry = entry_of(&attached, blocks[2]);
    drop(attached);
    scribble(&heap, entry, 0xffff_ffff << 32 | 2);
    let ran = run(&["map", heap.name()]);
    let cells = cells(&ran.stdout);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("damaged: C3") || ran.stdout.contains("damaged: the heap is corrupt"), "{ran:?}");
    assert!(ran.stderr.contains("corrupt") && ran.stderr.contains("shmheap repair"), "{ran:?}");
    assert!(cells.contains('W') || cells.contains('w'), "what stands before the damage is drawn: {ran:?}");
    assert!(cells.contains("????") && ran.stdout.contains("? damaged: cannot be told"), "{ran:?}");
    let told: Value = serde_json::from_str(&run(&["map", heap.name(), "--json"]).stdout).expect("JSON all the same");
    assert!(
        told["damage"].is_string()
            && told["used"].is_null()
            && told["spans"].as_array().is_some_and(|spans| spans.iter().all(|span| span["kind"] == "slab"))
    );
    let error = refused(1, &["map", heap.name(), "--at", &blocks[2].to_string()]);
    assert!(error.contains("the page table is damaged") && error.contains("repair"), "{error}");
}

#[test]
fn whatever_stands_in_the_tables_the_picture_comes_to_its_end() {
    let (heap, attached, blocks) = lively("map-hostile");
    let entries = blocks.iter().map(|block| entry_of(&attached, *block));
    let pages_high = 0xc0;
    let places: Vec<u64> = entries.chain([pages_high]).collect();
    drop(attached);
    for word in [u64::MAX, 1 << 63, 1, 0x3f01, 0xff_0001, 5, 4, 2] {
        places.iter().for_each(|at| scribble(&heap, *at, word));
        for arguments in [&["map", heap.name()][..], &["map", heap.name(), "--at", &blocks[0].to_string()]] {
            let ran = run(arguments);
            assert!([0, 1, 2, 3].contains(&ran.code) && !ran.stderr.contains("panicked"), "{word:#x}: {ran:?}");
        }
    }
}

#[test]
fn what_is_no_heap_is_not_drawn() {
    let heap = Heap::unborn("map-foreign");
    std::fs::write(heap.path(), vec![0x5a; 100_000]).expect("a segment");
    assert!(refused(1, &["map", heap.name()]).contains("is no heap"));
    assert!(refused(3, &["map", "/nowhere/at/all"]).contains("there is no file"));
}
