//! shmheap's allocator beside others: the same workloads for all of them, in one interleaved run.
//!
//! ```text
//! scripts/bench.sh [--quick] [--rounds N] [--only WORKLOADS] [--allocators LIST] [--save FILE.json]
//! scripts/bench.sh plot FILE.json DIR
//! ```
//!
//! shmheap works in a named segment and is shared between processes, as is Boost.Interprocess; the others are
//! allocators of one process, called by their C functions, and share nothing. Where several work together they are
//! processes for the former, threads for the latter.
//!
//! | file | what it owns |
//! |---|---|
//! | `allocators` | what all allocators can do, and each of them |
//! | `workload`, `random`, `trace` | what they are given to do |
//! | `single`, `workers` | the measured loops, of one thread and of several |
//! | `timed`, `cold`, `team`, `board`, `child` | who runs the loops, when and where |
//! | `space`, `fullness`, `start`, `images` | what is not timed by operation |
//! | `results`, `report`, `plot` | what was found out, as data, text and pictures |

mod allocators;
mod board;
mod child;
mod cold;
mod fullness;
mod images;
mod plot;
mod random;
mod report;
mod results;
mod single;
mod space;
mod start;
mod team;
mod timed;
mod trace;
mod workers;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use allocators::Kind;
use results::Results;
use timed::{Contestant, Effort};
use workload::Workload;

/// Measures shmheap's allocator beside others.
#[derive(Debug, Parser)]
#[command(name = "shmheap-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Shorter measurements and fewer rounds: half a minute.
    #[arg(long)]
    quick: bool,
    /// Rounds that count.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Only these workloads and tables: names of rows, `scaling`, `space`, `start`, `images`.
    #[arg(long, value_delimiter = ',', value_parser = Part::parse)]
    only: Vec<Part>,
    /// Only these allocators.
    #[arg(long, value_delimiter = ',')]
    allocators: Vec<Kind>,
    /// Keeps the results in this file.
    #[arg(long)]
    save: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Draws bench.svg, scaling.svg and space.svg.
    Plot {
        /// What `--save` has kept.
        file: PathBuf,
        /// Where the pictures go.
        directory: PathBuf,
    },
    /// A child of a run.
    #[command(name = child::COMMAND, hide = true)]
    Child { task: String },
}

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Time(Workload),
    Scaling,
    Space,
    Start,
    Images,
}

impl Part {
    fn parse(name: &str) -> Result<Self, String> {
        match name {
            "scaling" => Ok(Self::Scaling),
            "space" => Ok(Self::Space),
            "start" => Ok(Self::Start),
            "images" => Ok(Self::Images),
            _ => Workload::from_str(name, false).map(Self::Time).map_err(|_| {
                let names: Vec<String> = Workload::ALL.map(Workload::name).into();
                format!("choose from scaling, space, start, images, {}", names.join(", "))
            }),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        None => run(&arguments),
        Some(Command::Plot { file, directory }) => plot::draw(file, directory),
        Some(Command::Child { task }) => child::run(task),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shmheap-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let is_wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let is_chosen = |kind: &Kind| arguments.allocators.is_empty() || arguments.allocators.contains(kind);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_available() && is_chosen(kind)).collect();
    let effort = if arguments.quick {
        Effort { rounds: 7, measurement_ns: 10_000_000 }
    } else {
        Effort { rounds: 11, measurement_ns: 25_000_000 }
    };
    let effort = Effort { rounds: arguments.rounds.map_or(effort.rounds, usize::from), ..effort };
    let mut results = Results {
        machine: machine(),
        rounds: effort.rounds,
        quick: arguments.quick,
        boost_is_installed: Kind::Boost.is_available(),
        ..Results::default()
    };
    println!("{}; {} rounds", results.machine, effort.rounds);

    let contestants = kinds.iter().map(|kind| Contestant::enter(*kind)).collect::<Result<Vec<_>>>()?;
    for workload in Workload::ALL.into_iter().filter(|workload| is_wanted(Part::Time(*workload))) {
        eprintln!("{:>5.1} s  {}", begin.elapsed().as_secs_f64(), workload.name());
        results.rows.push(timed::workload(workload, &contestants, effort)?);
    }
    let progress = |what: &str| eprintln!("{:>5.1} s  {what}", begin.elapsed().as_secs_f64());
    if is_wanted(Part::Scaling) {
        progress("scaling");
        results.scaling = timed::scaling(&contestants, effort)?;
    }
    drop(contestants);
    if is_wanted(Part::Space) {
        progress("space");
        (results.space, results.state) = space::measure(&kinds)?;
        if let Some(state) = &mut results.state {
            state.unusable = fullness::unusable()?;
        }
    }
    if is_wanted(Part::Start) {
        progress("start");
        results.start = start::measure(&kinds)?;
    }
    if is_wanted(Part::Images) && kinds.contains(&Kind::Shmheap) {
        progress("images");
        results.images = images::measure(arguments.quick)?;
    }
    progress("done");
    if let Some(file) = &arguments.save {
        results.save(file)?;
    }
    print!("{}", report::text(&results));
    Ok(())
}

/// The processor's name, and how many of them there are.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{}, {count} processors", model.map_or("unknown processor", |(_, name)| name))
}
