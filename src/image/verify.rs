//! Verifying an image without loading it.

use std::path::Path;

use super::ImageInfo;
use super::contents::Contents;
use super::source::Source;
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
    let mut source = Source::open(image.as_ref())?;
    let (mut contents, mut chunk) = Contents::read(&mut source)?;
    while contents.check_data(&source, &chunk)? {
        chunk = source.next()?;
    }
    Ok(source.info())
}
