//! What a stress reports.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::ground::HeldUp;
use crate::units::{self, count, size};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    /// The heap was made for this run.
    pub(crate) own: bool,
    pub(crate) capacity: u64,
    pub(crate) workers: usize,
    pub(crate) seconds: f64,
    pub(crate) seed: u64,
    /// It was ended before its time.
    pub(crate) interrupted: bool,
    pub(crate) operations: u64,
    pub(crate) operations_per_second: f64,
    /// Those that found no room.
    pub(crate) full: u64,
    pub(crate) validations: u64,
    pub(crate) kills: u64,
    pub(crate) kills_with_lock: u64,
    pub(crate) takeovers: u64,
    /// From each death with the lock until the first survivor's call was done that had waited for it.
    pub(crate) taken_over: Times,
    /// The same for all calls that had waited.
    pub(crate) held_up: Times,
    pub(crate) blocks_checked: u64,
    pub(crate) at_the_end: End,
    pub(crate) failures: Vec<String>,
}

/// The state in which the run ended.
#[derive(Debug, Default, Serialize)]
pub(crate) struct End {
    /// Published blocks that were there and intact, those that a death left half filled, and those of the dead that were
    /// published nowhere.
    pub(crate) published_intact: u64,
    pub(crate) half_filled: u64,
    pub(crate) unpublished: u64,
    /// Bytes in use, free runs and fragmentation in the end, if the heap was the run's own.
    pub(crate) used: Option<u64>,
    pub(crate) free_runs: Option<u64>,
    pub(crate) fragmentation: Option<u64>,
}

/// How long something took after the deaths of lock holders.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Times {
    /// Of these calls.
    pub(crate) fn of(calls: &[HeldUp]) -> Self {
        Self::of_nanoseconds(calls.iter().map(|call| call.nanoseconds))
    }

    /// Of the first of these calls after each takeover.
    pub(crate) fn of_firsts(calls: &[HeldUp]) -> Self {
        let mut firsts = BTreeMap::new();
        for call in calls {
            let first = firsts.entry(call.takeover).or_insert(call.nanoseconds);
            *first = call.nanoseconds.min(*first);
        }
        Self::of_nanoseconds(firsts.into_values())
    }

    fn of_nanoseconds(times: impl IntoIterator<Item = u64>) -> Self {
        let longest = Duration::from_secs(3600).as_micros() as u64;
        let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, longest, 3) else { return Self::default() };
        times.into_iter().for_each(|time| histogram.saturating_record(time.div_ceil(1000).max(1)));
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |microseconds: u64| microseconds as f64 / 1000.0;
        let [p50, p99, max] = [self.p50_us, self.p99_us, self.max_us].map(milliseconds);
        match self.count {
            0 => f.write_str("none was noted"),
            _ => write!(f, "p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms"),
        }
    }
}

/// A number with its thousands apart.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, capacity, workers, seconds, seed, at_the_end, .. } = self;
        let line = |f: &mut fmt::Formatter<'_>, what: &str, text: String| writeln!(f, "{what:<15} {text}");
        let whose = if self.own { "made for this" } else { "shared with whoever uses it" };
        line(f, "heap", format!("{name}, {}, {whose}", size(*capacity)))?;
        let early = if self.interrupted { ", interrupted" } else { "" };
        line(f, "workers", format!("{workers} processes for {seconds:.1} seconds{early}, seed {seed:#x}"))?;
        let full = match self.full {
            0 => String::new(),
            full => format!(", {} of them found no room", thousands(full)),
        };
        let operations = thousands(self.operations);
        line(f, "operations", format!("{operations}, {} a second{full}", count(self.operations_per_second)))?;
        line(f, "kills", format!("{}, of which {} held the heap lock", self.kills, self.kills_with_lock))?;
        line(f, "takeovers", format!("{}; until a survivor went on: {}", self.takeovers, self.taken_over))?;
        line(f, "held up", format!("{} calls, the last in the queue too: {}", self.held_up.count, self.held_up))?;
        line(f, "blocks checked", thousands(self.blocks_checked))?;
        line(f, "validated", format!("{} times while they worked, and at the end", thousands(self.validations)))?;
        let End { published_intact, half_filled, unpublished, .. } = at_the_end;
        let left = format!("{half_filled} half filled and {unpublished} unpublished blocks of the dead");
        line(f, "at the end", format!("{published_intact} published blocks intact; {left}; all freed"))?;
        if let End { used: Some(used), free_runs: Some(runs), fragmentation: Some(fragmentation), .. } = at_the_end {
            line(f, "emptied", format!("{} used, {runs} free run, fragmentation {fragmentation}", size(*used)))?;
        }
        for failure in &self.failures {
            writeln!(f, "failure: {failure} (seed {seed:#x})")?;
        }
        writeln!(f, "failures {}", self.failures.len())
    }
}

/// One line while the run is going on.
pub(crate) fn so_far(elapsed: Duration, operations: u64, kills: u64, takeovers: u64, failures: usize) -> String {
    let rate = count(operations as f64 / elapsed.as_secs_f64().max(0.001));
    let elapsed = units::duration(Duration::from_secs(elapsed.as_secs()));
    let operations = thousands(operations);
    format!("{elapsed}: {operations} operations, {rate} a second, {kills} kills, {takeovers} takeovers, {failures} failures")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"].map(str::to_owned));
    }

    #[test]
    fn the_first_call_after_a_takeover_counts_for_it() {
        let call = |takeover, microseconds: u64| HeldUp { takeover, nanoseconds: microseconds * 1000 };
        let calls = [call(1, 900), call(2, 100), call(1, 300), call(1, 500)];
        let (all, firsts) = (Times::of(&calls), Times::of_firsts(&calls));
        assert_eq!((all.count, all.max_us), (4, 900));
        assert_eq!((firsts.count, firsts.p50_us, firsts.max_us), (2, 100, 300));
        assert_eq!(Times::of(&[]).to_string(), "none was noted");
    }
}
