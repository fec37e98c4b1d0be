//! Reads a block of a directory.

use crate::format::{DIRENT_BYTES, field};

/// An entry of a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    /// The number of the inode.
    pub(super) inode: u64,
    /// The type of the inode.
    pub(super) kind: u8,
}

/// Returns the entries of a block. A damaged entry is `None`, and a damaged block has at least one
/// `None`.
pub(super) fn entries(block: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    // The names follow the entries, so the place of the first name gives the number of entries.
    let count = name_start(block, 0)
        .filter(|start| start.is_multiple_of(DIRENT_BYTES) && *start <= block.len())
        .map_or(0, |start| start / DIRENT_BYTES);
    (0..count.max(1)).map(move |number| if count == 0 { None } else { entry(block, number, count) })
}

fn entry(block: &[u8], number: usize, count: usize) -> Option<Entry<'_>> {
    let start = name_start(block, number)?;
    let name = if number + 1 < count {
        // `get` returns none if the place of the next name is smaller, or is behind the block.
        block.get(start..name_start(block, number + 1)?)?
    } else {
        // The last name ends with the block or before its first zero.
        let rest = block.get(start..)?;
        rest.split(|byte| *byte == 0).next()?
    };
    let at = number * DIRENT_BYTES;
    let inode = u64::from_le_bytes(field(block, at));
    Some(Entry { name, inode, kind: block[at + 10] })
}

/// Returns the place of the name of an entry, if the block has the entry.
fn name_start(block: &[u8], number: usize) -> Option<usize> {
    let at = number * DIRENT_BYTES;
    let entry = block.get(at..at + DIRENT_BYTES)?;
    Some(usize::from(u16::from_le_bytes(field(entry, 8))))
}
