//! Unpacking of one layer: one pass over the blob that verifies it while it is written.
//!
//! ```text
//! stream    bytes of the blob, decompressed on other threads; size, digest and DiffID
//! archive   headers, pax, sparse  entries of the tar stream
//! path      names made safe       whiteout   names that hide
//! tree      the file system       place      one name in it       links    hard links
//! mapped    the owners that there can be
//! remove    undoing a tree
//! dependencies     what a layer leaves to those below it
//! ```
//!
//! What is written is not to be used before [`unpack`] has returned: only then has the layer been
//! proved to be the one that the image means. Unpacking needs root, as it makes files of other
//! owners and whiteouts.

mod archive;
mod cross_layer;
mod gzip;
mod limits;
mod links;
mod mapped;
mod path;
mod pax;
mod place;
mod remove;
mod sparse;
mod stream;
mod tree;
mod whiteout;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

pub use archive::ArchiveError;
pub(crate) use cross_layer::{Base, CrossLayerDependencies};
pub use limits::Limits;
pub use mapped::MappedIds;
pub use path::PathError;
pub use pax::PaxError;
pub(crate) use place::is_opaque;
pub use remove::remove_path;
pub(crate) use remove::remove_tree;
pub use sparse::SparseError;
pub use tree::EntryError;

use archive::{Archive, Entry, Kind, body_error};
use path::EntryPath;
use place::set_file;
use sparse::SparseMap;
use stream::{LayerStream, Shared, Stages};
use tree::Tree;
use whiteout::{Hides, Meaning, Whiteouts};

use crate::blob::{Blob, BlobError};
use crate::digest::Digest;
use crate::image::Layer;
use crate::mount::OverlayXattrs;

/// Uncompressed bytes between two calls of the progress function: some milliseconds of work.
const REPORT_BYTES: u64 = 4 << 20;

/// Entries between two calls of the progress function: some milliseconds of work.
const REPORT_ENTRIES: u64 = 512;

/// How far the work on a layer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The layer was in the cache.
    Cached,
    /// Another process is unpacking the same layer.
    Waiting,
    /// The layer is being unpacked.
    Unpacking {
        /// Bytes of the blob that have been read.
        read_bytes: u64,
        /// Size of the blob.
        size_bytes: u64,
        /// Entries that have been made.
        entries: u64,
    },
    /// The layer is complete and verified.
    Publishing,
    /// The layer is being unpacked once more, on top of those below it.
    OnTop,
}

/// Is told how far the work has come, and may end it.
pub(crate) type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// What is known about a layer that has been unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerFacts {
    /// Bytes in regular files.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Device nodes, which are not made: a box has its own `/dev`, and the host must not have an
    /// image's.
    pub skipped_devices: u64,
    /// The layer hides all layers below it.
    pub opaque_root: bool,
}

/// A layer that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob is not what its descriptor says.
    #[error("the layer's blob cannot be used")]
    Blob(#[from] BlobError),
    /// The archive in the blob is not the one that the configuration means.
    #[error("DiffID mismatch: expected `{expected}`, found `{found}`")]
    DiffId {
        /// The `DiffID` in the image's configuration.
        expected: Digest,
        /// The digest of the archive.
        found: Digest,
    },
    /// The archive cannot be read.
    #[error("the archive is malformed after {entries} entries, the last of them `{last}`")]
    Archive {
        /// Entries before the error.
        entries: u64,
        /// Name of the last entry before the error.
        last: String,
        /// What is wrong.
        source: ArchiveError,
    },
    /// An entry cannot be made.
    #[error("cannot unpack entry `{entry}`")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// What is wrong.
        source: EntryError,
    },
    /// The layer costs too much.
    #[error("the layer exceeds the limit on {what}: expected at most {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The system gives no more threads.
    #[error("cannot start the threads that unpack a layer")]
    Threads(#[source] io::Error),
    /// The progress function asked for the end.
    #[error("unpacking was cancelled")]
    Cancelled,
}

impl LayerError {
    /// Says whether a damaged blob could have caused the error.
    fn may_be_damage(&self) -> bool {
        match self {
            Self::Archive { .. } => true,
            Self::Entry { source, .. } => !source.is_of_host(),
            Self::Blob(_)
            | Self::DiffId { .. }
            | Self::Limit { .. }
            | Self::Threads(_)
            | Self::Cancelled => false,
        }
    }
}

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
            facts: LayerFacts::default(),
            hole_bytes: 0,
            limits,
            meter: Meter { size_bytes: layer.size_bytes, next_bytes: 0, next_entries: 0, progress },
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
    facts: LayerFacts,
    /// Bytes of files that the archive does not hold, because they are holes.
    hole_bytes: u64,
    limits: &'a Limits,
    meter: Meter<'a>,
    /// Name of the last entry, for errors.
    last: Vec<u8>,
}

/// The calls of the progress function.
struct Meter<'a> {
    size_bytes: u64,
    next_bytes: u64,
    next_entries: u64,
    progress: &'a mut OnProgress<'a>,
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
        let Self { archive, mut tree, whiteouts, mut facts, .. } = self;
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
        tree.make_late_links().map_err(error)?;
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
                self.tree.hard_link(path, target)
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
        let failed = |source| error(EntryError::System { operation: "write a file", source });
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
        let remembered = self.tree.remembered_bytes() + self.whiteouts.remembered_bytes();
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
        LayerError::Archive { entries: self.facts.entries, last: show(&self.last), source }
    }
}

impl Meter<'_> {
    fn report(
        &mut self,
        read_bytes: u64,
        unpacked_bytes: u64,
        entries: u64,
    ) -> Result<(), LayerError> {
        if unpacked_bytes < self.next_bytes && entries < self.next_entries {
            return Ok(());
        }
        self.next_bytes = unpacked_bytes + REPORT_BYTES;
        self.next_entries = entries + REPORT_ENTRIES;
        match (self.progress)(Progress::Unpacking {
            read_bytes,
            size_bytes: self.size_bytes,
            entries,
        }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(LayerError::Cancelled),
        }
    }
}

fn entry_error(entry: &[u8], source: EntryError) -> LayerError {
    LayerError::Entry { entry: show(entry), source }
}

/// Makes a name printable: no control characters, no endless line.
fn show(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(name);
    let shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() { shown + "…" } else { shown }
}
