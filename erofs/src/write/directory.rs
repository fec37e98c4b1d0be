//! Directories on the disk: blocks of sorted entries.
//!
//! ```text
//! entry: inode number u64, place of the name in the block u16, type u8, reserved u8
//! block: the entries, their names one behind the other, zeros
//! ```
//!
//! The place of the first name gives the number of entries of a block. A name ends where the next
//! one begins, and the last one at the first zero or at the end of the block. The kernel bisects
//! the blocks and then the entries of one block. So all names of a directory are in one order,
//! which includes `.` and `..`.

use crate::format::{BLOCK, DIRENT_BYTES};
use crate::tree::{InodeId, Tree};

/// A directory of a tree, with its parent.
#[derive(Clone, Copy)]
pub(super) struct Directory<'a> {
    pub(super) tree: &'a Tree,
    pub(super) id: InodeId,
    pub(super) parent: InodeId,
}

impl<'a> Directory<'a> {
    /// Returns the size of the directory in bytes, without the zeros of its last block.
    pub(super) fn bytes(self) -> u64 {
        let (mut blocks, mut used) = (0, 0);
        for (name, _) in self.entries() {
            let bytes = DIRENT_BYTES + name.len();
            // `each_block` ends its blocks by the same rule. An entry and its name are in one
            // block.
            if used + bytes > BLOCK {
                blocks += 1;
                used = 0;
            }
            used += bytes;
        }
        blocks * BLOCK as u64 + used as u64
    }

    /// Calls `each` with each block, without its zeros, and with whether it is the last block.
    /// `describe` returns the number and the type of an inode.
    pub(super) fn each_block<E>(
        self,
        describe: impl Fn(InodeId) -> (u64, u8),
        mut each: impl FnMut(&[u8], bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut entries: Vec<(&[u8], InodeId)> = Vec::new();
        let mut block = Vec::with_capacity(BLOCK);
        let mut used = 0;
        for (name, inode) in self.entries() {
            let bytes = DIRENT_BYTES + name.len();
            if used + bytes > BLOCK {
                encode(&entries, &describe, &mut block);
                each(&block, false)?;
                entries.clear();
                used = 0;
            }
            used += bytes;
            entries.push((name, inode));
        }
        // Each directory has `.`, so the last block is never empty.
        encode(&entries, &describe, &mut block);
        each(&block, true)
    }

    /// Returns all entries in the order of their names, with `.` and `..`.
    fn entries(self) -> impl Iterator<Item = (&'a [u8], InodeId)> {
        // Names such as `-` sort before `.`, so the two cannot simply come first.
        let mut dots = [(&b"."[..], self.id), (b"..", self.parent)].into_iter().peekable();
        let mut children = self.tree.children(self.id).peekable();
        std::iter::from_fn(move || match (dots.peek(), children.peek()) {
            (Some((dot, _)), Some((child, _))) if child < dot => children.next(),
            (Some(_), _) => dots.next(),
            (None, _) => children.next(),
        })
    }
}

/// Writes the entries of a block over `block`.
fn encode(
    entries: &[(&[u8], InodeId)],
    describe: &impl Fn(InodeId) -> (u64, u8),
    block: &mut Vec<u8>,
) {
    block.clear();
    let mut name_start = entries.len() * DIRENT_BYTES;
    for (name, inode) in entries {
        let (number, kind) = describe(*inode);
        block.extend(number.to_le_bytes());
        // A place is less than the size of a block, so 16 bits suffice.
        block.extend(u16::try_from(name_start).unwrap_or(u16::MAX).to_le_bytes());
        block.extend([kind, 0]);
        name_start += name.len();
    }
    entries.iter().for_each(|(name, _)| block.extend_from_slice(name));
}
