//! `watch`: a line a second on what goes on in a heap, for logs.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::Serialize;
use shmheap::Heap;

use super::Named;
use super::top::sampler::{Sample, Sampler};
use super::top::{self, Stop};
use crate::failure::Failure;
use crate::output::{Output, STRONG, WARNING, styled};
use crate::place::Place;
use crate::units::{count, size};
use crate::{Outcome, Verdict};

/// However long the interval, that the heap was removed is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Prints a line a second on what goes on in a heap, until it is removed or Ctrl-C is pressed.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    named: Named,
    /// Time from line to line: seconds, or 500ms, 10s, 2m
    #[arg(long, short, value_parser = top::parse_interval, default_value = "1s")]
    interval: Duration,
    /// How many lines to print [default: no end]
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// A line.
#[derive(Debug, Serialize)]
struct Line {
    time: String,
    /// For how long the rates are the mean.
    seconds: f64,
    used: u64,
    free: u64,
    largest_free: u64,
    fragmentation: f64,
    blocks: u64,
    lanes_alive: u32,
    lanes_dead: u32,
    allocations_per_second: f64,
    frees_per_second: f64,
    lock_waits_per_second: f64,
    /// Since the heap was created.
    takeovers: u64,
}

/// The last line, where the heap was removed.
#[derive(Debug, Serialize)]
struct Removed {
    time: String,
    name: String,
    removed: bool,
}

/// Time as RFC 3339 has it, in UTC.
fn written(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

impl Line {
    fn new(sample: &Sample) -> Self {
        let Sample { stats, rate, lock, .. } = sample;
        let tenths = |number: f64| (number * 10.0).round() / 10.0;
        Self {
            time: written(sample.time),
            seconds: (sample.apart.as_secs_f64() * 1000.0).round() / 1000.0,
            used: stats.used,
            free: stats.free,
            largest_free: stats.largest_free,
            fragmentation: stats.fragmentation_ratio(),
            blocks: stats.allocated_blocks,
            lanes_alive: stats.lanes_alive,
            lanes_dead: stats.lanes_dead,
            allocations_per_second: tenths(rate.allocated),
            frees_per_second: tenths(rate.freed),
            lock_waits_per_second: tenths(lock.waits),
            takeovers: lock.takeovers_ever,
        }
    }

    /// What stands above the lines.
    fn head() -> String {
        let [time, used, free, largest, frag] = ["TIME", "USED", "FREE", "LARGEST FREE", "FRAG"];
        let [blocks, alive, dead, allocated] = ["BLOCKS", "ALIVE", "DEAD", "ALLOCS/S"];
        let [freed, waits, takeovers] = ["FREES/S", "WAITS/S", "TAKEOVERS"];
        let heap = format!("{time:<24}  {used:>10}  {free:>10}  {largest:>12}  {frag:>7}  {blocks:>9}");
        format!("{heap}  {alive:>5}  {dead:>4}  {allocated:>8}  {freed:>7}  {waits:>7}  {takeovers:>9}")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, free, largest) = (size(self.used), size(self.free), size(self.largest_free));
        let (frag, blocks) = (format!("{:.1} %", self.fragmentation * 100.0), self.blocks);
        write!(f, "{}  {used:>10}  {free:>10}  {largest:>12}  {frag:>7}  {blocks:>9}", self.time)?;
        let (alive, dead) = (self.lanes_alive, format!("{:>4}", self.lanes_dead));
        let dead = if self.lanes_dead == 0 { dead } else { styled(WARNING, dead) };
        let (allocated, freed) = (count(self.allocations_per_second), count(self.frees_per_second));
        let (waits, takeovers) = (count(self.lock_waits_per_second), self.takeovers);
        write!(f, "  {alive:>5}  {dead}  {allocated:>8}  {freed:>7}  {waits:>7}  {takeovers:>9}")
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {} was removed", self.time, self.name)
    }
}

impl Watch {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let stop = Stop::on_signals(|| ())?;
        let explain = |error| place.explain(error);
        let (mut sampler, _) = Sampler::start(&heap).map_err(explain)?;
        if !output.is_json() {
            output.text(format_args!("{}\n", styled(STRONG, Line::head())))?;
        }
        let mut next = Instant::now();
        let mut printed = 0;
        while self.count.is_none_or(|count| printed < count) {
            // A look that came late makes no crowd of lines.
            next = (next + self.interval).max(Instant::now());
            match wait(&heap, next, &stop).map_err(explain)? {
                Waited::Out => output.print_line(&Line::new(&sampler.sample(&heap).map_err(explain)?))?,
                Waited::Removed => {
                    print_removed(output, place)?;
                    break;
                }
                Waited::Stopped => break,
            }
            printed += 1;
        }
        Ok(Verdict::Fine)
    }
}

fn print_removed(output: &Output, place: &Place) -> Result<(), Failure> {
    output.print_line(&Removed { time: written(SystemTime::now()), name: place.text(), removed: true })
}

/// How a wait for the next line ended.
#[derive(Debug)]
enum Waited {
    Out,
    Removed,
    Stopped,
}

fn wait(heap: &Heap, until: Instant, stop: &Stop) -> shmheap::Result<Waited> {
    loop {
        if heap.is_unlinked()? {
            return Ok(Waited::Removed);
        }
        let left = until.saturating_duration_since(Instant::now());
        if stop.within(left.min(LOOK_EVERY)) {
            return Ok(Waited::Stopped);
        }
        if left <= LOOK_EVERY {
            return Ok(if heap.is_unlinked()? { Waited::Removed } else { Waited::Out });
        }
    }
}
