//! Unpacks one layer: creates a file in the tree for each entry of the archive.

use std::collections::BTreeSet;
use std::io;
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
use super::reader::{LayerReader, entry_error, read_layer};
use super::tree::Tree;
use super::whiteout::{self, Hides, Meaning, Whiteouts};
use crate::host::overlay_xattr::OverlayXattrs;
use crate::image::Layer;
use crate::layout::blob::Blob;
use crate::tar::archive::{Entry, Kind};
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
    let mut tree = Tree::new(root, base, overlay_xattrs, limits.steps)
        .map_err(|source| entry_error(b"/", source))?;
    if let Base::Lower { dependencies, .. } = base {
        // Whiteouts hide only the files of lower layers. They are applied first, while the view
        // holds no file of this layer.
        let meter = &mut Meter::new(layer.size_bytes, progress);
        whiteout::clear(&mut tree, dependencies, limits, meter)?;
    }
    let mut unpacker = Unpacker {
        tree,
        whiteouts: Whiteouts::default(),
        late_links: LateLinks::default(),
        facts: LayerFacts::default(),
        limits,
    };
    read_layer(blob, layer, limits, progress, |reader| unpacker.read_all(reader))?;
    let entries = unpacker.facts.entries;
    unpacker.finish(base, &mut Meter::at_end(layer.size_bytes, entries, progress))
}

/// The work on one layer.
struct Unpacker<'a> {
    tree: Tree,
    whiteouts: Whiteouts,
    late_links: LateLinks,
    facts: LayerFacts,
    limits: &'a Limits,
}

impl Unpacker<'_> {
    /// Unpacks all entries.
    fn read_all(&mut self, reader: &mut LayerReader<'_>) -> Result<(), LayerError> {
        while let Some(entry) = reader.next_entry()? {
            self.tree.steps.next_entry();
            if entry.kind != Kind::Global {
                match self.unpack_entry(&entry, reader) {
                    // The error is only counted, because a lower layer can make the entry valid. If
                    // none does, the second pass on top of the lower layers returns the error.
                    Err(LayerError::Entry { source, .. }) if self.tree.is_undecided(&source) => {
                        self.tree.undecided += 1;
                    }
                    outcome => outcome?,
                }
            }
            reader.set_remembered_bytes(self.remembered_bytes());
            // An entry that creates no file, such as a whiteout, can have a body too.
            reader.drain_body()?;
        }
        self.facts.entries = reader.entries();
        Ok(())
    }

    /// Creates what must wait for the other entries, after the layer has been verified.
    fn finish(
        self,
        base: Base<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<(LayerFacts, CrossLayerDependencies), LayerError> {
        let Self { mut tree, whiteouts, late_links, mut facts, .. } = self;
        // Links are created before whiteouts, because the device node of a whiteout must not take
        // the name of a link of this layer.
        late_links.make(&mut tree, meter)?;
        let hides = match base {
            Base::Empty => whiteouts.apply(&mut tree, meter)?,
            // `whiteout::clear` has removed the hidden files from the view before the first entry.
            Base::Lower { .. } => Hides::default(),
        };
        facts.opaque_root = hides.root;
        facts.skipped_devices = tree.skipped_devices;
        let dependencies = tree.finish(meter)?;
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

    /// Returns the bytes of memory that are held until the end of the layer.
    fn remembered_bytes(&self) -> usize {
        self.tree.remembered_bytes()
            + self.whiteouts.remembered_bytes()
            + self.late_links.remembered_bytes()
    }

    fn unpack_entry(
        &mut self,
        entry: &Entry,
        reader: &mut LayerReader<'_>,
    ) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let path =
            EntryPath::parse(&entry.path, self.limits).map_err(EntryError::Name).map_err(error)?;
        match Meaning::of(&path).map_err(error)? {
            Meaning::Entry if entry.kind == Kind::File => self.unpack_file(entry, &path, reader),
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

    fn unpack_file(
        &mut self,
        entry: &Entry,
        path: &EntryPath,
        reader: &mut LayerReader<'_>,
    ) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let failed =
            |source: io::Error| error(EntryError::Host(HostError::of("write a file")(source)));
        reader.reserve(entry)?;
        let file =
            self.tree.place_for(path).and_then(|place| place.create_file()).map_err(error)?;
        reader.set_remembered_bytes(self.remembered_bytes());
        let mut zero_bytes = 0;
        let mut copy = |mut offset, length| {
            reader.read_body(length, |part| {
                let left_out = write_at(&file, part, offset).map_err(failed)?;
                offset += part.len() as u64;
                zero_bytes += left_out;
                Ok(left_out)
            })
        };
        let size_bytes = match &entry.sparse {
            None => copy(0, entry.size).map(|()| entry.size)?,
            Some(map) => {
                map.extents.iter().try_for_each(|extent| copy(extent.offset, extent.length))?;
                map.size_bytes
            }
        };
        // A hole at the end of the file has no data after it, so the size is set explicitly.
        if zero_bytes > 0 || entry.sparse.is_some() {
            file.set_len(size_bytes).map_err(failed)?;
        }
        self.facts.bytes += size_bytes;
        self.facts.hole_bytes +=
            zero_bytes + entry.sparse.as_ref().map_or(0, SparseMap::hole_bytes);
        set_file(&file, &entry.metadata).map_err(error)
    }
}
