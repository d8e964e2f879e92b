//! How long it takes to make a heap, to attach one, to get a first block from it, and to leave it.

use std::time::Instant;

use anyhow::Result;

use crate::allocators::{Allocator, Boost, Kind, Place, Shmheap};
use crate::results::StartRow;
use crate::timed::median;

/// Times that each is done.
const TIMES: usize = 101;
const SMALL: u64 = 64 << 20;
const HUGE: u64 = 64 << 30;

/// A row for each shared allocator that takes part, and each capacity.
pub(crate) fn measure(kinds: &[Kind]) -> Result<Vec<StartRow>> {
    let mut rows = Vec::new();
    if kinds.contains(&Kind::Shmheap) {
        for capacity in [SMALL, HUGE] {
            let open = |name: &str| Shmheap::attach(&Place::Existing(name.to_owned()));
            rows.push(row(Kind::Shmheap, capacity, |name| Shmheap::create(name, capacity), open)?);
        }
    }
    if kinds.contains(&Kind::Boost) {
        rows.push(row(Kind::Boost, SMALL, |name| Boost::create(name, SMALL as usize), Boost::open)?);
    }
    Ok(rows)
}

fn row<A: Allocator>(
    kind: Kind,
    capacity: u64,
    create: impl Fn(&str) -> Result<A>,
    open: impl Fn(&str) -> Result<A>,
) -> Result<StartRow> {
    let mut columns: [Vec<f64>; 4] = Default::default();
    for _ in 0..TIMES {
        let name = Place::name(kind, "start");
        let start = Instant::now();
        let creator = create(&name)?;
        columns[0].push(microseconds(start));

        let start = Instant::now();
        let opener = open(&name)?;
        columns[1].push(microseconds(start));
        let block = opener.allocate(64);
        columns[2].push(microseconds(start));

        opener.free(block, 64);
        let start = Instant::now();
        drop(opener);
        columns[3].push(microseconds(start));
        drop(creator);
    }
    let [create, open, first_allocation, detach] = columns.map(median);
    Ok(StartRow { kind, capacity, create, open, first_allocation, detach })
}

fn microseconds(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}
