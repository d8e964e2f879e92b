//! The work of a run, cut into units that can be done in any order, by several processes, and noted when they are done.

use std::fmt;
use std::str::FromStr;

use crate::operations::OPERATIONS;
use crate::pairs::PAIRS;
use crate::soak::Plan;
use crate::{calls, crash, files, schedules, soak};

/// States per operation whose recovery is swept, at most: copying a long block leaves hundreds that differ by a word of it.
const DOUBLE_STATES_MAX: u64 = 24;
/// Workers of a soak.
const WORKERS: usize = 6;

/// One piece of work. Its text names it: `crash 7`, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Every instruction of every operation, on the heaps of one seed.
    Crash { seed: u64 },
    /// Every instruction of the recoveries of one operation, of so many of its crash states.
    Double { operation: usize, states: u64 },
    /// Every schedule of one pair that stops at every `stride`th instruction.
    Schedules { pair: usize, seed: u64, stride: u64 },
    /// Every failure of every system call of every operation, on the heaps of one seed.
    Calls { seed: u64 },
    /// Every death and failure at the system calls of saving and loading, on the heaps of one seed.
    Files { seed: u64 },
    /// So many kills.
    Kills { seed: u64, kills: u64 },
}

/// What units found, summed up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) points: u64,
    pub(crate) states: u64,
    pub(crate) double: u64,
    pub(crate) schedules: u64,
    pub(crate) failed_calls: u64,
    pub(crate) kills: u64,
    /// How long takeovers took, in microseconds.
    pub(crate) takeovers: Vec<u64>,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.states += other.states;
        self.double += other.double;
        self.schedules += other.schedules;
        self.failed_calls += other.failed_calls;
        self.kills += other.kills;
        self.takeovers.extend(&other.takeovers);
    }
}

impl Unit {
    /// What is swept to notice a planted bug.
    pub(crate) fn quick() -> Vec<Self> {
        let mut units = vec![Self::Crash { seed: 0 }, Self::Calls { seed: 0 }, Self::Files { seed: 0 }];
        units.extend((0..PAIRS.len()).map(|pair| Self::Schedules { pair, seed: 0, stride: 31 }));
        units.push(Self::Kills { seed: 1, kills: 500 });
        units
    }

    /// What is swept while a person waits.
    pub(crate) fn short() -> Vec<Self> {
        let mut units: Vec<Self> = (0..2).map(|seed| Self::Crash { seed }).collect();
        units.push(Self::Calls { seed: 0 });
        units.push(Self::Files { seed: 0 });
        units.extend((0..OPERATIONS.len()).map(|operation| Self::Double { operation, states: 1 }));
        units.extend((0..PAIRS.len()).map(|pair| Self::Schedules { pair, seed: 0, stride: 23 }));
        units.extend((0..2).map(|seed| Self::Kills { seed, kills: 2000 }));
        units
    }

    /// What is swept before a result is published.
    pub(crate) fn full() -> Vec<Self> {
        let mut units: Vec<Self> = (0..56).map(|seed| Self::Crash { seed }).collect();
        units.extend((0..24).map(|seed| Self::Calls { seed }));
        units.extend((0..8).map(|seed| Self::Files { seed }));
        units.extend((0..OPERATIONS.len()).map(|operation| Self::Double { operation, states: DOUBLE_STATES_MAX }));
        units.extend((0..PAIRS.len()).map(|pair| Self::Schedules { pair, seed: 0, stride: 1 }));
        units.extend((0..PAIRS.len()).map(|pair| Self::Schedules { pair, seed: 1, stride: 7 }));
        units.extend((0..12).map(|seed| Self::Kills { seed, kills: 10_000 }));
        units
    }

    /// True if the unit runs alone: it measures times, or looks at what others leave in /dev/shm.
    pub(crate) fn runs_alone(&self) -> bool {
        matches!(self, Self::Kills { .. } | Self::Calls { .. } | Self::Files { .. })
    }

