//! The cold batch: every measurement in a process of its own, in which the allocator has done nothing before.

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::allocators::{self, Kind, Place};
use crate::child::{self, Task};
use crate::single::{Elapsed, Input, Measure};
use crate::workload::Workload;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ColdTask {
    kind: Kind,
    heap: String,
}

impl ColdTask {
    /// The child's side: nanoseconds per operation of the very first batch.
    pub(crate) fn run(self) -> Result<f64> {
        let input = Input::draw(Workload::Cold100k.shape())?.ok_or_else(|| anyhow!("the cold batch is one thread's"))?;
        let allocator = self.kind.attach(&Place::New(self.heap))?;
        Ok(allocator.run(Measure { input: &input, repeats: 1 }).ns_per_operation())
    }
}

/// Measures it once.
pub(crate) fn measure(kind: Kind) -> Result<Elapsed> {
    let heap = Place::name(kind, "cold");
    let answer = child::ask::<f64>(&Task::Cold(ColdTask { kind, heap: heap.clone() }));
    // The child has done so, unless it died.
    allocators::remove(kind, &heap);
    // In picoseconds, so that nothing is lost by rounding.
    Ok(Elapsed { ns: (answer? * 1000.0) as u64, operations: 1000 })
}
