//! The subcommands, one file or folder each.

mod bench;
mod blocks;
mod check;
mod completions;
mod create;
mod demo;
mod doctor;
mod gc;
mod image;
mod ls;
mod map;
mod rm;
mod roots;
mod stat;
mod stress;
mod top;
mod values;
mod watch;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;

use shmheap::{Heap, Options};

use crate::Outcome;
use crate::failure::Failure;
use crate::output::Output;
use crate::place::{self, Place};

/// The heap that a command is about.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name of the heap, or path of the file that it is in
    #[arg(value_name = "NAME", value_parser = Place::parse, add = ArgValueCompleter::new(place::complete))]
    pub(crate) place: Place,
}

/// The heap that a command is about, which it changes.
#[derive(Debug, Args)]
pub(crate) struct Changed {
    #[command(flatten)]
    named: Named,
    /// Also a heap of another user, or one that others may write to
    #[arg(long)]
    any_owner: bool,
}

impl Changed {
    pub(crate) fn place(&self) -> &Place {
        &self.named.place
    }

    /// Opens the heap for reading and writing.
    pub(crate) fn open(&self) -> Result<Heap, Failure> {
        self.place().open_with(&self.trusting(Heap::options()), true)
    }

    /// The same options, for whoever is trusted.
    pub(crate) fn trusting(&self, options: Options) -> Options {
        place::trusting(options, self.any_owner)
    }
}

// What each does stands where its arguments are; clap takes it from there.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Create(create::Create),
    Ls(ls::Ls),
    Stat(stat::Stat),
    Map(map::Draw),
    Top(top::Top),
    Watch(watch::Watch),
    Blocks(blocks::Blocks),
    Roots(roots::Roots),
    Dump(blocks::Dump),
    Get(values::Get),
    Put(values::Put),
    Del(values::Del),
    Validate(check::Validate),
    Repair(check::Repair),
    Recover(check::Recover),
    Trim(check::Trim),
    Gc(gc::Gc),
    Rm(rm::Rm),
    Save(image::Save),
    Load(image::Load),
    Verify(image::Verify),
    Diff(image::Diff),
    Doctor(doctor::Doctor),
    Stress(stress::Stress),
    Bench(bench::Bench),
    Completions(completions::Completions),
    Man(completions::Man),
}

/// What the program starts itself as.
#[derive(Debug, Subcommand)]
pub(crate) enum Inner {
    #[command(name = "__partner-of-bench")]
    PartnerOfBench(bench::Partner),
    #[command(name = "__worker-of-stress")]
    WorkerOfStress(stress::worker::WorkerArguments),
}

impl Command {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        match self {
            Self::Demo(command) => command.run(output),
            Self::Create(command) => command.run(output),
            Self::Ls(command) => command.run(output),
            Self::Stat(command) => command.run(output),
            Self::Map(command) => command.run(output),
            Self::Top(command) => command.run(output),
            Self::Watch(command) => command.run(output),
            Self::Blocks(command) => command.run(output),
            Self::Roots(command) => command.run(output),
            Self::Dump(command) => command.run(output),
            Self::Get(command) => command.run(output),
            Self::Put(command) => command.run(output),
            Self::Del(command) => command.run(output),
            Self::Validate(command) => command.run(output),
            Self::Repair(command) => command.run(output),
            Self::Recover(command) => command.run(output),
            Self::Trim(command) => command.run(output),
            Self::Gc(command) => command.run(output),
            Self::Rm(command) => command.run(output),
            Self::Save(command) => command.run(output),
            Self::Load(command) => command.run(output),
            Self::Verify(command) => command.run(output),
            Self::Diff(command) => command.run(output),
            Self::Doctor(command) => command.run(output),
            Self::Stress(command) => command.run(output),
            Self::Bench(command) => command.run(output),
            Self::Completions(command) => command.run(output),
            Self::Man(command) => command.run(output),
        }
    }
}

impl Inner {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        match self {
            Self::PartnerOfBench(command) => command.run(output),
            Self::WorkerOfStress(command) => command.run(output),
        }
    }
}
