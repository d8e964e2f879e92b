//! `demo`: a tour in ten seconds. Workers fill a heap, one is killed while it changes the heap, then all; nothing is lost.
//!
//! The workers are those of `stress`. What is told is in `story.rs`.

mod story;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use shmheap::Heap;
use tempfile::TempDir;

use super::stress::closing::{self, Closing};
use super::stress::crew::Crew;
use super::stress::ground::{Counter, Ground};
use super::stress::report::{Times, thousands};
use super::stress::{Temporary, own_name};
use crate::Outcome;
use crate::failure::Failure;
use crate::output::Output;
use crate::place::Place;
use crate::units::{count, size};
use story::Story;

/// Small, so that its map shows single pages.
const CAPACITY: u64 = 4 << 20;
const WORKERS: usize = 4;
/// How many workers are stopped and looked at until one holds the heap lock.
const TRIES: u32 = 400;
/// How long survivors have to go on after a death, before that is a failure.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often what is waited for is looked at.
const GLANCE: Duration = Duration::from_millis(1);

/// Shows in ten seconds what this is about: processes share a heap, are killed at the worst moment, and nothing is lost.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Without pauses to read in
    #[arg(long, short)]
    quick: bool,
}

/// The tour under way.
struct Tour<'a> {
    story: Story<'a>,
    place: Place,
    copy: Place,
    /// A folder for the image; it goes with this.
    folder: TempDir,
    pace: Duration,
    interrupted: Arc<AtomicBool>,
}

impl Demo {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).map_err(Failure::cannot)?;
        let name = own_name("demo");
        let tour = Tour {
            story: Story::new(output),
            copy: Place::Segment(format!("{name}-copy")),
            folder: tempfile::tempdir()
                .map_err(|error| Failure::cannot(format!("cannot make a folder for the image: {error}")))?,
            place: Place::Segment(name),
            pace: if self.quick { Duration::from_millis(50) } else { Duration::from_millis(1300) },
            interrupted,
        };
        tour.go()
    }
}

