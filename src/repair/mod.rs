//! A heap is damaged: make it one that every call can trust again, without writing a byte of its users' data.
//!
//! Recovery finishes what the dead had under way, and takes for granted that their words are what this library writes.
//! Repair takes nothing for granted but the header. In this order, each step trusts what those before it have mended:
//!
//! | step | file | |
//! |---|---|---|
//! | the mark of pages in use, the journal, intents, the lock | `marks.rs` | set right, replayed, or dropped |
//! | page entries | `pages.rs` | what contradicts itself is *quarantined*: its pages become one allocated block |
//! | reserved memory | `pages.rs` | reserved again wherever anything is in use, or said to be reserved |
//! | slabs and kept spans | `slabs.rs` | stray bits are put to rest, what nobody claims becomes an orphan |
//! | roots | `roots.rs` | illegal ones are removed, hidden ones moved to where they are found |
//! | everything else | `recovery` | as if all lanes had died: it settles, makes orphans, and rebuilds what is derived |
//!
//! Then everything is checked, and a finding that is left is an error. All that is done is told ([`RepairReport`]).
//!
//! Q1. The caller is alone with the region: it holds the token of every lane, the shared one's too.
//! Q2. No byte of a page is written, but for a cell whose intent is settled as recovery would settle it.
//! Q3. No page that holds a block becomes free: where entries contradict each other, all pages that any of them claims stay
//!     allocated. What contradicts nothing cannot be told from the truth.
//! Q4. Every step can be repeated from the start after a death in the middle. What only a holder of the lock can have left
//!     (an armed journal, intents) is dropped before the lock is marked as held, if it was not; from then on until the end,
//!     the lock and `RECOVERING` say that somebody is at work, so that whoever comes next recovers, or repairs again. Each
//!     change of truth is one store, or, in a quarantine, a first store that claims all pages and others that follow.
//!
//! Not here: how the caller comes to be alone (`heap::mend`), what is wrong in a heap in use (`check`).

#![allow(
    clippy::arithmetic_side_effects,
    reason = "page numbers are below 2^31, slots below 2^17, and places below 2^47 (F1)"
)]

mod marks;
mod pages;
mod report;
mod roots;
mod slabs;

pub use report::{Remedy, RepairAction, RepairReport};

use std::sync::atomic::Ordering;

use crate::check::{self, Findings};
use crate::error::Result;
use crate::format::{LaneId, PageIndex, Tables, superblock};
use crate::journal::Locked;
use crate::recovery::{self, Ward};
use crate::sys::object::Object;

/// What is to be repaired.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patient<'a> {
    pub(crate) ward: Ward<'a>,
    /// Where bytes are read that may not be reserved, without taking memory for them; none where all memory is there.
    pub(crate) object: Option<&'a Object>,
}

impl<'a> Patient<'a> {
    fn tables(&self) -> &'a Tables {
        self.ward.tables
    }

    /// Reads bytes that may not be reserved, before anything has changed them.
    fn peek(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        match self.object {
            Some(object) => object.read_at(at, bytes),
            None => {
                self.tables().region.copy_out(at, bytes);
                Ok(())
            }
        }
    }

    /// The spans that start where the one before them ends, in pages that no longer contradict themselves.
    fn spans(&self) -> impl Iterator<Item = (PageIndex, check::Span<'a>)> {
        let (tables, classes) = (self.ward.tables, self.ward.classes);
        let mut number = 0;
        std::iter::from_fn(move || {
            let page = (number < tables.pages_high()).then(|| tables.page(number))??;
            let span = check::span_at(tables, classes, page).unwrap_or(check::Span::Free);
            number += span.pages();
            Some((page, span))
        })
    }
}

/// Repairs a heap with which the caller is alone (Q1).
pub(crate) fn repair(patient: Patient<'_>) -> Result<RepairReport> {
    let tables = patient.tables();
    let locked = Locked::assume();
    let mut report = RepairReport::default();
    tables.region.back(0, tables.geometry.roots_at)?;
    if tables.superblock(superblock::CLEAN).swap(0, Ordering::AcqRel) != 0 {
        // As whoever takes the lock does: what is on the disk is in use from now on.
        tables.region.sync(0, superblock::LEN)?;
        recovery::open_gates(tables, &locked);
    }
    marks::mend_pages_high(patient, &mut report)?;
    marks::clear_bits_above(patient, &mut report)?;
    let interrupted = marks::mark_as_held(patient, &locked, &mut report);
    marks::replay_journal(patient, &locked, interrupted, &mut report);
    let mut derived = Findings::up_to(usize::MAX);
    // These findings have no end but the tables'.
    let _ = check::check_derived(tables, &mut derived);
    pages::quarantine_contradictions(patient, interrupted, &mut report)?;
    pages::reserve(patient, &mut report)?;
    let orphans_with_room = slabs::orphans_with_room(patient);
    let _ = check::check_orphan_lists(tables, patient.ward.classes, orphans_with_room, &mut derived);
    derived.into_list().into_iter().for_each(|found| report.add(found, Remedy::Rebuilt));
    slabs::mend(patient, &mut report);
    roots::mend(patient, &mut report)?;
    marks::mend_lanes(patient, &mut report);
    marks::mark_as_recovering(tables);
    let lanes: Vec<LaneId> = tables.header.all_lanes().collect();
    recovery::after_dead_holder(patient.ward, &locked, &lanes)?;
    roots::note_lost(patient, &mut report);
    check::check(tables, patient.ward.classes)?;
    tables.superblock(superblock::RECOVERING).store(0, Ordering::Release);
    tables.lock().store(0, Ordering::Release); // COMMIT: the heap is whole
    Ok(report)
}
