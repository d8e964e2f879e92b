//! Death at every instruction: a child runs one operation, is stepped through it one machine instruction at a time, and
//! after each instruction that changed the region, a copy of the region is recovered as if the child had been killed there.
//!
//! The recovered copy must be sound (`validate`), hold exactly the blocks that were live before the operation or exactly
//! those that are live after it, with their contents, and must still allocate and free: freeing everything leaves one free
//! block and no fragmentation.
//!
//! In the copy the child's lanes are dead without further ado: whether a lane is alive is asked of the place where the
//! region stands, and at the copy's address nobody ever claimed one.
//!
//! A *double* crash steps through the recovery of a crash state too, and recovers what that leaves.
//!
//! The code that is swept is the code of the build: run it with `--release` to sweep what is shipped.

#![allow(unsafe_code, reason = "the sweep forks, steps its child with ptrace, and copies memory that both map")]

mod operations;
mod oracle;
mod stepper;

use operations::{OPERATIONS, Operation};
use oracle::Live;
use stepper::{Shared, Stepped};

/// Bytes of the swept regions: small, because each is copied and compared at every step.
const REGION_LEN: usize = 96 << 10;

/// What a sweep has done, for the closing line.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    steps: u64,
    crash_points: u64,
    double: u64,
}

/// Sweeps one operation. Every `double_every`-th crash state has its recovery swept too; 0 for none.
fn sweep(operation: &Operation, double_every: u64) -> Tally {
    let region = Shared::new(REGION_LEN);
    let copy = Shared::new(REGION_LEN);
    // A first child runs the operation through; its end state says what "after" is.
    let before_and_after = stepper::run_through(&region, operation, || {
        copy.copy_from(&region);
        Live::after_recovery(&copy)
    });
    let [before, after] = before_and_after;
    let mut tally = Tally::default();
    let mut last = region.bytes();
    stepper::step_through(&region, operation, |step| {
        tally.steps += 1;
        match step {
            Stepped::Ready => last = region.bytes(),
            Stepped::Instruction if region.differs_from(&last) => {
                last = region.bytes();
                tally.crash_points += 1;
                copy.copy_from(&region);
                let place = || format!("{} after {} steps, crash point {}", operation.name, tally.steps, tally.crash_points);
                oracle::check(&copy, &before, &after, &place);
                if double_every != 0 && tally.crash_points % double_every == 0 {
                    tally.double += sweep_recovery(&region, &before, &after, &place);
                }
            }
            Stepped::Instruction => {}
        }
    });
    tally
}

/// Steps through the recovery of the crash state in `crashed`, and checks what each of its instructions leaves.
fn sweep_recovery(crashed: &Shared, before: &Live, after: &Live, place: &dyn Fn() -> String) -> u64 {
    let recovering = Shared::new(REGION_LEN);
    recovering.copy_from(crashed);
    let copy = Shared::new(REGION_LEN);
    let mut last = recovering.bytes();
    let mut points = 0;
    let recovery = Operation { name: "recovery", prepare: |_| Vec::new(), act: |_, _| (), attach_in_act: true };
    stepper::step_through(&recovering, &recovery, |step| {
        if matches!(step, Stepped::Instruction) && recovering.differs_from(&last) {
            last = recovering.bytes();
            points += 1;
            copy.copy_from(&recovering);
            oracle::check(&copy, before, after, &|| format!("recovery of {}, its crash point {points}", place()));
        }
    });
    points
}

/// How thorough a run is: `SHMHEAP_SWEEP_DOUBLE_EVERY` sweeps the recovery of every n-th crash state. Stepping a debug build
/// takes ten times as many instructions, for code that nobody ships.
fn double_every() -> u64 {
    std::env::var("SHMHEAP_SWEEP_DOUBLE_EVERY")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(if cfg!(debug_assertions) { 100 } else { 10 })
}

#[test]
fn a_death_at_any_instruction_of_any_operation_leaves_what_was_before_or_what_comes_after() {
    let mut sum = Tally::default();
    let wanted = std::env::var("SHMHEAP_SWEEP_ONLY").unwrap_or_default();
    for operation in OPERATIONS.iter().filter(|operation| operation.name.contains(&wanted)) {
        let tally = sweep(operation, double_every());
        println!(
            "{:<40} steps {:>8}  crash points {:>6}  double {:>7}",
            operation.name, tally.steps, tally.crash_points, tally.double
        );
        assert!(tally.crash_points > 0, "{} changed nothing: it is not the operation that it should be", operation.name);
        sum.steps += tally.steps;
        sum.crash_points += tally.crash_points;
        sum.double += tally.double;
    }
    println!("steps {}  crash points {}  double {}  failures 0", sum.steps, sum.crash_points, sum.double);
}
