//! A heap as a picture: what `map` draws, and what others may draw in their own way.
//!
//! | noun | file | |
//! |---|---|---|
//! | [`Map`], [`Cell`] | `model.rs` | the region cut into equal cells, and what each of them holds |
//! | [`Zoom`] | `zoom.rs` | one span, block by block |
//! | colour, character | `palette.rs` | how a cell looks, with colours and without |
//! | [`Picture`] | `picture.rs` | cells, facts and a legend: what there is to draw |
//! | canvas | `terminal.rs` | a picture on a terminal |
//! | [`Scene`](scene::Scene) | `scene.rs` | a picture as rectangles and texts, laid out for files |
//! | painter | `svg.rs`, `png.rs` | a scene as SVG and as PNG |
//!
//! Not here: which picture is wanted, and where it is written (`commands/map.rs`).

mod model;
pub(crate) mod palette;
mod picture;
pub(crate) mod png;
pub(crate) mod scene;
pub(crate) mod svg;
pub(crate) mod terminal;
mod zoom;

pub(crate) use model::{Cell, Content, Map};
pub(crate) use picture::{CELLS_MAX, Picture};
pub(crate) use zoom::{Block, Subject, Zoom};
