//! The index of a layer file: the entries of the layer, in the order of the archive.
//!
//! ```text
//! record    = kind path body
//! kind      = u8: 1 directory, 2 file, 3 symbolic link, 4 named pipe, 5 hard link,
//!                 6 skipped device, 7 whiteout, 8 opaque whiteout
//! path      = text, normalized; the path of the root is empty
//! body of
//!   directory, named pipe  = metadata
//!   file                   = metadata, size in bytes u64, ranges
//!   symbolic link          = metadata, target text
//!   hard link              = path of the target
//!   others                 = nothing
//! metadata  = mode u16, uid u32, gid u32, seconds i64, nanoseconds u32, attributes
//! attributes = number u16, then name and value of each as texts
//! ranges    = { blocks u32, not 0; first block in the layer file u32; first block in the file u64 }
//!             and, behind the last range, 0 u32
//! text      = length u16, bytes
//! ```
//!
//! All integers are little-endian. The list of ranges has no number in front, so that it can be
//! written while the body is read.
//!
//! The reader trusts neither the disk nor the process that wrote the file: each value is checked as
//! if it came from an image, and a CRC-32C over the whole index is compared at its end. Callers must
//! not use what they have read before the reader has returned the end.

use std::io::{self, BufReader, Read, Take};

use a3s_box_erofs::{BLOCK_BYTES, Metadata};

use super::checksum::Checksum;
use crate::unpack::path::{EntryPath, PATH_BYTES};
use crate::unpack::whiteout::Meaning;

/// Size of the reads of an index: large enough that system calls cost little.
const READ_BYTES: usize = 256 << 10;

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const FIFO: u8 = 4;
const HARD_LINK: u8 = 5;
const SKIPPED: u8 = 6;
const WHITEOUT: u8 = 7;
const OPAQUE: u8 = 8;

/// Limit on the bytes of the extended attributes of one entry. An archive holds them in an extended
/// header, which has at most 1 MiB.
const XATTR_BYTES: usize = 1 << 20;

/// An index that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read.
    #[error("cannot read the file of a layer")]
    Read(#[source] io::Error),
    /// The file does not end with a trailer of this format.
    #[error("malformed trailer of a layer file: wrong {field}")]
    Trailer {
        /// The field with the wrong value.
        field: &'static str,
    },
    /// The index ends inside a record, or goes on behind the last one.
    #[error("the index of a layer file has another length than its trailer states")]
    Length,
    /// A value in a record is out of range.
    #[error("malformed record {record} in the index of a layer file: wrong {field}")]
    Record {
        /// Number of the record, from 0.
        record: u64,
        /// The field with the wrong value.
        field: &'static str,
    },
    /// The checksum of the index is wrong.
    #[error(
        "checksum mismatch in the index of a layer file: expected {expected:#x}, found {found:#x}"
    )]
    Checksum {
        /// The checksum in the trailer.
        expected: u32,
        /// The checksum of the index.
        found: u32,
    },
}

/// Blocks of a file that follow each other in the layer file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockRange {
    /// The first block, counted from the beginning of the file.
    pub(crate) file_block: u64,
    /// The first block, counted from the beginning of the layer file.
    pub(crate) block: u32,
    /// Number of blocks, at least 1.
    pub(crate) blocks: u32,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) path: EntryPath,
    pub(crate) change: Change,
}

/// The change that an entry makes at its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Directory(Metadata),
    File {
        metadata: Metadata,
        size_bytes: u64,
        /// Ascending and without overlap. The rest of the file is zeros.
        ranges: Vec<BlockRange>,
    },
    Symlink {
        metadata: Metadata,
        target: Vec<u8>,
    },
    Fifo(Metadata),
    HardLink(EntryPath),
    /// A device, which is not created.
    Skipped,
    /// A whiteout of the path.
    Whiteout,
    /// An opaque whiteout of the directory with this path.
    Opaque,
}

