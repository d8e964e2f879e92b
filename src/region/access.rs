//! Checked access to the region: words, bytes, and the memory behind them.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Mapping;
use super::parts::{Data, Items};
use crate::error::{Corruption, Result};
use crate::sys::gate::Gate;
use crate::sys::object::Object;
use crate::sys::system;

/// The bytes of one attachment. Offsets into it are plain integers here; what may stand where is `format`'s business.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: u64,
    pub(super) entries: Items<AtomicU64>,
    pub(super) pairs: Items<[AtomicU64; 2]>,
    pub(super) data: Data,
    /// What reserves and gives back memory; none for the caller's memory, which is all there from the start.
    object: Option<Arc<Object>>,
    /// The kernel's page size less one.
    os_page_mask: u64,
    mapping: Mapping,
}

// SAFETY: `base` points into `mapping`, which may be used from any thread; every access here is by atomic word, or a copy
// made of atomic accesses.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Bytes of a word.
pub(super) const WORD: u64 = 8;

impl Region {
    pub(crate) fn new(mapping: Mapping, object: Option<Arc<Object>>) -> Self {
        let (base, len) = (mapping.base(), mapping.len());
        Self {
            base,
            len,
            entries: Items::none(),
            pairs: Items::none(),
            data: Data::none(),
            object,
            os_page_mask: crate::sys::os_page_size().saturating_sub(1),
            mapping,
        }
    }

