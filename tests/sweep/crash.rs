//! Death at every instruction of an operation, and at every instruction of the recovery that follows.

use crate::board::{Board, outcome_of};
use crate::child::{self, Child, STEPS_MAX, Stop};
use crate::common::Segment;
use crate::image::{Copy, Image, Window};
use crate::operations::Operation;
use crate::oracle::{Allowed, Live, judge};
use crate::stage;

/// What was looked at.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    /// Instructions of operations at which a death was judged.
    pub(crate) points: u64,
    /// Different states of the segment that they left.
    pub(crate) states: u64,
    /// Instructions of recoveries at which a second death was judged.
    pub(crate) double: u64,
}

/// How an operation goes that nobody disturbs.
pub(crate) fn rehearse(operation: &Operation, seed: u64, copy: &Copy) -> Result<Allowed, String> {
    let (segment, board) = (Segment::new("rehearsed"), Board::new());
    let child = stage::start(operation, seed, &segment, &board);
    let live = || Window::open(&segment).map(|window| Live::after_recovery(&window.image(), copy)).transpose();
    let before = live()?;
    match child.to_marker() {
        Stop::Marker | Stop::Ended => {}
        other => return Err(format!("it ended before it was done: {other:?}")),
    }
    let outcome = board.said();
    if outcome != "ok" {
        return Err(format!("it fails when nobody disturbs it: {outcome}"));
    }
    Ok(Allowed { before, after: live()?, only_after: false, fills: operation.fills })
}

/// Sweeps one operation on one state of the heap. Every `double_every`-th state that a death leaves has its recovery
/// swept too; 0 for none. An error tells the first death that was not survived.
pub(crate) fn sweep(operation: &Operation, seed: u64, double_every: u64) -> Result<Tally, String> {
    let (copy, board) = (Copy::new("copy"), Board::new());
    let told = |what: String| format!("{}, seed {seed}: {what}", operation.name);
    let allowed = rehearse(operation, seed, &copy).map_err(told)?;
    let segment = Segment::new("swept");
    let child = stage::start(operation, seed, &segment, &board);
    let mut watch = Watch::new(&segment);
    watch.look(true);
    let mut tally = Tally::default();
    while tally.points < STEPS_MAX {
        let called = match child.step() {
            Stop::Instruction { called } => called,
            Stop::Marker | Stop::Ended => {
                return if tally.states == 0 && !operation.creates && !is_quiet(operation) {
                    Err(told("it changed nothing: it is not the operation that it should be".to_owned()))
                } else {
                    Ok(tally)
                };
            }
            other => return Err(told(format!("it ended at instruction {}: {other:?}", tally.points))),
        };
        tally.points += 1;
        if !watch.look(called) {
            continue;
        }
        tally.states += 1;
        let told = |what: String| told(format!("a death after instruction {}: {what}", tally.points));
        judge(watch.image(), &copy, &allowed).map_err(told)?;
        if double_every != 0
            && tally.states.is_multiple_of(double_every)
            && let Some(image) = watch.image()
        {
            tally.double += sweep_recovery(image, &allowed).map_err(told)?;
        }
    }
    Err(told(format!("it takes more than {STEPS_MAX} instructions")))
}

/// Operations that need not change a byte of the region.
fn is_quiet(operation: &Operation) -> bool {
    ["attach", "reallocate, same class", "find_or_construct, finds"].contains(&operation.name)
}

/// Steps through the recovery of what a death left, and judges what a death at each of its instructions leaves.
fn sweep_recovery(crashed: &Image, allowed: &Allowed) -> Result<u64, String> {
    let (recovering, copy, board) = (Copy::new("recovering"), Copy::new("copy"), Board::new());
    recovering.put(crashed);
    let child = Child::start(|| {
        child::be_traced();
        child::marker();
        let recovered = recovering.open().and_then(|heap| heap.recover().map(|_| heap));
        board.say(&outcome_of(&recovered));
        child::marker();
        std::mem::forget(recovered);
    });
    let mut watch = Watch::new(recovering.segment());
    watch.look(true);
    let mut points = 0;
    while points < STEPS_MAX {
        let called = match child.step() {
            Stop::Instruction { called } => called,
            Stop::Marker if board.said() == "ok" => return Ok(points),
            other => return Err(format!("recovery, after {points} instructions: {other:?}, {}", board.said())),
        };
        points += 1;
        if watch.look(called) {
            let told = |what| format!("a second death, after instruction {points} of recovery: {what}");
            judge(watch.image(), &copy, allowed).map_err(told)?;
        }
    }
    Err(format!("recovery takes more than {STEPS_MAX} instructions"))
}

/// Notices when a segment is another than it was.
struct Watch<'a> {
    segment: &'a Segment,
    window: Option<Window>,
    image: Option<Image>,
    scratch: Vec<u8>,
}

impl<'a> Watch<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self { segment, window: None, image: None, scratch: Vec::new() }
    }

    /// Looks at the segment; true if a death now would leave another state than a death at the last look. Names and holes
    /// change by system calls only, of which `called` tells.
    fn look(&mut self, called: bool) -> bool {
        if self.window.is_none() && called {
            self.window = Window::open(self.segment);
        }
        let Some(window) = &self.window else { return false };
        match &mut self.image {
            None => {
                self.image = Some(window.image());
                true
            }
            Some(image) => {
                let changed = window.read_if_changed(&mut image.bytes, &mut self.scratch);
                if !changed && !called {
                    return false;
                }
                let now = window.image();
                let differs = changed || (&now.extents, now.taken) != (&image.extents, image.taken);
                *image = now;
                differs
            }
        }
    }

    fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }
}
