//! Where a region's tables are, by docs/FORMAT.md. The library is not asked: it is what is tested.

/// Bytes of the superblock.
const SUPERBLOCK_LEN: u64 = 4096;
/// Levels of the summaries.
const LEVELS: usize = 7;

/// The numbers of a header, and the places that follow from them.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Length of the region in bytes.
    pub capacity: u64,
    /// log2 of the page size.
    pub page_shift: u32,
    /// Lanes, without the shared one.
    pub lanes: u32,
    /// Root slots.
    pub root_slots: u32,
    /// Size classes.
    pub classes: u32,
    /// Smallest slab in bytes.
    pub slab_bytes_min: u32,
    /// First byte of the pages.
    pub data_start: u64,
    /// First byte behind the pages.
    pub data_end: u64,
    /// First byte of each table behind the pages, in the order of docs/FORMAT.md; the last is the end of all.
    tables: [u64; 8],
}

impl Layout {
    /// Place of the half that is the heap lock.
    pub const LOCK: u64 = 0x100;

    /// The layout of a region with these numbers; `None` if no region can have them.
    pub fn new(capacity: u64, page_shift: u32, lanes: u32, slots: u32, classes: u32, slab_bytes_min: u32) -> Option<Self> {
        if !(12..=16).contains(&page_shift) || lanes > 4096 || slots > 65_536 {
            return None;
        }
        let empty = Self {
            capacity,
            page_shift,
            lanes,
            root_slots: slots,
            classes,
            slab_bytes_min,
            data_start: 0,
            data_end: 0,
            tables: [0; 8],
        };
        let most = capacity >> page_shift;
        // The largest number of pages with which everything fits.
        (4..=most).rev().map(|pages| empty.with_pages(pages)).find(|layout| layout.tables[7] <= capacity)
    }

    /// The layout of a heap of this capacity that is created with 4 lanes and 16 root slots.
    pub fn usual(capacity: u64) -> Self {
        Self::new(capacity, 12, 4, 16, 20, 4096).expect("a heap fits")
    }

    fn with_pages(self, pages: u64) -> Self {
        let page_size = 1u64 << self.page_shift;
        let roots_end = SUPERBLOCK_LEN + 512 * u64::from(self.lanes + 1) + 128 * u64::from(self.root_slots);
        let data_start = roots_end.next_multiple_of(page_size);
        let data_end = data_start + pages * page_size;
        let chunks = pages.div_ceil(512);
        let groups = pages.div_ceil((1 << 20) >> self.page_shift);
        let mut at = data_end;
        let mut place = |len: u64| {
            let start = at.next_multiple_of(64);
            at = start + len;
            start
        };
        let entries = place(8 * pages);
        let links = place(8 * pages);
        let in_use = place(64 * chunks);
        let reserved = place(64 * chunks);
        let group_bits = place(8 * groups.div_ceil(64));
        let mut nodes = chunks;
        let summary = place(16 * nodes);
        for _ in 1..LEVELS {
            nodes = nodes.div_ceil(8);
            place(16 * nodes);
        }
        let bitmaps = if pages >= 512 { place(0).next_multiple_of(4096) } else { place(0) };
        let end = bitmaps + page_size / 64 * pages;
        Self { data_start, data_end, tables: [entries, links, in_use, reserved, group_bits, summary, bitmaps, end], ..self }
    }

    /// Start and length of a part of the region that holds words of one kind; every number names one.
    pub fn area(&self, number: u8) -> (u64, u64) {
        let table = |index: usize| (self.tables[index], self.tables[index + 1] - self.tables[index]);
        let lanes_end = SUPERBLOCK_LEN + 512 * u64::from(self.lanes + 1);
        match number & 15 {
            0 | 1 => (0x80, 0x3a0),
            2 => (SUPERBLOCK_LEN, lanes_end - SUPERBLOCK_LEN),
            3 => (lanes_end, 128 * u64::from(self.root_slots)),
            4..=6 => table(0),
            7 => table(1),
            8 => table(2),
            9 => table(3),
            10 => table(4),
            11 => table(5),
            12 | 13 => table(6),
            14 => (self.data_start, self.data_end - self.data_start),
            _ => (0, self.capacity),
        }
    }

    /// True for places whose bytes say what a region holds: everything but the pages.
    pub fn is_metadata(&self, at: u64) -> bool {
        !(self.data_start..self.data_end).contains(&at)
    }

    /// The header, with its checksum.
    pub fn header(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, b"shmheap\0");
        put(0x08, &4u32.to_ne_bytes());
        put(0x0c, &0x0102_0304u32.to_ne_bytes());
        put(0x10, &self.capacity.to_ne_bytes());
        put(0x18, &self.page_shift.to_ne_bytes());
        put(0x1c, &self.lanes.to_ne_bytes());
        put(0x20, &self.root_slots.to_ne_bytes());
        put(0x24, &self.classes.to_ne_bytes());
        put(0x28, &self.slab_bytes_min.to_ne_bytes());
        let checksum = crc32fast::hash(&bytes[..0x78]);
        bytes[0x78..0x7c].copy_from_slice(&checksum.to_ne_bytes());
        bytes
    }
}
