//! Looks at a heap again and again, and tells what happened between two looks.
//!
//! | noun | |
//! |---|---|
//! | [`Look`] | the numbers of one moment |
//! | [`Sample`] | a look, with the rates since the look before it |
//! | [`History`] | a few numbers of each of the last samples, for curves |
//!
//! Nothing here knows of a terminal, and nothing waits: whoever calls decides when to look.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use shmheap::{Activity, Change, Heap, Stats};

use super::super::stat::Lane;
use crate::place;

/// Samples that a history keeps: more than any terminal has columns.
const HISTORY_MAX: usize = 1000;
/// Two looks are taken to lie at least so far apart, so that no rate is beyond all measure.
const APART_MIN: Duration = Duration::from_millis(1);

/// The numbers of one moment.
#[derive(Debug)]
struct Look {
    at: Instant,
    stats: Stats,
    lanes: Vec<Lane>,
    activity: Activity,
}

/// Events per second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Rate {
    pub(crate) allocated: f64,
    pub(crate) freed: f64,
}

/// Blocks of one size.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ClassRow {
    /// Bytes per block; `None` for large blocks, which consist of pages of their own.
    pub(crate) size: Option<u64>,
    pub(crate) rate: Rate,
    /// Allocated blocks.
    pub(crate) live: u64,
    pub(crate) live_bytes: u64,
    /// Blocks, allocated or free.
    pub(crate) blocks: u64,
    pub(crate) slabs: u32,
    pub(crate) orphans: u32,
}

/// A lane, and what happens in it.
#[derive(Debug, Clone)]
pub(crate) struct LaneRow {
    pub(crate) lane: Lane,
    pub(crate) rate: Rate,
}

/// How the heap lock is fought for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct LockRate {
    /// Calls that slept for it, per second.
    pub(crate) waits: f64,
    /// Times that it was taken from the dead since the look before.
    pub(crate) takeovers: u64,
    /// The same since the heap was created.
    pub(crate) takeovers_ever: u64,
}

/// What one look tells, and what happened since the look before it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) time: SystemTime,
    /// How far the two looks are apart; zero if there was none before.
    pub(crate) apart: Duration,
    pub(crate) stats: Stats,
    pub(crate) rate: Rate,
    pub(crate) lock: LockRate,
    pub(crate) classes: Vec<ClassRow>,
    pub(crate) lanes: Vec<LaneRow>,
}

/// Takes the samples of a heap.
#[derive(Debug)]
pub(crate) struct Sampler {
    before: Look,
}

impl Look {
    fn at(heap: &Heap) -> shmheap::Result<Self> {
        let activity = heap.activity()?;
        let at = Instant::now();
        let path = place::path_of(heap);
        let lanes = heap.lanes()?.iter().map(|lane| Lane::new(lane, &path)).collect();
        Ok(Self { at, stats: heap.stats()?, lanes, activity })
    }
}

impl Sampler {
    /// Looks for the first time. The sample has no rates yet.
    pub(crate) fn start(heap: &Heap) -> shmheap::Result<(Self, Sample)> {
        let before = Look::at(heap)?;
        let first = Sample::between(&before, &before);
        Ok((Self { before }, first))
    }

    /// Looks again.
    pub(crate) fn sample(&mut self, heap: &Heap) -> shmheap::Result<Sample> {
        let now = Look::at(heap)?;
        let sample = Sample::between(&self.before, &now);
        self.before = now;
        Ok(sample)
    }
}

impl Rate {
    fn add(&mut self, other: Self) {
        self.allocated += other.allocated;
        self.freed += other.freed;
    }

    pub(crate) fn sum(self) -> f64 {
        self.allocated + self.freed
    }
}

impl Sample {
    fn between(before: &Look, now: &Look) -> Self {
        let apart = now.at.saturating_duration_since(before.at);
        let seconds = apart.max(APART_MIN).as_secs_f64();
        let changes = now.activity.since(&before.activity);
        let rate_of =
            |change: &Change| Rate { allocated: change.allocated as f64 / seconds, freed: change.freed as f64 / seconds };
        let mut total = Rate::default();
        let mut by_size: BTreeMap<Option<u64>, Rate> = BTreeMap::new();
        let mut by_lane: BTreeMap<u16, Rate> = BTreeMap::new();
        for change in &changes {
            let rate = rate_of(change);
            total.add(rate);
            by_size.entry(change.size).or_default().add(rate);
            by_lane.entry(change.lane).or_default().add(rate);
        }
        let lock = now.activity.lock.since(&before.activity.lock);
        let lock = LockRate {
            waits: lock.waits as f64 / seconds,
            takeovers: lock.takeovers,
            takeovers_ever: now.activity.lock.takeovers,
        };
        Self {
            time: SystemTime::now(),
            apart,
            stats: now.stats.clone(),
            rate: total,
            lock,
            classes: class_rows(&now.stats, &now.activity, by_size),
            lanes: lane_rows(&now.lanes, by_lane),
        }
    }

    /// The lane that holds the heap lock.
    pub(crate) fn lock_holder(&self) -> Option<&Lane> {
        self.lanes.iter().map(|row| &row.lane).find(|lane| lane.holds_lock)
    }
}