    /// 64 KiB of plain memory.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let memory = super::Memory::zeroed(65_536).unwrap_or_else(|error| panic!("{error}"));
        Self::new(Mapping::memory(memory), None)
    }

    /// Bytes in the region.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// False if the mapping may only be read.
    pub(crate) fn is_writable(&self) -> bool {
        self.mapping.is_writable()
    }

    /// The object behind the region, where there is one.
    pub(crate) fn object(&self) -> Option<&Arc<Object>> {
        self.object.as_ref()
    }

    /// The address of `at`, if `len` bytes from there lie in the region (R1).
    #[inline]
    pub(super) fn address(&self, at: u64, len: u64) -> Option<NonNull<u8>> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        let distance = usize::try_from(at).ok()?;
        // SAFETY: R1 was checked above: the result lies in the mapping, or one past it when `len` is zero.
        Some(unsafe { self.base.add(distance) })
    }

    /// The 64-bit word at `at`.
    ///
    /// # Panics
    ///
    /// If it does not lie in the region or is not aligned: places come from the layout, which was checked at attach, so
    /// that would be a mistake of this library, not of the region's bytes.
    #[inline]
    pub(crate) fn word(&self, at: u64) -> &AtomicU64 {
        assert!(
            at.is_multiple_of(WORD) && at <= self.len.wrapping_sub(WORD),
            "a word's place comes from the checked layout"
        );
        // SAFETY: R1: `at + 8 <= len`; `len` is at least 8 for every region (attach refuses less than 64 KiB), so the
        // subtraction above did not wrap.
        let address = unsafe { self.base.as_ptr().add(at as usize) };
        // SAFETY: R1 and R2 hold (asserted; the base is aligned to 4096); all access to shared words is atomic; the
        // mapping outlives `self`.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    /// The gate at `at`. Panics as [`Self::word`] does.
    pub(crate) fn gate(&self, at: u64) -> &Gate {
        assert!(
            at.is_multiple_of(WORD) && at <= self.len.wrapping_sub(2 * WORD),
            "a word's place comes from the checked layout"
        );
        // SAFETY: R1: `at + 16 <= len`, as in `word`.
        let address = unsafe { self.base.add(at as usize) }.cast::<Gate>();
        // SAFETY: R1 and R2 hold (asserted); a gate is two atomic words; the mapping outlives `self`.
        unsafe { address.as_ref() }
    }

    /// The 32-bit word at `at`. Panics as [`Self::word`] does.
    #[inline]
    pub(crate) fn half(&self, at: u64) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at <= self.len.wrapping_sub(WORD), "a word's place comes from the checked layout");
        // SAFETY: R1 holds, as in `word`.
        let address = unsafe { self.base.as_ptr().add(at as usize) };
        // SAFETY: R1 and R2 hold, as in `word`.
        unsafe { AtomicU32::from_ptr(address.cast()) }
    }

    /// The offset of an address in this process; `None` outside the region.
    pub(crate) fn offset_of(&self, address: NonNull<u8>) -> Option<u64> {
        let distance = address.addr().get().checked_sub(self.base.addr().get())?;
        u64::try_from(distance).ok().filter(|at| *at < self.len)
    }

    /// Copies `bytes` to `at`; false, and nothing is written, if they do not fit in the region.
    ///
    /// Word by word with relaxed atomics: another thread or process that writes there at the same time makes the
    /// contents a mixture, never undefined behaviour.
    pub(crate) fn copy_in(&self, at: u64, bytes: &[u8]) -> bool {
        let Some(mut cursor) = self.words_around(at, bytes.len()) else { return false };
        let (head, rest) = bytes.split_at(split(at, bytes.len()));
        let (whole, tail) = rest.as_chunks::<8>();
        if !head.is_empty() {
            let first = usize::try_from(at % WORD).unwrap_or(0);
            store_part(cursor.word(), first, head);
        }
        whole.iter().for_each(|word| cursor.word().store(u64::from_ne_bytes(*word), Ordering::Relaxed));
        if !tail.is_empty() {
            store_part(cursor.word(), 0, tail);
        }
        true
    }

    /// Copies from `at` to `bytes`; false, and nothing is read, if they do not lie in the region.
    pub(crate) fn copy_out(&self, at: u64, bytes: &mut [u8]) -> bool {
        let Some(mut cursor) = self.words_around(at, bytes.len()) else { return false };
        let (head, rest) = bytes.split_at_mut(split(at, bytes.len()));
        let (whole, tail) = rest.as_chunks_mut::<8>();
        if !head.is_empty() {
            let first = usize::try_from(at % WORD).unwrap_or(0);
            load_part(cursor.word(), first, head);
        }
        whole.iter_mut().for_each(|word| *word = cursor.word().load(Ordering::Relaxed).to_ne_bytes());
        if !tail.is_empty() {
            load_part(cursor.word(), 0, tail);
        }
        true
    }

    /// Copies bytes out of the object behind the region, or out of the region where there is none. Unlike [`Self::copy_out`]
    /// it reaches memory that was never reserved, or was given back, without reserving it, and cannot be hit by a signal.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        match &self.object {
            Some(object) => object.read_at(at, bytes),
            None if self.copy_out(at, bytes) => Ok(()),
            None => Err(Corruption::new("bytes outside the region", at).into()),
        }
    }

    /// Copies bytes into the object behind the region, or into the region where there is none.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let fits = at.checked_add(as_u64(bytes.len())).is_some_and(|end| end <= self.len);
        match &self.object {
            Some(object) if fits => object.write_at(at, bytes),
            None if self.copy_in(at, bytes) => Ok(()),
            _ => Err(Corruption::new("bytes outside the region", at).into()),
        }
    }

    /// A cursor at the word in which `at` lies, if all words that the bytes touch lie in the region.
    fn words_around(&self, at: u64, len: usize) -> Option<Cursor> {
        let end = at.checked_add(as_u64(len))?.checked_next_multiple_of(WORD)?;
        let start = at & !(WORD.wrapping_sub(1));
        self.address(start, end.checked_sub(start)?).map(Cursor)
    }

    /// Copies `len` bytes from one place to another, both multiples of 8 that do not overlap; false if either does not
    /// lie in the region.
    pub(crate) fn copy_within(&self, from: u64, to: u64, len: u64) -> bool {
        let rounded = len.next_multiple_of(WORD);
        let (Some(source), Some(target)) = (self.address(from, rounded), self.address(to, rounded)) else {
            return false;
        };
        let (mut source, mut target) = (Cursor(source), Cursor(target));
        // Four at a time: nobody unrolls loops over atomic words.
        for _ in 0..rounded / (4 * WORD) {
            let words = [source.word(), source.word(), source.word(), source.word()];
            let values = words.map(|word| word.load(Ordering::Relaxed));
            values.into_iter().for_each(|value| target.word().store(value, Ordering::Relaxed));
        }
        for _ in 0..rounded / WORD % 4 {
            target.word().store(source.word().load(Ordering::Relaxed), Ordering::Relaxed);
        }
        true
    }

    /// Zeroes `len` bytes at `at`, a multiple of 8; false if they do not lie in the region.
    pub(crate) fn zero(&self, at: u64, len: u64) -> bool {
        let rounded = len.next_multiple_of(WORD);
        let Some(address) = self.address(at, rounded) else { return false };
        let mut cursor = Cursor(address);
        for _ in 0..rounded / WORD {
            cursor.word().store(0, Ordering::Relaxed);
        }
        true
    }

    /// Reserves memory for these bytes, rounded outwards to OS pages, so that touching them cannot fail.
    pub(crate) fn reserve(&self, at: u64, len: u64) -> Result<()> {
        self.back(at, len)?;
        if self.object.is_some() {
            let (start, end) = self.outward(at, len);
            self.populate(start, end);
        }
        Ok(())
    }

    /// As [`Self::reserve`], without entering the memory into this process's page table, for which it would have to be
    /// zeroed: for what is not needed now, or is going to be written as a whole.
    pub(crate) fn back(&self, at: u64, len: u64) -> Result<()> {
        let Some(object) = &self.object else { return Ok(()) };
        let (start, end) = self.outward(at, len);
        if start == end {
            return Ok(());
        }
        // Reserving would make an object longer that somebody has cut, with zeros where something stood.
        object.check_len(self.len)?;
        object.reserve(start, end.saturating_sub(start))
    }

    /// Gives the memory behind these bytes back, rounded inwards to OS pages; returns how many bytes those are.
    pub(crate) fn give_back(&self, at: u64, len: u64) -> Result<u64> {
        let Some(object) = &self.object else { return Ok(0) };
        let start = at.saturating_add(self.os_page_mask) & !self.os_page_mask;
        let end = at.saturating_add(len).min(self.len) & !self.os_page_mask;
        if start >= end {
            return Ok(0);
        }
        object.give_back(start, end.saturating_sub(start))?;
        Ok(end.saturating_sub(start))
    }

    /// Fails if the object behind the region has become shorter than the region.
    pub(crate) fn check_whole(&self) -> Result<()> {
        self.object.as_ref().map_or(Ok(()), |object| object.check_len(self.len))
    }

    /// Writes these bytes, rounded outwards to OS pages, to the disk behind the region, and returns when they are there.
    pub(crate) fn sync(&self, at: u64, len: u64) -> Result<()> {
        let (start, end) = self.outward(at, len);
        let len = end.saturating_sub(start);
        let (Some(address), Ok(len)) = (self.address(start, len), usize::try_from(len)) else { return Ok(()) };
        // SAFETY: R1: the range lies in the mapping. The call changes no byte.
        let done = unsafe { libc::msync(address.as_ptr().cast(), len, libc::MS_SYNC) };
        if done == 0 { Ok(()) } else { Err(system("msync", nix::errno::Errno::last())) }
    }

    fn outward(&self, at: u64, len: u64) -> (u64, u64) {
        let start = at & !self.os_page_mask;
        let end = at.saturating_add(len).saturating_add(self.os_page_mask).min(self.len);
        let end = if end == self.len { end } else { end & !self.os_page_mask };
        (start.min(end), end)
    }

    /// Enters reserved pages into this process's page table in one call, which is cheaper than a fault for each.
    fn populate(&self, start: u64, end: u64) {
        let len = end.saturating_sub(start);
        let (Some(address), Ok(len)) = (self.address(start, len), usize::try_from(len)) else { return };
        // SAFETY: R1: the range lies in the mapping. The call fails on an old kernel, and changes no byte.
        let _ = unsafe { libc::madvise(address.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
    }
}

/// How many of `len` bytes that start at `at` stand before the first aligned word that they fill or begin.
fn split(at: u64, len: usize) -> usize {
    usize::try_from(at.wrapping_neg() % WORD).unwrap_or(0).min(len)
}

/// Stores bytes into a word, from its byte `first` on, and leaves its other bytes alone. Always by the word's own width:
/// accesses of different widths to one place must not race.
fn store_part(word: &AtomicU64, first: usize, bytes: &[u8]) {
    let mut mask = [0u8; 8];
    let mut value = [0u8; 8];
    let places = mask.iter_mut().zip(&mut value).skip(first);
    places.zip(bytes).for_each(|((mask, value), byte)| (*mask, *value) = (0xff, *byte));
    let (mask, value) = (u64::from_ne_bytes(mask), u64::from_ne_bytes(value));
    // In one step: two who clear first and set then would leave what neither wrote. It is tried again only when another's
    // store came in between, so that somebody always goes on.
    let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now & !mask | value));
}