    /// Does the work.
    pub(crate) fn run(&self) -> Result<Totals, String> {
        let mut totals = Totals::default();
        match *self {
            Self::Crash { seed } => {
                for operation in OPERATIONS {
                    let tally = crash::sweep(operation, seed, 0)?;
                    totals.points += tally.points;
                    totals.states += tally.states;
                }
            }
            Self::Double { operation, states } => {
                let operation = &OPERATIONS[operation];
                let all = crash::sweep(operation, 0, 0)?.states;
                if all != 0 {
                    totals.double = crash::sweep(operation, 0, all.div_ceil(states))?.double;
                }
            }
            Self::Schedules { pair, seed, stride } => {
                let start = (pair as u64 * 7 + seed) % stride;
                totals.schedules = schedules::sweep(&PAIRS[pair], seed, stride, start)?;
            }
            Self::Calls { seed } => {
                for operation in OPERATIONS {
                    totals.failed_calls += calls::sweep(operation, seed)?;
                }
            }
            Self::Files { seed } => {
                let tally = files::sweep(seed)?;
                totals.points = tally.deaths;
                totals.failed_calls = tally.failures;
            }
            Self::Kills { seed, kills } => {
                let report = soak::run(Plan { workers: WORKERS, kills, seed, plain: seed % 2 == 1 })?;
                totals.kills = report.kills;
                totals.takeovers = report.takeovers;
            }
        }
        Ok(totals)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash { seed } => write!(f, "crash {seed}"),
            Self::Double { operation, states } => write!(f, "double {operation} {states}"),
            Self::Schedules { pair, seed, stride } => write!(f, "schedules {pair} {seed} {stride}"),
            Self::Calls { seed } => write!(f, "calls {seed}"),
            Self::Files { seed } => write!(f, "files {seed}"),
            Self::Kills { seed, kills } => write!(f, "kills {seed} {kills}"),
        }
    }
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        let numbers: Result<Vec<u64>, _> = rest.split_whitespace().map(str::parse).collect();
        let unit = match (kind, numbers.as_deref()) {
            ("crash", Ok([seed])) => Self::Crash { seed: *seed },
            ("double", Ok([operation, states])) => Self::Double { operation: *operation as usize, states: *states },
            ("schedules", Ok([pair, seed, stride])) => {
                Self::Schedules { pair: *pair as usize, seed: *seed, stride: (*stride).max(1) }
            }
            ("calls", Ok([seed])) => Self::Calls { seed: *seed },
            ("files", Ok([seed])) => Self::Files { seed: *seed },
            ("kills", Ok([seed, kills])) => Self::Kills { seed: *seed, kills: *kills },
            _ => {
                return Err(format!(
                    "no unit is named {text:?}: crash SEED, double OPERATION STATES, schedules PAIR SEED STRIDE, calls SEED, files SEED, kills SEED KILLS"
                ));
            }
        };
        let is_known = match unit {
            Self::Double { operation, .. } => operation < OPERATIONS.len(),
            Self::Schedules { pair, .. } => pair < PAIRS.len(),
            _ => true,
        };
        if is_known { Ok(unit) } else { Err(format!("there is no such operation or pair: {text}; list them with `list`")) }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, states, double, schedules, failed_calls, kills, takeovers } = self;
        write!(f, "{points} {states} {double} {schedules} {failed_calls} {kills}")?;
        takeovers.iter().try_for_each(|took| write!(f, " {took}"))
    }
}

impl FromStr for Totals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok([points, states, double, schedules, failed_calls, kills, takeovers @ ..]) => Ok(Self {
                points: *points,
                states: *states,
                double: *double,
                schedules: *schedules,
                failed_calls: *failed_calls,
                kills: *kills,
                takeovers: takeovers.to_vec(),
            }),
            _ => Err(format!("no totals: {text:?}")),
        }
    }
}
