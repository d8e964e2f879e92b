//! The library over hostile bytes, deterministic: one function per fuzz target, each of which takes an input and must
//! return.
//!
//! | noun | file | |
//! |---|---|---|
//! | ground | `ground.rs` | memory between two guards, to stand a region on, put back between inputs |
//! | layout | `layout.rs` | where a region's tables are, computed by docs/FORMAT.md and not by the library |
//! | input | `input.rs` | an input's bytes, taken from the front |
//! | actor | `actor.rs` | who performs operations on a heap, and checks what they hand out |
//! | template | `template.rs` | valid regions with live contents |
//! | scribble | `scribbles.rs` | a change of some bytes of a region |
//! | targets | `region.rs`, `scribble.rs`, `image.rs` | what the fuzzer runs |
//!
//! A target fails by a panic, by a signal (an access outside of the ground meets a guard, and the fuzzer's build watches all
//! other memory), or by not returning. What a call answers does not matter, as long as what it hands out lies in the
//! region: a block, or a size that somebody may rely on.
//!
//! tests/hostile/main.rs includes this file and runs the targets over the committed inputs, without a fuzzer.

mod actor;
mod ground;
mod image;
mod input;
mod layout;
mod region;
mod scribble;
mod scribbles;
mod template;

pub use actor::{Actor, Operation};
pub use ground::Ground;
pub use image::image;
pub use input::Input;
pub use layout::Layout;
pub use region::region;
pub use scribble::scribble;
pub use template::Template;

/// How long a call waits for a lock word that names somebody alive. Short: with hostile bytes, nobody will let go.
pub const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(1);
