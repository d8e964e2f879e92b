//! How a lane enters its gate, and how a freezer keeps all lanes out (Dekker's mutual exclusion).
//!
//! The file uses nothing but `core` and its own trait, so that tests/loom_gate.rs can model it as it stands.

/// One of a gate's words. Implemented for `AtomicU64`, and by the model for loom's.
pub(crate) trait Flag {
    /// True if the word is not 0. Acquire.
    fn is_set(&self) -> bool;
    /// Stores 1 or 0. Release.
    fn set(&self, value: bool);
}

/// Goes inside; false, and the lane stays outside, if the gate is shut. Between the two words stands the lane's half of the
/// fence.
#[inline]
pub(crate) fn enter(busy: &impl Flag, stop: &impl Flag, light_fence: impl FnOnce()) -> bool {
    busy.set(true);
    light_fence();
    if stop.is_set() {
        busy.set(false);
        return false;
    }
    true
}

/// Shuts gates, each with its `busy` and its `stop`, and returns when nobody is inside. `heavy_fence` is the freezer's half
/// of the fence, for both sides; `wait` is called as long as a gate is busy.
pub(crate) fn exclude<'a, K: Copy, F: Flag + 'a, E>(
    gates: impl Iterator<Item = (K, &'a F, &'a F)> + Clone,
    heavy_fence: impl FnOnce() -> Result<(), E>,
    mut wait: impl FnMut(K) -> Result<(), E>,
) -> Result<(), E> {
    gates.clone().for_each(|(_, _, stop)| stop.set(true));
    heavy_fence()?;
    for (key, busy, _) in gates {
        while busy.is_set() {
            wait(key)?;
        }
    }
    Ok(())
}
