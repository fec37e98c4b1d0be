//! Unpacks an archive of an untrusted box into a directory of the host.
//!
//! This is the unpacking of layers without what belongs to layers: there are no whiteouts, no
//! digest and no compression, and the files become the caller's own. The paths, links and limits
//! are checked by the same code.

use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use a3s_box_sys::HostError;
use nix::unistd::{getegid, geteuid};

use super::body::write_at;
use super::entry_error::EntryError;
use super::error::LayerError;
use super::limits::Limits;
use super::links::LateLinks;
use super::path::EntryPath;
use super::place::set_file;
use super::progress::Meter;
use super::reader::entry_error;
use super::tree::Tree;
use crate::host::text::shown_name;
use crate::tar::archive::{Archive, ArchiveError, Entry, Kind, Metadata, body_error};

/// Permissions that a file keeps. The bits set-user-id and set-group-id would let a program of the
/// box run as the caller.
const KEPT_MODE: u32 = 0o777;

/// Permissions that the caller always has on a directory, to unpack and to remove what is in it.
const OWN_DIR_MODE: u32 = 0o700;

/// The figures of an unpacked archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of the content of files, with their holes.
    pub bytes: u64,
    /// Number of devices and named pipes, and of hard links to them, which were left out.
    pub skipped: u64,
}

/// Unpacks an archive into an empty directory.
///
/// All files belong to the user and group of this process. They keep their permissions without
/// set-user-id, set-group-id and sticky bits, and the times of their last modification. Extended
/// attributes, devices and named pipes are left out. Symbolic links are made as they are, and never
/// followed out of the directory.
///
/// Of `limits`, those on compression have no effect.
///
/// # Errors
///
/// When the archive or an entry is malformed, when a limit is exceeded, or when the host fails. The
/// directory can then hold a part of the archive.
pub fn unpack_untrusted(
    stream: impl BufRead,
    directory: OwnedFd,
    limits: &Limits,
) -> Result<Unpacked, LayerError> {
    let owner = (geteuid().as_raw(), getegid().as_raw());
    let tree = Tree::of_whole_archive(directory, limits.steps, owner)
        .map_err(|source| entry_error(b"/", source))?;
    let archive = Archive::new(Counted { stream, bytes: 0 });
    let late_links = LateLinks::default();
    let unpacked = Unpacked::default();
    Unpacker { tree, archive, late_links, unpacked, owner, limits, last: Vec::new() }.run()
}

/// Counts the bytes that are read from a stream.
struct Counted<R> {
    stream: R,
    bytes: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.stream.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.bytes += count as u64;
    }
}

struct Unpacker<'a, R> {
    tree: Tree,
    archive: Archive<Counted<R>>,
    late_links: LateLinks,
    unpacked: Unpacked,
    owner: (u32, u32),
    limits: &'a Limits,
    /// Name of the last entry, for errors.
    last: Vec<u8>,
}

