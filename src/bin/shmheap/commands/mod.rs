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

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show in ten seconds what this is about
    Demo(demo::Demo),
    /// Create a heap
    Create(create::Create),
    /// List the heaps there are
    Ls(ls::Ls),
    /// Tell all about a heap in numbers
    Stat(stat::Stat),
    /// Draw a heap: what stands where
    Map(map::Draw),
    /// Show a heap at work, on a whole screen
    Top(top::Top),
    /// Print a line a second on what goes on in a heap
    Watch(watch::Watch),
    /// List the allocated blocks
    Blocks(blocks::Blocks),
    /// List the names by which blocks are found
    Roots(blocks::Roots),
    /// Show the bytes of a block
    Dump(blocks::Dump),
    /// Print the bytes that a root leads to
    Get(values::Get),
    /// Store bytes or text under a name
    Put(values::Put),
    /// Remove a root and free its block
    Del(values::Del),
    /// Check whether a heap is sound
    Validate(check::Validate),
    /// Make a damaged heap sound again
    Repair(check::Repair),
    /// See to those who died while they used a heap
    Recover(check::Recover),
    /// Give unused memory back to the system
    Trim(check::Trim),
    /// Remove what creators, broken heaps and absent users have left
    Gc(gc::Gc),
    /// Remove heaps
    Rm(rm::Rm),
    /// Save an image of a heap to a file
    Save(image::Save),
    /// Load an image as a new heap
    Load(image::Load),
    /// Check an image
    Verify(image::Verify),
    /// Compare two images
    Diff(image::Diff),
    /// Look at this system and say what is in the way of heaps
    Doctor(doctor::Doctor),
    /// Let worker processes use a heap, kill them, and check everything
    Stress(stress::Stress),
    /// Measure how fast it is on this machine
    Bench(bench::Bench),
    /// Print a shell's completion script
    Completions(completions::Completions),
    /// Write man pages
    Man(completions::Man),
    #[command(hide = true)]
    PartnerOfBench(bench::Partner),
    #[command(hide = true)]
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
            Self::PartnerOfBench(command) => command.run(output),
            Self::WorkerOfStress(command) => command.run(output),
        }
    }
}
