//! Verifying an image without loading it.

use std::path::Path;

use super::contents::Contents;
use super::source::Source;
use super::{ImageInfo, Progress};
use crate::error::Result;

/// Reads a whole image, checks everything that loading would check, and tells what is in it.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound); [`Error::NotAnImage`](crate::Error::NotAnImage),
/// [`Error::CorruptImage`](crate::Error::CorruptImage) with what is wrong and where;
/// [`Error::WrongImageVersion`](crate::Error::WrongImageVersion), [`Error::NeedsFeature`](crate::Error::NeedsFeature);
/// [`Error::System`](crate::Error::System).
pub fn verify(image: impl AsRef<Path>) -> Result<ImageInfo> {
    verify_with(image, |_| ())
}

/// As [`verify`], and tells `progress` how many bytes of the image it has read.
///
/// # Errors
///
/// As [`verify`].
pub fn verify_with(image: impl AsRef<Path>, mut progress: impl FnMut(Progress)) -> Result<ImageInfo> {
    let total = std::fs::metadata(image.as_ref()).map_or(0, |file| file.len());
    let mut source = Source::open(image.as_ref())?;
    let (mut contents, mut chunk) = Contents::read(&mut source)?;
    while contents.check_data(&source, &chunk)? {
        chunk = source.next_in(chunk.bytes)?;
        progress(Progress { done: source.info().image_len, total });
    }
    Ok(source.info())
}