impl<R: BufRead> Unpacker<'_, R> {
    fn run(mut self) -> Result<Unpacked, LayerError> {
        while let Some(entry) =
            self.archive.next_entry().map_err(|error| self.archive_error(error))?
        {
            self.unpacked.entries += 1;
            self.last.clone_from(&entry.path);
            self.tree.steps.next_entry();
            self.check()?;
            if entry.kind != Kind::Global {
                self.unpack_entry(&entry)?;
            }
            // An entry that is no file can have a body, too.
            while self.take_body(usize::MAX, |_part| Ok(()))? > 0 {}
        }
        let progress = &mut |_progress| ControlFlow::Continue(());
        let meter = &mut Meter::new(0, progress);
        self.late_links.make(&mut self.tree, meter)?;
        self.unpacked.skipped += self.tree.skipped_devices;
        self.tree.finish(meter)?;
        Ok(self.unpacked)
    }

    fn unpack_entry(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let path =
            EntryPath::parse(&entry.path, self.limits).map_err(EntryError::Name).map_err(error)?;
        let metadata = self.own_metadata(entry);
        if entry.kind == Kind::File {
            return self.unpack_file(entry, &path, &metadata);
        }
        self.unpack_bodyless(entry, path, &metadata).map_err(error)
    }

    fn unpack_bodyless(
        &mut self,
        entry: &Entry,
        path: EntryPath,
        metadata: &Metadata,
    ) -> Result<(), EntryError> {
        match entry.kind {
            Kind::Directory => self.tree.directory(&path, metadata),
            Kind::Symlink => self.tree.place_for(&path)?.symlink(&entry.link, metadata),
            Kind::HardLink => {
                let target =
                    EntryPath::parse(&entry.link, self.limits).map_err(EntryError::LinkName)?;
                self.late_links.make_or_keep(&mut self.tree, path, target)
            }
            // A reader of a named pipe would wait for a writer, which the host does not have.
            Kind::Device | Kind::Fifo => self.tree.skip_device(&path),
            Kind::File | Kind::Global => Ok(()),
        }
    }

    fn unpack_file(
        &mut self,
        entry: &Entry,
        path: &EntryPath,
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        let error = |source| entry_error(&entry.path, source);
        let failed =
            |source: io::Error| error(EntryError::Host(HostError::of("write a file")(source)));
        let size_bytes = entry.sparse.as_ref().map_or(entry.size, |map| map.size_bytes);
        // A header of a few bytes can declare any size. It is checked before the file takes space.
        self.unpacked.bytes = self.unpacked.bytes.saturating_add(size_bytes);
        self.check()?;
        let file =
            self.tree.place_for(path).and_then(|place| place.create_file()).map_err(error)?;
        let parts = match &entry.sparse {
            None => vec![(0, entry.size)],
            Some(map) => map.extents.iter().map(|part| (part.offset, part.length)).collect(),
        };
        for (mut offset, mut left) in parts {
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let count = self.take_body(most, |part| {
                    write_at(&file, part, offset).map(drop).map_err(failed)
                })?;
                if count == 0 {
                    return Err(self.archive_error(ArchiveError::Truncated));
                }
                left -= count as u64;
                offset += count as u64;
            }
        }
        // A hole at the end of the file has no data after it.
        file.set_len(size_bytes).map_err(failed)?;
        set_file(&file, metadata).map_err(error)
    }

    /// Returns the metadata of an entry as a file of the caller.
    fn own_metadata(&self, entry: &Entry) -> Metadata {
        let (uid, gid) = self.owner;
        let own = if entry.kind == Kind::Directory { OWN_DIR_MODE } else { 0 };
        let mode = entry.metadata.mode & KEPT_MODE | own;
        Metadata { mode, uid, gid, mtime: entry.metadata.mtime, xattrs: Vec::new() }
    }

    /// Passes at most `most` buffered bytes of the current body to `take`. Returns their number,
    /// which is 0 at the end of the body.
    fn take_body(
        &mut self,
        most: usize,
        take: impl FnOnce(&[u8]) -> Result<(), LayerError>,
    ) -> Result<usize, LayerError> {
        let count = match self.archive.fill_buf() {
            Ok(body) => {
                let part = &body[..body.len().min(most)];
                take(part)?;
                part.len()
            }
            Err(error) => return Err(self.archive_error(body_error(error))),
        };
        self.archive.consume(count);
        self.check()?;
        Ok(count)
    }

    fn check(&self) -> Result<(), LayerError> {
        let Limits { entries, unpacked_bytes, remembered_bytes, .. } = *self.limits;
        let remembered = self.tree.remembered_bytes() + self.late_links.remembered_bytes();
        // The stream has headers, too, and the files have holes. Each of them has the limit.
        let bytes = self.archive.stream().bytes.max(self.unpacked.bytes);
        let bounds = [
            ("entries", entries, self.unpacked.entries),
            ("unpacked bytes", unpacked_bytes, bytes),
            ("bytes of directory names", remembered_bytes as u64, remembered as u64),
        ];
        match bounds.into_iter().find(|(_, limit, found)| found > limit) {
            Some((what, limit, _)) => Err(LayerError::Limit { what, limit }),
            None => Ok(()),
        }
    }

    fn archive_error(&self, source: ArchiveError) -> LayerError {
        let entries = self.unpacked.entries;
        LayerError::Archive { entries, last: shown_name(&self.last), source }
    }
}