impl Tour<'_> {
    fn go(mut self) -> Outcome {
        self.story.open()?;
        let (heap, _temporary) = self.make()?;
        let ground = Ground::create(&heap, &own_name("demo"), WORKERS)?;
        let place = self.place.clone();
        let mut crew = Crew::new(&place, &ground, false, 1);
        self.fill(&heap, &ground, &mut crew)?;
        self.kill_one(&heap, &ground, &mut crew)?;
        self.kill_all(&heap, &mut crew)?;
        drop((crew, heap));
        let (heap, found) = self.come_back(&ground)?;
        self.copy(&heap, &ground, &found)?;
        self.empty(&heap, &ground)?;
        heap.destroy()?;
        self.story.close()
    }

    /// Gives time to read; tells if somebody wants to leave.
    fn pause(&self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            std::thread::sleep(GLANCE.max(Duration::from_millis(10)));
        }
        Ok(())
    }

    fn make(&mut self) -> Result<(Heap, Temporary), Failure> {
        let name = self.place.text();
        let heap = Heap::options().capacity(CAPACITY).create(&name)?;
        // Whatever happens, neither this heap nor its copy is left.
        let temporary = Temporary(Some(self.place.clone()));
        let taken = heap.stats()?.taken;
        self.story.step(
            "A heap is made.",
            &[
                format!("It is the file /dev/shm/{name}: any process of yours can attach it by that name."),
                format!("Its capacity is {}, of which {} of memory are taken so far.", size(CAPACITY), size(taken)),
            ],
            json!({ "name": name, "capacity": CAPACITY, "taken": taken }),
        )?;
        self.pause(self.pace)?;
        Ok((heap, temporary))
    }

    fn fill(&mut self, heap: &Heap, ground: &Ground, crew: &mut Crew<'_>) -> Result<(), Failure> {
        crew.fill()?;
        let started = Instant::now();
        self.wait_for(|| Ok(ground.total(heap, Counter::Operations)? > 1000), "the workers do not start")?;
        self.pause(2 * self.pace)?;
        self.listen(crew);
        let operations = ground.total(heap, Counter::Operations)?;
        let rate = operations as f64 / started.elapsed().as_secs_f64();
        let stats = heap.stats()?;
        let pids: Vec<i32> = (0..WORKERS).filter_map(|slot| Some(crew.pid(slot)?.as_raw())).collect();
        self.story.step(
            &format!("{WORKERS} processes share it."),
            &[
                format!("Pids {pids:?} allocate, fill blocks, hand them to each other, check and free them:"),
                format!("{} operations so far, {} a second.", thousands(operations), count(rate)),
                format!("{} blocks are allocated now, {} in all. Seen as a map:", stats.allocated_blocks, size(stats.used)),
            ],
            json!({ "pids": pids, "operations": operations, "blocks": stats.allocated_blocks, "used": stats.used }),
        )?;
        self.story.map(heap)?;
        self.pause(self.pace)
    }

    fn kill_one(&mut self, heap: &Heap, ground: &Ground, crew: &mut Crew<'_>) -> Result<(), Failure> {
        let before = heap.lock_stats().takeovers;
        let noted: Vec<u64> =
            (0..WORKERS).map(|slot| ground.counter(heap, slot, Counter::Times)).collect::<Result<_, _>>()?;
        let pids: Vec<_> = (0..WORKERS).map(|slot| crew.pid(slot)).collect();
        let struck = crew.strike(heap, TRIES)?;
        let Some((slot, had_lock)) = struck else {
            return Err(Failure::wrong("all workers have ended by themselves", "shmheap stress tells more"));
        };
        let at_death = ground.total(heap, Counter::Operations)?;
        // Survivors go on, and if the dead one had the lock, one of them has taken it and repaired what was half done.
        self.wait_for(|| Ok(ground.total(heap, Counter::Operations)? > at_death + 1000), "the survivors do not go on")?;
        if had_lock {
            self.wait_for(|| Ok(heap.lock_stats().takeovers > before), "nobody has taken the lock of the dead")?;
        }
        let mut times = Vec::new();
        for (slot, from) in noted.into_iter().enumerate() {
            times.extend(ground.times(heap, slot, from)?.0);
        }
        let taken_over = Times::of_firsts(&times);
        heap.recover()?;
        let orphans: u32 = heap.stats()?.classes.iter().map(|class| class.orphans).sum();
        let valid = heap.validate();
        self.story.expect(valid.is_ok(), || format!("after the death: {valid:?}"));
        let pid = pids[slot].map_or(0, |pid| pid.as_raw());
        let since = ground.total(heap, Counter::Operations)? - at_death;
        let what = if had_lock { "while it held the heap's lock, in the middle of a change" } else { "at its work" };
        let others = match had_lock {
            true if taken_over.count > 0 => {
                format!("One of the others took the lock over. It was held up for {:.2} ms", ms(taken_over))
            }
            true => "One of the others took the lock over at once".to_owned(),
            false => "The others did not even notice".to_owned(),
        };
        self.story.step(
            "One of them dies at the worst moment.",
            &[
                format!("kill -KILL {pid}, {what}."),
                format!("{others}; they have made {} operations since.", thousands(since)),
                "Whoever takes the lock finishes the change or undoes it, by the journal of the dead.".to_owned(),
                format!("What the dead had is nobody's now, {orphans} orphan slabs at this moment; the living adopt them:"),
            ],
            json!({ "pid": pid, "held_the_lock": had_lock, "taken_over": taken_over, "operations_since": since,
                "orphan_slabs": orphans, "valid": valid.is_ok() }),
        )?;
        self.story.map(heap)?;
        self.pause(self.pace)
    }

    fn kill_all(&mut self, heap: &Heap, crew: &mut Crew<'_>) -> Result<(), Failure> {
        self.listen(crew);
        crew.kill_all();
        let stats = heap.stats()?;
        self.story.step(
            "Then all of them die, and so does everything that is not in the heap.",
            &[format!(
                "{} blocks are left behind by {} dead processes. Nobody said goodbye.",
                stats.allocated_blocks,
                crew.killed()
            )],
            json!({ "killed": crew.killed(), "blocks": stats.allocated_blocks }),
        )?;
        self.pause(self.pace)
    }

    fn come_back(&mut self, ground: &Ground) -> Result<(Heap, Closing), Failure> {
        let started = Instant::now();
        let heap = self.place.open()?;
        heap.recover()?;
        let took = started.elapsed();
        let mut found = closing::check(&heap, ground)?;
        self.story.expect(found.wrong.is_empty() && found.intact > 0, || format!("published blocks: {:?}", found.wrong));
        self.story.expect_sound(&heap);
        let wrong = std::mem::take(&mut found.wrong);
        self.story.step(
            "A new process attaches the heap and finds everything again.",
            &[
                format!(
                    "Attached and recovered in {:.2} ms. Every root and every list is where it was:",
                    took.as_secs_f64() * 1e3
                ),
                format!(
                    "{} published blocks found by their names, {}, every byte as it was written; {} were half filled.",
                    found.intact,
                    size(found.intact_bytes),
                    found.begun
                ),
            ],
            json!({ "attached_us": took.as_micros() as u64, "intact": found.intact, "intact_bytes": found.intact_bytes,
                "half_filled": found.begun, "wrong": wrong }),
        )?;
        self.pause(self.pace)?;
        Ok((heap, found))
    }

    fn copy(&mut self, heap: &Heap, ground: &Ground, found: &Closing) -> Result<(), Failure> {
        let image = self.folder.path().join("image");
        let saved = heap.save(&image)?;
        let name = self.copy.text();
        let copy = Heap::load(&image, &name)?;
        let _temporary = Temporary(Some(self.copy.clone()));
        let again = closing::check(&copy, &Ground::find(&copy, ground.id(), WORKERS).map_err(Failure::cannot)?)?;
        let same = again.intact == found.intact && again.wrong.is_empty();
        self.story.expect(same, || format!("in the copy {} blocks are intact: {:?}", again.intact, again.wrong));
        self.story.expect_sound(&copy);
        copy.destroy()?;
        self.story.step(
            "The heap is saved as an image, and loaded under another name.",
            &[
                format!(
                    "{} of checksummed image; {name} has the same {} blocks at the same offsets.",
                    size(saved.image_len),
                    saved.blocks
                ),
                "So it moves to another machine, or survives a power cut.".to_owned(),
            ],
            json!({ "image_bytes": saved.image_len, "blocks": saved.blocks, "intact": again.intact }),
        )?;
        self.pause(self.pace)
    }

    fn empty(&mut self, heap: &Heap, ground: &Ground) -> Result<(), Failure> {
        let mut closing = Closing::default();
        closing::free(heap, ground)?;
        // The workers published whatever they had, so that no death has left a block of which nobody knows.
        closing::expect_empty(heap, 0, &mut closing)?;
        let stats = heap.stats()?;
        self.story.expect(closing.wrong.is_empty(), || format!("{:?}", closing.wrong));
        let sound = self.story.expect_sound(heap);
        self.story.step(
            "All that the dead left behind is freed.",
            &[
                format!(
                    "{} used, {} free run, {:.0} % fragmentation: not a byte has leaked.",
                    size(stats.used),
                    stats.free_blocks,
                    stats.fragmentation_ratio() * 100.0
                ),
                format!("validate, which recounts everything, says: {}.", if sound { "sound" } else { "NOT sound" }),
            ],
            json!({
                "used": stats.used,
                "free_runs": stats.free_blocks,
                "fragmentation": stats.fragmentation,
                "sound": sound,
            }),
        )
    }

    fn listen(&mut self, crew: &mut Crew<'_>) {
        for told in crew.look_after() {
            self.story.expect(false, || told);
        }
    }

    /// Waits until something is so. If it takes too long, that is what is wrong.
    fn wait_for(&self, is_so: impl Fn() -> shmheap::Result<bool>, otherwise: &str) -> Result<(), Failure> {
        let started = Instant::now();
        while !is_so()? {
            if started.elapsed() > PATIENCE {
                return Err(Failure::wrong(format!("{otherwise} within {PATIENCE:?}"), "shmheap stress tells more"));
            }
            self.pause(GLANCE)?;
        }
        Ok(())
    }
}

fn ms(times: Times) -> f64 {
    times.max_us as f64 / 1000.0
}
