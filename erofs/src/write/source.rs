//! The source of the writer: each inode of the tree as it will be on the disk.

use crate::format::inode::{DiskInode, Kind, Layout, encode_device_number};
use crate::format::{BLOCK, CHUNK_INDEX_BYTES};
use crate::tree::{ContentRef, DataRange, InodeId, Tree};
use crate::write::chunks::Chunks;
use crate::write::directory::Directory;
use crate::write::error::WriteError;
use crate::write::reachable::Reachable;
use crate::write::xattrs::Xattrs;

/// A device: one file of data in the order in which they follow the metadata image on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The number of its blocks of 4 KiB.
    pub blocks: u32,
}

/// A tree with its order of inodes and its places of extended attributes.
pub(super) struct Source<'a> {
    pub(super) tree: &'a Tree,
    pub(super) reachable: Reachable,
    pub(super) xattrs: Xattrs<'a>,
    devices: &'a [Device],
}

/// An inode as it will be on the disk.
pub(super) struct Described<'a> {
    pub(super) inode: DiskInode,
    pub(super) data: Data<'a>,
}

/// The data of an inode.
pub(super) enum Data<'a> {
    None,
    File(Chunks, (u64, &'a [DataRange])),
    Target(&'a [u8], Stream),
    Directory(Directory<'a>, Stream),
}

/// Bytes in blocks of their own, or behind the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    /// The blocks of their own.
    pub(super) blocks: u64,
    /// The bytes behind the inode.
    pub(super) inline_bytes: u64,
}

impl Stream {
    /// Places `bytes` behind an inode that has `head_bytes` with its extended attributes. The inode
    /// and its inline bytes must be in one block. Linux 6.12 requires this of the inline bytes
    /// alone, but older versions require it of both for symbolic links.
    fn of(bytes: u64, head_bytes: u64) -> Self {
        let block = BLOCK as u64;
        // Inline bytes save a block for each small directory and target.
        let tail = bytes % block;
        if head_bytes + tail <= block {
            Self { blocks: bytes / block, inline_bytes: tail }
        } else {
            Self { blocks: bytes.div_ceil(block), inline_bytes: 0 }
        }
    }
}

impl Described<'_> {
    /// Returns the bytes of the inode with its extended attributes.
    pub(super) fn head_bytes(&self) -> u64 {
        (self.inode.form().bytes() + self.inode.xattr_bytes) as u64
    }

    /// Returns the bytes of the inode with all that follows it.
    pub(super) fn bytes(&self) -> u64 {
        let head = self.head_bytes();
        let inline = self.stream().map_or(0, |stream| stream.inline_bytes);
        let chunks = self.chunks().filter(|chunks| chunks.count > 0);
        let indexes = chunks.map_or(0, |chunks| {
            // The emitter adds the same padding, because inodes begin at multiples of 32.
            head.next_multiple_of(CHUNK_INDEX_BYTES) - head + CHUNK_INDEX_BYTES * chunks.count
        });
        head + inline + indexes
    }

    /// Returns the chunks of a file with data.
    pub(super) fn chunks(&self) -> Option<Chunks> {
        if let Data::File(chunks, _) = self.data { Some(chunks) } else { None }
    }

    /// Returns where the bytes of a directory or a target are.
    pub(super) fn stream(&self) -> Option<Stream> {
        match self.data {
            Data::Target(_, stream) | Data::Directory(_, stream) => Some(stream),
            Data::None | Data::File(..) => None,
        }
    }
}

impl<'a> Source<'a> {
    /// Walks the tree, and places its extended attributes.
    pub(super) fn new(tree: &'a Tree, devices: &'a [Device]) -> Result<Self, WriteError> {
        let reachable = Reachable::of(tree);
        let xattrs = Xattrs::new(tree, &reachable)?;
        Ok(Self { tree, reachable, xattrs, devices })
    }

    /// Describes an inode. Its `value` and `ino` depend on places and are 0.
    pub(super) fn describe(&self, id: InodeId) -> Result<Described<'a>, WriteError> {
        // Only the first pass calls this. The later passes need not check the ranges again.
        if let ContentRef::File { ranges, .. } = self.tree.content(id) {
            ranges.iter().try_for_each(|range| self.check(range))?;
        }
        Ok(self.describe_checked(id))
    }

    /// Describes an inode whose ranges are on their devices.
    pub(super) fn describe_checked(&self, id: InodeId) -> Described<'a> {
        let metadata = *self.tree.stored_metadata(id);
        let mtime = (metadata.mtime_s, metadata.mtime_ns);
        let mut inode = DiskInode {
            kind: kind(self.tree, id),
            layout: Layout::Plain,
            xattr_bytes: self.xattrs.inline_bytes(metadata.xattrs),
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: (mtime != self.reachable.epoch).then_some(mtime),
            links: self.reachable.links(id),
            size_bytes: 0,
            value: 0,
            ino: 0,
        };
        let data = match self.tree.content(id) {
            ContentRef::Directory => {
                let parent = self.reachable.parent(id);
                let directory = Directory { tree: self.tree, id, parent };
                // The size is set first. It decides the form of the inode, and so the room for
                // inline bytes.
                inode.size_bytes = directory.bytes();
                Data::Directory(directory, inode.place_stream())
            }
            ContentRef::Symlink(target) => {
                inode.size_bytes = target.len() as u64;
                Data::Target(target, inode.place_stream())
            }
            // An empty file has no blocks, so it needs neither chunks nor their format.
            ContentRef::File { size_bytes: 0, .. } | ContentRef::Fifo | ContentRef::Socket => {
                Data::None
            }
            ContentRef::File { size_bytes, ranges } => {
                let chunks = Chunks::of(size_bytes, ranges);
                inode.size_bytes = size_bytes;
                inode.layout = Layout::Chunks;
                inode.value = chunks.format();
                Data::File(chunks, (size_bytes, ranges))
            }
            ContentRef::CharDevice { major, minor } | ContentRef::BlockDevice { major, minor } => {
                inode.value = encode_device_number(major, minor);
                Data::None
            }
        };
        Described { inode, data }
    }

    /// Checks that a range is on its device.
    fn check(&self, range: &DataRange) -> Result<(), WriteError> {
        let DataRange { device, block, blocks, .. } = *range;
        // Devices are counted from 1, because 0 is the metadata image.
        let number = usize::from(device).checked_sub(1);
        let on = number.and_then(|number| self.devices.get(number));
        let end = block.checked_add(blocks);
        if on.is_some_and(|on| end.is_some_and(|end| end <= on.blocks)) {
            return Ok(());
        }
        Err(WriteError::OutsideDevice { device, block, blocks })
    }
}

impl DiskInode {
    /// Places the bytes of a directory or a target. The size of the inode is their number.
    fn place_stream(&mut self) -> Stream {
        let head_bytes = (self.form().bytes() + self.xattr_bytes) as u64;
        let stream = Stream::of(self.size_bytes, head_bytes);
        if stream.inline_bytes > 0 {
            self.layout = Layout::Inline;
        }
        stream
    }
}

/// Returns the kind of an inode.
pub(super) fn kind(tree: &Tree, id: InodeId) -> Kind {
    match tree.content(id) {
        ContentRef::Directory => Kind::Directory,
        ContentRef::File { .. } => Kind::File,
        ContentRef::Symlink(_) => Kind::Symlink,
        ContentRef::Fifo => Kind::Fifo,
        ContentRef::Socket => Kind::Socket,
        ContentRef::CharDevice { .. } => Kind::CharDevice,
        ContentRef::BlockDevice { .. } => Kind::BlockDevice,
    }
}
