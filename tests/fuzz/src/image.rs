//! Target `image`: any bytes are loaded as an image, and the heap that came of it, if one did, is used.
//!
//! | byte of the input | |
//! |---|---|
//! | 0, bits 0 to 1 | what lies under: 0 nothing, the input is the image; else the image of a small heap |
//! | 0, bit 2 | the checksums stay as they are; else they are made right, as somebody would who has made the image on purpose |
//! | 0, bits 3 to 7 | how many changes follow: a place (16 bits), and what is done there |
//! | then | the changes; operations up to the end |

use std::cell::RefCell;

use shmheap::{Heap, Memory};

use super::template::SMALL;
use super::{Actor, Ground, Input, Operation};

/// Most operations on a heap that was loaded.
const OPERATIONS_MAX: usize = 8;
const HEADER_LEN: usize = 256;
const CHUNK_HEADER_LEN: usize = 32;

struct Stage {
    ground: Ground,
    /// An image of a heap that holds a little of everything.
    image: Vec<u8>,
    bytes: RefCell<Vec<u8>>,
}

impl Stage {
    fn new() -> Self {
        Self { ground: Ground::new(SMALL), image: an_image(), bytes: RefCell::default() }
    }
}

thread_local! {
    static STAGE: Stage = Stage::new();
}

fn an_image() -> Vec<u8> {
    let memory = Memory::zeroed(SMALL).expect("memory");
    let heap = Heap::options().create_in(memory).expect("a heap");
    for (number, size) in [16, 16, 100, 1000, 5000].into_iter().enumerate() {
        let block = heap.allocate(size).expect("room");
        heap.copy_in(block, &[0x55; 16]).expect("it fits");
        heap.set_root(&format!("root {number}"), block).expect("a slot");
    }
    let path =
        std::env::temp_dir().join(format!("shmheap-fuzz-{}-{:?}.img", std::process::id(), std::thread::current().id()));
    heap.save(&path).expect("it is saved");
    let bytes = std::fs::read(&path).expect("it is there");
    std::fs::remove_file(&path).expect("it is ours");
    bytes
}

/// Runs one input.
pub fn image(data: &[u8]) {
    STAGE.with(|stage| run(stage, &mut Input::new(data)));
}

fn run(stage: &Stage, input: &mut Input<'_>) {
    let flags = input.byte();
    let mut bytes = stage.bytes.borrow_mut();
    bytes.clear();
    if flags & 3 == 0 {
        bytes.extend_from_slice(input.clone().bytes(1 << 16));
    } else {
        bytes.extend_from_slice(&stage.image);
    }
    for _ in 0..flags >> 3 {
        change(&mut bytes, input);
    }
    if flags & 4 == 0 {
        sum_up(&mut bytes);
    }
    let loaded = Heap::options().lock_timeout(super::LOCK_TIMEOUT).load_bytes_in(&bytes, stage.ground.memory());
    let Ok(heap) = loaded else { return };
    heap.validate().expect("a heap that was loaded is valid");
    drop(heap);
    let Ok(mut actor) = Actor::enter(&stage.ground) else { panic!("a heap that was loaded can be opened") };
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() || !actor.perform(Operation::of(input.byte()), input) {
            return;
        }
    }
}

/// Overwrites some bytes, takes some away, or puts some in twice.
fn change(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    if bytes.is_empty() {
        return;
    }
    let at = usize::from(input.half()) % bytes.len();
    let what = input.byte();
    let len = usize::from(what >> 2).min(bytes.len() - at);
    match what & 3 {
        0 => bytes[at] = input.byte(),
        1 => {
            let new = input.bytes(len);
            bytes[at..at + new.len()].copy_from_slice(new);
        }
        2 => _ = bytes.drain(at..at + len),
        _ => {
            let twice = bytes[at..at + len].to_vec();
            bytes.splice(at..at, twice);
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Makes every checksum right, as far as the chunks can be followed.
fn sum_up(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN {
        return;
    }
    let heap_sum = crc32fast::hash(&bytes[0x80..0xf8]);
    put(bytes, 0xf8, &heap_sum.to_ne_bytes());
    put(bytes, 0x7c, &[0; 4]);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..0x7c]);
    hasher.update(&bytes[0x80..HEADER_LEN]);
    put(bytes, 0x7c, &hasher.finalize().to_le_bytes());
    let (mut at, mut chunks) = (HEADER_LEN, 0u64);
    while let (Some(kind), Some(len)) = (number(bytes, at), number(bytes, at + 4)) {
        let start = at + CHUNK_HEADER_LEN;
        let Some(end) = start.checked_add(len as usize).filter(|end| *end <= bytes.len()) else { return };
        if kind == 4 && len == 16 {
            put(bytes, start, &chunks.to_le_bytes());
            let whole = crc32fast::hash(&bytes[..at]);
            put(bytes, start + 8, &whole.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[start..end]);
        put(bytes, at + 0x0c, &sum.to_le_bytes());
        let sum = crc32fast::hash(&bytes[at..at + 0x1c]);
        put(bytes, at + 0x1c, &sum.to_le_bytes());
        (at, chunks) = (end, chunks + 1);
    }
}
