//! Memory that forked processes share outside of any heap: how an operation ended, and where its blocks are.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use shmheap::Offset;

/// Bytes of a board.
const LEN: usize = 8192;
/// Words at its start; the rest is text.
const WORDS: usize = 256;
/// The word with the length of the text.
const TEXT_LEN: usize = WORDS - 1;
/// Most characters of a text.
const TEXT_MAX: usize = LEN - WORDS * 8;
/// What an operation says that has not ended.
const UNFINISHED: &str = "unfinished";

/// A board; children that are forked after it was made have it too.
#[derive(Debug)]
pub(crate) struct Board {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, and is reached by atomic words and by bytes that have one writer.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    pub(crate) fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED, "mmap");
        Self { base: NonNull::new(address.cast()).expect("mmap gives no null") }
    }

    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS, "a board has {WORDS} words");
        // SAFETY: the word lies in the mapping, is aligned to 8, and everybody reaches it as an atomic.
        let address = unsafe { self.base.as_ptr().add(index * 8) };
        // SAFETY: as above; the mapping lives as long as the board.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    /// Where the bytes of a text stand.
    fn text(&self) -> *mut u8 {
        // SAFETY: the words end within the mapping.
        unsafe { self.base.as_ptr().add(WORDS * 8) }
    }

    /// Says how an operation ended.
    pub(crate) fn say(&self, text: &str) {
        let len = text.len().min(TEXT_MAX);
        // SAFETY: `len` bytes fit behind the words; nobody reads them before the length is stored.
        unsafe { self.text().copy_from_nonoverlapping(text.as_ptr(), len) };
        self.word(TEXT_LEN).store(len as u64 + 1, Ordering::Release);
    }

    /// What was said last; [`UNFINISHED`] if nothing was since the board was cleared.
    pub(crate) fn said(&self) -> String {
        let Some(len) = self.word(TEXT_LEN).load(Ordering::Acquire).checked_sub(1) else { return UNFINISHED.to_owned() };
        let mut bytes = vec![0; usize::try_from(len).expect("a text is short").min(TEXT_MAX)];
        // SAFETY: the bytes were written before the length, and their writer says nothing more.
        unsafe { self.text().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// True if something was said since the board was cleared.
    pub(crate) fn is_finished(&self) -> bool {
        self.word(TEXT_LEN).load(Ordering::Acquire) != 0
    }

    /// Nothing is said any more.
    pub(crate) fn clear(&self) {
        self.word(TEXT_LEN).store(0, Ordering::Release);
    }

    /// Writes down where blocks are, for the other process of a pair.
    pub(crate) fn note_blocks(&self, blocks: &[Offset]) {
        self.word(0).store(blocks.len() as u64, Ordering::Release);
        for (index, block) in blocks.iter().enumerate() {
            self.word(index + 1).store(block.get(), Ordering::Release);
        }
    }

    /// The blocks that were written down.
    pub(crate) fn blocks(&self) -> Vec<Offset> {
        let count = usize::try_from(self.word(0).load(Ordering::Acquire)).expect("few blocks");
        (1..=count).filter_map(|index| Offset::new(self.word(index).load(Ordering::Acquire))).collect()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.base.as_ptr().cast(), LEN) };
    }
}

/// What an operation says of its end.
pub(crate) fn outcome_of<T>(result: &shmheap::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}
