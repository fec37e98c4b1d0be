//! The structures on the disk, for the writer and the reader. The document of the crate describes
//! how they are used.
//!
//! All numbers are little-endian. Names in parentheses are those of Linux 6.12
//! `fs/erofs/erofs_fs.h`, from which all constants are.

pub(crate) mod inode;
pub(crate) mod superblock;

/// Binary logarithm of the size of a block (`blkszbits`).
// Linux refuses blocks that are larger than its pages, and no page is smaller than 4 KiB.
pub(crate) const BLOCK_BITS: u8 = 12;

/// The size of a block in bytes, as the length of a buffer.
pub(crate) const BLOCK: usize = 1 << BLOCK_BITS;

/// Alignment of an inode, and the unit of its number (`EROFS_ISLOTBITS`).
pub(crate) const SLOT_BYTES: u64 = 32;

/// Size of an entry of a directory without its name (`struct erofs_dirent`).
pub(crate) const DIRENT_BYTES: usize = 12;

/// Size and alignment of the place of a chunk (`struct erofs_inode_chunk_index`).
pub(crate) const CHUNK_INDEX_BYTES: u64 = 8;

/// The block of a chunk that is a hole (`EROFS_NULL_ADDR`).
// A data block never has this number, because the writer allows less than 2³² blocks on a disk.
pub(crate) const HOLE: u32 = u32::MAX;

/// Maximum binary logarithm of the blocks of a chunk (`EROFS_CHUNK_FORMAT_BLKBITS_MASK`).
pub(crate) const MAX_CHUNK_BITS: u8 = 31;

/// The places of chunks have 8 bytes, with a device (`EROFS_CHUNK_FORMAT_INDEXES`).
// The other form of a place has 4 bytes and no device, so it cannot refer to data of devices.
pub(crate) const CHUNK_INDEXES: u32 = 0x20;

/// Bits of the size of a chunk in the format of chunks.
pub(crate) const CHUNK_BITS_MASK: u32 = 0x1f;

/// Size of the header of an inode's extended attributes (`struct erofs_xattr_ibody_header`).
pub(crate) const XATTRS_HEADER_BYTES: usize = crate::tree::IBODY_HEADER_BYTES;

/// Maximum number of shared attributes of an inode, whose count (`h_shared_count`) has 8 bits.
pub(crate) const MAX_SHARED_XATTRS: usize = u8::MAX as usize;

/// Limit on the memory of all shared attributes of all sets. An attribute counts once for each set
/// that has it, because the reader has a copy for each.
// Sets can refer to each attribute many times, so the size of the image does not bound their memory.
// The writer shares no more than the reader accepts.
pub(crate) const MAX_SHARED_BYTES: usize = 64 << 20;

/// Returns the memory of a shared attribute in a set, about, from its bytes on the disk.
pub(crate) fn shared_memory_bytes(entry_bytes: usize) -> usize {
    // A set has two vectors for name and value, which are allocations of their own. Names also have
    // their prefix again, of at most 24 bytes.
    entry_bytes + 2 * size_of::<Vec<u8>>() + 2 * 16 + 24
}

/// Copies bytes of a structure into an array.
///
/// # Panics
///
/// `bytes` has less than `N` bytes behind `at`. Callers pass structures of a fixed size.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
