//! The header: what never changes after creation, and the gate that every attach passes.

use super::LaneId;
use crate::error::{Error, Result};

/// Version of the format that this library reads and writes.
const VERSION: u32 = 4;
/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = 0x80;
/// Smallest and largest page.
pub(crate) const PAGE_SIZE_MIN: u64 = 4096;
pub(crate) const PAGE_SIZE_MAX: u64 = 65_536;
/// Most lanes of attached threads.
pub(crate) const LANES_MAX: u32 = 4096;
/// Most root slots.
pub(crate) const ROOT_SLOTS_MAX: u32 = 65_536;
/// Most size classes: one bit each in a lane's hints, which are one word, and one number that no class has.
pub(crate) const CLASSES_MAX: u32 = 63;

const MAGIC: u64 = u64::from_le_bytes(*b"shmheap\0");
/// Reads as another number on a machine of the other byte order.
const BYTE_ORDER: u32 = 0x0102_0304;

/// The parameters of a heap. [`super::Geometry`] follows from them alone.
///
/// | at | width | word |
/// |---|---|---|
/// | 0x00 | 64 | magic, `shmheap\0` |
/// | 0x08 | 32 | version of the format |
/// | 0x0c | 32 | byte order mark |
/// | 0x10 | 64 | capacity in bytes |
/// | 0x18 | 32 | log2 of the page size |
/// | 0x1c | 32 | lanes |
/// | 0x20 | 32 | root slots |
/// | 0x24 | 32 | size classes |
/// | 0x28 | 32 | smallest slab in bytes |
/// | 0x30 | 2 x 64 | instance id, random |
/// | 0x40 | 64 | created, in milliseconds since 1970 |
/// | 0x78 | 32 | CRC-32 of the bytes before it |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) capacity: u64,
    pub(crate) page_shift: u32,
    pub(crate) lanes: u32,
    pub(crate) root_slots: u32,
    pub(crate) classes: u32,
    pub(crate) slab_bytes_min: u32,
    pub(crate) instance: [u64; 2],
    pub(crate) created_ms: u64,
}

const CHECKSUM_AT: usize = 0x78;

fn put(bytes: &mut [u8; HEADER_LEN], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn half(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn word(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(eight)
}

impl Header {
    pub(crate) fn page_size(&self) -> u64 {
        1 << self.page_shift
    }

    /// The lanes of attached threads.
    pub(crate) fn lane_ids(&self) -> impl Iterator<Item = LaneId> + Clone + use<> {
        (1..=self.lanes.min(LANES_MAX) as u16).map(LaneId::new)
    }

    /// The shared lane, then those of attached threads.
    pub(crate) fn all_lanes(&self) -> impl Iterator<Item = LaneId> + use<> {
        std::iter::once(super::SHARED_LANE).chain(self.lane_ids())
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        put(&mut bytes, 0x00, &MAGIC.to_le_bytes());
        put(&mut bytes, 0x08, &VERSION.to_ne_bytes());
        put(&mut bytes, 0x0c, &BYTE_ORDER.to_ne_bytes());
        put(&mut bytes, 0x10, &self.capacity.to_ne_bytes());
        put(&mut bytes, 0x18, &self.page_shift.to_ne_bytes());
        put(&mut bytes, 0x1c, &self.lanes.to_ne_bytes());
        put(&mut bytes, 0x20, &self.root_slots.to_ne_bytes());
        put(&mut bytes, 0x24, &self.classes.to_ne_bytes());
        put(&mut bytes, 0x28, &self.slab_bytes_min.to_ne_bytes());
        put(&mut bytes, 0x30, &self.instance[0].to_ne_bytes());
        put(&mut bytes, 0x38, &self.instance[1].to_ne_bytes());
        put(&mut bytes, 0x40, &self.created_ms.to_ne_bytes());
        let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_ne_bytes());
        bytes
    }

    /// True if the bytes begin as those of a heap do, of whatever version.
    pub(crate) fn is_marked(bytes: &[u8; HEADER_LEN]) -> bool {
        bytes[..8] == MAGIC.to_le_bytes()
    }

    /// Reads and checks a header; `name` is for messages.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], name: &str) -> Result<Self> {
        let not_a_heap = |why| Err(Error::NotAHeap { name: name.to_owned(), why });
        if !Self::is_marked(bytes) {
            return not_a_heap("it does not begin with shmheap's magic number");
        }
        match half(bytes, 0x0c) {
            BYTE_ORDER => {}
            order if order.swap_bytes() == BYTE_ORDER => return Err(Error::WrongByteOrder),
            _ => return not_a_heap("its byte order mark is damaged"),
        }
        let found = half(bytes, 0x08);
        if found != VERSION {
            return Err(Error::WrongVersion { found, supported: VERSION });
        }
        if half(bytes, CHECKSUM_AT) != crc32fast::hash(&bytes[..CHECKSUM_AT]) {
            return not_a_heap("its header's checksum is wrong");
        }
        let header = Self {
            capacity: word(bytes, 0x10),
            page_shift: half(bytes, 0x18),
            lanes: half(bytes, 0x1c),
            root_slots: half(bytes, 0x20),
            classes: half(bytes, 0x24),
            slab_bytes_min: half(bytes, 0x28),
            instance: [word(bytes, 0x30), word(bytes, 0x38)],
            created_ms: word(bytes, 0x40),
        };
        let page_size = 1u64.checked_shl(header.page_shift).unwrap_or(0);
        let min = PAGE_SIZE_MIN.max(crate::sys::os_page_size());
        if !(min..=PAGE_SIZE_MAX).contains(&page_size) {
            return Err(Error::WrongPageSize { page_size, min });
        }
        let lanes_ok = (1..=LANES_MAX).contains(&header.lanes);
        let roots_ok = (1..=ROOT_SLOTS_MAX).contains(&header.root_slots);
        let classes_ok = (1..=CLASSES_MAX).contains(&header.classes);
        let slabs_ok = header.slab_bytes_min <= 1 << 20;
        if !(lanes_ok && roots_ok && classes_ok && slabs_ok) {
            return not_a_heap("its header holds a number out of range");
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            capacity: 1 << 20,
            page_shift: 12,
            lanes: 4,
            root_slots: 16,
            classes: 20,
            slab_bytes_min: 4096,
            instance: [1, 2],
            created_ms: 3,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        assert_eq!(Header::decode(&header().encode(), "x"), Ok(header()));
    }

    #[test]
    fn a_change_of_any_byte_is_refused() {
        let good = header().encode();
        for at in 0..CHECKSUM_AT + 4 {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert!(Header::decode(&bad, "x").is_err(), "byte {at:#x}");
        }
    }

    #[test]
    fn another_version_byte_order_and_page_size_have_errors_of_their_own() {
        let mut bytes = header().encode();
        put(&mut bytes, 0x08, &7u32.to_ne_bytes());
        assert_eq!(Header::decode(&bytes, "x"), Err(Error::WrongVersion { found: 7, supported: VERSION }));
        let mut bytes = header().encode();
        put(&mut bytes, 0x0c, &BYTE_ORDER.swap_bytes().to_ne_bytes());
        assert_eq!(Header::decode(&bytes, "x"), Err(Error::WrongByteOrder));
        let tiny = Header { page_shift: 9, ..header() }.encode();
        assert!(matches!(Header::decode(&tiny, "x"), Err(Error::WrongPageSize { page_size: 512, .. })));
    }
}
