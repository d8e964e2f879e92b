//! Heaps in files: what is on the disk, and whether it can be relied on after a power cut.
//!
//! The kernel writes a file's pages to disk in any order. So what is there when the machine stops is a mixture of moments,
//! unless nobody has changed the heap since all of it was written. The CLEAN word says that it is so:
//!
//! U1. CLEAN is 1 only while all gates are shut (`sys::gate`), and after every page was written to disk while they were. So
//!     nobody changes anything without taking the heap lock first.
//! U2. Whoever takes the heap lock while CLEAN is 1 stores 0 there, writes that to disk, and opens the gates, before doing
//!     anything else.
//!
//! As long as the machine runs, none of that matters: the kernel's pages are the file. After another boot, a file that is
//! not clean is recovered as if everybody had died, its memory is reserved anew, and all invariants are checked before it
//! is used.

use std::sync::atomic::Ordering;

use super::Heap;
use super::attachment::Attachment;
use super::lock::HeapLock;
use crate::alloc::span;
use crate::check;
use crate::error::{Error, Result};
use crate::format::superblock;
use crate::recovery;

impl Heap {
    /// Writes the heap of a file to disk, and marks it as clean. Does nothing for heaps that are not in files.
    ///
    /// What survives a power cut is the heap as it was at the last flush, if nobody has used it since; else what reached the
    /// disk by chance, which is checked when the heap is opened and refused if it does not fit together; and always the last
    /// image ([`Heap::save`]). A process that is killed loses nothing: the kernel keeps what it wrote.
    ///
    /// Allocations and frees of all processes wait until the disk is done, as for [`Heap::freeze`]. The first of them after
    /// that takes the mark away, which is written to disk before anything changes: so flush at the end, or where work
    /// pauses.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the disk does not take it; [`Error::ReadOnly`], [`Error::Shrunk`], and the errors of
    /// [`Heap::freeze`]. The heap is not marked then.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("orders.heap");
    /// use shmheap::Heap;
    ///
    /// let heap = Heap::options().capacity(1 << 20).create_file(&path)?;
    /// heap.set_root("orders", heap.allocate(100)?)?;
    /// heap.flush()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) -> Result<()> {
        let attachment = &*self.attachment;
        attachment.check_writable()?;
        let tables = &attachment.tables;
        if tables.region.object().is_none_or(|object| !object.is_durable()) {
            return Ok(());
        }
        let (_pass, shut) = self.shut()?;
        tables.region.check_whole()?;
        tables.region.sync(0, tables.region.len())?;
        tables.superblock(superblock::CLEAN).store(1, Ordering::Release);
        // Written without the lock, so that the disk does not know it as held. Who takes the lock meanwhile writes that the
        // heap is in use (U2).
        shut.let_go_shut();
        tables.region.sync(0, superblock::LEN)
    }
}

impl Attachment {
    /// Keeps U2, for who has just taken the heap lock.
    pub(super) fn note_in_use(&self, lock: &HeapLock<'_>) -> Result<()> {
        let clean = self.tables.superblock(superblock::CLEAN);
        if clean.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        clean.store(0, Ordering::Release);
        let written = self.tables.region.sync(0, superblock::LEN);
        if written.is_err() {
            // Nothing has changed yet: whoever comes next tries again.
            clean.store(1, Ordering::Release);
            return written;
        }
        recovery::open_gates(&self.tables, lock);
        Ok(())
    }

    /// True if the machine stopped while the heap, in a file, was in use.
    pub(super) fn is_unclean(&self) -> bool {
        let is_durable = self.tables.region.object().is_some_and(|object| object.is_durable());
        is_durable && self.boot_differs() && self.tables.superblock(superblock::CLEAN).load(Ordering::Acquire) == 0
    }

    /// Makes a heap usable that was in use when the machine stopped, or refuses it.
    pub(super) fn see_to_power_cut(&self, lock: &HeapLock<'_>) -> Result<()> {
        let recover = || -> Result<()> {
            recovery::after_dead_holder(self.ward(), lock, &[])?;
            // What was reserved need not have reached the disk.
            span::reserve_again(&self.tables, lock, &self.classes)?;
            check::check(&self.tables, &self.classes)
        };
        recover().map_err(|error| match error {
            Error::Corrupt(corruption) => Error::Unclean { name: self.label(), corruption },
            error => error,
        })
    }
}
