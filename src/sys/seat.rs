//! One value per thread and key, found in a few instructions, and told when its thread ends.
//!
//! The standard library's thread-locals are one per `static`; a heap handle needs one per thread *and heap*. A seat is
//! that value. It is reached by shared reference only (its fields are cells), so a call that comes in while another is
//! under way on the same thread cannot break Rust's rules.
//!
//! S1. A seat's memory is freed at the end of its thread, or once it is abandoned; before that, `HOT` is cleared. A seat
//!     that was forgotten stays until the thread ends: a call that forked may still be at work on it.
//! S2. A key's number is never used again, and seats of a key have the key's type. So while the number in `HOT` is the
//!     key's, the addresses beside it, which are written together with it, are those of a live seat of the key's type and
//!     of its gate.
//! S3. A seat's gate ([`Gate`]) may be reached as long as its key may be used: both belong to the same attachment.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use super::gate::Gate;

/// What a thread keeps for one heap.
pub(crate) trait Seat: 'static {
    /// The thread ends while it sits here.
    fn vacate(&self);
    /// True if what the seat belonged to is gone, so that nobody can use it any more.
    fn is_abandoned(&self) -> bool;
}

/// Type-erased [`Seat`], as the thread's list keeps it.
trait AnySeat {
    fn vacate(&self);
    fn is_abandoned(&self) -> bool;
}

impl<T: Seat> AnySeat for T {
    fn vacate(&self) {
        Seat::vacate(self);
    }
    fn is_abandoned(&self) -> bool {
        Seat::is_abandoned(self)
    }
}

/// Finds the calling thread's seat of type `T`.
#[derive(Debug)]
pub(crate) struct SeatKey<T> {
    number: u64,
    seats: PhantomData<fn() -> T>,
}

struct Slot {
    number: Cell<u64>,
    seat: Box<dyn AnySeat>,
    gate: NonNull<Gate>,
}

/// The key that a thread used last: its number (0 is none), its seat and that seat's gate.
struct Hottest {
    number: Cell<u64>,
    seat: Cell<*const ()>,
    gate: Cell<*const Gate>,
}

#[derive(Default)]
struct Slots(RefCell<Vec<Slot>>);

thread_local! {
    /// A thread that uses several heaps in turn finds the others in its list.
    static HOT: Hottest =
        const { Hottest { number: Cell::new(0), seat: Cell::new(ptr::null()), gate: Cell::new(ptr::null()) } };
    static SLOTS: Slots = const { Slots(RefCell::new(Vec::new())) };
}

impl Drop for Slots {
    fn drop(&mut self) {
        clear_hot();
        for slot in self.0.take() {
            if slot.number.get() != 0 {
                slot.seat.vacate();
            }
        }
    }
}

fn clear_hot() {
    HOT.with(|hot| hot.number.set(0));
}

impl<T: Seat> SeatKey<T> {
    /// A key that no seat has yet.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), seats: PhantomData }
    }

    /// The key's number, for [`forget`].
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Calls `f` with the calling thread's seat, through its gate; `None` if the gate is shut, if the thread has no seat, or
    /// if it has to be looked for ([`Self::with_open`]). No call comes before `f`, so that what surrounds it keeps its
    /// registers.
    #[inline]
    pub(crate) fn with_hot<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        let (seat, gate) = self.hot()?;
        // SAFETY: as in `with`.
        let seat = unsafe { &*seat.cast::<T>() };
        // SAFETY: S2 and S3.
        unsafe { &*gate }.pass(|| f(seat))
    }

    /// Calls `f` with the calling thread's seat, through its gate; `None` if the gate is shut, or the thread has no seat.
    #[inline]
    pub(crate) fn with_open<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        if self.hot().is_none() {
            self.find()?;
        }
        self.with_hot(f)
    }

    /// Calls `f` with the calling thread's seat, whatever its gate says; `None` if it has none.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        let seat = match self.hot() {
            Some((seat, _)) => seat,
            None => self.find()?.as_ptr(),
        };
        // SAFETY: S1 and S2: a pointer found under this number is a live seat of type T, and the seat outlives this call:
        // it is not abandoned while its key can be used.
        let seat = unsafe { &*seat.cast::<T>() };
        Some(f(seat))
    }

    #[inline]
    fn hot(&self) -> Option<(*const (), *const Gate)> {
        HOT.with(|hot| (hot.number.get() == self.number).then(|| (hot.seat.get(), hot.gate.get())))
    }

    /// The seat's address by way of the thread's list; makes it hot.
    #[cold]
    fn find(&self) -> Option<NonNull<()>> {
        let found = SLOTS.try_with(|slots| {
            let slots = slots.0.try_borrow().ok()?;
            let slot = slots.iter().find(|slot| slot.number.get() == self.number)?;
            Some((NonNull::from(slot.seat.as_ref()).cast::<()>(), slot.gate))
        });
        let (seat, gate) = found.ok().flatten()?;
        self.make_hot(seat.as_ptr(), gate);
        Some(seat)
    }

    fn make_hot(&self, seat: *const (), gate: NonNull<Gate>) {
        HOT.with(|hot| {
            hot.number.set(self.number);
            hot.seat.set(seat);
            hot.gate.set(gate.as_ptr());
        });
    }

    /// Gives the calling thread a seat and its gate; false if the thread is ending and can have none.
    pub(crate) fn occupy(&self, seat: Box<T>, gate: &Gate) -> bool {
        let gate = NonNull::from(gate);
        let seated = SLOTS.try_with(|slots| {
            let Ok(mut slots) = slots.0.try_borrow_mut() else { return false };
            let slot = Slot { number: Cell::new(self.number), seat, gate };
            clear_hot();
            // S1: nobody can be using an abandoned seat, for who calls in its name holds what it belongs to.
            let place = slots.iter().position(|slot| slot.number.get() != 0 && slot.seat.is_abandoned());
            match place.and_then(|place| slots.get_mut(place)) {
                Some(abandoned) => *abandoned = slot,
                None => slots.push(slot),
            }
            // The seat's address is taken where it stays: a box that is moved takes its contents' addresses back.
            let Some(slot) = slots.get(place.unwrap_or(slots.len().saturating_sub(1))) else { return false };
            self.make_hot(ptr::from_ref::<dyn AnySeat>(slot.seat.as_ref()).cast(), gate);
            true
        });
        seated.unwrap_or(false)
    }
}

