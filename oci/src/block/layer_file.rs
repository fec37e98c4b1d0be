//! The file of a layer: the content of its files, and the index of its entries.
//!
//! ```text
//! ┌────────────────────────┬───────┬─────────┐
//! │ content, 4 KiB aligned │ index │ trailer │
//! └────────────────────────┴───────┴─────────┘
//! 0                        └ data blocks × 4096
//! ```
//!
//! It is written from its beginning to its end while the blob is read once. No entry takes a system
//! call of its own, and nothing in it depends on other layers, so that all images share it.
//!
//! The entries are stored as the archive has them. Only their names, links and attributes are
//! checked here, because an entry on its own shows whether they can be used. Whether a parent is a
//! directory, and whether the target of a hard link exists, is decided when the layers are merged.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use a3s_box_erofs::{BLOCK_BYTES, Metadata};
use a3s_box_sys::HostError;

use super::body::{Body, Output};
use super::index::{self, BlockRange, Change, IndexError, IndexFacts, IndexReader, Record};
use super::spool::{MakeFile, Spool};
use super::trailer::{TRAILER_BYTES, Trailer};
use crate::host::text::shown_name;
use crate::host::xattr::is_kept;
use crate::image::Layer;
use crate::layout::blob::Blob;
use crate::tar::archive::{self, Entry, Kind};
use crate::tar::sparse::SparseMap;
use crate::unpack::entry_error::EntryError;
use crate::unpack::error::LayerError;
use crate::unpack::facts::LayerFacts;
use crate::unpack::limits::Limits;
use crate::unpack::path::{EntryPath, NAME_BYTES, PATH_BYTES};
use crate::unpack::progress::OnProgress;
use crate::unpack::reader::{LayerReader, entry_error, read_layer};
use crate::unpack::whiteout::Meaning;

/// Bytes of memory that the unpacker takes for each directory, besides its path. A layer file needs
/// no memory for directories. They are counted all the same, so that a layer is accepted for both
/// kinds of root or for none.
const DIRECTORY_BYTES: usize = 56;

/// Mode of symbolic links. Linux ignores it, and shows this mode on all file systems.
const SYMLINK_MODE: u16 = 0o777;

/// Limit on the value of an extended attribute. EROFS stores its length in 16 bits.
const XATTR_VALUE_BYTES: usize = u16::MAX as usize;

/// The files that a layer is written to.
pub(crate) struct Target<'a> {
    /// The layer file, which is empty.
    pub(crate) file: File,
    /// Makes an empty file for the index of a very large layer.
    pub(crate) make_file: &'a mut MakeFile<'a>,
}

/// Reads a layer from `blob`, writes its file to `target`, and verifies the layer.
///
/// # Errors
///
/// When the blob, the archive or an entry is malformed, when the digest or the diff ID differs,
/// when a limit is exceeded, or when the host fails. The file can then hold a part of the layer,
/// and must not be used.
pub(crate) fn write(
    blob: Blob,
    layer: &Layer,
    limits: &Limits,
    target: Target<'_>,
    progress: &mut OnProgress<'_>,
) -> Result<LayerFacts, LayerError> {
    let mut pass = Pass {
        output: Output::new(target.file),
        body: Body::new(),
        index: Spool::new(target.make_file),
        records: 0,
        facts: LayerFacts::default(),
        remembered_bytes: 0,
        limits,
    };
    read_layer(blob, layer, limits, progress, |reader| pass.read_all(reader))?;
    pass.finish().map_err(|error| entry_error(b"/", failed(error)))
}

/// The work on one layer.
struct Pass<'a> {
    output: Output,
    body: Body,
    index: Spool<'a>,
    records: u64,
    facts: LayerFacts,
    /// Bytes that the unpacker, or the merge, holds in memory for names of this layer.
    remembered_bytes: usize,
    limits: &'a Limits,
}

