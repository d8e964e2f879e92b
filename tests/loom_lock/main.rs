//! The lock word under loom: the file src/sys/lock.rs as it stands, over a model of everything that it stands on.
//!
//! Loom runs a scenario once for every order in which its threads' steps can happen (with a bounded number of
//! preemptions), and for every value that a load may return. Here a thread is a process with one lane:
//!
//! | noun | in the model |
//! |---|---|
//! | token | a flag per lane, set while somebody alive holds it; the end of a process clears all that it held |
//! | death | a process ends at its n-th step on the lock, the tokens or the futex; [`sweep`] runs a scenario for every n |
//! | futex | a queue of sleepers; one kind sleeps until woken, the other until woken or until its slice has run out |
//! | what is guarded | a pair of numbers, written one after the other, so that a death between the two shows |
//!
//! Not here: what recovery does (tests that kill processes), how real futexes and tokens behave (`src/sys`).

#![allow(unsafe_code, reason = "loom's UnsafeCell hands out raw pointers")]

#[path = "../../src/sys/lock.rs"]
#[allow(dead_code, reason = "the model need not call everything that the library calls")]
mod lock;
mod scenarios;

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc as Plain;
use std::sync::atomic::{AtomicBool as PlainBool, AtomicU32 as PlainU32, Ordering::SeqCst};

use lock::{Taken, WAITERS, Word, World};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Lanes of the model.
const LANES: usize = 4;
/// The lane that looks at what is left when everyone else is gone.
const HEIR: u32 = 3;
/// Steps of a visit before its second write: claim, load, swap, first write.
const STEPS_TO_SECOND_WRITE: u32 = 4;
/// More steps than any process of the scenarios takes.
const STEPS_MAX: u32 = 60;
/// Stack of a modelled process, in words; the default is too small for unwinding in a debug build.
const STACK_WORDS: usize = 0x4000;

/// How a waiter sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Futex {
    /// Until it is woken: a wake-up that is missing is a deadlock, which loom reports.
    Patient,
    /// Until it is woken or its slice has run out, whichever the scheduler lets come first.
    Sliced,
    /// Until its slice has run out, as if every wake-up were lost. The model is small enough for three processes.
    Deaf,
}

/// One of the numbers that the lock guards.
struct Guarded(UnsafeCell<u32>);

// SAFETY: loom's cell checks, and panics, where an ordinary one would have a data race; that is what it is here for.
unsafe impl Sync for Guarded {}

/// What the processes share.
struct Shared {
    futex: Futex,
    word: AtomicU32,
    /// True while somebody alive holds the lane's token.
    tokens: [AtomicBool; LANES],
    asleep: Mutex<VecDeque<u32>>,
    woken: [Condvar; LANES],
    /// Equal, unless somebody died between the two writes.
    pair: [Guarded; 2],
    /// Processes that are inside, alive. Not part of the model: it changes with the step that it follows.
    inside: PlainU32,
    takeovers: PlainU32,
    /// Deaths while the word named the dead.
    died_holding: PlainU32,
}

impl Shared {
    fn new(futex: Futex) -> Arc<Self> {
        Arc::new(Self {
            futex,
            word: AtomicU32::new(0),
            tokens: std::array::from_fn(|_| AtomicBool::new(false)),
            asleep: Mutex::new(VecDeque::new()),
            woken: std::array::from_fn(|_| Condvar::new()),
            pair: [0, 0].map(|number| Guarded(UnsafeCell::new(number))),
            inside: PlainU32::new(0),
            takeovers: PlainU32::new(0),
            died_holding: PlainU32::new(0),
        })
    }

    fn read(&self, half: usize) -> u32 {
        // SAFETY: the pointer is valid as long as the cell; loom panics if a write may happen at the same time.
        self.pair[half].0.with(|value| unsafe { *value })
    }

    fn write(&self, half: usize, value: u32) {
        // SAFETY: the pointer is valid as long as the cell; loom panics if an access may happen at the same time.
        self.pair[half].0.with_mut(|place| unsafe { *place = value });
    }

    fn asleep(&self) -> loom::sync::MutexGuard<'_, VecDeque<u32>> {
        self.asleep.lock().expect("no modelled process dies while it is inside the kernel")
    }
}

/// Thrown where a process is killed.
struct Killed;

/// A process with one lane.
struct Process {
    shared: Arc<Shared>,
    lane: u32,
    /// Tokens that it holds, by lane.
    holds: [Cell<bool>; LANES],
    /// True while the word names its lane by its own doing.
    named: Cell<bool>,
    steps_left: Cell<u32>,
    /// Slices that it sleeps at most, before its deadline has passed.
    slices_left: Cell<u32>,
}

