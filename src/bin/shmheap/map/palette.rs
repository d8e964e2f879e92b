//! How a cell looks: its colour, or where there are none, its character.
//!
//! Hue says what a cell holds, and for slabs the size of their blocks in six steps; the fuller a slab is, the further its
//! colour is from the ground. The hues were chosen so that they stay apart for people who do not tell red from green. On
//! paper an orphan wears a dot, which a painter adds; on a terminal its colour is paler, since half a character has no room
//! for a dot.

use super::{Cell, Content};

/// A colour: red, green, blue.
pub(crate) type Rgb = (u8, u8, u8);

/// What a picture stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// White, for files.
    Paper,
    /// Nearly black, for terminals.
    Night,
}

/// The sizes of blocks that share a hue: up to this many bytes, and how that is told.
pub(crate) const SIZES: [(u64, &str); 6] = [
    (64, "to 64 B"),
    (256, "to 256 B"),
    (1 << 10, "to 1 KiB"),
    (4 << 10, "to 4 KiB"),
    (16 << 10, "to 16 KiB"),
    (u64::MAX, "larger"),
];

const SLABS_ON_PAPER: [Rgb; 6] =
    [(0x6d, 0x3b, 0xe0), (0x2f, 0xb9, 0xe8), (0x12, 0xc2, 0x8b), (0xf2, 0xb2, 0x33), (0xa6, 0x3a, 0x24), (0x8f, 0x11, 0x66)];
const SLABS_AT_NIGHT: [Rgb; 6] =
    [(0x8d, 0x66, 0xf5), (0x35, 0xc0, 0xf0), (0x1f, 0xd2, 0x9a), (0xf7, 0xbe, 0x48), (0xd0, 0x54, 0x38), (0xe8, 0x2a, 0xb0)];

/// The same at night where there are 256 colours, by their numbers: slabs that are rather empty, half full, and rather full.
/// Picked by hand, since the nearest of so few colours often has another hue.
const SLABS_INDEXED: [[u8; 3]; 6] =
    [[54, 92, 99], [24, 31, 39], [22, 29, 42], [94, 136, 214], [88, 124, 160], [89, 126, 199]];
/// And those of orphans.
const ORPHANS_INDEXED: [[u8; 3]; 6] =
    [[97, 140, 183], [67, 110, 153], [65, 108, 121], [137, 179, 222], [131, 174, 217], [132, 175, 218]];

/// The least part of its hue that an empty slab has, on paper and at night.
const TINT_LEAST: (f64, f64) = (0.28, 0.38);
/// How much paler an orphan is at night.
const PALER: f64 = 0.5;

/// Which of [`SIZES`] blocks of this many bytes belong to.
pub(crate) fn step(block_size: u64) -> usize {
    SIZES.iter().position(|(most, _)| block_size <= *most).unwrap_or(SIZES.len() - 1)
}

/// The colour of what the picture stands on.
pub(crate) fn ground(ground: Ground) -> Rgb {
    match ground {
        Ground::Paper => (0xff, 0xff, 0xff),
        Ground::Night => (0x14, 0x16, 0x1a),
    }
}

/// The colour of a cell.
pub(crate) fn colour(cell: &Cell, on: Ground) -> Rgb {
    let is_paper = on == Ground::Paper;
    let pick = |paper, night| if is_paper { paper } else { night };
    let slabs = if is_paper { SLABS_ON_PAPER } else { SLABS_AT_NIGHT };
    let full = match cell.content {
        Content::Free => return pick((0xf4, 0xf5, 0xf7), (0x26, 0x29, 0x2e)),
        Content::Reserved => return pick((0xc6, 0xcc, 0xd3), (0x4a, 0x50, 0x58)),
        Content::Kept => return pick((0x8d, 0x95, 0x9e), (0x7c, 0x84, 0x8d)),
        Content::Metadata => return pick((0x6a, 0x5d, 0x52), (0x8a, 0x7a, 0x6a)),
        Content::Unknown => return pick((0xe0, 0x00, 0x2d), (0xff, 0x20, 0x40)),
        Content::Large => pick((0x22, 0x26, 0x2c), (0xb4, 0xc0, 0xd2)),
        Content::Slab { block_size } => {
            let full = slabs[step(block_size)];
            let least = if is_paper { TINT_LEAST.0 } else { TINT_LEAST.1 };
            mix(ground(on), full, least + (1.0 - least) * cell.fullness)
        }
    };
    if cell.orphan && !is_paper { mix(full, (0xff, 0xff, 0xff), PALER) } else { full }
}

