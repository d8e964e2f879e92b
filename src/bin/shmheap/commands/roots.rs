//! `roots`, and what any command tells of a root.

use std::fmt;

use clap::Args;
use serde::Serialize;
use shmheap::{Heap, Offset, RootInfo};

use super::{Named, values};
use crate::output::{self, DIM, Output, styled};
use crate::units::{counted, size};
use crate::{Outcome, Verdict};

/// Bytes of a root's block that are shown.
const START_LEN: usize = 32;

/// Lists the roots: the names by which blocks are found.
#[derive(Debug, Args)]
pub(crate) struct Roots {
    #[command(flatten)]
    named: Named,
}

/// A root, as `roots`, `stat` and others show it.
#[derive(Debug, Serialize)]
pub(crate) struct Root {
    pub(crate) name: String,
    /// Where its block starts.
    block: Option<u64>,
    /// Bytes of its block, if that is allocated.
    size: Option<u64>,
    state: &'static str,
}

impl Root {
    /// The roots of a heap, by name.
    pub(crate) fn all(heap: &Heap) -> shmheap::Result<Vec<Self>> {
        let mut roots: Vec<Self> = heap.roots()?.into_iter().map(|root| Self::new(heap, root)).collect();
        roots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(roots)
    }

    fn new(heap: &Heap, root: RootInfo) -> Self {
        let state = match (root.constructing, root.allocated) {
            (true, _) => "under construction",
            (false, false) => "its block was freed",
            (false, true) => "live",
        };
        let live = root.block.filter(|_| root.allocated);
        let size = live.and_then(|block| heap.info(block).ok()).map(|info| info.size);
        Self { name: root.name, block: root.block.map(Offset::get), size, state }
    }

    /// The cells of a row: name, offset, size, state.
    pub(crate) fn cells(&self) -> [String; 4] {
        let none = || "-".to_owned();
        let offset = self.block.map_or_else(none, |block| format!("{block:#x}"));
        [self.name.clone(), offset, self.size.map_or_else(none, size), self.state.to_owned()]
    }

    /// The first bytes of its block, as text with escapes, up to where only zeros follow.
    fn start(&self, heap: &Heap) -> String {
        let Some((block, size)) = self.block.and_then(Offset::new).zip(self.size) else { return String::new() };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let len = values::noted_len(heap, block, size).ok().flatten().unwrap_or(size);
        let mut bytes = vec![0; len.min(START_LEN)];
        if heap.copy_out(block, &mut bytes).is_err() {
            return String::new();
        }
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.get(..end).unwrap_or_default().escape_ascii().to_string()
    }
}

#[derive(Debug, Serialize)]
struct RootList {
    slots: u32,
    roots: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    #[serde(flatten)]
    root: Root,
    /// How its block begins, with escapes.
    begins_with: String,
}

impl fmt::Display for RootList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(&["ROOT", ">OFFSET", ">SIZE", "STATE", "BEGINS WITH"]);
        for Listed { root, begins_with } in &self.roots {
            table.add_row(root.cells().into_iter().chain([begins_with.clone()]));
        }
        if !self.roots.is_empty() {
            f.write_str(&output::lines_of(&table))?;
        }
        writeln!(f, "{}", styled(DIM, format_args!("{}, {} slots", counted(self.roots.len() as u64, "root"), self.slots)))
    }
}

impl Roots {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let roots = Root::all(&heap).map_err(|error| place.explain(error))?;
        let listed = roots.into_iter().map(|root| Listed { begins_with: root.start(&heap), root });
        output.print(&RootList { slots: heap.root_slots(), roots: listed.collect() })?;
        Ok(Verdict::Fine)
    }
}

/// What to do about a root that leads to no block.
pub(crate) fn damaged(name: &str) -> String {
    format!("shmheap validate {name} tells whether the heap is damaged; shmheap roots {name} lists the roots")
}
