//! Directories on the disk: blocks of sorted entries.
//!
//! ```text
//! entry: inode number u64, place of the name in the block u16, type u8, reserved u8
//! block: the entries, their names one behind the other, zeros
//! ```
//!
//! The place of the first name gives the number of entries of a block. A name ends where the next
//! one begins, and the last one at the first zero or at the end of the block. The kernel searches
//! by bisection, first for the block, so the names of all blocks are in one order, also `.` and
//! `..`.

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
    /// Returns the size of the directory in bytes: all blocks, but the last one without its zeros.
    pub(super) fn bytes(self) -> u64 {
        let (mut blocks, mut used) = (0, 0);
        for (name, _) in self.entries() {
            let bytes = DIRENT_BYTES + name.len();
            if used + bytes > BLOCK {
                blocks += 1;
                used = 0;
            }
            used += bytes;
        }
        blocks * BLOCK as u64 + used as u64
    }

    /// Passes each block without its zeros to `each`, with whether it is the last one. `describe`
    /// returns number and type of an inode.
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
        encode(&entries, &describe, &mut block);
        each(&block, true)
    }

    /// Returns all entries in the order of their names, with `.` and `..`.
    fn entries(self) -> impl Iterator<Item = (&'a [u8], InodeId)> {
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
        // A place in a block has 12 bits.
        block.extend(u16::try_from(name_start).unwrap_or(u16::MAX).to_le_bytes());
        block.extend([kind, 0]);
        name_start += name.len();
    }
    entries.iter().for_each(|(name, _)| block.extend_from_slice(name));
}
