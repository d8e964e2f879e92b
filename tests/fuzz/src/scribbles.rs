//! Scribbles: changes of a region's bytes, as an input describes them.

use std::sync::atomic::Ordering;

use super::{Ground, Input, Layout};

/// Changes some bytes of the region. What is written may be anything; some kinds are likely to mean something.
pub(super) fn scribble(ground: &Ground, layout: &Layout, input: &mut Input<'_>) {
    let (kind, distance) = (input.byte(), u64::from(input.half()));
    let (start, len) = layout.area(kind);
    // Places in large regions are more than an input's half can tell.
    let scale = len.div_ceil(1 << 16).next_power_of_two();
    let at = (start + distance * scale % len.max(1)).min(layout.capacity - 8);
    let word = ground.word(at & !7);
    let now = word.load(Ordering::Relaxed);
    let value = match kind >> 4 {
        0..=2 => now ^ 1 << (input.byte() & 63),
        3 | 4 => return ground.set_byte(at, input.byte()),
        5 => u64::from(input.byte()),
        6 => u64::from(input.long()),
        7 => input.word(),
        8 => !0,
        // What a page entry looks like.
        9..=11 => {
            let [state, class, lane, number] = input.long().to_le_bytes();
            u64::from(state & 7) | u64::from(class & 31) << 8 | u64::from(lane & 7) << 16 | u64::from(number) << 32
        }
        // What a link looks like.
        12 => {
            let [next, previous, listed, _] = input.long().to_le_bytes();
            u64::from(next) | u64::from(previous) << 31 | u64::from(listed) << 62
        }
        // What an offset of the pages looks like.
        13 | 14 => layout.data_start + u64::from(input.half()) * 16,
        // Two halves.
        _ => u64::from(input.half()) | u64::from(input.half()) << 32,
    };
    word.store(value, Ordering::Relaxed);
}