/// Appends a record, except for the ranges of a file. [`encode_range`] and [`encode_end`] must
/// follow a file.
///
/// The writer of a layer file has checked all lengths: a text is a path, a target, or an attribute,
/// which have at most 65,535 bytes.
pub(crate) fn encode(path: &EntryPath, change: &Change, out: &mut Vec<u8>) {
    let (kind, metadata) = match change {
        Change::Directory(metadata) => (DIRECTORY, Some(metadata)),
        Change::File { metadata, .. } => (FILE, Some(metadata)),
        Change::Symlink { metadata, .. } => (SYMLINK, Some(metadata)),
        Change::Fifo(metadata) => (FIFO, Some(metadata)),
        Change::HardLink(_) => (HARD_LINK, None),
        Change::Skipped => (SKIPPED, None),
        Change::Whiteout => (WHITEOUT, None),
        Change::Opaque => (OPAQUE, None),
    };
    out.push(kind);
    encode_text(path.as_bytes(), out);
    if let Some(metadata) = metadata {
        encode_metadata(metadata, out);
    }
    match change {
        Change::File { size_bytes, .. } => out.extend(size_bytes.to_le_bytes()),
        Change::Symlink { target, .. } => encode_text(target, out),
        Change::HardLink(target) => encode_text(target.as_bytes(), out),
        _ => {}
    }
}

/// Appends a range of the file whose record was appended last.
pub(crate) fn encode_range(range: &BlockRange, out: &mut Vec<u8>) {
    out.extend(range.blocks.to_le_bytes());
    out.extend(range.block.to_le_bytes());
    out.extend(range.file_block.to_le_bytes());
}

/// Appends the end of the ranges of a file.
pub(crate) fn encode_end(out: &mut Vec<u8>) {
    out.extend(0_u32.to_le_bytes());
}

fn encode_metadata(metadata: &Metadata, out: &mut Vec<u8>) {
    let Metadata { mode, uid, gid, mtime_s, mtime_ns, xattrs } = metadata;
    out.extend(mode.to_le_bytes());
    out.extend(uid.to_le_bytes());
    out.extend(gid.to_le_bytes());
    out.extend(mtime_s.to_le_bytes());
    out.extend(mtime_ns.to_le_bytes());
    // An extended header of 1 MiB has no room for more attributes.
    out.extend(u16::try_from(xattrs.len()).unwrap_or(u16::MAX).to_le_bytes());
    for (name, value) in xattrs {
        encode_text(name, out);
        encode_text(value, out);
    }
}

fn encode_text(text: &[u8], out: &mut Vec<u8>) {
    // A longer text does not occur. Cut off, it would make the reader fail, but not this process.
    out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(text);
}

/// The claims of a trailer about its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexFacts {
    /// Size of the index in bytes.
    pub(crate) bytes: u64,
    /// Number of records.
    pub(crate) records: u64,
    /// CRC-32C of the index.
    pub(crate) checksum: u32,
    /// Number of blocks in front of the index, to which ranges can refer.
    pub(crate) data_blocks: u32,
}

/// A reader of records. It reads one record at a time, so that its memory does not depend on the
/// size of the index.
#[derive(Debug)]
pub(crate) struct IndexReader<R> {
    source: BufReader<Checked<R>>,
    facts: IndexFacts,
    /// Bytes of the index that have not been read.
    left: u64,
    /// Number of records that have been read.
    records: u64,
}

/// The bytes of an index, with the checksum of those that have been read. It is below the buffer,
/// because the checksum of a few bytes costs as much as that of many.
#[derive(Debug)]
struct Checked<R> {
    index: Take<R>,
    checksum: Checksum,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.index.read(buffer)?;
        self.checksum.update(&buffer[..count]);
        Ok(count)
    }
}

impl<R: Read> IndexReader<R> {
    /// Starts to read the index at the position of `source`.
    pub(crate) fn new(source: R, facts: IndexFacts) -> Self {
        let checked = Checked { index: source.take(facts.bytes), checksum: Checksum::new() };
        let source = BufReader::with_capacity(READ_BYTES, checked);
        Self { source, facts, left: facts.bytes, records: 0 }
    }

