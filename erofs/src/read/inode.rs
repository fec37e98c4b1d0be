//! Reads an inode without its data.

use crate::format::inode::{COMPACT_BYTES, DiskInode};
use crate::format::superblock::Superblock;
use crate::format::{BLOCK, SLOT_BYTES};
use crate::read::error::ReadError;
use crate::read::file::{Bounded, ReadAt};
use crate::tree::Metadata;

/// An inode, and where it is.
pub(super) struct FoundInode {
    pub(super) number: u64,
    pub(super) inode: DiskInode,
    /// The byte of the image at which its extended attributes begin.
    pub(super) xattrs_start: u64,
}

impl FoundInode {
    /// Reads the inode with a number.
    pub(super) fn read(
        image: &mut Bounded<'_, impl ReadAt>,
        superblock: &Superblock,
        number: u64,
    ) -> Result<Self, ReadError> {
        let damaged = || ReadError::Inode { inode: number };
        let area = u64::from(superblock.inode_block) * BLOCK as u64;
        // The number is from the image, so it is not trusted.
        let start = number.checked_mul(SLOT_BYTES).and_then(|start| start.checked_add(area));
        let start = start.ok_or_else(damaged)?;
        // The form decides the size, so the inode is claimed only when the form is known.
        let form = DiskInode::form_of(image.read(start, COMPACT_BYTES)?).ok_or_else(damaged)?;
        let inode = DiskInode::decode(image.claim(start, form.bytes())?).ok_or_else(damaged)?;
        Ok(Self { number, inode, xattrs_start: start + form.bytes() as u64 })
    }

    /// Returns the byte of the image behind the inode and its extended attributes.
    pub(super) fn end(&self) -> u64 {
        self.xattrs_start + self.inode.xattr_bytes as u64
    }

    /// Returns the metadata without extended attributes.
    pub(super) fn metadata(&self, superblock: &Superblock) -> Metadata {
        let epoch = (superblock.epoch_s, superblock.epoch_ns);
        let (mtime_s, mtime_ns) = self.inode.mtime.unwrap_or(epoch);
        let DiskInode { mode, uid, gid, .. } = self.inode;
        Metadata { mode, uid, gid, mtime_s, mtime_ns, xattrs: Vec::new() }
    }

    /// Returns the error of an inode whose type does not go with its other fields.
    pub(super) fn damaged(&self) -> ReadError {
        ReadError::Inode { inode: self.number }
    }
}
