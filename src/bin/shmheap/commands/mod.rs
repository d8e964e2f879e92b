//! The subcommands, one file or folder each.

mod bench;
mod create;
mod demo;
mod ls;
mod map;
mod rm;
mod stat;
mod stress;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;

use crate::Outcome;
use crate::output::Output;
use crate::place::{self, Place};

/// The heap that a command is about.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the heap, or path of the file that it is in
    #[arg(value_name = "NAME", value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    pub(crate) place: Place,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a heap
    Create(create::Create),
    /// Remove heaps
    Rm(rm::Rm),
    /// List the heaps there are
    Ls(ls::Ls),
    /// Tell all about a heap in numbers
    Stat(stat::Stat),
    /// Draw a heap: what stands where
    Map(map::Draw),
    /// Let worker processes use a heap, kill them, and check everything
    Stress(stress::Stress),
    /// Show in ten seconds what this is about
    Demo(demo::Demo),
    /// Measure how fast it is on this machine
    Bench(bench::Bench),
    #[command(hide = true)]
    PartnerOfBench(bench::Partner),
    #[command(hide = true)]
    WorkerOfStress(stress::worker::WorkerArguments),
}

impl Command {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        match self {
            Self::Create(command) => command.run(output),
            Self::Rm(command) => command.run(output),
            Self::Ls(command) => command.run(output),
            Self::Stat(command) => command.run(output),
            Self::Map(command) => command.run(output),
            Self::Stress(command) => command.run(output),
            Self::Demo(command) => command.run(output),
            Self::Bench(command) => command.run(output),
            Self::PartnerOfBench(command) => command.run(output),
            Self::WorkerOfStress(command) => command.run(output),
        }
    }
}
