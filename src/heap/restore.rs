//! Putting the contents of an image into a heap that is being made.
//!
//! Nobody else can reach the heap yet. Slabs come back as orphans: whoever needs room adopts them. What is derived is made
//! anew on the way, and at the end everything is checked like a heap of unknown origin.

use super::Heap;
use super::lane::Caller;
use super::lock::HeapLock;
use super::snapshot::SavedRoot;
use crate::alloc::{Slab, orphan, span};
use crate::check;
use crate::error::{Corruption, Error, Result};
use crate::format::{ClassIndex, PageCount, PageEntry, RootState, SHARED_LANE, superblock};

/// A heap that is being filled.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    heap: &'a Heap,
    lock: HeapLock<'a>,
}

impl Heap {
    /// Calls `f` to fill a heap that nobody else can reach, and checks what came of it.
    pub(super) fn restore(&self, f: impl FnOnce(&Restore<'_>) -> Result<()>) -> Result<()> {
        let attachment = &*self.attachment;
        let pass = attachment.pass_shared_gate()?;
        debug_assert!(matches!(pass.caller(), Caller::Shared { .. }), "a lane is for a thread that stays");
        let restore = Restore { heap: self, lock: attachment.lock_for(pass.caller())? };
        f(&restore)?;
        check::check(&attachment.tables, &attachment.classes)
    }
}

impl Restore<'_> {
    /// A slab with these blocks allocated; each word's bits beyond the last block are clear.
    pub(crate) fn slab(&self, first: u32, class: ClassIndex, allocated: &[u64]) -> Result<()> {
        let attachment = &*self.heap.attachment;
        let tables = &attachment.tables;
        let no_class = Corruption::new("the header has no such size class", superblock::LEN);
        let info = attachment.classes.get(class).ok_or(no_class)?;
        let count = PageCount::new(info.pages).ok_or(no_class)?;
        let at = |head| Slab { head, class, info, lane: SHARED_LANE };
        let entry = PageEntry::slab(class, SHARED_LANE);
        let head = span::place(tables, &self.lock, first, count, entry, |head| {
            at(head).format(tables);
            at(head).set_allocated(tables, allocated);
        })?;
        orphan::settle(tables, &self.lock, &at(head))
    }

    /// A large block.
    pub(crate) fn large(&self, first: u32, pages: u32) -> Result<()> {
        let tables = &self.heap.attachment.tables;
        let count = PageCount::new(pages).ok_or(Corruption::new("a large block has no pages", superblock::LEN))?;
        span::place(tables, &self.lock, first, count, PageEntry::large(SHARED_LANE), |_| ())?;
        Ok(())
    }

    /// A root.
    pub(crate) fn root(&self, root: &SavedRoot) -> Result<()> {
        let attachment = &*self.heap.attachment;
        if attachment.find_root(&root.name)?.is_some() {
            return Err(Error::RootExists { name: root.name.text().unwrap_or_default().to_owned() });
        }
        let (record, _) = attachment.vacant_root(&self.lock, &root.name)?;
        record.set_name(&root.name);
        record.offset().store(root.offset, std::sync::atomic::Ordering::Relaxed);
        record.type_id().store(root.type_id, std::sync::atomic::Ordering::Relaxed);
        record.set_state(RootState::Live);
        Ok(())
    }

    /// Bytes of pages that were placed before.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.heap.attachment.tables.region.write(at, bytes)
    }
}