/// The number of a cell's colour at night, of the 256 that many terminals have.
pub(crate) fn index(cell: &Cell) -> u8 {
    match cell.content {
        Content::Free => 235,
        Content::Reserved => 239,
        Content::Kept => 244,
        Content::Metadata => 101,
        Content::Unknown => 196,
        Content::Large if cell.orphan => 255,
        Content::Large => 251,
        Content::Slab { block_size } => {
            let slabs = if cell.orphan { ORPHANS_INDEXED } else { SLABS_INDEXED };
            slabs[step(block_size)][(cell.fullness.clamp(0.0, 1.0) * 2.99) as usize]
        }
    }
}

/// The character of a cell where there are no colours. Slabs have letters, A for the smallest blocks to F for the largest,
/// and those of orphans U to Z; small letters are less than half full.
pub(crate) fn character(cell: &Cell) -> char {
    match cell.content {
        Content::Metadata => '=',
        Content::Free => '.',
        Content::Reserved => ':',
        Content::Kept => '~',
        Content::Large if cell.orphan => '@',
        Content::Large => '#',
        Content::Unknown => '?',
        Content::Slab { block_size } => {
            let letters = if cell.orphan { b"UVWXYZ" } else { b"ABCDEF" };
            let letter = char::from(letters[step(block_size)]);
            if cell.fullness < 0.5 { letter.to_ascii_lowercase() } else { letter }
        }
    }
}

/// A colour between two others: the first at 0, the second at 1.
pub(crate) fn mix(from: Rgb, to: Rgb, part: f64) -> Rgb {
    let between =
        |from: u8, to: u8| (f64::from(from) + (f64::from(to) - f64::from(from)) * part.clamp(0.0, 1.0)).round() as u8;
    (between(from.0, to.0), between(from.1, to.1), between(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn looks() -> Vec<Cell> {
        let plain = [Content::Metadata, Content::Free, Content::Reserved, Content::Kept, Content::Unknown, Content::Large];
        let slabs = [16, 80, 300, 2048, 5120, 20_480].map(|block_size| Content::Slab { block_size });
        let cell = |content, fullness| Cell { offset: 0, len: 4096, content, fullness, orphan: false };
        plain.into_iter().chain(slabs).map(|content| cell(content, 1.0)).chain(slabs.map(|slab| cell(slab, 0.1))).collect()
    }

    #[test]
    fn nothing_looks_like_anything_else() {
        let all = looks();
        let orphans = all.iter().filter(|cell| matches!(cell.content, Content::Slab { .. } | Content::Large));
        let orphans: Vec<Cell> = orphans.map(|cell| Cell { orphan: true, ..*cell }).collect();
        let everything: Vec<Cell> = all.iter().chain(&orphans).copied().collect();
        let characters: HashSet<char> = everything.iter().map(character).collect();
        assert_eq!(characters.len(), everything.len());
        let at_night: HashSet<Rgb> = everything.iter().map(|cell| colour(cell, Ground::Night)).collect();
        assert_eq!(at_night.len(), everything.len());
        let indexed: HashSet<u8> = everything.iter().map(index).collect();
        assert_eq!(indexed.len(), everything.len());
        let on_paper: HashSet<Rgb> = all.iter().map(|cell| colour(cell, Ground::Paper)).collect();
        assert_eq!(on_paper.len(), all.len());
    }
}
