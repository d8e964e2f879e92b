//! `blocks`, `dump`: looking inside.

use std::collections::HashMap;
use std::fmt;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use pretty_hex::{HexConfig, config_hex};
use serde::Serialize;
use shmheap::{BlockInfo, Error, Heap, Offset, OffsetFault};

use super::Named;
use crate::completion;
use crate::failure::Failure;
use crate::output::{self, DIM, Output, styled};
use crate::units::{self, counted, size};
use crate::{Outcome, Verdict};

/// Blocks that are listed where no number is given.
const SHOWN: usize = 50;

/// Lists the allocated blocks.
#[derive(Debug, Args)]
pub(crate) struct Blocks {
    #[command(flatten)]
    named: Named,
    /// Only blocks of at least so many bytes
    #[arg(long, value_parser = units::parse_size, default_value = "0")]
    min: u64,
    /// Only blocks of at most so many bytes
    #[arg(long, value_parser = units::parse_size)]
    max: Option<u64>,
    /// Only blocks of this lane; 0 for orphans
    #[arg(long)]
    lane: Option<u16>,
    /// In which order
    #[arg(long, value_enum, default_value_t = Order::Offset)]
    sort: Order,
    /// At most so many [default: 50, and with --json all]
    #[arg(long, short = 'n')]
    limit: Option<usize>,
    /// All of them
    #[arg(long, short, conflicts_with = "limit")]
    all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Where they start
    Offset,
    /// The largest first
    Size,
    /// By lane; orphans first
    Lane,
    /// Those of the lane that is taken longest first
    Age,
}

#[derive(Debug, Serialize)]
struct BlockList {
    total: usize,
    bytes: u64,
    blocks: Vec<Block>,
}

#[derive(Debug, Serialize)]
struct Block {
    offset: u64,
    size: u64,
    alignment: u64,
    large: bool,
    /// `None` for an orphan.
    lane: Option<u16>,
    pid: Option<u32>,
    lane_since_ms: Option<u64>,
    /// A root that leads here.
    root: Option<String>,
}

impl fmt::Display for BlockList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(&[">OFFSET", ">SIZE", ">ALIGNED", "KIND", ">LANE", ">PID", ">LANE'S AGE", "ROOT"]);
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for block in &self.blocks {
            table.add_row([
                format!("{:#x}", block.offset),
                size(block.size),
                block.alignment.to_string(),
                if block.large { "large" } else { "slab" }.to_owned(),
                block.lane.map_or_else(|| "orphan".to_owned(), |lane| lane.to_string()),
                or_none(block.pid.map(|pid| pid.to_string())),
                or_none(block.lane_since_ms.map(units::age)),
                block.root.clone().unwrap_or_default(),
            ]);
        }
        if !self.blocks.is_empty() {
            f.write_str(&output::lines_of(&table))?;
        }
        let hidden = self.total.saturating_sub(self.blocks.len());
        let more = if hidden == 0 { String::new() } else { format!("; {hidden} are not shown, --all shows them") };
        let total = counted(self.total as u64, "block");
        writeln!(f, "{}", styled(DIM, format_args!("{total} of {}{more}", size(self.bytes))))
    }
}

impl Blocks {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let lanes = heap.lanes().map_err(|error| place.explain(error))?;
        let roots = roots_by_block(&heap).map_err(|error| place.explain(error))?;
        let lane_of = |number: Option<u16>| lanes.iter().find(|lane| Some(lane.lane) == number && number != Some(0));
        let mut blocks: Vec<BlockInfo> = heap.blocks().filter(|block| self.is_wanted(block)).collect();
        let since = |block: &BlockInfo| lane_of(block.lane).map_or(u64::MAX, |lane| lane.since_ms);
        match self.sort {
            Order::Offset => {}
            Order::Size => blocks.sort_by_key(|block| std::cmp::Reverse(block.size)),
            Order::Lane => blocks.sort_by_key(|block| block.lane),
            Order::Age => blocks.sort_by_key(since),
        }
        let (total, bytes) = (blocks.len(), blocks.iter().map(|block| block.size).sum());
        let shown = if self.all || output.is_json() { usize::MAX } else { SHOWN };
        blocks.truncate(self.limit.unwrap_or(shown));
        let blocks = blocks.into_iter().map(|block| {
            let lane = lane_of(block.lane);
            Block {
                offset: block.offset.get(),
                size: block.size,
                alignment: block.alignment,
                large: block.large,
                lane: block.lane,
                pid: lane.map(|lane| lane.pid),
                lane_since_ms: lane.map(|lane| lane.since_ms),
                root: roots.get(&block.offset).cloned(),
            }
        });
        output.print(&BlockList { total, bytes, blocks: blocks.collect() })?;
        Ok(Verdict::Fine)
    }

    fn is_wanted(&self, block: &BlockInfo) -> bool {
        let fits = block.size >= self.min && self.max.is_none_or(|max| block.size <= max);
        fits && self.lane.is_none_or(|lane| block.lane.unwrap_or(0) == lane)
    }
}

