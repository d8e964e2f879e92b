//! Large blocks: those above the largest size class are spans of their own, of whole pages.

use super::span;
use crate::error::{Error, Result};
use crate::format::{LaneId, PageCount, PageEntry, Tables};
use crate::journal::Locked;

/// Pages for a large block of `size` bytes.
pub(crate) fn pages_for(tables: &Tables, size: u64) -> Result<PageCount> {
    let max = tables.geometry.data_len;
    let begun = u64::from(size & (tables.geometry.page_size() - 1) != 0);
    let pages = (size >> tables.geometry.page_shift) + begun;
    let pages = u32::try_from(pages).ok().filter(|pages| *pages <= tables.geometry.pages).and_then(PageCount::new);
    pages.ok_or(Error::TooLarge { requested: size, max })
}

/// Allocates a large block; `before_commit` is called with its offset before any entry changes.
pub(crate) fn allocate(
    tables: &Tables,
    locked: &Locked,
    size: u64,
    lane: LaneId,
    before_commit: impl FnOnce(u64),
) -> Result<u64> {
    let pages = pages_for(tables, size)?;
    let commit = |first| before_commit(tables.page_start(first));
    let first = span::allocate(tables, locked, pages, PageEntry::large(lane), commit)?;
    Ok(tables.page_start(first))
}