impl Process {
    /// A process without a lane. It is killed at its `lifetime`-th step.
    fn new(shared: Arc<Shared>, lifetime: u32) -> Self {
        Self {
            shared,
            lane: u32::MAX,
            holds: std::array::from_fn(|_| Cell::new(false)),
            named: Cell::new(false),
            steps_left: Cell::new(lifetime),
            slices_left: Cell::new(u32::MAX),
        }
    }

    /// Every step at which a death makes a difference to others begins here.
    fn step(&self) {
        match self.steps_left.get().checked_sub(1) {
            Some(left) => self.steps_left.set(left),
            None => resume_unwind(Box::new(Killed)),
        }
    }

    /// Takes the token of one of these lanes, which becomes the process's own.
    fn claim(&mut self, lanes: &[u32]) {
        let lane = lanes.iter().copied().find(|lane| self.seize(*lane));
        self.lane = lane.expect("there are as many lanes as processes");
    }

    /// Takes the lock once, repairs what a dead holder left, and changes the pair.
    fn visit(&self) -> Taken {
        let taken = self.enter().expect("no deadline is set");
        self.change_pair();
        self.leave();
        taken
    }

    /// Takes the lock. Asserts everything that the caller of `acquire` relies on.
    fn enter(&self) -> Result<Taken, u32> {
        let shared = &self.shared;
        let taken = lock::acquire(self, self, self.lane)?;
        self.named.set(true);
        assert_eq!(shared.inside.fetch_add(1, SeqCst), 0, "two living processes hold the lock");
        let [left, right] = [0, 1].map(|half| shared.read(half));
        let held: Vec<u32> = (0..).zip(&self.holds).filter(|(_, held)| held.get()).map(|(lane, _)| lane).collect();
        match taken {
            Taken::Free => {
                assert_eq!(held, [self.lane], "whoever takes a free lock holds no token but its own");
                assert_eq!(left, right, "whoever takes a free lock finds everything whole");
            }
            Taken::FromDead(dead) => {
                assert!(shared.died_holding.load(SeqCst) != 0, "nobody died as holder of the lock");
                assert!(self.holds[dead as usize].get() && held.contains(&self.lane), "the dead lane's token is held");
                assert!(held.len() <= 2, "no third token is held");
                shared.takeovers.fetch_add(1, SeqCst);
                if dead != self.lane {
                    self.give_back(dead);
                }
                shared.write(1, left);
            }
        }
        Ok(taken)
    }

    fn change_pair(&self) {
        for half in [0, 1] {
            self.step();
            self.shared.write(half, self.shared.read(half) + 1);
        }
    }

    fn leave(&self) {
        lock::release(self, self);
    }

    /// What the kernel does when the process is gone: it leaves the queue, and its tokens are free.
    fn end(&self) {
        let shared = &self.shared;
        if shared.futex != Futex::Deaf {
            shared.asleep().retain(|lane| *lane != self.lane);
        }
        if self.named.get() {
            shared.died_holding.fetch_add(1, SeqCst);
            shared.inside.store(0, SeqCst);
        }
        for (token, held) in shared.tokens.iter().zip(&self.holds) {
            if held.replace(false) {
                token.store(false, Ordering::Release);
            }
        }
    }
}

impl Word for Process {
    fn load(&self) -> u32 {
        self.step();
        self.shared.word.load(Ordering::Relaxed)
    }

    fn swap_if(&self, from: u32, to: u32) -> bool {
        self.step();
        let swapped = self.shared.word.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if swapped && lock::holder(to) == Some(self.lane) {
            self.named.set(true);
        }
        swapped
    }

    fn clear(&self) -> u32 {
        self.step();
        // Before the swap: in the model, the swap is where others may come in.
        self.shared.inside.fetch_sub(1, SeqCst);
        self.named.set(false);
        self.shared.word.swap(0, Ordering::Release)
    }
}

impl World for Process {
    fn sleep(&self, expected: u32) -> bool {
        self.step();
        let shared = &self.shared;
        if shared.futex == Futex::Deaf {
            let slept = shared.word.load(Ordering::Relaxed) == expected;
            thread::yield_now();
            return slept;
        }
        let mut asleep = shared.asleep();
        if shared.word.load(Ordering::Relaxed) != expected {
            return false;
        }
        asleep.push_back(self.lane);
        if shared.futex == Futex::Patient {
            while asleep.contains(&self.lane) {
                asleep = shared.woken[self.lane as usize].wait(asleep).expect("as `asleep`");
            }
            return false;
        }
        drop(asleep);
        thread::yield_now();
        let mut asleep = shared.asleep();
        let before = asleep.len();
        asleep.retain(|lane| *lane != self.lane);
        let ran_out = asleep.len() != before;
        if ran_out {
            self.slices_left.set(self.slices_left.get().saturating_sub(1));
        }
        ran_out
    }