/// The classes that have slabs, or had blocks allocated or freed; then large blocks, if there are any.
fn class_rows(stats: &Stats, activity: &Activity, rates: BTreeMap<Option<u64>, Rate>) -> Vec<ClassRow> {
    let mut rows: BTreeMap<Option<u64>, ClassRow> = BTreeMap::new();
    for class in &stats.classes {
        let row = rows.entry(Some(class.size)).or_default();
        (row.slabs, row.orphans, row.blocks) = (class.slabs, class.orphans, class.blocks);
    }
    for class in activity.lanes.iter().flat_map(|lane| &lane.classes).filter(|class| class.allocated != 0) {
        let row = rows.entry(class.size).or_default();
        row.live = row.live.saturating_add(class.allocated);
        row.live_bytes = row.live_bytes.saturating_add(class.allocated_bytes);
    }
    for (size, rate) in rates {
        rows.entry(size).or_default().rate = rate;
    }
    for (size, row) in &mut rows {
        row.size = *size;
    }
    let large = rows.remove(&None);
    rows.into_values().chain(large).collect()
}

/// The lanes that somebody has, and those in whose slabs something happened all the same.
fn lane_rows(lanes: &[Lane], mut rates: BTreeMap<u16, Rate>) -> Vec<LaneRow> {
    let claimed =
        lanes.iter().map(|lane| LaneRow { lane: lane.clone(), rate: rates.remove(&lane.lane).unwrap_or_default() });
    let mut rows: Vec<LaneRow> = claimed.collect();
    rows.extend(rates.into_iter().map(|(lane, rate)| LaneRow { lane: nobodys(lane), rate }));
    rows.sort_by_key(|row| row.lane.lane);
    rows
}

/// A lane in which nobody sits: the shared one, or one that was left since.
fn nobodys(lane: u16) -> Lane {
    let state = if lane == 0 { "shared" } else { "left" };
    Lane { lane, pid: 0, thread: 0, state, command: None, since_ms: 0, slabs: 0, bytes_held: 0, holds_lock: false }
}

/// What a history keeps of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) used: u64,
    pub(crate) rate: Rate,
    pub(crate) lock_waits: f64,
}

/// The last samples.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// The newest comes first.
    points: VecDeque<Point>,
}

impl History {
    pub(crate) fn push(&mut self, sample: &Sample) {
        self.points.truncate(HISTORY_MAX - 1);
        self.points.push_front(Point { used: sample.stats.used, rate: sample.rate, lock_waits: sample.lock.waits });
    }

    /// The newest first.
    pub(crate) fn points(&self) -> impl Iterator<Item = &Point> {
        self.points.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A heap in memory of this process, and what a sampler tells of it after `f`.
    fn sampled(f: impl Fn(&Heap)) -> Sample {
        let heap = Heap::options().create_in(shmheap::Memory::zeroed(4 << 20).expect("memory")).expect("a heap");
        let (mut sampler, _) = Sampler::start(&heap).expect("a sound heap");
        f(&heap);
        sampler.sample(&heap).expect("a sound heap")
    }

    /// How many there were, from a rate.
    fn count(rate: f64, sample: &Sample) -> f64 {
        (rate * sample.apart.max(APART_MIN).as_secs_f64()).round()
    }

    #[test]
    fn rates_are_those_of_the_class_and_the_lane_in_which_something_happened() {
        let sample = sampled(|heap| {
            let blocks: Vec<_> = (0..500).map(|_| heap.allocate(100).expect("room")).collect();
            blocks[..200].iter().for_each(|block| heap.deallocate(*block).expect("an allocated block"));
            heap.allocate(100_000).expect("room");
        });
        let [small, large] = sample.classes.as_slice() else { panic!("{:?}", sample.classes) };
        assert_eq!((small.size, large.size), (Some(112), None));
        assert_eq!((count(small.rate.allocated, &sample), count(small.rate.freed, &sample)), (500.0, 200.0));
        assert_eq!((small.live, small.live_bytes), (300, 300 * 112));
        assert_eq!((count(large.rate.allocated, &sample), large.live), (1.0, 1));
        let [lane] = sample.lanes.as_slice() else { panic!("{:?}", sample.lanes) };
        assert_eq!((lane.lane.pid, lane.lane.state), (std::process::id(), "alive"));
        assert_eq!((count(lane.rate.allocated, &sample), count(sample.rate.allocated, &sample)), (501.0, 501.0));
    }

    #[test]
    fn where_nothing_happens_the_rates_are_zero() {
        let sample = sampled(|_| {});
        assert_eq!((sample.rate, sample.lock.waits, sample.lock.takeovers), (Rate::default(), 0.0, 0));
        assert!(sample.classes.is_empty());
    }

    #[test]
    fn a_lane_that_was_left_is_shown_with_what_happened_in_it() {
        let sample = sampled(|heap| {
            std::thread::scope(|scope| {
                // The scope waits for the closure only; the lane is left when the thread has ended.
                scope.spawn(|| heap.allocate(64).expect("room")).join().expect("it ends");
            });
        });
        let left: Vec<_> = sample.lanes.iter().filter(|row| row.lane.state == "left").collect();
        assert_eq!(left.len(), 1, "{:?}", sample.lanes);
        assert_eq!(count(left[0].rate.allocated, &sample), 1.0);
    }

    #[test]
    fn a_history_keeps_the_newest() {
        let sample = sampled(|_| {});
        let mut history = History::default();
        for used in 0..1500 {
            let mut sample = sample.clone();
            sample.stats.used = used;
            history.push(&sample);
        }
        let used: Vec<u64> = history.points().map(|point| point.used).collect();
        assert_eq!((used.len(), used[0], used[999]), (1000, 1499, 500));
    }
}
