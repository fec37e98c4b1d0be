//! EROFS, the read-only file system of a block root: a tree of inodes in memory, a writer of its
//! metadata image, and a reader that checks such an image.
//!
//! A [`Tree`] is a file system in memory: inodes with their metadata, directories with their names,
//! and regular files whose data are blocks of other files, the devices. [`write`](fn@write) writes
//! its metadata image. [`Image`] reads an untrusted metadata image. This crate does not read images
//! of containers.
//!
//! # The disk
//!
//! The data of files stay where they are. Only metadata are written. The image and the devices make
//! one disk. The device table maps each device into the blocks behind the image, so that Linux 6.18
//! mounts the disk without options. Older versions were not tried.
//!
//! ```text
//!  block 0                                                   superblock.blocks
//!  ├────────────┬──────────────┬────────┬────────┬─────────┐├──────────┬──────────┬───
//!  │ superblock │ device table │ shared │ inodes │ streams ││ device 1 │ device 2 │ …
//!  │ (at 1024)  │ (at 1152)    │ xattrs │        │         ││          │          │
//!  └────────────┴──────────────┴────────┴────────┴─────────┘└──────────┴──────────┴───
//!   metadata image; each part begins with a block, except the table    data of files
//! ```
//!
//! Blocks have 4 KiB. All numbers are little-endian. The offsets of fields are in the modules.
//!
//! - **Superblock**: 128 bytes with the features chunked file, device table (if there are devices),
//!   checksum and time of modification. The checksum is CRC-32C of the rest of the first block,
//!   beginning with all ones and not inverted at the end. There is no time of writing, and the
//!   caller chooses the UUID, so equal trees have equal images.
//! - **Device table**: 128 bytes a device, with its blocks and the block of the disk at which it
//!   begins.
//! - **Inodes**: an inode begins at a multiple of 32 bytes, and this multiple is its number. The
//!   root is the first one, because the superblock has 16 bits for its number. The inodes of a
//!   directory follow each other. An inode is compact (32 bytes) if owner, size and link count are
//!   small and its time is that of the superblock, which is the commonest one of the tree.
//!   Otherwise it is extended (64 bytes), with times of 64 bits and nanoseconds. Extended
//!   attributes follow it, then chunks or inline bytes.
//! - **Extended attributes**: if several inodes have the same set, its attributes are in the shared
//!   area, each once. Other attributes are behind their inode.
//! - **Regular files**: chunks of 2ⁿ blocks. The place of a chunk has 8 bytes: 16 unused bits, 16
//!   bits for the device, and 32 bits for the first block, or all ones for a hole. Each chunk is
//!   contiguous on a device, or is a hole, and the chunks of a file are as large as this allows. So
//!   most files have one chunk. An empty file has none.
//! - **Directories** and **targets** of symbolic links: whole blocks are in the streams. The rest
//!   is inline, if it fits into one block with its inode. Names are sorted by their bytes over all
//!   blocks, with `.` and `..` among them.
//! - **Devices**: the number in the encoding of Linux, 12 bits major and 20 bits minor.
//!
//! # Sources
//!
//! - Linux 6.12 `fs/erofs/erofs_fs.h`: the structures and constants; `super.c`: the checksum and
//!   the device table; `data.c`: flat and chunked data; `inode.c`: both forms of inodes, and inline
//!   targets; `namei.c` and `dir.c`: the order and form of directories; `xattr.c`.
//! - The document *EROFS on-disk format*, `Documentation/filesystems/erofs.rst`.
//! - The tests mount images by the kernel of the host, and check them by fsck.erofs 1.8, which is
//!   the second implementation.
//!
//! # Cost
//!
//! A regular file takes about 130 bytes of memory with its name, see [`tree`]. Writing takes 16
//! bytes more for each inode of the tree. The image of 45,000 inodes with 50 different times has
//! 5.8 MB. Writing and reading it take about 20 ms each.

mod format;
mod read;
pub mod tree;
mod write;

pub use format::superblock::SuperblockError;
pub use read::{Image, ReadAt, ReadError};
pub use tree::{
    BLOCK_BYTES, Content, ContentRef, DataRange, FileData, InodeId, Metadata, Tree, TreeError,
    Xattr,
};
pub use write::{Device, Summary, WriteError, write};