fn roots_by_block(heap: &Heap) -> shmheap::Result<HashMap<Offset, String>> {
    Ok(heap.roots()?.into_iter().filter_map(|root| Some((root.block?, root.name))).collect())
}

/// Shows the bytes of a block, in hexadecimal and as text.
#[derive(Debug, Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    named: Named,
    /// An offset (12345 or 0x3039) at which a block starts or which lies inside of one, or the name of a root
    #[arg(value_name = "OFFSET|ROOT", add = ArgValueCompleter::new(completion::roots))]
    what: String,
    /// Bytes to show
    #[arg(long, short, value_parser = units::parse_size, default_value = "256")]
    len: u64,
    /// The whole block
    #[arg(long, short, conflicts_with = "len")]
    all: bool,
}

#[derive(Debug, Serialize)]
struct DumpReport {
    block: u64,
    size: u64,
    alignment: u64,
    large: bool,
    lane: Option<u16>,
    /// Where the bytes that follow start, from the start of the region.
    at: u64,
    #[serde(serialize_with = "as_hex")]
    bytes: Vec<u8>,
}

fn as_hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

impl fmt::Display for DumpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.large { "large block" } else { "block of a slab" };
        let lane = self.lane.map_or_else(|| "an orphan".to_owned(), |lane| format!("of lane {lane}"));
        let Self { block, size, alignment, at, bytes, .. } = self;
        writeln!(f, "{kind} at {block:#x}, {size} bytes, aligned to {alignment}, {lane}")?;
        let display_offset = usize::try_from(*at).unwrap_or(0);
        let config = HexConfig { title: false, max_bytes: usize::MAX, display_offset, ..HexConfig::default() };
        writeln!(f, "{}", config_hex(bytes, config))?;
        let left = (block + size).saturating_sub(at + bytes.len() as u64);
        if left == 0 { Ok(()) } else { writeln!(f, "{}", styled(DIM, format_args!("{left} bytes more; --all shows them"))) }
    }
}

impl Dump {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let (block, at) = self.find(&heap).map_err(|error| match error {
            Error::RootUnknown { name } if super::values::is_root(&heap, &name) => Failure::wrong(
                format!("the block of the root {name:?} was freed, or is damaged"),
                super::roots::damaged(&place.text()),
            ),
            Error::RootUnknown { name } => Failure::cannot_but(
                format!("{name:?} is neither an offset nor a root of {}", place.text()),
                format!("shmheap roots {0} lists the roots, shmheap blocks {0} the blocks", place.text()),
            ),
            Error::InvalidOffset { .. } | Error::DoubleFree { .. } => {
                Failure::cannot_but(error, format!("shmheap blocks {} lists the blocks", place.text()))
            }
            error => place.explain(error),
        })?;
        let info = heap.info(block).map_err(|error| place.explain(error))?;
        let behind = info.size.saturating_sub(at);
        let len = if self.all { behind } else { self.len.min(behind) };
        let [len, from] = [len, at].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let mut bytes = vec![0; len];
        heap.copy_out_at(block, from, &mut bytes).map_err(|error| place.explain(error))?;
        output.print(&DumpReport {
            block: block.get(),
            size: info.size,
            alignment: info.alignment,
            large: info.large,
            lane: info.lane,
            at: block.get() + at,
            bytes,
        })?;
        Ok(Verdict::Fine)
    }

    /// The block that is meant, and how many bytes of it come before what is meant.
    fn find(&self, heap: &Heap) -> shmheap::Result<(Offset, u64)> {
        let Ok(number) = units::parse_offset(&self.what) else {
            let root = heap.root(&self.what)?;
            return root.map(|block| (block, 0)).ok_or_else(|| Error::RootUnknown { name: self.what.clone() });
        };
        let nowhere = Error::InvalidOffset { offset: number, fault: OffsetFault::Outside };
        let offset = Offset::new(number).ok_or(nowhere)?;
        match heap.info(offset) {
            Ok(_) => Ok((offset, 0)),
            Err(Error::InvalidOffset { fault: OffsetFault::InsideBlock(start), .. }) => {
                let block = Offset::new(start).filter(|block| heap.info(*block).is_ok());
                // Inside of a block that is free there is nothing to show.
                let free = Error::InvalidOffset { offset: number, fault: OffsetFault::NotAllocated };
                block.map(|block| (block, number - start)).ok_or(free)
            }
            Err(error) => Err(error),
        }
    }
}
