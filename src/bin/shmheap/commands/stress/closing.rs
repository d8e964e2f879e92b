//! The end of a run: everything that is published is found and checked, and everything that the run made is freed.

use std::collections::BTreeSet;

use shmheap::{Heap, Offset};

use super::ground::{COMMON, Ground, OWN, PAIRS, State};
use super::pattern::Pattern;
use super::worker::PLAIN_MAX;

/// What was found when nobody was at work any more.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    /// Published blocks that are as they were written, and their bytes.
    pub(crate) intact: u64,
    pub(crate) intact_bytes: u64,
    /// Blocks that a death left between the call that published them and the last byte of their contents.
    pub(crate) begun: u64,
    /// Blocks that the dead had and that were published nowhere.
    pub(crate) strays: u64,
    pub(crate) wrong: Vec<String>,
}

/// Finds and checks every published block: through the table of each slot, and by its name.
pub(crate) fn check(heap: &Heap, ground: &Ground) -> shmheap::Result<Closing> {
    let (mut closing, mut pattern) = (Closing::default(), Pattern::default());
    let mut known = BTreeSet::new();
    let mut own = vec![BTreeSet::new(); ground.workers()];
    for (slot, index) in (0..ground.workers()).flat_map(|slot| (0..PAIRS).map(move |index| (slot, index))) {
        let pair = ground.pair(slot, index);
        let block = match pair.state(heap)? {
            State::Empty | State::Taken => None,
            State::Begun(block) => {
                closing.begun += 1;
                Some(block)
            }
            State::Full(block) => {
                closing.note(pattern.check(heap, block, pair.place));
                if index < OWN {
                    own[slot].insert(block);
                }
                Some(block)
            }
        };
        for found in [block, heap.load_cell(pair.ticket)?].into_iter().flatten() {
            if !known.insert(found) {
                closing.wrong.push(format!("the block at {found} is published at two places"));
            }
        }
    }
    for (slot, own) in own.iter().enumerate() {
        if heap.root(&ground.favourite(slot))?.is_some_and(|block| !own.contains(&block)) {
            closing.wrong.push(format!("the favourite of slot {slot} leads to a block that is not in its table"));
        }
    }
    for index in 0..COMMON {
        if let Some(block) = heap.root(&ground.common(index))? {
            let checked = pattern.check(heap, block, ground.common_content(index).1);
            closing.note(checked.map_err(|what| format!("root {:?}: {what}", ground.common(index))));
        }
    }
    Ok(closing)
}

impl Closing {
    fn note(&mut self, checked: Result<usize, String>) {
        match checked {
            Ok(size) => {
                self.intact += 1;
                self.intact_bytes += size as u64;
            }
            Err(what) => self.wrong.push(format!("at the end: {what}")),
        }
    }
}

/// Frees everything that the run has published, and then what it has made for itself.
pub(crate) fn free(heap: &Heap, ground: &Ground) -> shmheap::Result<()> {
    for slot in 0..ground.workers() {
        if heap.root(&ground.favourite(slot))?.is_some() {
            heap.remove_root(&ground.favourite(slot))?;
        }
        (0..PAIRS).try_for_each(|index| ground.pair(slot, index).clear(heap))?;
    }
    for index in 0..COMMON {
        if heap.root(&ground.common(index))?.is_some() {
            let block = heap.remove_root(&ground.common(index))?;
            heap.deallocate(block)?;
        }
    }
    ground.remove(heap)
}

/// In a heap of which all blocks were the run's: frees what the dead had published nowhere, and tells what is left.
pub(crate) fn expect_empty(heap: &Heap, deaths: u64, closing: &mut Closing) -> shmheap::Result<()> {
    let strays: Vec<Offset> = heap.blocks().map(|block| block.offset).collect();
    closing.strays = strays.len() as u64;
    if closing.strays > deaths * PLAIN_MAX as u64 {
        let most = format!("{deaths} workers were killed, each of which can leave {PLAIN_MAX}");
        closing.wrong.push(format!("{} blocks are nobody's: {most}", strays.len()));
    }
    strays.into_iter().try_for_each(|block| heap.deallocate(block))?;
    heap.trim()?;
    let stats = heap.stats()?;
    if (stats.used, stats.free_blocks, stats.fragmentation) != (0, 1, 0) || stats.roots != 0 {
        closing.wrong.push(format!(
            "the emptied heap has {} bytes in use, {} roots, {} free runs, and {} bytes of fragmentation",
            stats.used, stats.roots, stats.free_blocks, stats.fragmentation
        ));
    }
    Ok(())
}

/// In a heap that others use: tells what the run has left in it.
pub(crate) fn expect_no_trace(heap: &Heap, ground: &Ground, closing: &mut Closing) -> shmheap::Result<()> {
    let left = heap.roots()?.into_iter().map(|root| root.name).filter(|name| name.starts_with(ground.id()));
    closing.wrong.extend(left.map(|name| format!("the root {name:?} is left")));
    Ok(())
}

/// Validates the heap, and tells everything that is wrong with it.
pub(crate) fn unsound(heap: &Heap) -> Vec<String> {
    let validated = heap.validate().err().map(|error| format!("validate: {error}"));
    let findings = match heap.findings() {
        Ok(findings) => findings.into_iter().map(|found| format!("findings: {found}")).collect(),
        Err(error) => vec![format!("findings: {error}")],
    };
    validated.into_iter().chain(findings).collect()
}
