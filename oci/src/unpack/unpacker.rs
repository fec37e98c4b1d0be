//! Unpacks one layer: creates a file in the tree for each entry of the archive, and enforces the
//! limits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;

use a3s_box_sys::HostError;

use super::body::write_at;
use super::cross_layer::{Base, CrossLayerDependencies};
use super::entry_error::EntryError;
use super::error::LayerError;
use super::facts::LayerFacts;
use super::limits::Limits;
use super::links::LateLinks;
use super::path::EntryPath;
use super::place::set_file;
use super::progress::{Meter, OnProgress};
use super::stream::{LayerStream, Shared, Stages};
use super::tree::Tree;
use super::whiteout::{self, Hides, Meaning, Whiteouts};
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::text::shown_name;
use crate::image::Layer;
use crate::layout::blob::Blob;
use crate::tar::archive::{Archive, ArchiveError, Entry, Kind, body_error};
use crate::tar::sparse::SparseMap;

/// The parameters of unpacking a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    /// The layer.
    pub(crate) layer: &'a Layer,
    /// The tree that it is unpacked on.
    pub(crate) base: Base<'a>,
    /// The extended attributes that mark opaque directories.
    pub(crate) overlay_xattrs: OverlayXattrs,
    /// Limits on its resources.
    pub(crate) limits: &'a Limits,
}

/// Unpacks a layer from `blob` into the directory `root`, and verifies it.
///
/// A parent directory without an entry of its own belongs to root, with mode 0755 and time 0,
/// unless a lower layer has it.
///
/// # Errors
///
/// When the blob, the archive or an entry is malformed, when the digest or the diff ID differs,
/// when a limit is exceeded, or when the host fails. The directory can then hold a part of the
/// layer.
pub(crate) fn unpack(
    blob: Blob,
    job: Job<'_>,
    root: OwnedFd,
    progress: &mut OnProgress<'_>,
) -> Result<(LayerFacts, CrossLayerDependencies), LayerError> {
    let Job { layer, base, overlay_xattrs, limits } = job;
    let mut tree =
        Tree::new(root, base, overlay_xattrs).map_err(|source| entry_error(b"/", source))?;
    if let Base::Lower { dependencies, .. } = base {
        // Whiteouts hide only the files of lower layers. They are applied first, while the view
        // holds no file of this layer.
        whiteout::clear(&mut tree, dependencies, limits)
            .map_err(|(path, source)| entry_error(path.as_bytes(), source))?;
    }
    let shared = Shared::new(limits);
    // The threads borrow `shared`. The scope joins them before it returns, also after an error.
    std::thread::scope(|scope| {
        let (stream, stages) =
            LayerStream::start(scope, blob, layer, &shared).map_err(LayerError::Threads)?;
        let unpacker = Unpacker {
            archive: Archive::new(stream),
            tree,
            whiteouts: Whiteouts::default(),
            late_links: LateLinks::default(),
            facts: LayerFacts::default(),
            hole_bytes: 0,
            zero_bytes: 0,
            limits,
            meter: Meter::new(layer.size_bytes, progress),
            last: Vec::new(),
        };
        unpacker.run(stages, job)
    })
}

/// The work on one layer.
struct Unpacker<'a> {
    archive: Archive<LayerStream<'a>>,
    tree: Tree,
    whiteouts: Whiteouts,
    late_links: LateLinks,
    facts: LayerFacts,
    /// Bytes of holes in sparse files. The archive does not hold them, but the limit counts them.
    hole_bytes: u64,
    /// Bytes of the archive that were not written because they are blocks of zeros.
    zero_bytes: u64,
    limits: &'a Limits,
    meter: Meter<'a>,
    /// Name of the last entry, for errors.
    last: Vec<u8>,
}

