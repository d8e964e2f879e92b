//! `get`, `put`, `del`: bytes by name, so that shell scripts can share data with each other and with programs.
//!
//! A value starts where its block starts, so that a program finds it there. Behind it zeros, and at the very end of the
//! block, which is often a little larger than what was asked for, stands how long the value is:
//!
//! | | |
//! |---|---|
//! | last 24 bytes of the block | [`MARK`], the length, and a number that this value has and no other, 64 bits each |
//!
//! A block that does not end like that was not written by `put`; `get` then prints all of it. The number tells a reader that
//! what it has copied was one value: that of the block and the root before the copy and after it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use clap_complete::ArgValueCompleter;
use serde::Serialize;
use shmheap::{Error, Heap, Offset};

use super::{Changed, Named};
use crate::completion;
use crate::failure::Failure;
use crate::output::Output;
use crate::place::Place;
use crate::units::counted;
use crate::{Outcome, Verdict};

/// Says that a length follows.
const MARK: u64 = u64::from_le_bytes(*b"put-len\0");
/// Bytes of mark, length and number.
const TRAILER: usize = 24;
/// How often a value is read anew that is replaced while it is read.
const TRIES: u32 = 100;

/// Prints the bytes that a root leads to.
///
/// What `put` has stored comes out as it went in. Of a block that a program has made, all usable bytes are printed, or
/// --len of them.
#[derive(Debug, Args)]
pub(crate) struct Get {
    #[command(flatten)]
    named: Named,
    /// Name of the root
    #[arg(value_name = "ROOT", add = ArgValueCompleter::new(completion::roots))]
    root: String,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// So many bytes, whatever the block says of itself
    #[arg(long, short, value_name = "BYTES")]
    len: Option<usize>,
}

/// Stores bytes or text in a heap under a name, replacing what `put` stored there before.
#[derive(Debug, Args)]
pub(crate) struct Put {
    #[command(flatten)]
    heap: Changed,
    /// Name of the root
    #[arg(value_name = "ROOT", add = ArgValueCompleter::new(completion::roots))]
    root: String,
    /// The text to be stored [default: what comes on standard input]
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    text: Option<String>,
    /// Store the bytes of this file
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Fail if there is a root of this name
    #[arg(long)]
    new: bool,
    /// Also replace a root that leads to a block which `put` has not stored; the block is freed
    #[arg(long)]
    force: bool,
}

/// Removes a root and frees the block that it leads to.
#[derive(Debug, Args)]
pub(crate) struct Del {
    #[command(flatten)]
    heap: Changed,
    /// Name of the root
    #[arg(value_name = "ROOT", add = ArgValueCompleter::new(completion::roots))]
    root: String,
    /// Leave the block allocated
    #[arg(long)]
    keep_block: bool,
    /// Also if it leads to a block that `put` has not stored
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Stored {
    root: String,
    bytes: usize,
    block: u64,
    replaced: bool,
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { root, bytes, block, replaced } = self;
        let verb = if *replaced { "replaced" } else { "stored" };
        writeln!(f, "{verb} {root}: {} at {block:#x}", counted(*bytes as u64, "byte"))
    }
}

#[derive(Debug, Serialize)]
struct Got {
    root: String,
    block: u64,
    bytes: usize,
    /// The value, where it is text.
    text: Option<String>,
    hex: Option<String>,
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} at {:#x}", self.root, counted(self.bytes as u64, "byte"), self.block)
    }
}

#[derive(Debug, Serialize)]
struct Deleted {
    root: String,
    block: u64,
    freed: bool,
}

impl fmt::Display for Deleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block = if self.freed { "freed its block" } else { "left its block" };
        writeln!(f, "removed {}, {block} at {:#x}", self.root, self.block)
    }
}

/// What `put` has noted at the end of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    len: usize,
    number: u64,
}

