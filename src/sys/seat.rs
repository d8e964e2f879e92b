//! One value per thread and key, found in a few instructions, and told when its thread ends.
//!
//! The standard library's thread-locals are one per `static`; a heap handle needs one per thread *and heap*. A seat is
//! that value. It is reached by shared reference only (its fields are cells), so a call that comes in while another is
//! under way on the same thread cannot break Rust's rules.
//!
//! S1. A seat's memory is freed by nothing but the end of its thread; before that, `HOT` is cleared.
//! S2. A key's number is never used again, and seats of a key have the key's type. So an entry of `HOT` whose number is
//!     the key's points to a live seat of the key's type.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a thread keeps for one heap.
pub(crate) trait Seat: Default + 'static {
    /// The thread ends while it sits here.
    fn vacate(&self);
    /// True if what the seat belonged to is gone, so that the seat may be given to another key.
    fn is_abandoned(&self) -> bool;
}

/// Type-erased [`Seat`], as the thread's list keeps it.
trait AnySeat: Any {
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
}

#[derive(Default)]
struct Slots(RefCell<Vec<Slot>>);

/// A key's number and its seat; number 0 is none.
type HotEntry = (Cell<u64>, Cell<*const ()>);

const HOT_ENTRIES: usize = 4;

thread_local! {
    static HOT: [HotEntry; HOT_ENTRIES] = const { [const { (Cell::new(0), Cell::new(ptr::null())) }; HOT_ENTRIES] };
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
    HOT.with(|hot| hot.iter().for_each(|(number, _)| number.set(0)));
}

/// The entry of `HOT` that a key's number maps to.
#[inline]
fn hot_entry(hot: &[HotEntry; HOT_ENTRIES], number: u64) -> &HotEntry {
    let [first, ..] = hot;
    // The index is always in range; the compiler sees that, and leaves only the load.
    hot.get(number as usize % HOT_ENTRIES).unwrap_or(first)
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

    /// Calls `f` with the calling thread's seat; `None` if it has none.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> Option<R> {
        let seat = HOT.with(|hot| {
            let (number, seat) = hot_entry(hot, self.number);
            if number.get() == self.number { seat.get() } else { self.find() }
        });
        if seat.is_null() {
            return None;
        }
        // SAFETY: S1 and S2: a non-null pointer found under this number is a live seat of type T, and the seat outlives
        // this call because only the end of this very thread frees it.
        let seat = unsafe { &*seat.cast::<T>() };
        Some(f(seat))
    }

    /// The seat's address by way of the thread's list; makes it hot.
    #[cold]
    fn find(&self) -> *const () {
        let seat = SLOTS.try_with(|slots| {
            let slots = slots.0.try_borrow().ok()?;
            let slot = slots.iter().find(|slot| slot.number.get() == self.number)?;
            Some(ptr::from_ref::<dyn AnySeat>(slot.seat.as_ref()).cast::<()>())
        });
        match seat {
            Ok(Some(seat)) => {
                self.make_hot(seat);
                seat
            }
            _ => ptr::null(),
        }
    }

    fn make_hot(&self, seat: *const ()) {
        HOT.with(|hot| {
            let (number, address) = hot_entry(hot, self.number);
            number.set(self.number);
            address.set(seat);
        });
    }

    /// Gives the calling thread a seat, prepared by `prepare`; false if the thread is ending and can have none.
    pub(crate) fn occupy(&self, prepare: impl FnOnce(&T)) -> bool {
        SLOTS
            .try_with(|slots| {
                let Ok(mut slots) = slots.0.try_borrow_mut() else { return false };
                let reusable = slots.iter().position(|slot| {
                    let any: &dyn Any = slot.seat.as_ref();
                    any.is::<T>() && (slot.number.get() == 0 || slot.seat.is_abandoned())
                });
                let index = reusable.unwrap_or_else(|| {
                    slots.push(Slot { number: Cell::new(0), seat: Box::new(T::default()) });
                    slots.len().saturating_sub(1)
                });
                let Some(slot) = slots.get(index) else { return false };
                let any: &dyn Any = slot.seat.as_ref();
                let Some(seat) = any.downcast_ref::<T>() else { return false };
                clear_hot();
                prepare(seat);
                slot.number.set(self.number);
                self.make_hot(ptr::from_ref(seat).cast());
                true
            })
            .unwrap_or(false)
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

    #[derive(Default)]
    struct Counter {
        value: Cell<u32>,
        vacated: RefCell<Option<Arc<AtomicU32>>>,
        owner: RefCell<std::rc::Weak<()>>,
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
    fn each_key_has_its_own_value_and_more_keys_than_hot_entries_work() {
        let owner = Rc::new(());
        let keys: Vec<SeatKey<Counter>> = (0..9).map(|_| SeatKey::new()).collect();
        for (value, key) in (0u32..).zip(&keys) {
            assert!(key.with(|_| ()).is_none());
            assert!(key.occupy(|seat| {
                seat.value.set(value);
                *seat.owner.borrow_mut() = Rc::downgrade(&owner);
            }));
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
            let occupy = || key.occupy(|seat| *seat.vacated.borrow_mut() = Some(count.clone()));
            scope.spawn(occupy).join().expect("the thread ends well")
        });
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_abandoned_seat_is_given_to_the_next_key_and_the_old_key_finds_nothing() {
        let old: SeatKey<Counter> = SeatKey::new();
        let new: SeatKey<Counter> = SeatKey::new();
        assert!(old.occupy(|seat| seat.value.set(1)));
        assert!(new.occupy(|seat| seat.value.set(2)));
        assert_eq!(old.with(|seat| seat.value.get()), None);
        assert_eq!(new.with(|seat| seat.value.get()), Some(2));
    }

    #[test]
    fn a_forgotten_seat_is_not_told() {
        let count = Arc::new(AtomicU32::new(0));
        let key: SeatKey<Counter> = SeatKey::new();
        std::thread::scope(|scope| {
            let occupy_and_forget = || {
                key.occupy(|seat| *seat.vacated.borrow_mut() = Some(count.clone()));
                forget(|number| number == key.number());
                assert!(key.with(|_| ()).is_none());
            };
            scope.spawn(occupy_and_forget).join().expect("the thread ends well")
        });
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}
