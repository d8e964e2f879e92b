//! Every interleaving of a lane that passes its gate and a freezer that shuts it, over the file that is shipped.
//!
//! The model has a full fence on both sides. In the library the freezer makes one for both (`membarrier`), which is the
//! kernel's promise and cannot be modelled.

#[path = "../src/sys/gate/protocol.rs"]
#[allow(unreachable_pub, reason = "a module of the library, compiled here for the model")]
mod protocol;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

use protocol::{Flag, enter, exclude};

struct Word(AtomicU64);

impl Flag for Word {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    fn set(&self, value: bool) {
        self.0.store(u64::from(value), Ordering::Release);
    }
}

fn word() -> Word {
    Word(AtomicU64::new(0))
}

struct Shared {
    gates: [(Word, Word); 2],
    /// What lanes change inside.
    changes: [AtomicU64; 2],
}

impl Shared {
    fn new() -> Arc<Self> {
        let changes = [AtomicU64::new(0), AtomicU64::new(0)];
        Arc::new(Self { gates: [(word(), word()), (word(), word())], changes })
    }

    fn changed(&self) -> [u64; 2] {
        [0, 1].map(|lane: usize| self.changes[lane].load(Ordering::Relaxed))
    }
}

/// A lane that changes something twice, each time inside its gate; where that is shut it gives up.
fn lane(shared: &Shared, number: usize) {
    let (busy, stop) = &shared.gates[number];
    for _ in 0..2 {
        if enter(busy, stop, || fence(Ordering::SeqCst)) {
            let now = shared.changes[number].load(Ordering::Relaxed);
            shared.changes[number].store(now + 1, Ordering::Relaxed);
            busy.set(false);
        }
    }
}

/// One who freezes the lanes and looks twice at what they change; returns what it saw.
fn freezer(shared: &Shared, lanes: usize) -> [[u64; 2]; 2] {
    let gates = (0..lanes).map(|number| (number, &shared.gates[number].0, &shared.gates[number].1));
    let heavy_fence = || {
        fence(Ordering::SeqCst);
        Ok::<(), ()>(())
    };
    let wait = |_| {
        thread::yield_now();
        Ok(())
    };
    exclude(gates.clone(), heavy_fence, wait).expect("nothing here fails");
    let seen = [shared.changed(), shared.changed()];
    gates.for_each(|(_, _, stop)| stop.set(false));
    seen
}

#[test]
fn nobody_is_inside_while_the_gate_is_shut() {
    loom::model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let at_work = thread::spawn(move || lane(&other, 0));
        let [first, second] = freezer(&shared, 1);
        assert_eq!(first, second, "something changed while the gate was shut");
        at_work.join().expect("the lane ends well");
    });
}

#[test]
fn who_freezes_sees_all_that_was_done_before() {
    loom::model(|| {
        let shared = Shared::new();
        let other = shared.clone();
        let at_work = thread::spawn(move || {
            lane(&other, 0);
            other.changed()[0]
        });
        let [first, _] = freezer(&shared, 1);
        let done = at_work.join().expect("the lane ends well");
        assert!(first[0] <= done, "more was seen than was done");
        assert!(done <= 2);
        if first[0] == 2 {
            assert_eq!(done, 2);
        }
    });
}

#[test]
fn two_lanes_are_kept_out_together() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let shared = Shared::new();
        let lanes = [0, 1].map(|number| {
            let shared = shared.clone();
            thread::spawn(move || lane(&shared, number))
        });
        let [first, second] = freezer(&shared, 2);
        assert_eq!(first, second, "something changed while the gates were shut");
        lanes.into_iter().for_each(|lane| lane.join().expect("a lane ends well"));
    });
}
