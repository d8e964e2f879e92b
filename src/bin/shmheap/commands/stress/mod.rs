//! `stress`: worker processes use a heap as hard as they can, get killed, and everything is checked.
//!
//! | noun | file | |
//! |---|---|---|
//! | ground | `ground.rs` | what a run has in the heap; how blocks are handed over |
//! | worker | `worker.rs` | one process at work |
//! | pattern | `pattern.rs` | what stands in blocks, and how a changed byte is noticed |
//! | crew | `crew.rs` | the workers as their parent sees them: started, stopped, killed, reaped |
//! | closing | `closing.rs` | what is checked and freed when all have ended |
//! | report | `report.rs` | what is printed |

pub(crate) mod closing;
pub(crate) mod crew;
pub(crate) mod ground;
mod pattern;
pub(crate) mod report;
pub(crate) mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use clap_complete::ArgValueCompleter;
use fastrand::Rng;
use indicatif::{ProgressBar, ProgressStyle};
use shmheap::{Heap, Options};

use crate::failure::Failure;
use crate::output::Output;
use crate::place::{self, Place};
use crate::{Outcome, Verdict, units};
use crew::Crew;
use ground::{Counter, Ground, HeldUp};
use report::{End, Report, Times};

/// The smallest heap in which there is room for blocks of all the sizes that workers want.
const CAPACITY_LEAST: u64 = 1 << 20;
/// How often the heap is validated while workers are at work.
const VALIDATE_EVERY: Duration = Duration::from_millis(250);
/// How often somebody at a terminal is told how far it has come.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// Longest time between two kills.
const KILL_WITHIN_MS: u64 = 150;
/// How many workers are stopped and looked at before one is killed that does not hold the lock. Every fourth kill takes
/// somebody as they are.
const TRIES: u32 = 20;
/// So much went wrong that going on tells nothing new.
const FAILURES_MAX: usize = 20;
/// How long the parent sleeps at most before it looks after its workers.
const NAP: Duration = Duration::from_millis(10);

/// Lets worker processes allocate, share, check and free blocks, kills some if asked to, and checks everything.
///
/// A heap that is made for this is removed at the end. One that was there before is used together with whoever uses it, and
/// all that the workers had in it is freed. Exit code 0 if nothing was wrong, also after Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct Stress {
    /// Name of the heap, or path of the file that it is in; made if it is missing [default: a new one of a name of its own]
    #[arg(value_name = "NAME", value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    place: Option<Place>,
    /// How many processes use the heap
    #[arg(long, short, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Kill workers at random moments, several a second, preferably while they hold the heap lock, and replace them
    #[arg(long, short)]
    kill: bool,
    /// For how long: seconds, or 500ms, 2m, 8h
    #[arg(long = "seconds", short = 's', visible_alias = "for", value_parser = units::parse_duration, default_value = "10")]
    duration: Duration,
    /// Size of the heap, if it is to be made
    #[arg(long, short, value_parser = units::parse_size, default_value = "64M")]
    capacity: u64,
    /// Where the random numbers start [default: by the clock]
    #[arg(long, value_parser = units::parse_offset)]
    seed: Option<u64>,
    /// Keep the heap that was made
    #[arg(long)]
    keep: bool,
}

/// A heap that goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Temporary(pub(crate) Option<Place>);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        match self.0.take() {
            Some(Place::Segment(name)) => _ = Heap::unlink(&name),
            Some(Place::File(path)) => _ = std::fs::remove_file(path),
            None => {}
        }
    }
}

/// A run at work.
struct Run<'a> {
    heap: &'a Heap,
    ground: &'a Ground,
    crew: Crew<'a>,
    started: Instant,
    takeovers_before: u64,
    /// How many times of each slot's board have been read, and those times.
    times_read: Vec<u64>,
    times: Vec<HeldUp>,
    validations: u64,
    failures: Vec<String>,
}

impl Stress {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).map_err(Failure::cannot)?;

        if self.capacity < CAPACITY_LEAST {
            return Err(Failure::usage("there is no room for the workers' blocks", "--capacity 1M is the least"));
        }
        let place = self.place.clone().unwrap_or_else(|| Place::Segment(own_name("stress")));
        let (heap, own) = self.heap(&place)?;
        let _temporary = Temporary(Some(place.clone()).filter(|_| own && !self.keep));
        let seed = self.seed.unwrap_or_else(random_seed);
        let ground = Ground::create(&heap, &own_name("stress"), usize::from(self.workers))?;
        // In a heap of others nothing may be left, not even by the killed: there all blocks are published.
        let crew = Crew::new(&place, &ground, own || !self.kill, seed);
        let mut run = Run::new(&heap, &ground, crew);
        run.crew.fill()?;
        self.soak(&mut run, output, &interrupted, Rng::with_seed(!seed))?;
        let mut report = run.close(own)?;
        report.name = place.text();
        (report.seed, report.interrupted) = (seed, interrupted.load(Ordering::Relaxed));
        output.print(&report)?;
        Ok(if report.failures.is_empty() { Verdict::Fine } else { Verdict::Wrong })
    }

    /// The heap, and whether it was made for this run.
    fn heap(&self, place: &Place) -> Result<(Heap, bool), Failure> {
        let options: Options = Heap::options().capacity(self.capacity);
        // Each worker, its replacement, and this process have lanes.
        let made = options.lanes(u32::from(self.workers) + 8);
        let made = match place {
            Place::Segment(name) => made.create(name),
            Place::File(path) => made.create_file(path),
        };
        match made {
            Ok(heap) => Ok((heap, true)),
            Err(shmheap::Error::AlreadyExists { .. }) => Ok((place.open()?, false)),
            Err(error) => Err(place.explain(error)),
        }
    }

    /// Lets them work until the time is up, it is interrupted, or too much is wrong.
    fn soak(&self, run: &mut Run<'_>, output: &Output, interrupted: &AtomicBool, mut random: Rng) -> Result<(), Failure> {
        let bar = output.is_watched().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        let (mut next_kill, mut next_validation, mut next_show) = (run.started, run.started, run.started);
        while run.started.elapsed() < self.duration
            && !interrupted.load(Ordering::Relaxed)
            && run.failures.len() < FAILURES_MAX
        {
            let now = Instant::now();
            run.look_after()?;
            if self.kill && now >= next_kill {
                let tries = if random.u8(..4) == 0 { 1 } else { TRIES };
                run.crew.strike(run.heap, tries)?;
                run.crew.fill()?;
                next_kill = Instant::now() + Duration::from_millis(random.u64(..KILL_WITHIN_MS));
            }
            if now >= next_validation {
                run.validate();
                next_validation = Instant::now() + VALIDATE_EVERY;
            }
            if let Some(bar) = bar.as_ref().filter(|_| now >= next_show) {
                bar.set_message(run.so_far()?);
                bar.tick();
                next_show = now + SHOW_EVERY;
            }
            std::thread::sleep(NAP.min(self.duration.saturating_sub(run.started.elapsed())));
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(())
    }
}

