//! Death at any instruction, measured. docs/CRASH_SAFETY.md tells the method so that it can be attacked.
//!
//! | noun | file | |
//! |---|---|---|
//! | operation | `operations.rs` | what a process was doing; the registry to which each capability adds its own |
//! | stage | `stage.rs` | where an operation takes place: a heap in some state, a process about to act |
//! | child | `child.rs` | a process that is stepped through, and doubled where it stands |
//! | image | `image.rs` | what a death now would leave of a segment |
//! | oracle | `oracle.rs` | what that has to be |
//! | crash | `crash.rs` | every instruction of an operation, and of the recovery that follows |
//! | pair, schedule | `pairs.rs`, `schedules.rs` | two processes, one of which is preempted at every instruction |
//! | partner, tokens | `partner.rs`, `tokens.rs` | the other process, and who is dead |
//! | calls | `calls.rs` | every system call fails |
//! | files | `files.rs` | saving and loading: a death at every system call |
//! | soak | `soak.rs` | processes that are really killed |
//! | unit, driver | `units.rs`, `driver.rs` | the work of a run, in parts |
//!
//! As a test (`cargo test --test sweep`) it does a little of everything. As a program it does what its first argument says:
//! `cargo test --release --test sweep -- help`. The code that is swept is the code of the build: `--release` sweeps what is
//! shipped.

#![allow(unsafe_code, reason = "the sweep forks, traces its children, and maps memory that they share")]

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "the sweep lends its children system calls by x86-64's registers; leave it out with `cargo test --test NAME`"
);

mod board;
mod calls;
mod child;
#[path = "../common/mod.rs"]
mod common;
mod crash;
mod driver;
mod files;
mod image;
mod operations;
mod oracle;
mod pairs;
mod partner;
mod schedules;
mod soak;
mod stage;
mod tokens;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use libtest_mimic::{Arguments, Failed, Trial};

use operations::OPERATIONS;
use pairs::PAIRS;
use units::{Totals, Unit};

/// The ways in which the sweep is called as a program.
const COMMANDS: [&str; 7] = ["short", "full", "quick", "unit", "list", "help", "--help"];

/// Sweeps every instruction of the heap's operations, and more.
#[derive(Debug, Parser)]
#[command(name = "sweep")]
enum Command {
    /// Everything once, thinned out: about two minutes on two processors.
    Short {
        /// Processes side by side.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Everything: about half an hour on two processors. Goes on where it stopped.
    Full {
        /// Processes side by side.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Where what is done is noted. Another build starts anew.
        #[arg(long, default_value = "target/sweep/full.tsv")]
        ledger: PathBuf,
    },
    /// The least that has to notice a planted bug; ends at the first failure.
    Quick,
    /// One unit, for a closer look: `unit "crash 0"`, `unit "schedules 3 0 1"`.
    Unit {
        /// crash SEED, double OPERATION STATES, schedules PAIR SEED STRIDE, calls SEED, files SEED, kills SEED KILLS.
        unit: Unit,
        /// Which processor it runs on, counted from 0.
        #[arg(long, default_value_t = 0)]
        part: usize,
    },
    /// The operations and pairs, with their numbers.
    List,
}

fn main() -> ExitCode {
    let first = std::env::args().nth(1).unwrap_or_default();
    if COMMANDS.contains(&first.as_str()) { as_program(Command::parse()) } else { as_test() }
}

fn as_program(command: Command) -> ExitCode {
    let (totals, failures) = match command {
        Command::Short { jobs } => driver::run(&Unit::short(), None, jobs.max(1)),
        Command::Full { jobs, ledger } => driver::run(&Unit::full(), Some(&ledger), jobs.max(1)),
        Command::Unit { unit, part } => {
            if !matches!(unit, Unit::Kills { .. }) {
                child::pin_to_one_processor(part);
            }
            return match unit.run() {
                Ok(found) => {
                    println!("{found}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    println!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        Command::Quick => {
            child::pin_to_one_processor(0);
            return match Unit::quick().iter().try_for_each(|unit| unit.run().map(drop)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    println!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        Command::List => {
            OPERATIONS
                .iter()
                .enumerate()
                .for_each(|(number, operation)| println!("operation {number:>2}  {}", operation.name));
            PAIRS.iter().enumerate().for_each(|(number, pair)| println!("pair {number:>2}  {}", pair.name));
            return ExitCode::SUCCESS;
        }
    };
    println!("{}", driver::report(&totals, failures));
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A little of everything, as tests. A debug build takes ten times as many instructions, for code that nobody ships.
fn as_test() -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let stride = if cfg!(debug_assertions) { 997 } else { 101 };
    let run = |work: Result<(), String>| work.map_err(Failed::from);
    let mut trials = Vec::new();
    for operation in OPERATIONS {
        let sweep = move || run(crash::sweep(operation, 0, 0).map(drop));
        trials.push(Trial::test(format!("a death at any instruction: {}", operation.name), sweep));
        let sweep = move || run(calls::sweep(operation, 0).map(drop));
        trials.push(Trial::test(format!("any system call fails: {}", operation.name), sweep));
    }
    for pair in PAIRS {
        let sweep = move || run(schedules::sweep(pair, 0, stride, 0).map(drop));
        trials.push(Trial::test(format!("a preemption: {}", pair.name), sweep));
    }
    let second_death = move || run(Unit::Double { operation: 1, states: 1 }.run().map(drop));
    trials.push(Trial::test("a death at any instruction of a recovery", second_death));
    trials.push(Trial::test("a death at any system call of a save or a load", move || run(files::sweep(0).map(drop))));
    for seed in 0..2 {
        let kills = move || run(Unit::Kills { seed, kills: 200 }.run().map(drop));
        trials.push(Trial::test(format!("real kills, seed {seed}"), kills));
    }
    trials.push(Trial::test("what a unit found comes back from its text", move || run(totals_come_back())));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn totals_come_back() -> Result<(), String> {
    let totals = Totals { points: 1, states: 2, double: 3, schedules: 4, failed_calls: 5, kills: 6, takeovers: vec![7, 8] };
    let units_come_back = Unit::full().iter().all(|unit| unit.to_string().parse() == Ok(*unit));
    if totals.to_string().parse() == Ok(totals) && units_come_back { Ok(()) } else { Err("they differ".to_owned()) }
}
