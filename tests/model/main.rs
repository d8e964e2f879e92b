//! Random operations on a heap against a plain map that says what the heap must answer.
//!
//! | noun | |
//! |---|---|
//! | plan | which blocks there would be if every operation succeeded: it decides which steps can come next |
//! | step | one operation, done by one of three kinds of threads |
//! | rig | a heap with its handles and threads, and the map: every allocated block by its offset |
//!
//! After each step the heap's blocks, statistics, roots and cells are compared with the map, and `validate` looks at
//! everything else. At the end all is freed, and the heap must be one free block again, that can be allocated as such.
//!
//! `PROPTEST_CASES=10000 cargo test --release --test model` looks longer.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use shmheap::{BlockInfo, Error, Heap, Memory, Offset, OffsetFault, Options, Result};

use rig::Rig;

/// Names of roots that steps use: so many that some of them meet in a table of 16.
const NAMES: [&str; 12] =
    ["orders", "prices", "größe", "x", "a", "b", "c", "d", "index", "log", "old", "a root with a long name"];
/// Cells in the block that is allocated before the first step.
const CELLS: u8 = 6;
/// Handles that are open at the same time, at most.
const HANDLES_MAX: usize = 3;
/// Blocks up to this size are filled and compared whole, larger ones at both ends.
const WHOLE_MAX: usize = 8192;

/// A block's number in the plan.
type Id = u32;

/// Where the heap's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Memory,
    Segment,
    File,
}

/// What is chosen before the first step.
#[derive(Debug, Clone)]
struct Setup {
    backing: Backing,
    capacity: u64,
    /// Fewer lanes than threads, now and then: the shared lane has to do.
    lanes: Option<u32>,
    /// One thread and one handle do everything: then nothing is kept back when memory runs short.
    alone: bool,
    /// Blocks are mostly large: then memory runs short, and pages come in pieces of all lengths.
    large: bool,
}

/// Which thread does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The one that runs the test.
    Main,
    /// One that lives on, so that blocks of its slabs are freed from afar.
    Worker,
    /// One that ends at once, and leaves orphans.
    Passing,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Plain,
    Aligned(usize),
    Zeroed,
}

#[derive(Debug, Clone)]
enum Step {
    Allocate { id: Id, size: usize, how: How, by: By },
    Deallocate { id: Id, by: By },
    Reallocate { id: Id, size: usize, by: By },
    Rewrite { id: Id },
    SetRoot { name: usize, id: Id },
    InsertRoot { name: usize, id: Id },
    RemoveRoot { name: usize },
    Construct { id: Id, name: usize, size: usize, by: By, fail: bool },
    AllocateInto { id: Id, cell: u8, size: usize, by: By },
    FreeFrom { cell: u8, by: By },
    FreeAgain { id: Id },
    FreeInside { id: Id, distance: usize },
    FreeAnywhere { offset: u64 },
    Misuse,
    Trim,
    Recover,
    EndWorker,
    OpenAnother,
    CloseOne,
    Reopen,
}

#[derive(Debug, Clone)]
struct Plan {
    setup: Setup,
    next: Id,
    /// Blocks that nothing in the heap leads to, or only roots.
    loose: BTreeSet<Id>,
    /// Blocks that cells hold.
    held: BTreeMap<u8, Id>,
    freed: BTreeSet<Id>,
}

struct Machine;

fn sizes(setup: &Setup) -> BoxedStrategy<usize> {
    let capacity = usize::try_from(setup.capacity).expect("capacities of tests fit");
    let weight = if setup.large { 20 } else { 1 };
    prop_oneof![
        6 => 1..=256usize,
        // The same again and again, so that slabs get full.
        6 => select(vec![48, 700, 1000]),
        3 => 257..=4096usize,
        3 => 4097..=40_000usize,
        weight => 1..=capacity / 4,
    ]
    .boxed()
}

fn threads(setup: &Setup) -> BoxedStrategy<By> {
    if setup.alone {
        return Just(By::Main).boxed();
    }
    prop_oneof![3 => Just(By::Main), 2 => Just(By::Worker), 1 => Just(By::Passing)].boxed()
}

impl ReferenceStateMachine for Machine {
    type State = Plan;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Plan> {
        let backing = prop_oneof![6 => Just(Backing::Memory), 1 => Just(Backing::Segment), 1 => Just(Backing::File)];
        let capacity = select(vec![64 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20]);
        let lanes = prop_oneof![3 => Just(None), 1 => (1..=3u32).prop_map(Some)];
        (backing, capacity, lanes, prop::bool::weighted(0.4), prop::bool::weighted(0.4))
            .prop_map(|(backing, capacity, lanes, alone, large)| Plan {
                setup: Setup { backing, capacity, lanes, alone, large },
                next: 0,
                loose: BTreeSet::new(),
                held: BTreeMap::new(),
                freed: BTreeSet::new(),
            })
            .boxed()
    }

