//! What a run finds out, as it is saved; and the means over it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::allocators::Kind;
use crate::workload::Workload;

/// Everything.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) boost_is_installed: bool,
    pub(crate) rows: Vec<Row>,
    pub(crate) scaling: Vec<ScalingRow>,
    pub(crate) space: Vec<SpaceRow>,
    pub(crate) state: Option<HeapState>,
    pub(crate) start: Vec<StartRow>,
    #[serde(default)]
    pub(crate) images: Vec<ImagesRow>,
}

/// Nanoseconds per operation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) workload: Workload,
    pub(crate) ns: BTreeMap<Kind, f64>,
}

/// Millions of operations per second.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ScalingRow {
    pub(crate) workers: usize,
    pub(crate) million_per_second: BTreeMap<Kind, f64>,
}

/// Bytes of memory taken per live byte.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpaceRow {
    pub(crate) what: String,
    /// Live bytes as requested.
    pub(crate) live: u64,
    pub(crate) ratio: BTreeMap<Kind, f64>,
}

/// What becomes of shmheap's memory.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct HeapState {
    /// Free bytes outside the largest free run after the churn, as a part of all free bytes of the heap.
    pub(crate) fragmentation: f64,
    /// Of the bytes taken after the churn, the part that is in no block.
    pub(crate) idle: f64,
    /// Bytes taken after everything was freed and the heap was trimmed.
    pub(crate) trimmed: u64,
    /// Of the free bytes of a heap that is nearly full, the part that cannot be allocated as blocks of 32 KiB.
    pub(crate) unusable: f64,
}

/// Microseconds, medians.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartRow {
    pub(crate) kind: Kind,
    pub(crate) capacity: u64,
    pub(crate) create: f64,
    pub(crate) open: f64,
    pub(crate) first_allocation: f64,
    pub(crate) detach: f64,
}

/// Milliseconds, medians, of a save, a load, and plain copies of the same bytes to the same places.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImagesRow {
    pub(crate) what: String,
    pub(crate) bytes: u64,
    pub(crate) save: f64,
    pub(crate) copy_out: f64,
    pub(crate) load: f64,
    pub(crate) copy_in: f64,
}

impl Row {
    pub(crate) fn ratio(&self, of: Kind, to: Kind) -> Option<f64> {
        Some(self.ns.get(&of)? / self.ns.get(&to)?)
    }

    /// shmheap beside the fastest of the private allocators.
    pub(crate) fn ratio_to_best(&self) -> Option<f64> {
        let private = self.ns.iter().filter(|(kind, _)| kind.is_private()).map(|(_, ns)| *ns);
        Some(self.ns.get(&Kind::Shmheap)? / private.min_by(f64::total_cmp)?)
    }
}

impl Results {
    /// The geometric mean of what is known of each row that counts.
    pub(crate) fn mean(&self, value: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        let rows = self.rows.iter().filter(|row| row.workload.is_in_means());
        let logarithms: Vec<f64> = rows.filter_map(value).map(f64::ln).collect();
        let count = logarithms.len();
        (count != 0).then(|| (logarithms.into_iter().sum::<f64>() / count as f64).exp())
    }

    /// shmheap's space after the churn, and its largest over the traces.
    pub(crate) fn shmheap_space(&self) -> (Option<f64>, Option<f64>) {
        let of = |row: &SpaceRow| row.ratio.get(&Kind::Shmheap).copied();
        let (churn, traces): (Vec<_>, Vec<_>) = self.space.iter().partition(|row| row.what == SpaceRow::CHURN);
        (churn.into_iter().find_map(of), traces.into_iter().filter_map(of).max_by(f64::total_cmp))
    }

    pub(crate) fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    pub(crate) fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} holds no results", file.display()))
    }
}

impl SpaceRow {
    pub(crate) const CHURN: &'static str = "churn";
}