    /// Reads the next record. Returns `None` at the end, after the checksum has been compared.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, IndexError> {
        if self.records == self.facts.records {
            // All bytes of the index have been read, so the buffer has read no fewer.
            let found = self.source.get_ref().checksum.value();
            return match (self.left, found, self.facts.checksum) {
                (0, found, expected) if found == expected => Ok(None),
                (0, found, expected) => Err(IndexError::Checksum { expected, found }),
                _ => Err(IndexError::Length),
            };
        }
        let kind = self.array::<1>()?;
        let path = self.path("path")?;
        let change = match kind {
            [DIRECTORY] => Change::Directory(self.metadata()?),
            [FILE] => {
                let (metadata, size_bytes) = (self.metadata()?, u64::from_le_bytes(self.array()?));
                Change::File { metadata, size_bytes, ranges: self.ranges(size_bytes)? }
            }
            [SYMLINK] => Change::Symlink { metadata: self.metadata()?, target: self.target()? },
            [FIFO] => Change::Fifo(self.metadata()?),
            [HARD_LINK] => Change::HardLink(self.path("target")?),
            [SKIPPED] => Change::Skipped,
            [WHITEOUT] => Change::Whiteout,
            [OPAQUE] => Change::Opaque,
            _ => return Err(self.wrong("kind")),
        };
        self.check_path(&path, &change)?;
        self.records += 1;
        Ok(Some(Record { path, change }))
    }

    /// Checks that an entry of this kind can have this path.
    fn check_path(&self, path: &EntryPath, change: &Change) -> Result<(), IndexError> {
        let is_allowed = match change {
            Change::Directory(_) => matches!(Meaning::of(path), Ok(Meaning::Entry)),
            Change::Opaque => true,
            Change::Whiteout => path.split().is_some(),
            // The root can only be a directory.
            _ => path.split().is_some() && matches!(Meaning::of(path), Ok(Meaning::Entry)),
        };
        if is_allowed { Ok(()) } else { Err(self.wrong("path")) }
    }

    fn path(&mut self, field: &'static str) -> Result<EntryPath, IndexError> {
        let bytes = self.text()?;
        EntryPath::from_normalized(bytes).ok_or_else(|| self.wrong(field))
    }

    fn target(&mut self) -> Result<Vec<u8>, IndexError> {
        let target = self.text()?;
        match target.is_empty() || target.len() > PATH_BYTES || target.contains(&0) {
            true => Err(self.wrong("target")),
            false => Ok(target),
        }
    }

    fn metadata(&mut self) -> Result<Metadata, IndexError> {
        let mode = u16::from_le_bytes(self.array()?);
        let (uid, gid) = (u32::from_le_bytes(self.array()?), u32::from_le_bytes(self.array()?));
        let mtime_s = i64::from_le_bytes(self.array()?);
        let mtime_ns = u32::from_le_bytes(self.array()?);
        if mode > 0o7777 {
            return Err(self.wrong("mode"));
        }
        if mtime_ns >= 1_000_000_000 {
            return Err(self.wrong("time"));
        }
        let (mut xattrs, mut bytes) = (Vec::new(), 0);
        for _ in 0..u16::from_le_bytes(self.array()?) {
            let (name, value) = (self.text()?, self.text()?);
            bytes += name.len() + value.len();
            // The tree checks names and values. This bounds the memory only.
            if bytes > XATTR_BYTES {
                return Err(self.wrong("attributes"));
            }
            xattrs.push((name, value));
        }
        Ok(Metadata { mode, uid, gid, mtime_s, mtime_ns, xattrs })
    }

    fn ranges(&mut self, size_bytes: u64) -> Result<Vec<BlockRange>, IndexError> {
        let file_blocks = size_bytes.div_ceil(BLOCK_BYTES);
        // No memory is reserved by a number in the file. Each range takes 16 bytes of the index,
        // whose size has been compared with the size of the file.
        let (mut ranges, mut after) = (Vec::new(), 0);
        loop {
            let blocks = u32::from_le_bytes(self.array()?);
            if blocks == 0 {
                return Ok(ranges);
            }
            let block = u32::from_le_bytes(self.array()?);
            let file_block = u64::from_le_bytes(self.array()?);
            let end = file_block.checked_add(blocks.into()).filter(|end| *end <= file_blocks);
            let in_data =
                block.checked_add(blocks).is_some_and(|end| end <= self.facts.data_blocks);
            match end {
                Some(end) if in_data && file_block >= after => after = end,
                _ => return Err(self.wrong("range")),
            }
            ranges.push(BlockRange { file_block, block, blocks });
        }
    }

    fn text(&mut self) -> Result<Vec<u8>, IndexError> {
        let mut text = vec![0; u16::from_le_bytes(self.array()?).into()];
        self.fill(&mut text)?;
        Ok(text)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), IndexError> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(IndexError::Length)?;
        self.source.read_exact(bytes).map_err(IndexError::Read)
    }

    fn wrong(&self, field: &'static str) -> IndexError {
        IndexError::Record { record: self.records, field }
    }
}

#[cfg(test)]
mod tests;