impl Pass<'_> {
    fn read_all(&mut self, reader: &mut LayerReader<'_>) -> Result<(), LayerError> {
        while let Some(entry) = reader.next_entry()? {
            if entry.kind != Kind::Global {
                self.store(&entry, reader)?;
            }
            reader.set_remembered_bytes(self.remembered_bytes);
            // An entry that creates no file, such as a whiteout, can have a body too.
            reader.drain_body()?;
        }
        self.facts.entries = reader.entries();
        Ok(())
    }

    fn store(&mut self, entry: &Entry, reader: &mut LayerReader<'_>) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let path =
            EntryPath::parse(&entry.path, self.limits).map_err(EntryError::Name).map_err(error)?;
        match Meaning::of(&path).map_err(error)? {
            Meaning::Entry if entry.kind == Kind::File => self.store_file(entry, &path, reader),
            Meaning::Entry => {
                let change = self.bodyless(entry, &path).map_err(error)?;
                self.push(&path, &change).map_err(error)
            }
            Meaning::Hide(hidden) => {
                self.remembered_bytes += hidden.as_bytes().len() + size_of::<EntryPath>();
                self.push(&hidden, &Change::Whiteout).map_err(error)
            }
            Meaning::Opaque(directory) => {
                self.remembered_bytes += directory.as_bytes().len() + size_of::<EntryPath>();
                self.facts.opaque_root |= directory.split().is_none();
                self.push(&directory, &Change::Opaque).map_err(error)
            }
            Meaning::Ignored => Ok(()),
        }
    }

    /// Returns the change that an entry without a body makes.
    fn bodyless(&mut self, entry: &Entry, path: &EntryPath) -> Result<Change, EntryError> {
        if entry.kind == Kind::Directory && path.split().is_none() {
            // An entry for the root changes nothing (decision 0005), so that nothing of it is stored.
            return Ok(Change::Directory(Metadata::default()));
        }
        if entry.kind == Kind::Directory {
            self.remembered_bytes += path.as_bytes().len() + DIRECTORY_BYTES;
            return kept_metadata(entry).map(Change::Directory);
        }
        if path.split().is_none() {
            return Err(EntryError::Root);
        }
        Ok(match entry.kind {
            Kind::Symlink => {
                let target = entry.link.clone();
                if target.is_empty() || target.len() > PATH_BYTES || target.contains(&0) {
                    return Err(EntryError::SymlinkTarget);
                }
                let metadata = Metadata { mode: SYMLINK_MODE, ..kept_metadata(entry)? };
                Change::Symlink { metadata, target }
            }
            Kind::Fifo => Change::Fifo(kept_metadata(entry)?),
            Kind::HardLink => Change::HardLink(
                EntryPath::parse(&entry.link, self.limits).map_err(EntryError::LinkName)?,
            ),
            // The device is not created, but it still replaces an earlier entry and the lower
            // layers' file at its path.
            _ => {
                self.facts.skipped_devices += 1;
                Change::Skipped
            }
        })
    }

    fn store_file(
        &mut self,
        entry: &Entry,
        path: &EntryPath,
        reader: &mut LayerReader<'_>,
    ) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let host = |source| error(failed(source));
        reader.reserve(entry)?;
        if path.split().is_none() {
            return Err(error(EntryError::Root));
        }
        let size_bytes = entry.sparse.as_ref().map_or(entry.size, |map| map.size_bytes);
        let metadata = kept_metadata(entry).map_err(error)?;
        let change = Change::File { metadata, size_bytes, ranges: Vec::new() };
        self.push(path, &change).map_err(error)?;
        let mut hole_bytes = entry.sparse.as_ref().map_or(0, SparseMap::hole_bytes);
        let mut copy = |offset, length| {
            self.body.skip_to(&mut self.output, offset).map_err(host)?;
            reader.read_body(length, |part| {
                // The unpacker counts the same zeros, so that a layer is accepted for both kinds of
                // root or for none.
                let left_out = self.body.write(&mut self.output, part).map_err(host)?;
                hole_bytes += left_out;
                push_ranges(&mut self.index, &mut self.body).map_err(host)?;
                Ok(left_out)
            })
        };
        match &entry.sparse {
            None => copy(0, entry.size)?,
            Some(SparseMap { extents, .. }) => {
                extents.iter().try_for_each(|extent| copy(extent.offset, extent.length))?;
            }
        }
        self.facts.bytes += size_bytes;
        self.facts.hole_bytes += hole_bytes;
        self.body.finish(&mut self.output).map_err(host)?;
        push_ranges(&mut self.index, &mut self.body).map_err(host)?;
        self.index.push(index::encode_end).map_err(host)
    }

    fn push(&mut self, path: &EntryPath, change: &Change) -> Result<(), EntryError> {
        self.records += 1;
        self.index.push(|out| index::encode(path, change, out)).map_err(failed)
    }

    /// Writes index and trailer behind the data.
    fn finish(self) -> io::Result<LayerFacts> {
        let Self { mut output, index, records, facts, .. } = self;
        let data_blocks = output.blocks();
        let (bytes, checksum) = index.finish(&mut output)?;
        let index = IndexFacts { bytes, records, checksum, data_blocks };
        output.write_all(&Trailer { index, facts }.encode())?;
        output.finish()?;
        Ok(facts)
    }
}

/// Moves the complete ranges of a body to the index.
fn push_ranges(index: &mut Spool<'_>, body: &mut Body) -> io::Result<()> {
    body.take_ranges()
        .try_for_each(|range: BlockRange| index.push(|out| index::encode_range(&range, out)))
}

fn failed(source: io::Error) -> EntryError {
    EntryError::Host(HostError::of("write the file of a layer")(source))
}