    fn transitions(plan: &Plan) -> BoxedStrategy<Step> {
        let (id, capacity) = (plan.next, plan.setup.capacity);
        let (sizes, threads) = (|| sizes(&plan.setup), || threads(&plan.setup));
        let name = 0..NAMES.len();
        let aligned = (3..=12u32).prop_map(|shift| How::Aligned(1 << shift));
        let how = prop_oneof![4 => Just(How::Plain), 2 => aligned, 2 => Just(How::Zeroed)];
        let allocate = (sizes(), how, threads()).prop_map(move |(size, how, by)| Step::Allocate { id, size, how, by });
        let construct = (name.clone(), sizes(), threads(), prop::bool::weighted(0.2))
            .prop_map(move |(name, size, by, fail)| Step::Construct { id, name, size, by, fail });
        let allocate_into =
            (0..CELLS, sizes(), threads()).prop_map(move |(cell, size, by)| Step::AllocateInto { id, cell, size, by });
        let mut steps = vec![
            (24, allocate.boxed()),
            (3, construct.boxed()),
            (4, allocate_into.boxed()),
            (3, (0..CELLS, threads()).prop_map(|(cell, by)| Step::FreeFrom { cell, by }).boxed()),
            (4, name.clone().prop_map(|name| Step::RemoveRoot { name }).boxed()),
            (2, (0..capacity * 2).prop_map(|offset| Step::FreeAnywhere { offset }).boxed()),
            (1, select(vec![Step::Misuse, Step::Trim, Step::Recover]).boxed()),
            (1, Just(Step::Reopen).boxed()),
        ];
        if !plan.setup.alone {
            let coming_and_going = vec![Step::EndWorker, Step::OpenAnother, Step::OpenAnother, Step::CloseOne];
            steps.push((5, select(coming_and_going).boxed()));
        }
        if !plan.loose.is_empty() {
            let loose = select(plan.loose.iter().copied().collect::<Vec<_>>());
            let reallocate = (loose.clone(), sizes(), threads());
            steps.extend([
                (14, (loose.clone(), threads()).prop_map(|(id, by)| Step::Deallocate { id, by }).boxed()),
                (8, reallocate.prop_map(|(id, size, by)| Step::Reallocate { id, size, by }).boxed()),
                (3, loose.clone().prop_map(|id| Step::Rewrite { id }).boxed()),
                (3, (name.clone(), loose.clone()).prop_map(|(name, id)| Step::SetRoot { name, id }).boxed()),
                (3, (name, loose.clone()).prop_map(|(name, id)| Step::InsertRoot { name, id }).boxed()),
                (2, (loose, 1..5000usize).prop_map(|(id, distance)| Step::FreeInside { id, distance }).boxed()),
            ]);
        }
        if !plan.freed.is_empty() {
            let freed = select(plan.freed.iter().copied().collect::<Vec<_>>());
            steps.push((3, freed.prop_map(|id| Step::FreeAgain { id }).boxed()));
        }
        prop::strategy::Union::new_weighted(steps).boxed()
    }

    fn preconditions(plan: &Plan, step: &Step) -> bool {
        // A case that failed is tried again with a smaller heap.
        let size_max = (plan.setup.capacity / 4).max(40_000);
        let size = match step {
            Step::Allocate { size, .. } | Step::Reallocate { size, .. } => *size,
            Step::Construct { size, .. } | Step::AllocateInto { size, .. } => *size,
            _ => 0,
        };
        if size as u64 > size_max {
            return false;
        }
        match step {
            Step::Allocate { id, .. } | Step::Construct { id, .. } | Step::AllocateInto { id, .. } => *id >= plan.next,
            Step::Deallocate { id, .. }
            | Step::Reallocate { id, .. }
            | Step::Rewrite { id }
            | Step::SetRoot { id, .. }
            | Step::InsertRoot { id, .. }
            | Step::FreeInside { id, .. } => plan.loose.contains(id),
            Step::FreeAgain { id } => plan.freed.contains(id),
            _ => true,
        }
    }

    fn apply(mut plan: Plan, step: &Step) -> Plan {
        match step {
            Step::Allocate { id, .. } | Step::Construct { id, fail: false, .. } => {
                plan.loose.insert(*id);
                plan.next = id + 1;
            }
            Step::AllocateInto { id, cell, .. } => {
                plan.held.entry(*cell).or_insert(*id);
                plan.next = id + 1;
            }
            Step::Deallocate { id, .. } => {
                plan.loose.remove(id);
                plan.freed.insert(*id);
            }
            Step::FreeFrom { cell, .. } => plan.freed.extend(plan.held.remove(cell)),
            _ => {}
        }
        plan
    }
}

impl StateMachineTest for Machine {
    type SystemUnderTest = Rig;
    type Reference = Self;

    fn init_test(plan: &Plan) -> Rig {
        Rig::new(&plan.setup)
    }

    fn apply(mut rig: Rig, _plan: &Plan, step: Step) -> Rig {
        rig.step(step);
        rig
    }

    fn check_invariants(rig: &Rig, plan: &Plan) {
        assert!(rig.places.keys().all(|id| *id < plan.next), "the rig has blocks that the plan does not know");
        rig.check();
    }

    fn teardown(rig: Rig, _plan: Plan) {
        rig.finish();
    }
}

/// As many cases as the environment asks for, or few enough for a quick look. What fails is printed, shrunk; nothing is
/// written beside the sources.
fn config() -> Config {
    let config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { Config { cases: 90, ..config } }
}

prop_state_machine! {
    #![proptest_config(config())]

    #[test]
    fn a_heap_answers_as_a_plain_map_would(sequential 1..120 => Machine);
}
