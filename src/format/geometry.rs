//! Where each table starts: a function of the header, and of nothing else.
//!
//! ```text
//! 0            superblock, 4096 bytes
//! 4096         lane records: the shared lane, then lanes 1..=n
//!              root records
//! data_start   pages                               (aligned to the page size)
//! tables       page entries        8 bytes a page
//!              page links          8 bytes a page
//!              in-use bits         1 bit a page
//!              reserved bits       1 bit a page
//!              group bits          1 bit per group of pages whose slab bitmaps are reserved together
//!              summary levels      16 bytes per chunk of 512 pages, and an eighth of that per level above
//!              slab bitmaps        1/64 of the page size a page
//! ```
//!
//! What depends on the capacity stands behind the pages, so that an image can be loaded into a larger capacity with
//! every block where it was.

use super::lane::LANE_RECORD_LEN;
use super::root::ROOT_RECORD_LEN;
use super::{Header, PAGE_SIZE_MIN, superblock};
use crate::error::{Error, Result};

/// Pages per chunk: the unit in which page tables are put into use, and a leaf of the summary tree.
pub(crate) const CHUNK_PAGES: u32 = 512;
/// Children of a summary node.
pub(crate) const FANOUT: u32 = 8;
/// Levels of the summary tree: enough for 2^24 pages and more.
pub(crate) const LEVELS: usize = 7;
/// Bytes per summary node.
pub(super) const SUMMARY_LEN: u64 = 16;
/// Slab bitmaps are reserved for this many bytes of pages at a time.
const GROUP_BYTES: u64 = 1 << 20;
/// Tables start on a cache line of their own.
const TABLE_ALIGNMENT: u64 = 64;

/// The places of everything, checked (F1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) page_shift: u32,
    pub(crate) lanes: u32,
    pub(crate) root_slots: u32,
    pub(crate) roots_at: u64,
    pub(crate) data_start: u64,
    pub(crate) pages: u32,
    /// Bytes in pages.
    pub(crate) data_len: u64,
    pub(super) entries_at: u64,
    pub(super) links_at: u64,
    pub(super) in_use_at: u64,
    pub(super) reserved_at: u64,
    pub(super) groups_at: u64,
    pub(super) summary_at: [u64; LEVELS],
    pub(super) bitmaps_at: u64,
    /// log2 of the pairs of slab words that a page has.
    pub(super) pairs_shift: u32,
    pub(super) end: u64,
}

/// Hands out places one after the other.
struct Ruler(u64);

impl Ruler {
    fn table(&mut self, len: u64) -> u64 {
        let at = self.0.next_multiple_of(TABLE_ALIGNMENT);
        self.0 = at + len;
        at
    }
}

