//! The entries of a tar archive, read as a stream.
//!
//! `tar::Header` names the fields of a header. The walk from entry to entry is this module's own,
//! because two readers that disagree about the end of an entry see different files in one archive.
//! Where the formats are not precise, this reader behaves as Go's `archive/tar` does, and it
//! refuses ambiguous archives:
//!
//! ```text
//! [g global]* ([x PAX] | [L name] | [K link])* header body pad … zero block, zero block, anything
//! ```
//!
//! A PAX header applies to the next file entry, even if other extension headers are in between.
//! Its `size` record always replaces the size in the file's own header. A PAX header that no entry
//! follows is ignored, because Go ignores it too.

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

use super::field::{BLOCK, FieldError, c_string, checksums, number, seconds};
use super::header_name::header_name;
use super::pax::{Pax, PaxError};
use super::sparse::{self, Location, RawMap, SparseError, SparseMap};

/// Limit on the size of one extended header or long name. Go's reader has the same limit (1 MiB).
const EXTENSION_LIMIT_BYTES: u64 = 1 << 20;

/// An archive that cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream that holds the archive failed: the compressed data is corrupt, or the disk
    /// failed.
    #[error("cannot read the layer's stream")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("the archive is cut off")]
    Truncated,
    /// The checksum of a header is wrong.
    #[error("header checksum mismatch")]
    Checksum,
    /// A number in a header does not parse or is out of range.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// More blocks follow a single zero block. Some readers stop at one zero block, others need
    /// two, so that they would see different entries.
    #[error("an entry follows a single zero block")]
    LoneZeroBlock,
    /// An extension header is larger than the limit.
    #[error(
        "extended header of {found} bytes is too large: expected at most {EXTENSION_LIMIT_BYTES}"
    )]
    ExtensionTooLarge {
        /// Size of the header in bytes.
        found: u64,
    },
    /// Two headers give the same property of one entry.
    #[error("ambiguous entry: two `{what}` headers")]
    Ambiguous {
        /// The property.
        what: &'static str,
    },
    /// A PAX header is malformed.
    #[error("malformed PAX header")]
    Pax(#[from] PaxError),
    /// The description of a sparse file is malformed.
    #[error("malformed sparse file")]
    Sparse(#[from] SparseError),
    /// The entry has a type that layers do not have.
    #[error("entry type `{}` is not supported", found.escape_ascii())]
    EntryType {
        /// The type flag.
        found: u8,
    },
}

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Device,
    Directory,
    Fifo,
    /// A global PAX header. It creates no file, and its records are ignored, because other tools
    /// ignore them too.
    Global,
}

/// One entry, with the values of all its headers.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Bytes of the body. If the file is sparse and its map is in the body, these are the bytes
    /// after the map.
    pub(crate) size: u64,
    /// The extents of the file that the body fills, if the file is sparse.
    pub(crate) sparse: Option<SparseMap>,
    pub(crate) metadata: Metadata,
}

/// The metadata of an inode.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// Permission bits, including setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, and nanoseconds that are added to them.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A reader of entries. `Read` on it yields the body of the current entry.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    stream: R,
    /// Bytes of the current entry's body that have not been read.
    body_left: u64,
    /// Bytes of padding after the body.
    padding: u64,
}

