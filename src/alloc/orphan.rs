//! Orphans: slabs whose lane is gone. They belong to whoever holds the heap lock.
//!
//! Those with room wait in one list per class, so that a lane that needs room finds them without searching. Those who
//! have no lane of their own allocate from orphans and free into them, under the lock.

use super::slab::{BlockBit, Slab, slab_of};
use super::{Class, Classes, list, span};
use crate::error::{Corruption, Result};
use crate::format::{ClassIndex, LaneId, PageEntry, PageIndex, PageState, SHARED_LANE, Tables};
use crate::journal::Locked;
use std::sync::atomic::Ordering;

/// Makes a slab an orphan: it loses its lane, and goes to the orphans' list, or back to the spans if it is wholly free.
/// Its former lane must not touch it again.
pub(crate) fn disown(tables: &Tables, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
    list::reset(tables, slab.head);
    slab.set_lane(tables, SHARED_LANE)?;
    settle(tables, locked, slab)
}

/// Puts an orphan, which stands in no list, where its blocks say that it belongs.
pub(crate) fn settle(tables: &Tables, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
    slab.merge_all(tables);
    if slab.is_wholly_free(tables)
        && let Some(pages) = slab.pages()
    {
        return span::free(tables, locked, slab.head, pages);
    }
    if slab.word_with_room(tables, 0).is_some() {
        list::push_front(tables, tables.orphan_head(slab.class), slab.head)?;
    }
    Ok(())
}

/// Takes an orphan out of its list and gives it to `lane`.
pub(crate) fn adopt(tables: &Tables, _locked: &Locked, slab: &Slab<'_>, lane: LaneId) -> Result<()> {
    if list::is_listed(tables, slab.head) {
        list::remove(tables, tables.orphan_head(slab.class), slab.head)?;
    }
    list::reset(tables, slab.head);
    slab.set_lane(tables, lane)?;
    slab.merge_all(tables);
    Ok(())
}

/// An orphan of this class with room, still in its list.
pub(crate) fn with_room<'a>(
    tables: &Tables,
    _locked: &Locked,
    classes: &'a Classes,
    class: ClassIndex,
) -> Result<Option<Slab<'a>>> {
    let Some(head) = list::first(tables, tables.orphan_head(class))? else { return Ok(None) };
    let entry = tables.entry(head);
    let slab = slab_of(tables, classes, head, entry)?;
    let sound =
        entry.state() == Some(PageState::Slab) && slab.head == head && slab.class == class && slab.lane == SHARED_LANE;
    if !sound {
        let what = "the list of orphans leads to a page that is no orphan of its class";
        return Err(Corruption::new(what, tables.entry_at(head)).into());
    }
    Ok(Some(slab))
}

/// Makes a new slab of `lane`; its blocks are all free.
pub(crate) fn new_slab<'a>(
    tables: &Tables,
    locked: &Locked,
    class: ClassIndex,
    info: &'a Class,
    lane: LaneId,
) -> Result<Slab<'a>> {
    let at = |head: PageIndex| Slab { head, class, info, lane };
    let Some(pages) = crate::format::PageCount::new(info.pages) else {
        return Err(span::out_of_memory(tables, u64::from(info.size)));
    };
    let head = span::allocate(tables, locked, pages, PageEntry::slab(class, lane), |head| at(head).format(tables))?;
    Ok(at(head))
}

/// Allocates a block for one who has no lane: from an orphan, or from a new slab that is one from the start.
/// `before_commit` is called with the block's offset before its bit changes.
pub(crate) fn allocate(
    tables: &Tables,
    locked: &Locked,
    classes: &Classes,
    class: ClassIndex,
    info: &Class,
    before_commit: impl FnOnce(u64),
) -> Result<u64> {
    let slab = match with_room(tables, locked, classes, class)? {
        Some(slab) => slab,
        None => {
            let slab = new_slab(tables, locked, class, info, SHARED_LANE)?;
            list::push_front(tables, tables.orphan_head(class), slab.head)?;
            slab
        }
    };
    let none = || Corruption::new("an orphan in the list of those with room has none", slab.words_at(tables, 0));
    let word = slab.word_with_room(tables, 0).ok_or_else(none)?;
    let free = slab.free_word(tables, word);
    let before = free.load(Ordering::Acquire);
    // Nobody else writes an orphan's free bits by the rules; one who breaks them may have taken the block meanwhile.
    let index = (before & slab.info.mask(word)).trailing_zeros();
    if index >= u64::BITS {
        return Err(none().into());
    }
    let block = slab.block_at(tables, word * 64 + index);
    before_commit(block);
    free.store(before & !(1 << index), Ordering::Release); // COMMIT
    if slab.word_with_room(tables, word).is_none() {
        list::remove(tables, tables.orphan_head(class), slab.head)?;
    }
    Ok(block)
}

/// Frees a block of an orphan in place.
pub(crate) fn free(tables: &Tables, locked: &Locked, slab: &Slab<'_>, bit: BlockBit) -> Result<()> {
    slab.free_own(tables, bit)?;
    resettle(tables, locked, slab)
}

/// Puts an orphan where it belongs after some of its blocks were freed.
pub(crate) fn resettle(tables: &Tables, locked: &Locked, slab: &Slab<'_>) -> Result<()> {
    if list::is_listed(tables, slab.head) {
        list::remove(tables, tables.orphan_head(slab.class), slab.head)?;
    }
    settle(tables, locked, slab)
}

/// Forgets every list of orphans; [`settle`] fills them again.
pub(crate) fn clear_lists(tables: &Tables, _locked: &Locked, classes: &Classes) {
    for class in classes.indices() {
        tables.orphan_head(class).store(0, Ordering::Relaxed);
    }
}