impl Note {
    fn read(heap: &Heap, block: Offset, usable: usize) -> shmheap::Result<Option<Self>> {
        let Some(at) = usable.checked_sub(TRAILER) else { return Ok(None) };
        let mut trailer = [0; TRAILER];
        heap.copy_out_at(block, at, &mut trailer)?;
        let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|index| trailer[from + index]));
        let len = usize::try_from(word(8)).ok().filter(|len| *len <= at && word(0) == MARK);
        Ok(len.map(|len| Self { len, number: word(16) }))
    }

    /// Writes a value into a zeroed block, and then the note.
    fn write(heap: &Heap, block: Offset, value: &[u8]) -> shmheap::Result<()> {
        let at = heap.usable_size(block)?.saturating_sub(TRAILER);
        heap.copy_in(block, value)?;
        let number = RandomState::new().hash_one(block);
        let words = [MARK, value.len() as u64, number].map(u64::to_le_bytes);
        heap.copy_in_at(block, at, words.as_flattened())
    }
}

/// The length that `put` has noted at the end of a block.
pub(super) fn noted_len(heap: &Heap, block: Offset, usable: usize) -> shmheap::Result<Option<usize>> {
    Ok(Note::read(heap, block, usable)?.map(|note| note.len))
}

/// A value: its block, and its bytes.
type Value = (Offset, Vec<u8>);

/// The value of a root; the inner `None` if it was replaced each time that it was copied.
fn read(heap: &Heap, root: &str, len: Option<usize>) -> shmheap::Result<Option<Option<Value>>> {
    for _ in 0..TRIES {
        let Some(block) = heap.root(root)? else { return Ok(None) };
        let copied = copy(heap, block, len);
        // Somebody may have replaced the value, and freed this one, meanwhile; and the block may be the root's again.
        if heap.root(root)? == Some(block)
            && let Some(copied) = copied.transpose()
        {
            return copied.map(|bytes| Some(Some((block, bytes))));
        }
    }
    Ok(Some(None))
}

/// The bytes of a block; `None` if they became another value's while they were copied.
fn copy(heap: &Heap, block: Offset, len: Option<usize>) -> shmheap::Result<Option<Vec<u8>>> {
    let usable = heap.usable_size(block)?;
    let note = Note::read(heap, block, usable)?;
    let len = len.or(note.map(|note| note.len)).unwrap_or(usable);
    if len > usable {
        let [len, usable] = [len, usable].map(|size| size as u64);
        return Err(Error::OutOfBounds { offset: block.get(), at: 0, len, usable });
    }
    let mut bytes = vec![0; len];
    heap.copy_out(block, &mut bytes)?;
    Ok((Note::read(heap, block, usable)? == note).then_some(bytes))
}

/// True if there is a root of this name, whatever became of its block.
pub(super) fn is_root(heap: &Heap, name: &str) -> bool {
    heap.roots().is_ok_and(|roots| roots.iter().any(|root| root.name == name))
}

fn unknown(place: &Place, heap: &Heap, root: &str) -> Failure {
    let name = place.text();
    if is_root(heap, root) {
        let text = format!("the block of the root {root:?} was freed, or is damaged");
        return Failure::wrong(text, super::roots::damaged(&name));
    }
    Failure::cannot_but(format!("{name} has no root named {root:?}"), format!("shmheap roots {name} lists them"))
}

impl Get {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = &self.named.place;
        let heap = place.open_read_only()?;
        let read = read(&heap, &self.root, self.len).map_err(|error| place.explain(error))?;
        let busy = || Failure::cannot(format!("{:?} is replaced all the time; try again", self.root));
        let (block, bytes) = read.ok_or_else(|| unknown(place, &heap, &self.root))?.ok_or_else(busy)?;
        if let Some(path) = &self.out {
            std::fs::write(path, &bytes).map_err(|error| Failure::cannot(format!("{}: {error}", path.display())))?;
        } else if !output.is_json() {
            output.bytes(&bytes)?;
            return Ok(Verdict::Fine);
        }
        let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = String::from_utf8(bytes.clone()).ok();
        let hex = text.is_none().then(hex);
        output.print(&Got { root: self.root, block: block.get(), bytes: bytes.len(), text, hex })?;
        Ok(Verdict::Fine)
    }
}

