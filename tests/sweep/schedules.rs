//! Interleavings: every schedule of two processes in which one of them is preempted once.
//!
//! A stands at one of its instructions. B runs whole. Then A goes on, or it was dead all the while. What comes of that must
//! be what comes of A and B one after the other, in one of the two orders; of a dead A, also what comes of B alone.
//! If B finds that A holds a lock, it must say so, by A's pid and in time, and do its work once A has gone on.
//!
//! One pass over A serves all its instructions: at each, a double of A goes on in its stead, with a double of B, and then
//! the segment's bytes and the tokens are put back.

use std::collections::BTreeMap;
use std::time::Duration;

use shmheap::{Heap, Offset};

use crate::board::{Board, outcome_of};
use crate::child::{self, Child, STEPS_MAX, Stop};
use crate::common::Segment;
use crate::image::{Copy, Window};
use crate::oracle::{Content, Live, Shape, use_up};
use crate::pairs::Pair;
use crate::partner::Partner;
use crate::stage::{Stage, probe, vary};
use crate::tokens::Tokens;

/// How long B waits for a lock: a little longer than the slice after which it asks whether the holder is alive.
const B_PATIENCE: Duration = Duration::from_millis(2);
const A_PATIENCE: Duration = Duration::from_millis(500);
const CAPACITY: u64 = 128 << 10;

/// B's commands: do it; do it and then see whether the heap works.
const RUN: u8 = b'r';
const RUN_AND_PROBE: u8 = b'p';

/// How A and B end, and what is left, where they run one after the other, or only one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ending {
    a: Option<String>,
    b: Option<String>,
    left: Shape,
}

/// A pair on its segment.
struct Scene<'a> {
    segment: &'a Segment,
    window: Window,
    copy: &'a Copy,
    boards: [&'a Board; 2],
    a: Child,
    b: Partner,
    tokens: [Tokens; 2],
    /// The bytes to which everything is put back.
    bytes: Vec<u8>,
    scratch: Vec<u8>,
    /// Blocks that neither A nor B touches.
    untouched: BTreeMap<Offset, Content>,
}

fn run_a(pair: &Pair, seed: u64, name: &str, [board, shared]: [&Board; 2]) {
    let heap = Heap::options().capacity(CAPACITY).lanes(pair.lanes).lock_timeout(A_PATIENCE).create(name);
    let mut stage = Stage { name: name.to_owned(), heap: Some(heap.expect("a new name")), blocks: Vec::new() };
    vary(stage.heap(), seed);
    (pair.prepare_a)(&mut stage);
    shared.note_blocks(&stage.blocks);
    child::be_traced();
    child::marker();
    stage.blocks = shared.blocks();
    child::marker();
    board.say(&outcome_of(&(pair.a)(&mut stage)));
    child::marker();
    board.say(&outcome_of(&probe(&stage)));
    child::marker();
    std::mem::forget(stage);
}

