//! What there is to draw, in words and cells: the same for a terminal and for files.

use shmheap::Heap;

use super::palette::{SIZES, step};
use super::{Block, Cell, Content, Map, Subject, Zoom};
use crate::units::{percent, size};

/// Most cells of a picture that has no terminal to fit into.
pub(crate) const CELLS_MAX: usize = 64 * 40;

/// A heap or a span, ready to be drawn.
#[derive(Debug)]
pub(crate) struct Picture {
    /// What is shown.
    pub(crate) title: String,
    /// It in numbers, a line each.
    pub(crate) facts: Vec<String>,
    /// What a cell stands for.
    pub(crate) unit: String,
    pub(crate) cells: Vec<Cell>,
    /// Blocks per cell, if the cells are blocks: rows are numbered then.
    pub(crate) blocks_per_cell: Option<usize>,
    /// The cell that was asked for.
    pub(crate) asked: Option<usize>,
    pub(crate) legend: Vec<Entry>,
}

/// A line of the legend: what cells that look like these hold.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) samples: Vec<Cell>,
    pub(crate) text: String,
}

impl Picture {
    /// The picture of a whole heap.
    pub(crate) fn of_map(name: &str, map: &Map) -> Self {
        let facts = match &map.stats {
            Ok(stats) => {
                let used = percent(stats.used, stats.total);
                let fragmentation = format!("fragmentation {:.1} %", stats.fragmentation_ratio() * 100.0);
                let capacity = size(stats.capacity);
                format!("{capacity}: {} used ({used}), {} free, {fragmentation}", size(stats.used), size(stats.free))
            }
            Err(error) => format!("damaged: {error}"),
        };
        let pages = match map.pages_per_cell() {
            1 => "a page".to_owned(),
            pages => format!("{pages} pages; it shows what most of it holds"),
        };
        Self {
            title: name.to_owned(),
            facts: vec![facts],
            unit: format!("One cell is {}, {pages}.", size(map.cell_len)),
            cells: map.cells.clone(),
            blocks_per_cell: None,
            asked: None,
            legend: legend_of(map),
        }
    }

    /// The picture of one span, in at most so many cells.
    pub(crate) fn of_zoom(name: &str, heap: &Heap, zoom: &Zoom, cells: usize) -> Self {
        let title = format!("{name}, {} at {:#x}", kind_of(&zoom.subject), zoom.offset);
        let (len, owner) = (size(zoom.len), owner(heap, zoom.lane));
        let Subject::Slab { block_size, blocks } = &zoom.subject else {
            let content = match zoom.subject {
                Subject::Large => Content::Large,
                Subject::Kept => Content::Kept,
                Subject::Free { reserved: true } => Content::Reserved,
                _ => Content::Free,
            };
            let is_free = matches!(zoom.subject, Subject::Free { .. });
            let fact = if is_free { len.clone() } else { format!("{len}, {owner}") };
            let orphan = content == Content::Large && zoom.lane.is_none();
            let cell = Cell { offset: zoom.offset, len: zoom.len, content, fullness: 1.0, orphan };
            let legend = vec![Entry { samples: vec![cell], text: kind_of(&zoom.subject).to_owned() }];
            let unit = format!("The cell is the whole span, {len}.");
            return Self {
                title,
                facts: vec![fact],
                unit,
                cells: vec![cell],
                blocks_per_cell: Some(1),
                asked: None,
                legend,
            };
        };
        let allocated = blocks.iter().filter(|block| block.allocated).count();
        let mut facts =
            vec![format!("{} blocks of {} in {len}, {allocated} allocated, {owner}", blocks.len(), size(*block_size))];
        if let Some((number, block)) = zoom.asked().and_then(|number| Some((number, blocks.get(number)?))) {
            let state = if block.allocated { "allocated" } else { "free" };
            facts.push(format!("{:#x} lies in block {number}, which starts at {:#x}: {state}", zoom.at, block.offset));
        }
        let mut per_cell = 1;
        while blocks.len().div_ceil(per_cell) > cells.max(1) {
            per_cell *= 2;
        }
        let asked = zoom.asked().map(|number| number / per_cell);
        let orphan = zoom.lane.is_none();
        let cells: Vec<Cell> = blocks.chunks(per_cell).map(|blocks| cell_of(blocks, *block_size, orphan)).collect();
        let unit = match per_cell {
            1 => "One cell is a block.".to_owned(),
            _ => format!("One cell is {per_cell} blocks."),
        };
        let sample = |content, fullness| Cell { offset: 0, len: 1, content, fullness, orphan };
        let slab = Content::Slab { block_size: *block_size };
        let legend = vec![
            Entry { samples: vec![sample(slab, 1.0)], text: "allocated".to_owned() },
            Entry { samples: vec![Cell { orphan: false, ..sample(Content::Free, 0.0) }], text: "free".to_owned() },
        ];
        Self { title, facts, unit, cells, blocks_per_cell: Some(per_cell), asked, legend }
    }