/// Returns the metadata of an entry, with the attributes that a box can see.
fn kept_metadata(entry: &Entry) -> Result<Metadata, EntryError> {
    let archive::Metadata { mode, uid, gid, mtime: (mtime_s, mtime_ns), xattrs } = &entry.metadata;
    // The kernel allows `user.*` only on regular files and directories (`xattr(7)`), and no ACLs
    // (`system.*`) on symbolic links. The unpacker skips both for all other types.
    let has_all = matches!(entry.kind, Kind::File | Kind::Directory);
    let fits =
        |name: &[u8]| has_all || !(name.starts_with(b"user.") || name.starts_with(b"system."));
    let kept = xattrs.iter().filter(|(name, _)| is_kept(name) && fits(name));
    let checked = kept.map(|(name, value)| match is_storable(name, value) {
        true => Ok((name.clone(), value.clone())),
        false => Err(EntryError::Xattr { name: shown_name(name) }),
    });
    Ok(Metadata {
        // The archive has masked the mode, so that it fits.
        mode: u16::try_from(*mode).unwrap_or_default(),
        uid: *uid,
        gid: *gid,
        mtime_s: *mtime_s,
        mtime_ns: *mtime_ns,
        xattrs: checked.collect::<Result<_, _>>()?,
    })
}

/// Returns whether EROFS and Linux have such an attribute, out of those that are kept.
fn is_storable(name: &[u8], value: &[u8]) -> bool {
    let is_known = match name.strip_prefix(b"system.posix_acl_") {
        Some(kind) => matches!(kind, b"access" | b"default"),
        None => name != b"user.",
    };
    is_known && name.len() <= NAME_BYTES && value.len() <= XATTR_VALUE_BYTES
}

/// The file of a layer, opened for reading.
#[derive(Debug)]
pub(crate) struct LayerFile {
    file: File,
    trailer: Trailer,
}

impl LayerFile {
    /// Opens the file of a layer by its trailer.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is not a whole layer file.
    pub(crate) fn open(file: File) -> Result<Self, IndexError> {
        let file_bytes = file.metadata().map_err(IndexError::Read)?.len();
        let Some(start) = file_bytes.checked_sub(TRAILER_BYTES as u64) else {
            return Err(IndexError::Trailer { field: "size" });
        };
        let mut bytes = [0; TRAILER_BYTES];
        file.read_exact_at(&mut bytes, start).map_err(IndexError::Read)?;
        Ok(Self { trailer: Trailer::decode(&bytes, file_bytes)?, file })
    }

    /// Returns the number of blocks of data at the beginning of the file.
    pub(crate) fn data_blocks(&self) -> u32 {
        self.trailer.index.data_blocks
    }

    /// Returns the size of the data at the beginning of the file.
    pub(crate) fn data_bytes(&self) -> u64 {
        u64::from(self.data_blocks()) * BLOCK_BYTES
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Returns the part of the file at `offset`: the name of the entry whose data are there, and the
    /// kind of the part. Other parts belong to no entry.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or its index is damaged.
    pub(crate) fn part_at(&self, offset: u64) -> Result<(Vec<u8>, &'static str), IndexError> {
        let data_bytes = self.data_bytes();
        if offset >= data_bytes {
            let is_index = offset - data_bytes < self.trailer.index.bytes;
            return Ok((Vec::new(), if is_index { "index" } else { "trailer" }));
        }
        let mut index = self.index()?;
        while let Some(Record { path, change }) = index.next_record()? {
            let Change::File { ranges, .. } = change else { continue };
            let has = |range: &BlockRange| {
                let start = u64::from(range.block);
                (start..start + u64::from(range.blocks)).contains(&(offset / BLOCK_BYTES))
            };
            if ranges.iter().any(has) {
                return Ok((path.as_bytes().to_vec(), "content"));
            }
        }
        Ok((Vec::new(), "content"))
    }

    /// Returns the counts of the layer. Whether its root is opaque is in the index only.
    pub(crate) fn facts(&self) -> LayerFacts {
        self.trailer.facts
    }

    /// Reads the whole index, which verifies its checksum.
    pub(crate) fn check_index(&self) -> Result<(), IndexError> {
        let mut index = self.index()?;
        while index.next_record()?.is_some() {}
        Ok(())
    }

    /// Starts to read the index at its beginning.
    pub(crate) fn index(&self) -> Result<IndexReader<impl Read>, IndexError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data_bytes())).map_err(IndexError::Read)?;
        Ok(IndexReader::new(file, self.trailer.index))
    }
}

#[cfg(test)]
impl LayerFile {
    /// Makes the checksum of the index wrong.
    pub(crate) fn corrupt_checksum(&mut self) {
        self.trailer.index.checksum ^= 1;
    }
}
