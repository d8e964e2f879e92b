//! Loading.

use std::path::Path;

use super::Progress;
use super::contents::Contents;
use super::source::{Chunk, Source};
use crate::error::Result;
use crate::heap::{Heap, Options, Restore, SpanKind};
use crate::region::Memory;

impl Heap {
    /// Makes a heap under a new name from an image that [`Heap::save`] wrote. Short for `Heap::options().load(image, name)`.
    ///
    /// # Errors
    ///
    /// As [`Options::load`].
    pub fn load(image: impl AsRef<Path>, name: &str) -> Result<Self> {
        Options::new().load(image, name)
    }
}

impl Options {
    /// Makes a heap in a new segment of this name from an image that [`Heap::save`] wrote, and attaches it.
    ///
    /// Every block has the offset that it had, and every root leads where it led. The capacity is that of the heap that was
    /// saved, or a larger one given with [`Options::capacity`]; page size, lanes and root slots are the old ones. Lock and
    /// lanes are fresh. The heap appears under its name when all of it was read and checked, or not at all.
    ///
    /// # Errors
    ///
    /// As [`Options::create`]; [`Error::NotFound`](crate::Error::NotFound) if there is no image;
    /// [`Error::NotAnImage`](crate::Error::NotAnImage), [`Error::CorruptImage`](crate::Error::CorruptImage),
    /// [`Error::WrongImageVersion`](crate::Error::WrongImageVersion), [`Error::NeedsFeature`](crate::Error::NeedsFeature)
    /// for what this library cannot read; [`Error::BadCapacity`](crate::Error::BadCapacity) for a capacity smaller than
    /// the old one.
    pub fn load(&self, image: impl AsRef<Path>, name: &str) -> Result<Heap> {
        self.load_with(image, name, |_| ())
    }

    /// As [`Options::load`], and tells `progress` how far it has come.
    ///
    /// # Errors
    ///
    /// As [`Options::load`].
    pub fn load_with(&self, image: impl AsRef<Path>, name: &str, progress: impl FnMut(Progress)) -> Result<Heap> {
        let mut source = Source::open(image.as_ref())?;
        let header = *source.header();
        self.create_restored(name, &header, |restore| fill(restore, &mut source, progress))
    }

    /// As [`Options::load`], into a new file.
    ///
    /// # Errors
    ///
    /// As [`Options::load`].
    pub fn load_file(&self, image: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<Heap> {
        self.load_file_with(image, path, |_| ())
    }

    /// As [`Options::load_file`], and tells `progress` how far it has come.
    ///
    /// # Errors
    ///
    /// As [`Options::load`].
    pub fn load_file_with(
        &self,
        image: impl AsRef<Path>,
        path: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<Heap> {
        let mut source = Source::open(image.as_ref())?;
        let header = *source.header();
        self.create_file_restored(path.as_ref(), &header, |restore| fill(restore, &mut source, progress))
    }

    /// As [`Options::load`], into the caller's memory, over whatever was there. The capacity is the memory's length.
    ///
    /// # Errors
    ///
    /// As [`Options::load`]. The memory then holds no heap that could be used.
    pub fn load_in(&self, image: impl AsRef<Path>, memory: Memory) -> Result<Heap> {
        self.load_in_with(image, memory, |_| ())
    }

    /// As [`Options::load_in`], and tells `progress` how far it has come.
    ///
    /// # Errors
    ///
    /// As [`Options::load_in`].
    pub fn load_in_with(&self, image: impl AsRef<Path>, memory: Memory, progress: impl FnMut(Progress)) -> Result<Heap> {
        self.load_source(Source::open(image.as_ref())?, memory, progress)
    }

    /// As [`Options::load_in`], from the bytes of an image.
    ///
    /// # Errors
    ///
    /// As [`Options::load_in`].
    pub fn load_bytes_in(&self, image: &[u8], memory: Memory) -> Result<Heap> {
        self.load_source(Source::new(Box::new(image), "(bytes)".to_owned())?, memory, |_| ())
    }

    fn load_source(&self, mut source: Source<'_>, memory: Memory, progress: impl FnMut(Progress)) -> Result<Heap> {
        let header = *source.header();
        self.create_restored_in(memory, &header, |restore| fill(restore, &mut source, progress))
    }
}

/// Fills a new heap with what the image holds.
fn fill(restore: &Restore<'_>, source: &mut Source<'_>, mut progress: impl FnMut(Progress)) -> Result<()> {
    let (mut contents, mut chunk) = Contents::read(source)?;
    contents.page_runs().try_for_each(|(first, pages)| restore.reserve(first, pages))?;
    let snapshot = &contents.snapshot;
    for span in &snapshot.spans {
        match span.kind {
            SpanKind::Slab { class, .. } => restore.slab(span.first, class, snapshot.bits(span))?,
            SpanKind::Large => restore.large(span.first, span.pages)?,
        }
    }
    snapshot.roots.iter().try_for_each(|root| restore.root(root))?;
    let total = source.info().data_len;
    let mut done = 0u64;
    progress(Progress { done, total });
    while contents.check_data(source, &chunk)? {
        let Chunk { at, bytes, .. } = &chunk;
        restore.write(*at, bytes)?;
        done = done.saturating_add(bytes.len() as u64);
        progress(Progress { done, total });
        chunk = source.next_in(chunk.bytes)?;
    }
    progress(Progress { done: total, total });
    Ok(())
}
