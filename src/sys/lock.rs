//! The lock word: mutual exclusion between processes that may be killed at any instruction.
//!
//! | value | meaning |
//! |---|---|
//! | 0 | free |
//! | bits 0..31 | holder + 1, the holder being a lane |
//! | bit 31, `WAITERS` | somebody may be asleep on the word |
//!
//! Lock is a compare-and-swap; whoever finds it held sets `WAITERS` and sleeps for one slice at a time. After a slice
//! that nobody ended, the waiter asks whether the holder is dead, by *seizing its token*: the token of a living lane
//! cannot be seized. Holding the dead lane's token, the waiter swaps the word from the dead lane to itself, and its
//! caller repairs what the dead one left behind before it goes on.
//!
//! L1. At most one lane that is alive is named by the word, and only that lane changes it to another value than
//!     `word | WAITERS`, except for L2.
//! L2. A word that names a dead lane is changed only by one who holds that lane's token. So two waiters cannot both take
//!     over, and a new owner of the lane (who must take the token first) cannot be robbed by a waiter who looked before.
//! L3. A waiter sleeps for one slice at most. So a wake-up that is lost with its sender, or with the waiter that it woke,
//!     delays the others by a slice and no more.
//!
//! The file uses nothing but `core` and its own traits, so that tests/loom_lock/main.rs can model it as it stands.
//!
//! Not here: futexes (`futex`), tokens (`token`), what to repair (`recovery`).

/// Set while somebody may be asleep on the word.
pub(crate) const WAITERS: u32 = 1 << 31;

/// The word of a dead holder changes at most by other waiters' `WAITERS`, so the second try succeeds, spurious failures
/// apart; when all fail, the next slice tries again.
const TAKE_OVER_TRIES: u32 = 16;

/// After so many rounds a waiter looks how long it has waited in all. Where the word is changed by those who keep the rules,
/// somebody gets the lock meanwhile.
const ROUNDS_PER_LOOK: u32 = 1024;

/// The word itself. Implemented for `AtomicU32`, and by the model for loom's.
pub(crate) trait Word {
    /// The value now.
    fn load(&self) -> u32;
    /// Swaps `from` for `to` with Acquire ordering; false if the value was another or the attempt failed spuriously.
    fn swap_if(&self, from: u32, to: u32) -> bool;
    /// Stores 0 with Release ordering, and returns what was there.
    fn clear(&self) -> u32;
}

/// What a waiter needs from the world.
pub(crate) trait World {
    /// Sleeps while the word holds `expected`, for one slice at most; true if the slice ran out.
    fn sleep(&self, expected: u32) -> bool;
    /// Wakes one sleeper.
    fn wake_one(&self);
    /// Takes the token of `lane`; true only if nobody alive holds it.
    fn seize(&self, lane: u32) -> bool;
    /// Gives back a token that `seize` took.
    fn give_back(&self, lane: u32);
    /// True once `holder` has kept the caller waiting for longer than it is willing to.
    fn expired(&self, holder: u32) -> bool;
    /// True once the caller has waited for longer than it is willing to in all, whoever it was that it waited for.
    fn gives_up(&self) -> bool;
    /// How often a waiter looks at the word before it goes to sleep.
    fn spins(&self) -> u32;
    /// One short pause of the processor.
    fn pause(&self);
}

/// How the lock was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// From nobody.
    Free,
    /// From this lane, which died as its holder. The caller holds that lane's token now, and has to recover.
    FromDead(u32),
}

/// The lane that the word names, if it is held.
pub(crate) fn holder(word: u32) -> Option<u32> {
    (word & !WAITERS).checked_sub(1)
}

/// Takes the lock for `me`, whose token the caller holds. `Err` names the lane that would not let go in time.
///
/// A word that already names `me` was left by a predecessor: the lane's token passed to the caller, so the lane that
/// took the lock under this number is dead (L2).
pub(crate) fn acquire(word: &impl Word, world: &impl World, me: u32) -> Result<Taken, u32> {
    let mine = me.wrapping_add(1);
    let mut slept = 0;
    let mut spins = 0;
    let mut rounds = 0u32;
    loop {
        let now = word.load();
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(ROUNDS_PER_LOOK) && world.gives_up() {
            return Err(holder(now).unwrap_or(me));
        }
        let Some(other) = holder(now) else {
            // Whoever has slept may have left others asleep behind it: it keeps the bit, at the price of one idle wake.
            if word.swap_if(now, mine | now & WAITERS | slept) {
                return Ok(Taken::Free);
            }
            world.pause();
            continue;
        };
        if other == me {
            return Ok(Taken::FromDead(me));
        }
        if spins < world.spins() && slept == 0 {
            spins = spins.wrapping_add(1);
            world.pause();
            continue;
        }
        if now & WAITERS == 0 && !word.swap_if(now, now | WAITERS) {
            continue;
        }
        let ran_out = world.sleep(now | WAITERS);
        slept = WAITERS;
        // Where many wait, the holder changes all the time; only one that stood there for a whole slice is asked after.
        if ran_out && holder(word.load()) == Some(other) {
            if let Some(taken) = take_over(word, world, mine, other) {
                return Ok(taken);
            }
            if world.expired(other) {
                return Err(other);
            }
        }
    }
}

/// Takes the lock from `other` if that lane is dead.
fn take_over(word: &impl Word, world: &impl World, mine: u32, other: u32) -> Option<Taken> {
    if !world.seize(other) {
        return None;
    }
    // Only now, with the token in hand, is the word's value what a dead lane left (L2).
    for _ in 0..TAKE_OVER_TRIES {
        let now = word.load();
        if holder(now) != Some(other) {
            break;
        }
        if word.swap_if(now, mine | WAITERS) {
            return Some(Taken::FromDead(other));
        }
    }
    world.give_back(other);
    None
}

/// Lets the lock go.
pub(crate) fn release(word: &impl Word, world: &impl World) {
    if word.clear() & WAITERS != 0 {
        world.wake_one();
    }
}
