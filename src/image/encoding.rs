//! How a chunk's bytes are compressed. The libraries for that are behind features; without one, its images cannot be read.

use super::Compression;
use crate::error::{Error, Result};

impl Compression {
    /// The number that stands for it in an image.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    pub(super) fn decode(code: u32) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|compression| compression.code() == code)
    }

    /// Refuses what this library was built without.
    pub(super) fn check_built_in(self) -> Result<()> {
        match self {
            Self::Lz4 if cfg!(not(feature = "lz4")) => Err(Error::NeedsFeature { feature: "lz4" }),
            Self::Zstd if cfg!(not(feature = "zstd")) => Err(Error::NeedsFeature { feature: "zstd" }),
            _ => Ok(()),
        }
    }

    /// The compressed bytes, if there are fewer of them.
    pub(super) fn pack(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let packed = match self {
            Self::None => None,
            #[cfg(feature = "lz4")]
            Self::Lz4 => Some(lz4_flex::block::compress(bytes)),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL).ok(),
            #[cfg(not(all(feature = "lz4", feature = "zstd")))]
            _ => None,
        };
        packed.filter(|packed: &Vec<u8>| packed.len() < bytes.len())
    }

    /// The bytes that `packed` stands for; `None` if it stands for none, or not for exactly `len`.
    #[cfg_attr(not(any(feature = "lz4", feature = "zstd")), expect(unused_variables, reason = "nothing can be unpacked"))]
    pub(super) fn unpack(self, packed: &[u8], len: usize) -> Option<Vec<u8>> {
        let bytes = match self {
            Self::None => None,
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4_flex::block::decompress(packed, len).ok(),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::bulk::decompress(packed, len).ok(),
            #[cfg(not(all(feature = "lz4", feature = "zstd")))]
            _ => None,
        };
        bytes.filter(|bytes: &Vec<u8>| bytes.len() == len)
    }
}

#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 3;