impl Geometry {
    /// The geometry of a heap with this header.
    pub(crate) fn new(header: &Header) -> Result<Self> {
        let bad = |why| Error::BadCapacity { capacity: header.capacity, why };
        if header.capacity > 1 << 46 {
            return Err(bad("the largest capacity is 64 TiB"));
        }
        // As many pages as fit: a binary search, because the tables' size grows with their number.
        let (mut fits, mut too_many) = (0u64, (header.capacity >> header.page_shift) + 1);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            let end = u32::try_from(middle).map_or(u64::MAX, |pages| Self::with_pages(header, pages).end);
            if end <= header.capacity { fits = middle } else { too_many = middle }
        }
        let pages = u32::try_from(fits).map_err(|_| bad("too many pages; use a larger page size"))?;
        if pages < 4 {
            return Err(bad("too small for the lanes, roots and page size asked for; 64 KiB do with the defaults"));
        }
        if pages >= 1 << 31 {
            return Err(bad("too many pages; use a larger page size"));
        }
        Ok(Self::with_pages(header, pages))
    }

    fn with_pages(header: &Header, pages: u32) -> Self {
        let count = u64::from(pages);
        let page_size = header.page_size();
        let roots_at = superblock::LEN + (u64::from(header.lanes) + 1) * LANE_RECORD_LEN;
        let roots_end = roots_at + u64::from(header.root_slots) * ROOT_RECORD_LEN;
        let data_start = roots_end.next_multiple_of(page_size);
        let mut ruler = Ruler(data_start + count * page_size);
        let entries_at = ruler.table(count * 8);
        let links_at = ruler.table(count * 8);
        let bit_words = count.div_ceil(u64::from(CHUNK_PAGES)) * u64::from(CHUNK_PAGES) / 64;
        let in_use_at = ruler.table(bit_words * 8);
        let reserved_at = ruler.table(bit_words * 8);
        let groups = count.div_ceil(GROUP_BYTES >> header.page_shift);
        let groups_at = ruler.table(groups.div_ceil(64) * 8);
        let mut nodes = count.div_ceil(u64::from(CHUNK_PAGES));
        let mut summary_at = [0; LEVELS];
        for level in &mut summary_at {
            *level = ruler.table(nodes * SUMMARY_LEN);
            nodes = nodes.div_ceil(u64::from(FANOUT));
        }
        if pages >= CHUNK_PAGES {
            // What is given back with the pages of a group is then whole OS pages.
            ruler.0 = ruler.0.next_multiple_of(PAGE_SIZE_MIN);
        }
        let bitmaps_at = ruler.table(count * (page_size / 64));
        Self {
            page_shift: header.page_shift,
            lanes: header.lanes,
            root_slots: header.root_slots,
            roots_at,
            data_start,
            pages,
            data_len: count * page_size,
            entries_at,
            links_at,
            in_use_at,
            reserved_at,
            groups_at,
            summary_at,
            bitmaps_at,
            pairs_shift: header.page_shift - 10,
            end: ruler.0,
        }
    }

    pub(crate) fn page_size(&self) -> u64 {
        1 << self.page_shift
    }

    /// Where the pages end and the tables begin.
    pub(crate) fn data_end(&self) -> u64 {
        self.data_start + self.data_len
    }

    /// Pages per group.
    pub(super) fn group_pages(&self) -> u32 {
        (GROUP_BYTES >> self.page_shift) as u32
    }

    /// Groups that cover `pages` pages.
    pub(crate) fn groups(&self, pages: u32) -> u32 {
        pages.div_ceil(self.group_pages())
    }

    /// Nodes of a summary level that cover `pages` pages.
    pub(crate) fn summary_len(level: usize, pages: u32) -> u32 {
        (0..level).fold(pages.div_ceil(CHUNK_PAGES), |nodes, _| nodes.div_ceil(FANOUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(capacity: u64, page_shift: u32, lanes: u32, root_slots: u32) -> Header {
        Header {
            capacity,
            page_shift,
            lanes,
            root_slots,
            classes: 40,
            slab_bytes_min: 4096,
            instance: [0; 2],
            created_ms: 0,
        }
    }

    #[test]
    fn the_pages_and_tables_fill_the_capacity_and_no_more() {
        for shift in 16..=42u32 {
            for extra in [0, 4096, 12_288] {
                let page_shift = (shift.saturating_sub(15)).clamp(12, 16);
                let capacity = (1u64 << shift) + extra;
                let geometry = Geometry::new(&header(capacity, page_shift, 4, 16)).unwrap();
                assert!(geometry.end <= capacity);
                let one_more = Geometry::with_pages(&header(capacity, page_shift, 4, 16), geometry.pages + 1);
                assert!(one_more.end > capacity);
            }
        }
    }

    #[test]
    fn metadata_takes_less_than_three_percent_from_16_mib_on() {
        for (shift, page_shift) in [(24, 12), (26, 12), (30, 15), (36, 16), (40, 16)] {
            let capacity = 1u64 << shift;
            let geometry = Geometry::new(&header(capacity, page_shift, 64, (capacity >> 14).min(65_536) as u32)).unwrap();
            assert!((capacity - geometry.data_len) * 100 < 3 * capacity, "{capacity}: {geometry:?}");
        }
    }

    #[test]
    fn one_summary_node_covers_the_largest_heap() {
        assert_eq!(Geometry::summary_len(LEVELS - 1, 1 << 24), 1);
    }

    #[test]
    fn a_capacity_too_small_for_its_tables_is_refused() {
        assert!(Geometry::new(&header(65_536, 16, 4, 16)).is_err());
        assert!(Geometry::new(&header(65_536, 12, 4096, 16)).is_err());
        assert!(Geometry::new(&header(u64::MAX, 16, 4, 16)).is_err());
    }
}
