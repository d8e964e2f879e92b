//! Target `scribble`: a valid region is used, and between operations some of its bytes change, as if a peer scribbled on
//! them.
//!
//! | byte of the input | |
//! |---|---|
//! | 0, bits 0 and 1 | which region: 0 and 1 left in good order, 2 and 3 left by one who died; 3, with bits 5 and 6: a tall one |
//! | 0, bits 2 to 4 | all set: the lock word may be anything; then few operations follow, as each may wait |
//! | then | an even byte and a scribble, or an odd byte that names an operation, and what it needs; up to the end |

use super::template::{SMALL, TALL};
use super::{Actor, Ground, Input, Operation, Template, scribbles};

/// Most scribbles and operations of an input.
const STEPS_MAX: usize = 40;
/// Most of them where operations may wait for the lock.
const WAITS_MAX: usize = 8;

struct Stage {
    small: Ground,
    tall: Ground,
    left: Template,
    dead: Template,
    high: Template,
}

thread_local! {
    static STAGE: Stage = Stage {
        small: Ground::new(SMALL),
        tall: Ground::new(TALL),
        left: Template::left(),
        dead: Template::dead(),
        high: Template::tall(),
    };
}

/// Runs one input.
pub fn scribble(data: &[u8]) {
    STAGE.with(|stage| run(stage, &mut Input::new(data)));
}

fn run(stage: &Stage, input: &mut Input<'_>) {
    let flags = input.byte();
    let (ground, template) = match flags & 3 {
        0 | 1 => (&stage.small, &stage.left),
        3 if flags & 0x60 == 0x60 => (&stage.tall, &stage.high),
        _ => (&stage.small, &stage.dead),
    };
    ground.reset(template);
    let lock_is_fair_game = flags & 0x1c == 0x1c;
    let mut actor = Actor::enter(ground).expect("a valid heap can be attached");
    for _ in 0..if lock_is_fair_game { WAITS_MAX } else { STEPS_MAX } {
        if input.is_empty() {
            return;
        }
        let step = input.byte();
        if step & 1 == 0 {
            scribbles::scribble(ground, template.layout(), input);
            if !lock_is_fair_game {
                ground.clear_lock();
            }
        } else if !actor.perform(Operation::of(step >> 1), input) {
            return;
        }
    }
}
