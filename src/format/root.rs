//! Roots: named ways in, as the region records them.
//!
//! The root table is an open-addressed hash table with linear probing. Writers hold the heap lock; readers take no lock:
//! a slot's name is written only while the slot is empty or removed, and its state word carries a count that changes
//! with every change of state, so a reader that finds the same word before and after has read one entry whole.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::region::Region;

/// Bytes per root record.
pub(super) const ROOT_RECORD_LEN: u64 = 128;
/// Longest name of a root, in bytes.
const ROOT_NAME_LEN_MAX: usize = 63;

/// A root's name and its hash, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootName {
    bytes: [u8; 64],
    len: u8,
}

impl RootName {
    /// Checks the length; any bytes of a string may stand in a name except control characters.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let bad = |why| Error::BadName { name: name.to_owned(), why };
        if name.is_empty() || name.len() > ROOT_NAME_LEN_MAX {
            return Err(bad("a root's name has 1 to 63 bytes"));
        }
        if name.chars().any(char::is_control) {
            return Err(bad("a root's name has no control characters"));
        }
        let mut bytes = [0; 64];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self { bytes, len: name.len() as u8 })
    }

    /// A name as an image or a region holds it; [`Self::text`] tells whether it is one.
    pub(crate) fn from_bytes(bytes: [u8; 64], len: u32) -> Self {
        Self { bytes, len: u8::try_from(len).unwrap_or(u8::MAX) }
    }

    /// The name, padded with zeros, and its length.
    pub(crate) fn as_bytes(&self) -> ([u8; 64], u8) {
        (self.bytes, self.len)
    }

    /// The name as text; `None` if the region's bytes are no name.
    pub(crate) fn text(&self) -> Option<&str> {
        let len = usize::from(self.len);
        let text = std::str::from_utf8(self.bytes.get(..len)?).ok()?;
        let padding_is_zero = self.bytes.get(len..)?.iter().all(|byte| *byte == 0);
        (!text.is_empty() && len <= ROOT_NAME_LEN_MAX && padding_is_zero).then_some(text)
    }

    /// FNV-1a over the name's bytes: where the search for it starts.
    pub(crate) fn hash(&self) -> u32 {
        let bytes = self.bytes.iter().take(usize::from(self.len));
        let wide =
            bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        (wide ^ wide >> 32) as u32
    }
}

/// What a root slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RootState {
    /// Nothing, and no search goes on past it.
    Empty,
    /// Nothing any more; searches go on past it.
    Removed,
    /// A root.
    Live,
    /// A root whose constructor is at work, in the lane that the record names.
    Constructing,
}

impl RootState {
    fn code(self) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Removed => 1,
            Self::Live => 2,
            Self::Constructing => 3,
        }
    }

    fn decode(word: u32) -> Option<Self> {
        match word & 0xff {
            0 => Some(Self::Empty),
            1 => Some(Self::Removed),
            2 => Some(Self::Live),
            3 => Some(Self::Constructing),
            _ => None,
        }
    }
}

/// A root's record.
///
/// | at | width | word |
/// |---|---|---|
/// | 0x00 | 32 | bits 0..8 state, bits 8..32 count of changes |
/// | 0x04 | 32 | length of the name in bytes |
/// | 0x08 | 64 | offset of the block (a cell: see intents) |
/// | 0x10 | 64 | lane of the constructor |
/// | 0x18 | 64 | type id; 0 = untyped |
/// | 0x20 | 8 x 64 | the name, padded with zeros |
#[derive(Debug, Clone, Copy)]
pub(crate) struct RootRecord<'a> {
    pub(super) region: &'a Region,
    pub(super) at: u64,
}

impl<'a> RootRecord<'a> {
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn state_word(&self) -> &'a AtomicU32 {
        self.region.half(self.at)
    }

    fn name_len(&self) -> &'a AtomicU32 {
        self.region.half(self.at + 0x04)
    }

    /// Place of the cell that holds the block's offset.
    pub(crate) fn cell(&self) -> u64 {
        self.at + 0x08
    }

    pub(crate) fn offset(&self) -> &'a AtomicU64 {
        self.region.word(self.cell())
    }

    pub(crate) fn lane(&self) -> &'a AtomicU64 {
        self.region.word(self.at + 0x10)
    }

    /// What the block's type is called by those who care; 0 = untyped.
    pub(crate) fn type_id(&self) -> &'a AtomicU64 {
        self.region.word(self.at + 0x18)
    }

    /// The state; `None` for one that this version does not write.
    pub(crate) fn state(&self) -> Option<RootState> {
        RootState::decode(self.state_word().load(Ordering::Acquire))
    }

    /// COMMIT of every change of a root: the state and the count change in one store.
    pub(crate) fn set_state(&self, state: RootState) {
        let word = self.state_word();
        let count = (word.load(Ordering::Relaxed) >> 8).wrapping_add(1);
        // ORDERING O3: Release; pairs with the fence in `snapshot`.
        word.store(count << 8 | state.code(), Ordering::Release);
    }

    /// Writes the name; only while the slot is empty or removed, under the heap lock.
    pub(crate) fn set_name(&self, name: &RootName) {
        // ORDERING O3: the stores below may not move above the one that made the slot empty or removed; the fence pairs with
        // the one in `snapshot`: who reads any of the new name sees that the state has changed.
        std::sync::atomic::fence(Ordering::Release);
        self.name_len().store(u32::from(name.len), Ordering::Relaxed);
        for (index, word) in (0u64..).zip(name.bytes.as_chunks::<8>().0) {
            self.region.word(self.at + 0x20 + index * 8).store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// The name as it stands; may be a mixture of two if the slot changes meanwhile.
    pub(crate) fn name(&self) -> RootName {
        let mut bytes = [0; 64];
        for (index, word) in (0u64..).zip(bytes.as_chunks_mut::<8>().0) {
            *word = self.region.word(self.at + 0x20 + index * 8).load(Ordering::Relaxed).to_le_bytes();
        }
        let len = self.name_len().load(Ordering::Relaxed);
        RootName::from_bytes(bytes, len)
    }

    /// State, name and offset as they stood at one moment; `None` if the slot kept changing.
    pub(crate) fn snapshot(&self) -> Option<(Option<RootState>, RootName, u64)> {
        for _ in 0..64 {
            let before = self.state_word().load(Ordering::Acquire);
            let name = self.name();
            let offset = self.offset().load(Ordering::Relaxed);
            // ORDERING O3: the loads above may not move below the second look at the state word; the fence pairs with the
            // Release store in `set_state`.
            std::sync::atomic::fence(Ordering::Acquire);
            if self.state_word().load(Ordering::Relaxed) == before {
                return Some((RootState::decode(before), name, offset));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_1_to_63_bytes_and_no_control_characters() {
        assert!(RootName::new("").is_err());
        assert!(RootName::new(&"x".repeat(64)).is_err());
        assert!(RootName::new("a\nb").is_err());
        let long = "é".repeat(31);
        assert_eq!(RootName::new(&long).unwrap().text(), Some(long.as_str()));
    }
}
