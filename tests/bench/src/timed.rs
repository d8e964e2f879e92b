//! Times the workloads. In every round each allocator runs the workload once, so that whatever slows the machine down
//! for a while slows all of them; what is told is the median of the rounds. Two rounds that are not counted come first:
//! one warms up, the other shows how often an allocator must repeat the workload for a measurement of the right length.

use anyhow::{Context, Result};

use crate::allocators::{Attached, Kind, Place};
use crate::cold;
use crate::results::{Row, ScalingRow};
use crate::single::{Elapsed, Input, Measure};
use crate::team::Team;
use crate::workload::{Shape, Together, Workload};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// What a measurement should take. A workload that takes longer when run once is run once.
    pub(crate) measurement_ns: u64,
}

/// Repeats at most, however fast a workload is.
const REPEATS_MAX: u64 = 10_000;
/// Numbers of workers in the scaling table, where the machine has the processors.
const WORKERS: [usize; 5] = [1, 2, 4, 8, 16];

/// An allocator that takes part, ready in this thread from the first workload to the last.
pub(crate) struct Contestant {
    pub(crate) kind: Kind,
    /// Its heap, if it is a shared one.
    heap: String,
    attached: Attached,
}

impl Contestant {
    pub(crate) fn enter(kind: Kind) -> Result<Self> {
        let heap = Place::name(kind, "main");
        let attached = kind.attach(&Place::New(heap.clone()))?;
        Ok(Self { kind, heap, attached })
    }

    fn fits(&self, workload: Workload) -> bool {
        let (wanted, given) = (workload.sizes(), self.kind.sizes());
        given.contains(wanted.start()) && given.contains(wanted.end())
    }

    fn measure(&self, shape: Shape, input: Option<&Input>, repeats: usize) -> Result<Elapsed> {
        let elapsed = match (shape, input) {
            (Shape::Cold { .. }, _) => cold::measure(self.kind),
            (Shape::Team { workers, together }, _) => self.team(workers, together, repeats),
            (_, Some(input)) => Ok(self.attached.run(Measure { input, repeats })),
            (_, None) => Ok(Elapsed { ns: 0, operations: 0 }),
        };
        elapsed.with_context(|| format!("{} fails", self.kind.name()))
    }

    fn team(&self, workers: usize, together: Together, repeats: usize) -> Result<Elapsed> {
        let Self { kind, heap, attached } = self;
        Team { kind: *kind, heap, attached, workers, together, repeats }.measure()
    }
}

/// Times one workload with everybody whom it fits.
pub(crate) fn workload(workload: Workload, contestants: &[Contestant], effort: Effort) -> Result<Row> {
    let shape = workload.shape();
    let input = Input::draw(shape)?;
    let fitting: Vec<&Contestant> = contestants.iter().filter(|contestant| contestant.fits(workload)).collect();
    let measure = |index: usize, repeats| fitting[index].measure(shape, input.as_ref(), repeats);
    let medians = interleaved(fitting.len(), effort, measure).with_context(|| workload.name())?;
    Ok(Row { workload, ns: fitting.iter().map(|contestant| contestant.kind).zip(medians).collect() })
}

/// Small churns by more and more workers: millions of operations per second of all together.
pub(crate) fn scaling(contestants: &[Contestant], effort: Effort) -> Result<Vec<ScalingRow>> {
    let processors = std::thread::available_parallelism().context("how many processors are there?")?.get();
    let (small, mut rows) = (Workload::ChurnSmall, Vec::new());
    let fitting: Vec<&Contestant> = contestants.iter().filter(|contestant| contestant.fits(small)).collect();
    for workers in WORKERS.into_iter().filter(|workers| *workers <= processors) {
        let measure = |index: usize, repeats| fitting[index].team(workers, Together::ChurnSmall, repeats);
        let medians = interleaved(fitting.len(), effort, measure).context("scaling")?;
        let million_per_second = medians.into_iter().map(|ns| 1000.0 / ns);
        let kinds = fitting.iter().map(|contestant| contestant.kind);
        rows.push(ScalingRow { workers, million_per_second: kinds.zip(million_per_second).collect() });
    }
    Ok(rows)
}

/// Medians in nanoseconds per operation, for each of `count` contestants.
fn interleaved(count: usize, effort: Effort, measure: impl Fn(usize, usize) -> Result<Elapsed>) -> Result<Vec<f64>> {
    let mut repeats = Vec::new();
    for index in 0..count {
        // First touches of memory take many times longer than the workload itself, and come once.
        measure(index, 1)?;
        let once = measure(index, 1)?.ns.max(1);
        repeats.push((effort.measurement_ns / once).clamp(1, REPEATS_MAX) as usize);
    }
    let mut all = vec![Vec::new(); count];
    for round in 0..effort.rounds {
        // Another one begins each time, so that nobody always comes after the same one.
        for turn in 0..count {
            let index = (round + turn) % count;
            all[index].push(measure(index, repeats[index])?.ns_per_operation());
        }
    }
    Ok(all.into_iter().map(median).collect())
}

/// The value in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
