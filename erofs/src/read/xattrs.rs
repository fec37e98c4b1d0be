//! Reads extended attributes. Inodes with the same bytes have the same set, which is read once.

use std::collections::HashMap;

use crate::format::superblock::Superblock;
use crate::format::{BLOCK, MAX_SHARED_BYTES, XATTRS_HEADER_BYTES, field, shared_memory_bytes};
use crate::read::error::ReadError;
use crate::read::file::{Bounded, ReadAt};
use crate::read::inode::FoundInode;
use crate::tree::{ENTRY_HEADER_BYTES, Tree, Xattr, entry_bytes, join_name};

/// The sets that were read.
#[derive(Default)]
pub(super) struct Sets {
    /// Numbers of sets in the tree by their bytes on the disk.
    numbers: HashMap<Vec<u8>, u32>,
    shared_bytes: usize,
}

impl Sets {
    /// Adds the set of an inode to the tree, if it is not there, and returns its number.
    pub(super) fn read(
        &mut self,
        image: &mut Bounded<'_, impl ReadAt>,
        superblock: &Superblock,
        found: &FoundInode,
        tree: &mut Tree,
    ) -> Result<u32, ReadError> {
        if found.inode.xattr_bytes == 0 {
            return Ok(0);
        }
        let body = image.claim(found.xattrs_start, found.inode.xattr_bytes)?;
        // The bytes of a known set were claimed all the same, because each inode has its own.
        if let Some(number) = self.numbers.get(body) {
            return Ok(*number);
        }
        // The bytes are copied, because reading shared attributes moves the window over the image.
        let body = body.to_vec();
        let damaged = || ReadError::Xattrs { inode: found.number };
        let shared_end = XATTRS_HEADER_BYTES + 4 * usize::from(*body.get(4).ok_or_else(damaged)?);
        let shared = body.get(XATTRS_HEADER_BYTES..shared_end).ok_or_else(damaged)?;
        let mut set = Vec::new();
        for place in shared.chunks_exact(4) {
            let place = u32::from_le_bytes(field(place, 0));
            set.push(self.shared(image, superblock, place)?.ok_or_else(damaged)?);
        }
        let mut others = &body[shared_end..];
        // The loop ends, because each attribute has at least the bytes of its header.
        while !others.is_empty() {
            let (xattr, bytes) = decode(others).ok_or_else(damaged)?;
            set.push(xattr);
            others = others.get(bytes..).ok_or_else(damaged)?;
        }
        // A set without attributes is no part of the format. Linux reports it as an error.
        if set.is_empty() {
            return Err(damaged());
        }
        let inode = found.number;
        let number = tree.intern(set).map_err(|source| ReadError::Tree { inode, source })?;
        self.numbers.insert(body, number);
        Ok(number)
    }

    /// Reads a shared attribute.
    fn shared(
        &mut self,
        image: &mut Bounded<'_, impl ReadAt>,
        superblock: &Superblock,
        place: u32,
    ) -> Result<Option<Xattr>, ReadError> {
        let start = u64::from(superblock.xattr_block) * BLOCK as u64 + 4 * u64::from(place);
        // Several sets may refer to one attribute, so its bytes cannot be claimed. A limit of their
        // own bounds them instead.
        let bytes = bytes_of(image.read(start, ENTRY_HEADER_BYTES)?).unwrap_or_default();
        self.shared_bytes += shared_memory_bytes(bytes);
        if self.shared_bytes > MAX_SHARED_BYTES {
            return Err(ReadError::TooManyXattrs);
        }
        Ok(decode(image.read(start, bytes)?).map(|(xattr, _)| xattr))
    }
}

/// Returns the bytes of an attribute with its padding, by its header.
fn bytes_of(header: &[u8]) -> Option<usize> {
    let header = header.first_chunk::<ENTRY_HEADER_BYTES>()?;
    let value = usize::from(u16::from_le_bytes(field(header, 2)));
    Some((ENTRY_HEADER_BYTES + usize::from(header[0]) + value).next_multiple_of(4))
}

/// Returns the attribute with which `bytes` begin, and its bytes with the padding.
fn decode(bytes: &[u8]) -> Option<(Xattr, usize)> {
    let end = bytes_of(bytes)?;
    let name_end = ENTRY_HEADER_BYTES + usize::from(bytes[0]);
    let value_end = name_end + usize::from(u16::from_le_bytes(field(bytes, 2)));
    let rest = bytes.get(ENTRY_HEADER_BYTES..name_end)?;
    let value = bytes.get(name_end..value_end)?;
    debug_assert_eq!(entry_bytes(rest, value), end);
    Some(((join_name(bytes[1], rest)?, value.to_vec()), end))
}
