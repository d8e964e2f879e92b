//! Target `region`: any bytes are opened as a region, and used.
//!
//! | byte of the input | |
//! |---|---|
//! | 0, bits 0 to 2 | what lies under: 0 zeros, 1 zeros and a good header, 2 a header of any numbers, 3 and 4 a small heap left in good order, |
//! | | 5 to 7 one left by the dead; 7, with bits 3 and 4: a tall heap |
//! | 0, bits 3 to 6 | how many scribbles come before the heap is attached |
//! | 0, bit 7 | the lock word may be anything: then few operations follow, as each may wait |
//! | then | the header's numbers, if it has any numbers; the scribbles; operations up to the end |

use super::template::{SMALL, TALL};
use super::{Actor, Ground, Input, Layout, Operation, Template, scribbles};

/// Most operations of an input.
const OPERATIONS_MAX: usize = 24;
/// Most operations where each may wait for the lock.
const WAITS_MAX: usize = 2;

struct Stage {
    small: Ground,
    tall: Ground,
    zeros: Template,
    fresh: Template,
    left: Template,
    dead: Template,
    high: Template,
}

impl Stage {
    fn new() -> Self {
        let small = Layout::usual(SMALL as u64);
        Self {
            small: Ground::new(SMALL),
            tall: Ground::new(TALL),
            zeros: Template::fresh(small, SMALL),
            fresh: Template::fresh(small, SMALL),
            left: Template::left(),
            dead: Template::dead(),
            high: Template::tall(),
        }
    }
}

thread_local! {
    static STAGE: Stage = Stage::new();
}

/// Runs one input.
pub fn region(data: &[u8]) {
    STAGE.with(|stage| run(stage, &mut Input::new(data)));
}

fn run(stage: &Stage, input: &mut Input<'_>) {
    let flags = input.byte();
    let (ground, template) = match flags & 7 {
        0 => (&stage.small, &stage.zeros),
        1 | 2 => (&stage.small, &stage.fresh),
        3 | 4 => (&stage.small, &stage.left),
        7 if flags & 0x18 == 0x18 => (&stage.tall, &stage.high),
        _ => (&stage.small, &stage.dead),
    };
    ground.reset(template);
    let mut layout = *template.layout();
    if flags & 7 == 0 {
        ground.put(0, &[0; 128]);
    } else if flags & 7 == 2 {
        layout = any_layout(input).unwrap_or(layout);
        ground.put(0, &layout.header());
    }
    for _ in 0..flags >> 3 & 15 {
        scribbles::scribble(ground, &layout, input);
    }
    let operations = if flags & 0x80 != 0 {
        WAITS_MAX
    } else {
        ground.clear_lock();
        OPERATIONS_MAX
    };
    if flags & 7 == 0 {
        // Here the bytes are the input's alone, from the first on.
        let bytes = input.clone().bytes(SMALL);
        ground.put(0, bytes);
    }
    let Ok(mut actor) = Actor::enter(ground) else { return };
    for _ in 0..operations {
        if input.is_empty() || !actor.perform(Operation::of(input.byte()), input) {
            return;
        }
    }
}

/// A header with any numbers that a small region can have.
fn any_layout(input: &mut Input<'_>) -> Option<Layout> {
    let (shift, lanes, slots) = (12 + u32::from(input.byte() % 5), input.byte(), input.byte());
    let (classes, slab_shift, less) = (input.byte(), input.byte() % 22, input.byte());
    let capacity = SMALL as u64 - u64::from(less) * 16 * u64::from(less & 1);
    let slab_bytes_min = if slab_shift == 21 { u32::from(input.half()) << 4 } else { 1 << slab_shift };
    Layout::new(capacity, shift, u32::from(lanes), u32::from(slots), u32::from(classes), slab_bytes_min)
}