    /// How the row is called that begins with this cell.
    pub(crate) fn row_label(&self, index: usize) -> String {
        let offset = self.cells.get(index).map_or(0, |cell| cell.offset);
        let digits = self.cells.last().map_or(1, |cell| format!("{:x}", cell.offset).len());
        let offset = format!("0x{offset:0digits$x}");
        match self.blocks_per_cell {
            Some(per_cell) if self.cells.len() > 1 => format!("{offset} {:>5}", index * per_cell),
            _ => offset,
        }
    }

    /// How far this many cells are from the first of a row.
    pub(crate) fn distance(&self, cells: usize) -> String {
        match (self.blocks_per_cell, self.cells.first()) {
            (Some(per_cell), _) => format!("+{}", cells * per_cell),
            (None, Some(cell)) if cells > 0 => format!("+{}", size(cell.len * cells as u64)),
            _ => "+0".to_owned(),
        }
    }
}

/// One cell for some blocks of a slab. It is free if none of them is allocated.
fn cell_of(blocks: &[Block], block_size: u64, orphan: bool) -> Cell {
    let allocated = blocks.iter().filter(|block| block.allocated).count();
    let (offset, len) = (blocks.first().map_or(0, |block| block.offset), blocks.len() as u64 * block_size);
    let fullness = allocated as f64 / blocks.len().max(1) as f64;
    match allocated {
        0 => Cell { offset, len, content: Content::Free, fullness, orphan: false },
        _ => Cell { offset, len, content: Content::Slab { block_size }, fullness, orphan },
    }
}

fn kind_of(subject: &Subject) -> &'static str {
    match subject {
        Subject::Slab { .. } => "slab",
        Subject::Large => "large block",
        Subject::Kept => "span kept for its lane's next use",
        Subject::Free { reserved: true } => "free pages, memory taken",
        Subject::Free { reserved: false } => "free pages",
    }
}

/// Whose a span is, in words.
fn owner(heap: &Heap, lane: Option<u16>) -> String {
    let Some(lane) = lane else { return "an orphan: no lane owns it".to_owned() };
    let lanes = heap.lanes().unwrap_or_default();
    match lanes.into_iter().find(|info| info.lane == lane) {
        Some(info) if info.alive => format!("of lane {lane} (pid {})", info.pid),
        Some(info) => format!("of lane {lane} (pid {}, which is dead)", info.pid),
        None => format!("of lane {lane}"),
    }
}

/// Those entries that the map has a use for, in the order of the palette.
fn legend_of(map: &Map) -> Vec<Entry> {
    let sample = |content, fullness| Cell { offset: 0, len: 1, content, fullness, orphan: false };
    let mut legend = Vec::new();
    let mut first_size = None;
    for (index, (most, text)) in SIZES.into_iter().enumerate() {
        let is_it = |cell: &Cell| matches!(cell.content, Content::Slab { block_size } if step(block_size) == index);
        if map.has(is_it) {
            let block_size = most.min(1 << 20);
            let slab = Content::Slab { block_size };
            first_size = first_size.or(Some(slab));
            let samples = [0.0, 0.34, 0.67, 1.0].map(|fullness| sample(slab, fullness)).to_vec();
            legend.push(Entry { samples, text: format!("slab, blocks {text}") });
        }
    }
    if map.has(|cell| cell.orphan) {
        let slab = first_size.unwrap_or(Content::Large);
        let orphan = Cell { orphan: true, ..sample(slab, 1.0) };
        legend.push(Entry { samples: vec![orphan], text: "orphan: its owner has gone".to_owned() });
    }
    let plain = [
        (Content::Large, "large block"),
        (Content::Kept, "free, kept by a lane"),
        (Content::Reserved, "free, memory taken"),
        (Content::Free, "free, no memory taken"),
        (Content::Metadata, "metadata"),
        (Content::Unknown, "damaged: cannot be told"),
    ];
    for (content, text) in plain {
        if map.has(|cell| cell.content == content) {
            legend.push(Entry { samples: vec![sample(content, 1.0)], text: text.to_owned() });
        }
    }
    legend
}
