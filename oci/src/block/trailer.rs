//! The trailer of a layer file, which has the place of the index and the facts about the layer.
//!
//! ```text
//! offset  size
//!      0     8  magic `A3SLAYER`
//!      8     4  version of the format, 1
//!     12     4  number of blocks of data, at the beginning of the file
//!     16     8  size of the index in bytes, which begins behind the data
//!     24     8  number of records in the index
//!     32     8  entries of the archive
//!     40     8  bytes in regular files, holes included
//!     48     8  bytes of holes in regular files
//!     56     8  devices that were skipped, without hard links to them: only the merge knows whether
//!              the target of a link is a device
//!     64     4  CRC-32C of the index
//!     68     4  CRC-32C of the 68 bytes before
//! ```
//!
//! All integers are little-endian. The trailer is the end of the file, because the sizes are known
//! only when the whole layer has been read.

use a3s_box_erofs::BLOCK_BYTES;

use super::checksum::Checksum;
use super::index::{IndexError, IndexFacts};
use crate::unpack::facts::LayerFacts;

/// Size of the trailer in bytes.
pub(crate) const TRAILER_BYTES: usize = 72;

const MAGIC: [u8; 8] = *b"A3SLAYER";
const VERSION: u32 = 1;

/// Bytes in front of the trailer's own checksum.
const CHECKED_BYTES: usize = TRAILER_BYTES - 4;

/// The values of a trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) index: IndexFacts,
    /// Counts of the layer. `opaque_root` is not stored, because the index has it.
    pub(crate) facts: LayerFacts,
}

impl Trailer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { index, facts } = self;
        let mut out = Vec::with_capacity(TRAILER_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(index.data_blocks.to_le_bytes());
        let LayerFacts { entries, bytes, hole_bytes, skipped_devices, .. } = *facts;
        for number in [index.bytes, index.records, entries, bytes, hole_bytes, skipped_devices] {
            out.extend(number.to_le_bytes());
        }
        out.extend(index.checksum.to_le_bytes());
        out.extend(Checksum::of(&out).to_le_bytes());
        out
    }

    /// Reads the trailer of a file of `file_bytes`.
    pub(crate) fn decode(bytes: &[u8; TRAILER_BYTES], file_bytes: u64) -> Result<Self, IndexError> {
        let wrong = |field| Err(IndexError::Trailer { field });
        let mut rest = &bytes[..];
        if !rest.starts_with(&MAGIC) {
            return wrong("magic number");
        }
        rest = &rest[MAGIC.len()..];
        if Checksum::of(&bytes[..CHECKED_BYTES]).to_le_bytes() != bytes[CHECKED_BYTES..] {
            return wrong("checksum");
        }
        if take_u32(&mut rest) != VERSION {
            return wrong("version");
        }
        let data_blocks = take_u32(&mut rest);
        let mut number = || take_u64(&mut rest);
        let (bytes, records) = (number(), number());
        let (entries, file_content_bytes) = (number(), number());
        let (hole_bytes, skipped_devices) = (number(), number());
        let checksum = take_u32(&mut rest);
        let size = (u64::from(data_blocks) * BLOCK_BYTES)
            .checked_add(bytes)
            .and_then(|size| size.checked_add(TRAILER_BYTES as u64));
        if size != Some(file_bytes) {
            return wrong("size");
        }
        Ok(Self {
            index: IndexFacts { bytes, records, checksum, data_blocks },
            facts: LayerFacts {
                bytes: file_content_bytes,
                hole_bytes,
                entries,
                skipped_devices,
                opaque_root: false,
            },
        })
    }
}

/// Takes an integer from the start of `rest`. The trailer has a constant size, so that it never
/// ends too early.
fn take_u32(rest: &mut &[u8]) -> u32 {
    rest.split_off(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn take_u64(rest: &mut &[u8]) -> u64 {
    rest.split_off(..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailer() -> Trailer {
        Trailer {
            index: IndexFacts { bytes: 7, records: 2, checksum: 0x1234_5678, data_blocks: 3 },
            facts: LayerFacts {
                bytes: 9000,
                hole_bytes: 5,
                entries: 4,
                skipped_devices: 1,
                opaque_root: false,
            },
        }
    }

    fn decode(bytes: &[u8], file_bytes: u64) -> Result<Trailer, IndexError> {
        Trailer::decode(bytes.try_into().unwrap(), file_bytes)
    }

    #[test]
    fn trailer_is_read_as_it_was_written() {
        let bytes = trailer().encode();
        assert_eq!(decode(&bytes, 3 * 4096 + 7 + 72).unwrap(), trailer());
    }

    #[test]
    fn each_changed_byte_and_another_file_size_are_refused() {
        let bytes = trailer().encode();
        for changed in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[changed] ^= 1;
            assert!(decode(&bytes, 3 * 4096 + 7 + 72).is_err(), "byte {changed}");
        }
        for size in [0, 72, 3 * 4096 + 7 + 71, 3 * 4096 + 7 + 73, u64::MAX] {
            let error = decode(&bytes, size).unwrap_err();
            assert!(matches!(error, IndexError::Trailer { field: "size" }), "{size}: {error:?}");
        }
        let mut huge = trailer();
        huge.index.bytes = u64::MAX;
        assert!(matches!(decode(&huge.encode(), 0), Err(IndexError::Trailer { field: "size" })));
    }

    #[test]
    fn trailer_of_another_version_is_refused() {
        let mut bytes = trailer().encode();
        bytes[8] = 2;
        let checksum = Checksum::of(&bytes[..CHECKED_BYTES]).to_le_bytes();
        bytes[CHECKED_BYTES..].copy_from_slice(&checksum);
        let error = decode(&bytes, 3 * 4096 + 7 + 72).unwrap_err();
        assert!(matches!(error, IndexError::Trailer { field: "version" }), "{error:?}");
    }
}