/// The extension headers before an entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, body_left: 0, padding: 0 }
    }

    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// Returns the stream, so that the bytes after the end of the archive can be read.
    pub(crate) fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Reads the headers of the next entry. Returns `None` at the end of the archive.
    ///
    /// Callers must have read the body of the previous entry to its end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_padding()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number("size", &header.as_old().size)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let pax = Pax::parse(&self.extension(size)?)?;
                    set_once(&mut extensions.pax, pax, "PAX")?;
                }
                EntryType::GNULongName => {
                    // GNU tar ends the name with a NUL, and includes it in the size.
                    let name = c_string(&self.extension(size)?).to_vec();
                    set_once(&mut extensions.long_name, name, "long name")?;
                }
                EntryType::GNULongLink => {
                    let link = c_string(&self.extension(size)?).to_vec();
                    set_once(&mut extensions.long_link, link, "long link")?;
                }
                EntryType::XGlobalHeader => {
                    // The records are ignored, but a malformed header is refused as Go refuses it.
                    Pax::parse(&self.extension(size)?)?;
                    return Ok(Some(Entry::global()));
                }
                _ => {
                    let in_records = extensions.sparse_map()?;
                    let mut entry = Entry::from_headers(&header, size, extensions)?;
                    entry.sparse = self.start_file(&header, &entry, in_records)?;
                    entry.size = self.body_left;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads one header block. Returns `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            // POSIX ends an archive by two zero blocks. Real archives also end by one, or by none.
            let mut second = [0; BLOCK];
            return match self.block(&mut second)? && second.iter().any(|byte| *byte != 0) {
                true => Err(ArchiveError::LoneZeroBlock),
                false => Ok(None),
            };
        }
        let found = number("checksum", &header.as_old().cksum)?;
        match checksums(&header).contains(&i64::try_from(found).unwrap_or(-1)) {
            true => Ok(Some(header)),
            false => Err(ArchiveError::Checksum),
        }
    }

    /// Fills a block. Returns `false` if the stream ends before the block.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        Ok(true)
    }

    /// Reads the body of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        // The body is kept in memory, so its size is checked before it is read.
        if size > EXTENSION_LIMIT_BYTES {
            return Err(ArchiveError::ExtensionTooLarge { found: size });
        }
        self.start_body(size);
        let mut body = Vec::new();
        self.read_to_end(&mut body).map_err(body_error)?;
        Ok(body)
    }

    /// Starts the body of an entry, and reads the map if the entry is a sparse file.
    fn start_file(
        &mut self,
        header: &Header,
        entry: &Entry,
        in_records: Option<Location>,
    ) -> Result<Option<SparseMap>, ArchiveError> {
        // The blocks of an old GNU map are between the header and the body, and the entry's size
        // does not count them. They must be read before the body starts.
        let in_header = match sparse::is_old_gnu(header) {
            true => Some(RawMap::of_header(header, || self.whole_block())?),
            false => None,
        };
        self.start_body(entry.size);
        let map = match (in_header, in_records) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(SparseError::Ambiguous { what: "map" }.into()),
            (Some(map), None) | (None, Some(Location::Headers(map))) => map,
            (None, Some(Location::Body { size_bytes })) => {
                RawMap::of_body(size_bytes, || self.body_block())?
            }
        };
        match entry.kind {
            Kind::File => Ok(Some(map.check(self.body_left)?)),
            _ => Err(SparseError::NotAFile.into()),
        }
    }

    /// Reads a block that the archive must have.
    fn whole_block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        match self.block(&mut block)? {
            true => Ok(block),
            false => Err(ArchiveError::Truncated),
        }
    }

    /// Reads a block of the body.
    fn body_block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        // The map is a part of the body. It is padded to whole blocks, so that the data after it
        // starts at the next block.
        if self.body_left < BLOCK as u64 {
            return Err(SparseError::Map.into());
        }
        self.body_left -= BLOCK as u64;
        self.whole_block()
    }

    fn start_body(&mut self, size: u64) {
        self.body_left = size;
        // `-size` modulo the size of a block is the number of bytes up to the next block.
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Skips the padding of the last block of a body.
    ///
    /// The archive can end inside the padding: `umoci insert` writes such archives, and Go's reader
    /// accepts them.
    fn skip_padding(&mut self) -> Result<(), ArchiveError> {
        let body_is_read = self.body_left == 0;
        self.body_left = self.body_left.saturating_add(std::mem::take(&mut self.padding));
        match io::copy(self, &mut io::sink()).map_err(body_error) {
            Err(ArchiveError::Truncated) if body_is_read => {
                self.body_left = 0;
                Ok(())
            }
            skipped => skipped.map(drop),
        }
    }
}

impl<R: BufRead> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Reads the rest of the current body without copying it.
impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = usize::try_from(self.body_left).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(&[]);
        }
        let bytes = self.stream.fill_buf()?;
        match bytes.len() {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(&bytes[..length.min(left)]),
        }
    }

    fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.body_left -= count as u64;
    }
}

/// Distinguishes an archive that ends too early from a stream that fails.
pub(crate) fn body_error(error: io::Error) -> ArchiveError {
    // Decoders return `UnexpectedEof` with a message, because the compressed stream is cut off.
    // Only `Archive::fill_buf` returns it without one.
    match error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none() {
        true => ArchiveError::Truncated,
        false => ArchiveError::Read(error),
    }
}

impl Extensions {
    fn sparse_map(&self) -> Result<Option<Location>, SparseError> {
        self.pax.as_ref().map_or(Ok(None), |pax| pax.sparse.location())
    }
}

impl Entry {
    fn global() -> Self {
        Self {
            kind: Kind::Global,
            path: Vec::new(),
            link: Vec::new(),
            size: 0,
            sparse: None,
            metadata: Metadata::default(),
        }
    }

    fn from_headers(
        header: &Header,
        size: u64,
        extensions: Extensions,
    ) -> Result<Self, ArchiveError> {
        let pax = extensions.pax.unwrap_or_default();
        let path =
            one_of(pax.path, extensions.long_name, "name")?.unwrap_or_else(|| header_name(header));
        // GNU tar writes the real name of a sparse file to a record, and another name to the
        // header. A reader without support for sparse files would otherwise create a broken file
        // under the real name.
        let path = if pax.sparse.name.is_empty() { path } else { pax.sparse.name };
        let link = one_of(pax.link, extensions.long_link, "link")?;
        let link = link.unwrap_or_else(|| c_string(&header.as_old().linkname).to_vec());
        let kind = kind(header, &path)?;
        let fields = header.as_old();
        let id = |field, found: Option<u64>, raw| {
            let found = found.map_or_else(|| number(field, raw), Ok)?;
            // `chown(2)` takes the highest id as "leave unchanged".
            let id = u32::try_from(found).ok().filter(|id| *id != u32::MAX);
            id.ok_or(FieldError { field })
        };
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => (seconds(&fields.mtime)?, 0),
        };
        // Some tools write the bits of the file type into the mode. The type comes from the type
        // flag only.
        let mode = number("mode", &fields.mode)? & 0o7777;
        let metadata = Metadata {
            mode: u32::try_from(mode).unwrap_or_default(),
            uid: id("uid", pax.uid, &fields.uid)?,
            gid: id("gid", pax.gid, &fields.gid)?,
            mtime,
            xattrs: pax.xattrs.into_iter().collect(),
        };
        // Entries of other types have no body, even if their size field is not zero.
        let size = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        Ok(Self { kind, path, link, size, sparse: None, metadata })
    }
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, ArchiveError> {
    Ok(match header.entry_type() {
        // The format before POSIX had no type for directories: their names end with a slash.
        EntryType::Regular if header.as_old().linkflag == [0] && path.ends_with(b"/") => {
            Kind::Directory
        }
        // POSIX recommends to read the type `7`, a contiguous file, as a regular file.
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char | EntryType::Block => Kind::Device,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        other => return Err(ArchiveError::EntryType { found: other.as_byte() }),
    })
}

fn set_once<T>(slot: &mut Option<T>, value: T, what: &'static str) -> Result<(), ArchiveError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ArchiveError::Ambiguous { what }),
    }
}

/// Returns the value that is present. Both values at once are refused, because readers disagree
/// about which one has precedence.
fn one_of<T>(
    pax: Option<T>,
    gnu: Option<T>,
    what: &'static str,
) -> Result<Option<T>, ArchiveError> {
    match (pax, gnu) {
        (Some(_), Some(_)) => Err(ArchiveError::Ambiguous { what }),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

#[cfg(test)]
mod tests;
