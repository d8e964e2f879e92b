//! `bench`: how long allocating and freeing takes on this machine, beside the malloc of the process.
//!
//! Rounds are interleaved: in each, every load runs once with the heap and once with malloc, so that whatever else the
//! machine does meets both. What is printed are medians. scripts/bench.sh compares with more allocators, under more loads.

mod handover;
mod loads;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use shmheap::Heap;

use super::stress::{Temporary, own_name};
use crate::failure::Failure;
use crate::output::{self, DIM, Output, styled};
use crate::place::Place;
use crate::{Outcome, Verdict, units};
pub(crate) use handover::Partner;
use handover::{Process, Thread};
use loads::{Load, Malloc, Shared};

const CAPACITY: u64 = 256 << 20;
/// Rounds that are measured, however little time there is.
const ROUNDS_MIN: usize = 3;

/// Measures how long allocating and freeing takes here, beside the process's own malloc.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// For how long: seconds, or 500ms, 2m
    #[arg(long = "seconds", short = 's', visible_alias = "for", value_parser = units::parse_duration, default_value = "5")]
    duration: Duration,
}

#[derive(Debug, Serialize)]
struct Measured {
    rounds: usize,
    seconds: f64,
    rows: Vec<Row>,
}

/// Medians of one load, in nanoseconds per operation: one allocation or one free.
#[derive(Debug, Serialize)]
struct Row {
    load: &'static str,
    shmheap_ns: f64,
    malloc_ns: f64,
    ratio: f64,
}

/// What was measured of one load.
struct Samples {
    name: &'static str,
    /// The heap's, and malloc's.
    ns: [Vec<f64>; 2],
}

impl Bench {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).map_err(Failure::cannot)?;
        let place = Place::Segment(own_name("bench"));
        let heap = Heap::options().capacity(CAPACITY).create(&place.text())?;
        let _temporary = Temporary(Some(place.clone()));
        if output.is_watched() {
            eprintln!("measuring for {} ...", units::duration(self.duration));
        }
        let (mut process, thread) = (Process::start(&place)?, Thread::start());
        let loads = Load::all();
        let mut all: Vec<Samples> = loads.iter().map(|load| Samples::new(load.name())).collect();
        all.push(Samples::new(handover::NAME));
        let started = Instant::now();
        let mut rounds = 0;
        // The first round warms up, and is not counted.
        while rounds <= ROUNDS_MIN || started.elapsed() < self.duration {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            for (samples, load) in all.iter_mut().zip(&loads) {
                samples.add(rounds, load.run(&Shared(&heap))?, load.run(&Malloc)?);
            }
            if let Some(samples) = all.last_mut() {
                samples.add(rounds, process.measure(&heap)?, thread.measure()?);
            }
            rounds += 1;
        }
        drop(process);
        output.print(&Measured {
            rounds: rounds.saturating_sub(1),
            seconds: started.elapsed().as_secs_f64(),
            rows: all.into_iter().filter_map(Samples::row).collect(),
        })?;
        Ok(Verdict::Fine)
    }
}

impl Samples {
    fn new(name: &'static str) -> Self {
        Self { name, ns: [Vec::new(), Vec::new()] }
    }

    fn add(&mut self, round: usize, shared: f64, private: f64) {
        if round > 0 {
            self.ns[0].push(shared);
            self.ns[1].push(private);
        }
    }

    fn row(self) -> Option<Row> {
        let [shmheap_ns, malloc_ns] = self.ns.map(median);
        let (shmheap_ns, malloc_ns) = (shmheap_ns?, malloc_ns?);
        Some(Row { load: self.name, shmheap_ns, malloc_ns, ratio: shmheap_ns / malloc_ns })
    }
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(&["NANOSECONDS PER OPERATION", ">SHMHEAP", ">MALLOC", ">RATIO"]);
        for Row { load, shmheap_ns, malloc_ns, ratio } in &self.rows {
            let number = |number: f64| format!("{number:.1}");
            table.add_row([(*load).to_owned(), number(*shmheap_ns), number(*malloc_ns), format!("{ratio:.2}")]);
        }
        f.write_str(&output::lines_of(&table))?;
        let Self { rounds, seconds, .. } = self;
        let notes = [
            format!("An operation is one allocation or one free. Medians of {rounds} interleaved rounds in {seconds:.1} s."),
            "malloc is this process's own: private, lost with the process, and it never has to survive a death. Blocks are not".into(),
            "touched. Handing over: to another process by a pipe, and for malloc, which cannot, to a thread by a channel.".into(),
            "More loads, and other allocators: scripts/bench.sh in the repository.".into(),
        ];
        if cfg!(debug_assertions) {
            writeln!(
                f,
                "{}",
                styled(output::WARNING, "This program was built without optimisation: build it with --release.")
            )?;
        }
        notes.iter().try_for_each(|note: &String| writeln!(f, "{}", styled(DIM, note)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!((median(vec![3.0, 100.0, 1.0]), median(Vec::new())), (Some(3.0), None));
    }
}