impl Unpacker<'_> {
    /// Unpacks all entries, and then checks the digest and the diff ID.
    fn run(
        mut self,
        stages: Stages<'_, '_>,
        job: Job<'_>,
    ) -> Result<(LayerFacts, CrossLayerDependencies), LayerError> {
        let outcome = self.read_all();
        // A malformed archive is more often a damaged blob than a bad image. The rest of the blob
        // is then read, so that the error can name the wrong digest. Other errors do not depend on
        // the blob, and the rest of it is skipped.
        if outcome.as_ref().is_err_and(|error| !error.could_be_damage()) {
            stages.abandon();
        }
        let Self { archive, mut tree, whiteouts, late_links, mut facts, .. } = self;
        // This drops the receiver of the stages, which end because their next send fails.
        drop(archive);
        if let Err(error) = outcome {
            return stages.finish().map_err(LayerError::from).and(Err(error));
        }
        let (expected, found) = (job.layer.diff_id, stages.finish()?);
        if found != expected {
            return Err(LayerError::DiffId { expected, found });
        }
        let error = |(path, source): (EntryPath, EntryError)| entry_error(path.as_bytes(), source);
        // Links are created before whiteouts, because the device node of a whiteout must not take
        // the name of a link of this layer.
        late_links.make(&mut tree).map_err(error)?;
        let hides = match job.base {
            Base::Empty => whiteouts.apply(&mut tree).map_err(error)?,
            // `whiteout::clear` has removed the hidden files from the view before the first entry.
            Base::Lower { .. } => Hides::default(),
        };
        facts.opaque_root = hides.root;
        facts.skipped_devices = tree.skipped_devices;
        let dependencies = tree.finish().map_err(|source| entry_error(b"/", source))?;
        let paths = |set: BTreeSet<EntryPath>| set.iter().map(EntryPath::to_path).collect();
        Ok((
            facts,
            CrossLayerDependencies {
                hidden: paths(hides.hidden),
                opaque: paths(hides.opaque),
                ..dependencies
            },
        ))
    }

    /// Unpacks all entries, and reads the stream to its end.
    fn read_all(&mut self) -> Result<(), LayerError> {
        while let Some(entry) =
            self.archive.next_entry().map_err(|source| self.archive_error(source))?
        {
            self.facts.entries += 1;
            // The limits are checked before the entry takes an inode.
            self.check()?;
            self.last.clone_from(&entry.path);
            if entry.kind != Kind::Global {
                match self.unpack_entry(&entry) {
                    // The error is only counted, because a lower layer can make the entry valid. If
                    // none does, the second pass on top of the lower layers returns the error.
                    Err(LayerError::Entry { source, .. }) if self.tree.is_undecided(&source) => {
                        self.tree.undecided += 1;
                    }
                    outcome => outcome?,
                }
            }
            // An entry that creates no file, such as a whiteout, can have a body too.
            self.drain_body()?;
        }
        self.drain_stream()
    }

    fn unpack_entry(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let path =
            EntryPath::parse(&entry.path, self.limits).map_err(EntryError::Name).map_err(error)?;
        match Meaning::of(&path).map_err(error)? {
            Meaning::Entry if entry.kind == Kind::File => self.unpack_file(entry, &path),
            Meaning::Entry => self.unpack_bodyless(entry, path).map_err(error),
            Meaning::Hide(hidden) => {
                self.whiteouts.hide(hidden);
                Ok(())
            }
            Meaning::Opaque(directory) => {
                self.whiteouts.set_opaque(directory);
                Ok(())
            }
            Meaning::Ignored => Ok(()),
        }
    }

    fn unpack_bodyless(&mut self, entry: &Entry, path: EntryPath) -> Result<(), EntryError> {
        match entry.kind {
            Kind::Directory => self.tree.directory(&path, &entry.metadata),
            Kind::Symlink => self.tree.place_for(&path)?.symlink(&entry.link, &entry.metadata),
            Kind::Fifo => self.tree.place_for(&path)?.fifo(&entry.metadata),
            Kind::HardLink => {
                let target =
                    EntryPath::parse(&entry.link, self.limits).map_err(EntryError::LinkName)?;
                self.late_links.make_or_keep(&mut self.tree, path, target)
            }
            // The device is not created, but it still replaces an earlier entry and the lower
            // layers' file at its path.
            Kind::Device => self.tree.skip_device(&path),
            Kind::File | Kind::Global => Ok(()),
        }
    }

    fn unpack_file(&mut self, entry: &Entry, path: &EntryPath) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let failed =
            |source: io::Error| error(EntryError::Host(HostError::of("write a file")(source)));
        self.reserve(entry)?;
        let file =
            self.tree.place_for(path).and_then(|place| place.create_file()).map_err(error)?;
        let zero_bytes = self.zero_bytes;
        let mut size_bytes = entry.size;
        match &entry.sparse {
            None => self.copy_body(&file, 0, entry.size, failed)?,
            Some(map) => {
                for extent in &map.extents {
                    self.copy_body(&file, extent.offset, extent.length, failed)?;
                }
                size_bytes = map.size_bytes;
                self.facts.bytes += map.hole_bytes();
            }
        }
        let zero_bytes = self.zero_bytes - zero_bytes;
        // A hole at the end of the file has no data after it, so the size is set explicitly.
        if zero_bytes > 0 || entry.sparse.is_some() {
            file.set_len(size_bytes).map_err(failed)?;
        }
        let holes = entry.sparse.as_ref().map_or(0, SparseMap::hole_bytes);
        self.facts.hole_bytes += zero_bytes + holes;
        set_file(&file, &entry.metadata).map_err(error)
    }

    /// Checks the size of a file in its headers against the limits before the file is created.
    fn reserve(&mut self, entry: &Entry) -> Result<(), LayerError> {
        // A header of a few bytes can declare a body or holes of any size. The sums saturate, so
        // that an overflow exceeds the limit instead of wrapping below it.
        let holes = entry.sparse.as_ref().map_or(0, SparseMap::hole_bytes);
        self.hole_bytes = self.hole_bytes.saturating_add(holes);
        let unpacked = self.archive.stream().unpacked_bytes().saturating_add(self.hole_bytes);
        let limit = self.limits.unpacked_bytes;
        match unpacked.saturating_add(entry.size) <= limit {
            true => Ok(()),
            false => Err(LayerError::Limit { what: "unpacked bytes", limit }),
        }
    }

    /// Writes the next `left` bytes of the current body at `offset` of a file.
    fn copy_body(
        &mut self,
        file: &File,
        mut offset: u64,
        mut left: u64,
        failed: impl Fn(io::Error) -> LayerError,
    ) -> Result<(), LayerError> {
        while left > 0 {
            let count = self.use_body(|body| {
                let part = &body[..body.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                Ok((part.len(), write_at(file, part, offset).map_err(&failed)?))
            })?;
            self.facts.bytes += count as u64;
            offset += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// Passes the buffered bytes of the current body to `take`, which returns the number of bytes
    /// that it used, and how many of them it did not write because they are zeros. The buffer is
    /// empty at the end of the body.
    fn use_body(
        &mut self,
        take: impl FnOnce(&[u8]) -> Result<(usize, u64), LayerError>,
    ) -> Result<usize, LayerError> {
        let (count, zero_bytes) = match self.archive.fill_buf() {
            Ok(body) => take(body)?,
            Err(error) => return Err(self.archive_error(body_error(error))),
        };
        self.archive.consume(count);
        self.zero_bytes += zero_bytes;
        self.check()?;
        Ok(count)
    }

    /// Reads the rest of the current body, which is not used.
    fn drain_body(&mut self) -> Result<(), LayerError> {
        while self.use_body(|body| Ok((body.len(), 0)))? > 0 {}
        Ok(())
    }

    /// Reads the bytes after the end of the archive. They are ignored, but the diff ID covers them.
    fn drain_stream(&mut self) -> Result<(), LayerError> {
        loop {
            let count = match self.archive.stream_mut().fill_buf() {
                Ok(bytes) => bytes.len(),
                Err(error) => return Err(self.archive_error(ArchiveError::Read(error))),
            };
            if count == 0 {
                return Ok(());
            }
            self.archive.stream_mut().consume(count);
            self.check()?;
        }
    }

    /// Checks the limits and reports progress.
    fn check(&mut self) -> Result<(), LayerError> {
        let (read, unpacked) =
            (self.archive.stream().compressed_bytes(), self.archive.stream().unpacked_bytes());
        let remembered = self.tree.remembered_bytes()
            + self.whiteouts.remembered_bytes()
            + self.late_links.remembered_bytes();
        let limits = self.limits;
        // Zeros that became holes cost neither disk space nor time to write.
        let costly = unpacked.saturating_sub(self.zero_bytes);
        // A division cannot overflow, unlike the product of the bytes read and the ratio.
        let within_ratio =
            costly <= limits.ratio_floor_bytes || costly / limits.ratio.max(1) <= read;
        let bounds = [
            ("entries", limits.entries, self.facts.entries <= limits.entries),
            (
                "unpacked bytes",
                limits.unpacked_bytes,
                unpacked.saturating_add(self.hole_bytes) <= limits.unpacked_bytes,
            ),
            (
                "bytes of directory names and whiteouts",
                limits.remembered_bytes as u64,
                remembered <= limits.remembered_bytes,
            ),
            ("unpacked bytes for each compressed byte", limits.ratio, within_ratio),
        ];
        if let Some((what, limit, _)) = bounds.into_iter().find(|(_, _, kept)| !kept) {
            return Err(LayerError::Limit { what, limit });
        }
        self.meter.report(read, unpacked, self.facts.entries)
    }

    fn archive_error(&self, source: ArchiveError) -> LayerError {
        // The stream returns the error of the decoder as an I/O error.
        if let ArchiveError::Read(error) = &source
            && let Some(window) = error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            return LayerError::Window(*window);
        }
        LayerError::Archive { entries: self.facts.entries, last: shown_name(&self.last), source }
    }
}

fn entry_error(entry: &[u8], source: EntryError) -> LayerError {
    LayerError::Entry { entry: shown_name(entry), source }
}
