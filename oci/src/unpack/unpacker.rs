//! The pass over one layer: each entry of the archive is made in the tree, within the limits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use a3s_box_sys::HostError;

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

/// How a layer is unpacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    /// The layer.
    pub(crate) layer: &'a Layer,
    /// On what.
    pub(crate) base: Base<'a>,
    /// Where overlayfs looks for marks.
    pub(crate) overlay_xattrs: OverlayXattrs,
    /// Bounds on what it may cost.
    pub(crate) limits: &'a Limits,
}

/// Unpacks a layer from `blob` into the directory `root`, and verifies it.
///
/// Directories that something was put into, but that no entry describes, are root's, with mode 0755
/// and the time 0, unless a lower layer has them.
pub(crate) fn unpack(
    blob: Blob,
    job: Job<'_>,
    root: OwnedFd,
    progress: &mut OnProgress<'_>,
) -> Result<(LayerFacts, CrossLayerDependencies), LayerError> {
    let Job { layer, base, overlay_xattrs, limits } = job;
    let mut tree =
        Tree::new(root, base, overlay_xattrs).map_err(|source| entry_error(b"/", source))?;
    if let Base::Lower(dependencies) = base {
        whiteout::clear(&mut tree, dependencies, limits)
            .map_err(|(path, source)| entry_error(path.as_bytes(), source))?;
    }
    let shared = Shared::default();
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
    /// Bytes of files that the archive does not hold, because they are holes.
    hole_bytes: u64,
    limits: &'a Limits,
    meter: Meter<'a>,
    /// Name of the last entry, for errors.
    last: Vec<u8>,
}

impl Unpacker<'_> {
    /// Unpacks all, and waits for the proof.
    fn run(
        mut self,
        stages: Stages<'_, '_>,
        job: Job<'_>,
    ) -> Result<(LayerFacts, CrossLayerDependencies), LayerError> {
        let outcome = self.read_all();
        // An archive that makes no sense is more often a damaged blob than a bad image: then the rest
        // of the blob is read, to say so. Of other errors the blob knows nothing.
        if outcome.as_ref().is_err_and(|error| !error.may_be_damage()) {
            stages.abandon();
        }
        let Self { archive, mut tree, whiteouts, late_links, mut facts, .. } = self;
        // The stages end when nobody takes their bytes.
        drop(archive);
        if let Err(error) = outcome {
            return stages.finish().map_err(LayerError::from).and(Err(error));
        }
        let (expected, found) = (job.layer.diff_id, stages.finish()?);
        if found != expected {
            return Err(LayerError::DiffId { expected, found });
        }
        let error = |(path, source): (EntryPath, EntryError)| entry_error(path.as_bytes(), source);
        late_links.make(&mut tree).map_err(error)?;
        let hides = match job.base {
            Base::Empty => whiteouts.apply(&mut tree).map_err(error)?,
            Base::Lower(_) => Hides::default(),
        };
        facts.opaque_root = hides.root;
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

    /// Unpacks all entries, and reads what follows them.
    fn read_all(&mut self) -> Result<(), LayerError> {
        while let Some(entry) =
            self.archive.next_entry().map_err(|source| self.archive_error(source))?
        {
            self.facts.entries += 1;
            self.check()?;
            self.last.clone_from(&entry.path);
            if entry.kind != Kind::Global {
                match self.unpack_entry(&entry) {
                    Err(LayerError::Entry { source, .. }) if self.tree.is_undecided(&source) => {
                        self.tree.undecided += 1;
                    }
                    outcome => outcome?,
                }
            }
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
            Meaning::Nothing => Ok(()),
        }
    }

    fn unpack_bodyless(&mut self, entry: &Entry, path: EntryPath) -> Result<(), EntryError> {
        match entry.kind {
            Kind::Directory => self.tree.directory(&path, &entry.metadata),
            Kind::Symlink => self.tree.place(&path)?.symlink(&entry.link, &entry.metadata),
            Kind::Fifo => self.tree.place(&path)?.fifo(&entry.metadata),
            Kind::HardLink => {
                let target =
                    EntryPath::parse(&entry.link, self.limits).map_err(EntryError::LinkName)?;
                self.late_links.make_or_keep(&mut self.tree, path, target)
            }
            Kind::Device => {
                self.facts.skipped_devices += 1;
                self.tree.skip(&path)
            }
            Kind::File | Kind::Global => Ok(()),
        }
    }

    fn unpack_file(&mut self, entry: &Entry, path: &EntryPath) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let failed =
            |source: io::Error| error(EntryError::Host(HostError::of("write a file")(source)));
        self.reserve(entry)?;
        let mut file =
            self.tree.place(path).and_then(|place| place.create_file()).map_err(error)?;
        match &entry.sparse {
            None => self.copy_body(&mut file, entry.size, failed)?,
            Some(map) => {
                for extent in &map.extents {
                    file.seek(SeekFrom::Start(extent.offset)).map_err(failed)?;
                    self.copy_body(&mut file, extent.length, failed)?;
                }
                file.set_len(map.size_bytes).map_err(failed)?;
                self.facts.bytes += map.hole_bytes();
            }
        }
        set_file(&file, &entry.metadata).map_err(error)
    }

    /// Checks that a file is within the limits as its headers describe it, before anything is made.
    fn reserve(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let holes = entry.sparse.as_ref().map_or(0, SparseMap::hole_bytes);
        self.hole_bytes = self.hole_bytes.saturating_add(holes);
        let unpacked = self.archive.stream().unpacked_bytes().saturating_add(self.hole_bytes);
        let limit = self.limits.unpacked_bytes;
        match unpacked.saturating_add(entry.size) <= limit {
            true => Ok(()),
            false => Err(LayerError::Limit { what: "unpacked bytes", limit }),
        }
    }

    /// Writes `left` bytes of the current body to where the file stands.
    fn copy_body(
        &mut self,
        file: &mut File,
        mut left: u64,
        failed: impl Fn(io::Error) -> LayerError,
    ) -> Result<(), LayerError> {
        while left > 0 {
            let count = self.use_body(|body| {
                let part = &body[..body.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                file.write_all(part).map_err(&failed)?;
                Ok(part.len())
            })?;
            self.facts.bytes += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// Hands out what is there of the current body, nothing at its end, to `take`, which says how much
    /// of it was used.
    fn use_body(
        &mut self,
        take: impl FnOnce(&[u8]) -> Result<usize, LayerError>,
    ) -> Result<usize, LayerError> {
        let count = match self.archive.fill_buf() {
            Ok(body) => take(body)?,
            Err(error) => return Err(self.archive_error(body_error(error))),
        };
        self.archive.consume(count);
        self.check()?;
        Ok(count)
    }

    /// Reads over a body that nobody wants.
    fn drain_body(&mut self) -> Result<(), LayerError> {
        while self.use_body(|body| Ok(body.len()))? > 0 {}
        Ok(())
    }

    /// Reads what follows the archive's end: it belongs to the `DiffID`, and means nothing.
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
        let within_ratio =
            unpacked <= limits.ratio_floor_bytes || unpacked / limits.ratio.max(1) <= read;
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
        LayerError::Archive { entries: self.facts.entries, last: shown_name(&self.last), source }
    }
}

fn entry_error(entry: &[u8], source: EntryError) -> LayerError {
    LayerError::Entry { entry: shown_name(entry), source }
}