    fn wake_one(&self) {
        self.step();
        if self.shared.futex == Futex::Deaf {
            return;
        }
        let mut asleep = self.shared.asleep();
        if let Some(lane) = asleep.pop_front() {
            self.shared.woken[lane as usize].notify_one();
        }
    }

    fn seize(&self, lane: u32) -> bool {
        self.step();
        let token = &self.shared.tokens[lane as usize];
        // The kernel orders what its former holder did before what the next one does.
        let seized = token.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if seized {
            self.holds[lane as usize].set(true);
        }
        seized
    }

    fn give_back(&self, lane: u32) {
        self.step();
        self.holds[lane as usize].set(false);
        self.shared.tokens[lane as usize].store(false, Ordering::Release);
    }

    fn expired(&self, _holder: u32) -> bool {
        self.slices_left.get() == 0
    }

    fn gives_up(&self) -> bool {
        false
    }

    fn spins(&self) -> u32 {
        0
    }

    fn pause(&self) {
        thread::yield_now();
    }
}

/// Runs the life of a process to its end, or to its `lifetime`-th step; true if it was killed.
fn live(shared: &Arc<Shared>, lifetime: u32, life: impl FnOnce(&mut Process)) -> bool {
    let mut process = Process::new(shared.clone(), lifetime);
    let outcome = catch_unwind(AssertUnwindSafe(|| life(&mut process)));
    let killed = match outcome {
        Ok(()) => false,
        Err(panic) if panic.is::<Killed>() => true,
        Err(panic) => resume_unwind(panic),
    };
    process.end();
    killed
}

/// As [`live`], at the same time as others; `join` tells whether it was killed.
fn start(shared: &Arc<Shared>, lifetime: u32, life: impl FnOnce(&mut Process) + Send + 'static) -> thread::JoinHandle<bool> {
    let shared = shared.clone();
    let body = move || live(&shared, lifetime, life);
    thread::Builder::new().stack_size(STACK_WORDS).spawn(body).expect("a modelled thread starts")
}

/// A process with this lane took the lock and was killed between its two writes; nobody else has come yet.
fn die_inside(shared: &Arc<Shared>, lane: u32) {
    assert!(live(shared, STEPS_TO_SECOND_WRITE, visitor(lane)), "a visit has more steps");
    assert_eq!(lock::holder(shared.word.load(Ordering::Relaxed)), Some(lane), "it died as holder of the lock");
}

/// The life of a process with a lane of its own that visits once.
fn visitor(lane: u32) -> impl FnOnce(&mut Process) + Send + 'static {
    move |process| {
        process.claim(&[lane]);
        process.visit();
    }
}

/// After everyone is gone: the next to come finds everything in order, and each death as holder was seen exactly once.
fn inherit(shared: &Arc<Shared>) -> u32 {
    let mut heir = Process::new(shared.clone(), u32::MAX);
    heir.claim(&[HEIR]);
    heir.visit();
    assert_eq!(heir.visit(), Taken::Free, "a lock that was let go is free");
    assert_eq!(shared.word.load(Ordering::Relaxed) & !WAITERS, 0, "the lock is free in the end");
    let died_holding = shared.died_holding.load(SeqCst);
    assert_eq!(shared.takeovers.load(SeqCst), died_holding, "exactly one takes over from each dead holder");
    shared.read(1)
}

fn model(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 10_000;
    builder.check(scenario);
}

/// Runs a scenario for every step at which its victim can be killed. The scenario gets the victim's lifetime and says
/// whether it was killed.
fn sweep(preemptions: usize, scenario: impl Fn(u32) -> bool + Send + Sync + Clone + 'static) {
    for lifetime in 0..STEPS_MAX {
        let killed = Plain::new(PlainBool::new(false));
        let (seen, scenario) = (killed.clone(), scenario.clone());
        model(preemptions, move || {
            if scenario(lifetime) {
                seen.store(true, SeqCst);
            }
        });
        if !killed.load(SeqCst) {
            assert!(lifetime > STEPS_TO_SECOND_WRITE, "the victim visits, which takes more steps");
            return;
        }
    }
    panic!("the victim never came to its end");
}

/// Waits for the end of processes that nobody kills.
fn join(processes: impl IntoIterator<Item = thread::JoinHandle<bool>>) {
    for process in processes {
        assert!(!process.join().expect("no assertion of a process failed"), "it was not to be killed");
    }
}