impl Put {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = self.heap.place();
        // Whoever writes may take long, and nobody else should have to wait for that.
        let value = self.value()?;
        let heap = self.heap.open()?;
        let old = heap.root(&self.root).map_err(|error| place.explain(error))?;
        if let Some(old) = old.filter(|_| !self.force) {
            self.check_replaceable(&heap, old)?;
        }
        let stored = self.store(&heap, &value).map_err(|error| match error {
            Error::RootExists { name } => Failure::cannot(format!("there is a root named {name:?} already")),
            error => place.explain(error),
        })?;
        let (block, replaced) = stored.ok_or_else(|| not_ours(&self.root))?;
        if heap.is_unlinked()? {
            return Err(Failure::cannot(format!("{} was removed meanwhile, and the value with it", place.text())));
        }
        output.print(&Stored { root: self.root, bytes: value.len(), block: block.get(), replaced })?;
        Ok(Verdict::Fine)
    }

    fn value(&self) -> Result<Vec<u8>, Failure> {
        if let Some(text) = &self.text {
            return Ok(text.clone().into_bytes());
        }
        let mut bytes = Vec::new();
        let read = match &self.file {
            Some(path) => std::fs::read(path).map(|read| bytes = read),
            None => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
        };
        let source = self.file.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
        read.map_err(|error| Failure::cannot(format!("cannot read {source}: {error}")))?;
        Ok(bytes)
    }

    fn check_replaceable(&self, heap: &Heap, old: Offset) -> Result<(), Failure> {
        let usable = heap.usable_size(old)?;
        match noted_len(heap, old, usable)? {
            Some(_) => Ok(()),
            None => Err(not_ours(&self.root)),
        }
    }

    /// Writes the value into a new block, makes the root lead to it, and frees the old one. Who reads meanwhile sees the one
    /// or the other. A death between the first two steps leaves a block that no root leads to; a new root has no such gap.
    ///
    /// Returns the block, and whether it has replaced another one; `None` if a program has put its own block there
    /// meanwhile.
    fn store(&self, heap: &Heap, value: &[u8]) -> shmheap::Result<Option<(Offset, bool)>> {
        let size = value.len().saturating_add(TRAILER);
        if heap.root(&self.root)?.is_none() {
            let mut made = false;
            let block = heap.find_or_construct(&self.root, size, |block| {
                made = true;
                Note::write(heap, block, value)
            })?;
            if made {
                return Ok(Some((block, false)));
            }
        }
        if self.new {
            return Err(Error::RootExists { name: self.root.clone() });
        }
        let block = heap.allocate_zeroed(size)?;
        let stored = Note::write(heap, block, value).and_then(|()| heap.set_root(&self.root, block));
        match stored {
            Ok(Some(old)) if !self.force && noted_len(heap, old, heap.usable_size(old)?)?.is_none() => {
                heap.set_root(&self.root, old)?;
                heap.deallocate(block)?;
                Ok(None)
            }
            Ok(old) => {
                old.map_or(Ok(()), |old| heap.deallocate(old))?;
                Ok(Some((block, true)))
            }
            Err(error) => {
                heap.deallocate(block)?;
                Err(error)
            }
        }
    }
}

fn not_ours(root: &str) -> Failure {
    Failure::cannot_but(
        format!("{root:?} leads to a block that some program has made, not put"),
        "with --force its block is freed all the same; that program may still use it",
    )
}

impl Del {
    pub(crate) fn run(self, output: &Output) -> Outcome {
        let place = self.heap.place();
        let heap = self.heap.open()?;
        let found = heap.root(&self.root).map_err(|error| place.explain(error))?;
        if let Some(block) = found.filter(|_| !self.force && !self.keep_block) {
            let usable = heap.usable_size(block)?;
            if noted_len(&heap, block, usable)?.is_none() {
                return Err(not_ours(&self.root));
            }
        }
        let block = heap.remove_root(&self.root).map_err(|error| match error {
            Error::RootUnknown { .. } => unknown(place, &heap, &self.root),
            error => place.explain(error),
        })?;
        // Its block may have been freed before.
        let freed = !self.keep_block && heap.info(block).is_ok();
        if freed {
            heap.deallocate(block).map_err(|error| place.explain(error))?;
        }
        output.print(&Deleted { root: self.root, block: block.get(), freed })?;
        Ok(Verdict::Fine)
    }
}