/// Loads bytes from a word, from its byte `first` on.
fn load_part(word: &AtomicU64, first: usize, bytes: &mut [u8]) {
    let value = word.load(Ordering::Relaxed).to_ne_bytes();
    bytes.iter_mut().zip(value.iter().skip(first)).for_each(|(to, from)| *to = *from);
}

/// A place that moves through bytes that `Region::address` has checked.
struct Cursor(NonNull<u8>);

impl Cursor {
    #[inline]
    fn advance(&mut self, count: usize) -> NonNull<u8> {
        let here = self.0;
        // SAFETY: R1: the copies above advance by no more than the length that `Region::address` checked.
        self.0 = unsafe { here.add(count) };
        here
    }

    #[inline]
    fn word<'a>(&mut self) -> &'a AtomicU64 {
        let here = self.advance(8);
        // SAFETY: R1 (see `advance`) and R2: cursors start at multiples of 8 and advance by 8.
        unsafe { AtomicU64::from_ptr(here.as_ptr().cast()) }
    }
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_every_alignment_and_length() {
        let region = Region::sample();
        for at in 100..116u64 {
            for len in 0..40usize {
                let bytes: Vec<u8> = (1..=len).map(|byte| u8::try_from(byte).unwrap()).collect();
                assert!(region.zero(96, 128));
                assert!(region.copy_in(at, &bytes));
                let mut back = vec![0; len + 2];
                assert!(region.copy_out(at - 1, &mut back));
                assert_eq!((back.first(), back.last()), (Some(&0), Some(&0)));
                assert_eq!(&back[1..=len], bytes);
            }
        }
    }

    #[test]
    fn copies_beyond_the_end_are_refused() {
        let region = Region::sample();
        assert!(region.copy_in(65_535, &[1]));
        assert!(!region.copy_in(65_535, &[1, 2]));
        assert!(!region.copy_out(u64::MAX, &mut [0; 2]));
        assert!(!region.zero(65_536, 8));
        assert!(!region.copy_within(0, 65_536 - 8, 16));
    }

    #[test]
    fn an_address_and_its_offset_lead_to_each_other() {
        let region = Region::sample();
        let address = region.address(4096, 1).unwrap();
        assert_eq!(region.offset_of(address), Some(4096));
        assert_eq!(region.offset_of(NonNull::dangling()), None);
    }
}