impl<'a> Run<'a> {
    fn new(heap: &'a Heap, ground: &'a Ground, crew: Crew<'a>) -> Self {
        Self {
            heap,
            ground,
            crew,
            started: Instant::now(),
            takeovers_before: heap.lock_stats().takeovers,
            times_read: vec![0; ground.workers()],
            times: Vec::new(),
            validations: 0,
            failures: Vec::new(),
        }
    }

    /// Hears what workers tell, replaces those that have ended, and reads their times before they are overwritten.
    fn look_after(&mut self) -> Result<(), Failure> {
        self.failures.extend(self.crew.look_after());
        self.crew.fill()?;
        self.read_times()?;
        Ok(())
    }

    fn read_times(&mut self) -> shmheap::Result<()> {
        for (slot, read) in self.times_read.iter_mut().enumerate() {
            let (times, noted) = self.ground.times(self.heap, slot, *read)?;
            *read = noted;
            self.times.extend(times);
        }
        Ok(())
    }

    fn validate(&mut self) {
        self.validations += 1;
        let wrong = closing::unsound(self.heap);
        self.failures.extend(wrong);
    }

    fn takeovers(&self) -> u64 {
        self.heap.lock_stats().takeovers.saturating_sub(self.takeovers_before)
    }

    fn so_far(&self) -> shmheap::Result<String> {
        let operations = self.ground.total(self.heap, Counter::Operations)?;
        let (kills, failures) = (self.crew.killed(), self.failures.len());
        Ok(report::so_far(self.started.elapsed(), operations, kills, self.takeovers(), failures))
    }

    /// Lets all workers end, checks everything, frees everything, and reports.
    fn close(mut self, own: bool) -> Result<Report, Failure> {
        let elapsed = self.started.elapsed();
        let (kills, kills_with_lock) = (self.crew.killed(), self.crew.killed_with_lock());
        let (heap, ground) = (self.heap, self.ground);
        self.look_after()?;
        self.failures.extend(self.crew.finish(heap)?);
        self.read_times()?;
        heap.recover()?;
        self.failures.extend(closing::unsound(heap));
        let mut found = closing::check(heap, ground)?;
        let total = |counter| ground.total(heap, counter);
        let [operations, checked, full] = [Counter::Operations, Counter::Checked, Counter::Full].map(total);
        let (operations, checked, full) = (operations?, checked?, full?);
        let takeovers = self.takeovers();
        closing::free(heap, ground)?;
        let mut end = End::default();
        if own {
            closing::expect_empty(heap, kills, &mut found)?;
            let stats = heap.stats()?;
            (end.used, end.free_runs) = (Some(stats.used), Some(stats.free_blocks));
            end.fragmentation = Some(stats.fragmentation);
        } else {
            closing::expect_no_trace(heap, ground, &mut found)?;
        }
        self.failures.append(&mut found.wrong);
        self.failures.extend(closing::unsound(heap));
        (end.published_intact, end.half_filled, end.unpublished) = (found.intact, found.begun, found.strays);
        Ok(Report {
            name: String::new(),
            own,
            capacity: heap.capacity(),
            workers: ground.workers(),
            seconds: elapsed.as_secs_f64(),
            seed: 0,
            interrupted: false,
            operations,
            operations_per_second: operations as f64 / elapsed.as_secs_f64().max(0.001),
            full,
            validations: self.validations,
            kills,
            kills_with_lock,
            takeovers,
            taken_over: Times::of_firsts(&self.times),
            held_up: Times::of(&self.times),
            blocks_checked: checked + found.intact,
            at_the_end: end,
            failures: self.failures,
        })
    }
}

/// A name that nobody else uses: a process of another container may have the same pid.
pub(crate) fn own_name(what: &str) -> String {
    format!("shmheap-{what}-{}-{:08x}", std::process::id(), random_seed() as u32)
}

/// A seed that is not too long to be typed.
fn random_seed() -> u64 {
    fastrand::u64(..1 << 48)
}