impl<'a> Scene<'a> {
    /// Prepares both; A stands right before its operation.
    fn set(pair: &'a Pair, seed: u64, segment: &'a Segment, copy: &'a Copy, boards: [&'a Board; 3]) -> Result<Self, String> {
        let [board_a, board_b, shared] = boards;
        let a = Child::start(|| run_a(pair, seed, segment.name(), [board_a, shared]));
        let prepare_b = || {
            let heap = Heap::options().lock_timeout(B_PATIENCE).open(segment.name()).expect("the heap is there");
            let mut stage = Stage { name: segment.name().to_owned(), heap: Some(heap), blocks: shared.blocks() };
            (pair.prepare_b)(&mut stage);
            shared.note_blocks(&stage.blocks);
            stage
        };
        let run_b = |stage: &mut Stage, command: u8| {
            board_b.say(&outcome_of(&(pair.b)(stage)));
            if command == RUN_AND_PROBE && board_b.said() == "ok" {
                let probed = outcome_of(&probe(stage));
                if probed != "ok" {
                    board_b.say(&format!("ok, and then {probed}"));
                }
            }
        };
        let b = Partner::start(prepare_b, run_b);
        if a.to_marker() != Stop::Marker {
            return Err("A did not come to its operation".to_owned());
        }
        let window = Window::open(segment).expect("A has made the segment");
        let tokens = [Tokens::of(a.process(), &segment.path()), Tokens::of(b.process(), &segment.path())];
        let bytes = window.image().bytes;
        let boards = [board_a, board_b];
        let (scratch, untouched) = (Vec::new(), BTreeMap::new());
        Ok(Self { segment, window, copy, boards, a, b, tokens, bytes, scratch, untouched })
    }

    /// Everything but A is again as it was before B ran.
    fn put_back(&mut self) {
        self.window.restore(&self.bytes, &mut self.scratch);
        // A double of one of them may have a token that was the other's.
        self.tokens.iter().for_each(Tokens::let_go);
        self.tokens.iter().for_each(Tokens::take);
        self.boards[0].clear();
    }

    fn run_b(&mut self, command: u8) -> Result<String, String> {
        self.boards[1].clear();
        self.b.begin(command);
        self.b.end().map_err(|error| format!("B: {error}"))?;
        Ok(self.boards[1].said())
    }

    fn run_a(&self, double: &Child) -> Result<String, String> {
        match double.to_marker() {
            Stop::Marker => Ok(self.boards[0].said()),
            other => Err(format!("A ended: {other:?}")),
        }
    }

    /// What is left once everybody is dead; checks that it is sound and can be used up.
    fn left(&self, is_at_rest: bool) -> Result<Shape, String> {
        let live = self.look(is_at_rest)?;
        for (block, content) in &self.untouched {
            if live.blocks.get(block) != Some(content) {
                return Err(format!("a block that nobody touched is another one, at {block}: {live:x?}"));
            }
        }
        Ok(live.shape())
    }

    fn look(&self, is_at_rest: bool) -> Result<Live, String> {
        self.copy.put(&self.window.image());
        if is_at_rest {
            let validated = self.copy.open_read_only().and_then(|heap| heap.validate());
            validated.map_err(|error| format!("validate, with nobody at work: {error}"))?;
        }
        let heap = self.copy.open().map_err(|error| format!("attach: {error}"))?;
        heap.validate().map_err(|error| format!("validate: {error}"))?;
        let live = Live::of(&heap)?;
        use_up(&heap, &live)?;
        Ok(live)
    }

    /// What A and B do one after the other, and alone.
    fn rehearse(&mut self) -> Result<[Ending; 4], String> {
        let initial = self.look(false)?;
        let mut endings = Vec::new();
        let mut stays = vec![initial.blocks];
        for order in ["", "a", "b", "ab", "ba"] {
            let (mut a, mut b) = (None, None);
            let double = self.a.fork_here();
            for who in order.chars() {
                if who == 'a' {
                    a = Some(self.run_a(&double)?);
                } else {
                    b = Some(self.run_b(RUN)?);
                }
            }
            if order.len() == 1 {
                stays.push(self.look(false)?.blocks);
            }
            endings.push(Ending { a, b, left: self.left(order.len() == 2)? });
            drop(double);
            self.put_back();
        }
        let [first, others @ ..] = &stays[..] else { return Err("nothing was rehearsed".to_owned()) };
        let stays_everywhere =
            |(block, content): &(&Offset, &Content)| others.iter().all(|after| after.get(block) == Some(content));
        self.untouched = first.iter().filter(stays_everywhere).map(|(block, content)| (*block, *content)).collect();
        let [_, a, b, ab, ba] = endings.try_into().map_err(|_| "five endings".to_owned())?;
        Ok([a, b, ab, ba])
    }

    /// B runs whole while A stands, and A goes on.
    fn a_goes_on(&mut self, [_, _, ab, ba]: &[Ending; 4]) -> Result<(), String> {
        let double = self.a.fork_here();
        let mut b = self.run_b(RUN)?;
        let a = self.run_a(&double)?;
        if b.starts_with("LockTimeout") {
            let holder = format!("holder_pid: {}", self.a.process());
            // While A has the token of a dead holder and not the lock yet, the lock still names the dead one.
            let takes_over = self.tokens[0].held().iter().map(|(start, end)| end - start + 1).sum::<i64>() > 1;
            if !b.contains(&holder) && !takes_over {
                return Err(format!("B waited for A, {holder}, and says {b}"));
            }
            b = self.run_b(RUN)?;
        }
        let ending = Ending { a: Some(a), b: Some(b), left: self.left(true)? };
        if ending != *ab && ending != *ba {
            return Err(format!("B ran, A went on:\nallowed {ab:?}\nor      {ba:?}\nfound   {ending:?}"));
        }
        let probed = self.run_a(&double)?;
        if probed != "ok" {
            return Err(format!("B ran, A went on, and then: {probed}"));
        }
        Ok(())
    }

    /// B runs whole, and A was dead all the while.
    fn a_is_dead(&mut self, [_, b, ab, ba]: &[Ending; 4]) -> Result<(), String> {
        self.tokens[0].let_go();
        let outcome = self.run_b(RUN_AND_PROBE)?;
        let left = self.left(false)?;
        let fits = |ending: &Ending| ending.left == left && ending.b.as_ref() == Some(&outcome);
        if ![b, ab, ba].into_iter().any(fits) {
            return Err(format!(
                "A died, B ran:\nallowed {b:?}\nor      {ab:?}\nor      {ba:?}\nfound   {outcome}, {left:?}"
            ));
        }
        Ok(())
    }
}

/// Runs every schedule of a pair that stops A at every `stride`-th instruction, from `from` on; returns how many there were.
pub(crate) fn sweep(pair: &Pair, seed: u64, stride: u64, from: u64) -> Result<u64, String> {
    let (segment, copy) = (Segment::new("pair"), Copy::new("copy"));
    let (board_a, board_b, shared) = (Board::new(), Board::new(), Board::new());
    let told = |what: String| format!("{}, seed {seed}: {what}", pair.name);
    let mut scene = Scene::set(pair, seed, &segment, &copy, [&board_a, &board_b, &shared]).map_err(told)?;
    let endings = scene.rehearse().map_err(told)?;
    let clock = scene.a.clock_code();
    let mut schedules = 0;
    for instruction in 0..STEPS_MAX {
        // The code that reads the clock starts again whenever time has gone on: one who stops in it for long never leaves
        // it. It touches nothing of the heap's, so that stopping there is stopping before it.
        if instruction % stride == from && !clock.contains(&scene.a.registers().rip) {
            let told = |what: String| told(format!("A stopped at instruction {instruction}: {what}"));
            if !pair.only_if_a_dies {
                scene.a_goes_on(&endings).map_err(told)?;
                scene.put_back();
                schedules += 1;
            }
            scene.a_is_dead(&endings).map_err(told)?;
            scene.put_back();
            schedules += 1;
        }
        match scene.a.step() {
            Stop::Instruction { called } => {
                if called {
                    scene.tokens[0] = Tokens::of(scene.a.process(), &scene.segment.path());
                }
                scene.window.read_if_changed(&mut scene.bytes, &mut scene.scratch);
                if scene.boards[0].is_finished() {
                    return Ok(schedules);
                }
            }
            other => return Err(told(format!("A ended at instruction {instruction}: {other:?}"))),
        }
    }
    Err(told(format!("A takes more than {STEPS_MAX} instructions")))
}