/// Takes the calling thread's seats of these keys away, without telling them: after a fork they are the parent's.
pub(crate) fn forget(numbers: impl Fn(u64) -> bool) {
    clear_hot();
    let _ = SLOTS.try_with(|slots| {
        if let Ok(slots) = slots.0.try_borrow() {
            slots.iter().filter(|slot| numbers(slot.number.get())).for_each(|slot| slot.number.set(0));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    static GATE: Gate = Gate::new();

    #[derive(Default)]
    struct Counter {
        value: Cell<u32>,
        vacated: RefCell<Option<Arc<AtomicU32>>>,
        owner: RefCell<std::rc::Weak<()>>,
    }

    impl Counter {
        fn of(value: u32) -> Box<Self> {
            Box::new(Self { value: Cell::new(value), ..Self::default() })
        }

        fn told(count: &Arc<AtomicU32>) -> Box<Self> {
            Box::new(Self { vacated: RefCell::new(Some(count.clone())), ..Self::default() })
        }
    }

    impl Seat for Counter {
        fn vacate(&self) {
            if let Some(count) = self.vacated.take() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
        fn is_abandoned(&self) -> bool {
            self.owner.borrow().strong_count() == 0
        }
    }

    #[test]
    fn each_key_has_its_own_value_and_several_keys_can_be_used_in_turn() {
        let owner = Rc::new(());
        let keys: Vec<SeatKey<Counter>> = (0..9).map(|_| SeatKey::new()).collect();
        for (value, key) in (0u32..).zip(&keys) {
            assert!(key.with(|_| ()).is_none());
            let seat = Counter::of(value);
            *seat.owner.borrow_mut() = Rc::downgrade(&owner);
            assert!(key.occupy(seat, &GATE));
        }
        for (value, key) in (0u32..).zip(&keys) {
            assert_eq!(key.with(|seat| seat.value.get()), Some(value));
        }
    }

    #[test]
    fn the_end_of_a_thread_vacates_its_seats_once() {
        let count = Arc::new(AtomicU32::new(0));
        let key: SeatKey<Counter> = SeatKey::new();
        // Joined by hand: the end of a scope waits for the closure only, not for what the thread's end does.
        std::thread::scope(|scope| {
            let occupy = || key.occupy(Counter::told(&count), &GATE);
            assert!(scope.spawn(occupy).join().expect("the thread ends well"));
        });
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_abandoned_seat_makes_room_for_the_next_and_its_key_finds_nothing() {
        let old: SeatKey<Counter> = SeatKey::new();
        let new: SeatKey<Counter> = SeatKey::new();
        assert!(old.occupy(Counter::of(1), &GATE));
        assert!(new.occupy(Counter::of(2), &GATE));
        assert_eq!(old.with(|seat| seat.value.get()), None);
        assert_eq!(new.with(|seat| seat.value.get()), Some(2));
    }

    #[test]
    fn a_forgotten_seat_is_not_told() {
        let count = Arc::new(AtomicU32::new(0));
        let key: SeatKey<Counter> = SeatKey::new();
        std::thread::scope(|scope| {
            let occupy_and_forget = || {
                assert!(key.occupy(Counter::told(&count), &GATE));
                forget(|number| number == key.number());
                assert!(key.with(|_| ()).is_none());
            };
            scope.spawn(occupy_and_forget).join().expect("the thread ends well")
        });
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}
