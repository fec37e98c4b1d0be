//! Unpacks a tar archive into a directory of the guest.
//!
//! A name of the archive is resolved below the directory without any symbolic link
//! (`RESOLVE_NO_SYMLINKS`), whether the link was there before or comes from the archive. The files
//! of the workload can change meanwhile; the kernel then returns an error, and nothing outside
//! changes.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use a3s_box_proto::files::{UnpackRequest, UnpackResponse, UnpackStart, unpack_request};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, Header};

use super::channel::{CHUNK_BYTES, Channel};
use super::content::check_finish;
use super::extended::Extended;
use super::failure::{FileError, Outcome, failed, invalid, io_failed, malformed};
use super::scope::{MODE_BITS, Root, check, open_by};

/// Maximum memory for the names of directories, whose times are set last. The times of further
/// directories are not set.
const TIME_BYTES: usize = 16 << 20;

/// Memory of a directory's time, beyond the bytes of its name.
const TIME_COST: usize = 64;

/// Permissions of a file whose owner does not come from the archive: a program that is set-user-id
/// for one user must not become one for another.
const OWN_MODE_BITS: u32 = 0o1777;

/// Receives an archive and unpacks it.
pub(super) fn unpack(channel: &mut Channel) -> Outcome<()> {
    let Some(unpack_request::Message::Start(start)) = channel.receive::<UnpackRequest>()?.message
    else {
        return Err(FileError::invalid(b"", "expected `start` as the first message"));
    };
    let UnpackStart { scope, path, keep_owners } = start;
    let root = Root::enter(scope)?;
    let directory = root.open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
    let stream_error = Rc::new(RefCell::new(None));
    let received = Received {
        channel,
        data: Vec::new(),
        used: 0,
        bytes: 0,
        is_finished: false,
        error: Rc::clone(&stream_error),
    };
    let mut archive = Archive::new(received);
    let mut unpacker =
        Unpacker { directory, keep_owners, times: Vec::new(), time_bytes: 0, entries: 0, bytes: 0 };
    let outcome = unpacker.read_all(&mut archive);
    // An error of the stream appears as an error of the archive, but is the cause of it.
    if let Some(error) = stream_error.borrow_mut().take() {
        return Err(error);
    }
    outcome?;
    let mut received = archive.into_inner();
    if let Err(error) = io::copy(&mut received, &mut io::sink()) {
        return Err(stream_error.borrow_mut().take().unwrap_or_else(|| malformed(b"", &error)));
    }
    unpacker.set_directory_times()?;
    let Unpacker { entries, bytes, .. } = unpacker;
    received.channel.send(&UnpackResponse { entries, bytes })
}

/// The archive as it comes through the channel.
struct Received<'a> {
    channel: &'a mut Channel,
    data: Vec<u8>,
    /// Number of bytes of `data` that were read.
    used: usize,
    /// Number of bytes that were received.
    bytes: u64,
    is_finished: bool,
    error: Rc<RefCell<Option<FileError>>>,
}

impl Received<'_> {
    fn next_message(&mut self) -> Outcome<()> {
        match self.channel.receive::<UnpackRequest>()?.message {
            Some(unpack_request::Message::Data(data)) => {
                self.bytes += data.len() as u64;
                (self.data, self.used) = (data, 0);
                Ok(())
            }
            Some(unpack_request::Message::Finish(finish)) => {
                check_finish(finish, self.bytes)?;
                self.is_finished = true;
                Ok(())
            }
            Some(unpack_request::Message::Start(_)) | None => {
                Err(FileError::invalid(b"", "expected `data` or `finish`"))
            }
        }
    }
}

impl Read for Received<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.data.len() {
            if self.is_finished {
                return Ok(0);
            }
            if let Err(error) = self.next_message() {
                self.is_finished = true;
                *self.error.borrow_mut() = Some(error);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        let rest = &self.data[self.used..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.used += count;
        Ok(count)
    }
}

/// The metadata of an entry.
#[derive(Debug)]
struct Metadata {
    mode: u32,
    owner: Option<(u32, u32)>,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

struct Unpacker {
    directory: OwnedFd,
    keep_owners: bool,
    times: Vec<(Vec<u8>, Timespec)>,
    time_bytes: usize,
    entries: u64,
    bytes: u64,
}

impl Unpacker {
    fn read_all(&mut self, archive: &mut Archive<Received<'_>>) -> Outcome<()> {
        let entries = archive.entries().map_err(|error| malformed(b"", &error))?.raw(true);
        let mut extended = Extended::default();
        for entry in entries {
            let mut entry = entry.map_err(|error| malformed(b"", &error))?;
            if extended.read(&mut entry)? {
                continue;
            }
            self.unpack_entry(&mut entry, std::mem::take(&mut extended))?;
            self.entries += 1;
        }
        Ok(())
    }

    fn unpack_entry(
        &mut self,
        entry: &mut Entry<'_, Received<'_>>,
        extended: Extended,
    ) -> Outcome<()> {
        let header = entry.header();
        let raw = extended.path.clone().unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extended.link.clone().or_else(|| header.link_name_bytes().map(Cow::into_owned));
        let name = relative(&raw)?;
        let name = name.as_slice();
        if extended.size.is_some_and(|size| size != entry.size()) {
            return Err(invalid(
                name,
                "the size in the pax header differs from that in the header",
            ));
        }
        let metadata = self.metadata_of(header, name, extended)?;
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory {
            return self.directory(name, &metadata);
        }
        let (above, last) = split(name);
        if last.is_empty() {
            return Err(invalid(name, "only a directory can have this name"));
        }
        let parent = self.parent(above)?;
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let file = create_file(&parent, last, name)?;
                self.fill(entry, file, name, &metadata)
            }
            EntryType::Symlink => {
                let link = link_target(link, name)?;
                create(&parent, last, name, || symlinkat(link.as_slice(), &parent, last))?;
                set_special(&parent, last, name, &metadata)
            }
            EntryType::Link => {
                let link = relative(&link_target(link, name)?)?;
                let (above, target) = split(&link);
                let from = self.open_beneath(above).map_err(failed("open the target of", name))?;
                // Without AT_SYMLINK_FOLLOW, a link itself gets the new name.
                create(&parent, last, name, || {
                    linkat(&from, target, &parent, last, AtFlags::empty())
                })
            }
            EntryType::Fifo => {
                // The mode is exact, because the umask of this process is 0.
                let mode = Mode::from_bits_truncate(metadata.mode);
                create(&parent, last, name, || mknodat(&parent, last, FileType::Fifo, mode, 0))?;
                set_special(&parent, last, name, &metadata)
            }
            _ => Err(invalid(
                name,
                "expected a file, a directory, a link or a named pipe, found another type",
            )),
        }
    }

    fn metadata_of(&self, header: &Header, name: &[u8], extended: Extended) -> Outcome<Metadata> {
        let field = |error: io::Error| malformed(name, &error);
        let seconds = i64::try_from(header.mtime().map_err(field)?).unwrap_or(i64::MAX);
        let mtime = extended.mtime.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 });
        let id = |extended: Option<u64>, header: io::Result<u64>| {
            let id = extended.map_or_else(|| header.map_err(field), Ok)?;
            // The kernel reads -1 as "no change", which is no id.
            let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| invalid(name, "expected owners below 4294967295"))
        };
        let owner = match self.keep_owners {
            true => Some((id(extended.uid, header.uid())?, id(extended.gid, header.gid())?)),
            false => None,
        };
        let bits = if self.keep_owners { MODE_BITS } else { OWN_MODE_BITS };
        let mode = header.mode().map_err(field)? & bits;
        Ok(Metadata { mode, owner, mtime, xattrs: extended.xattrs })
    }

    /// Makes a directory, or sets the metadata of an existing one. The destination itself keeps its
    /// metadata.
    fn directory(&mut self, name: &[u8], metadata: &Metadata) -> Outcome<()> {
        if name.is_empty() {
            return Ok(());
        }
        let (above, last) = split(name);
        let parent = self.parent(above)?;
        match mkdirat(&parent, last, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FileError::system("make the directory", name, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(&parent, last, flags, Mode::empty()).map_err(failed("open", name))?;
        set_metadata(&directory, name, metadata)?;
        let cost = name.len() + TIME_COST;
        if self.time_bytes + cost <= TIME_BYTES {
            self.time_bytes += cost;
            self.times.push((name.to_vec(), metadata.mtime));
        }
        Ok(())
    }

    fn fill(
        &mut self,
        entry: &mut Entry<'_, Received<'_>>,
        mut file: File,
        name: &[u8],
        metadata: &Metadata,
    ) -> Outcome<()> {
        self.bytes += copy(entry, &mut file, name)?;
        set_metadata(&file, name, metadata)?;
        futimens(&file, &times(metadata.mtime)).map_err(failed("set the times of", name))
    }

    /// Opens the directory above an entry, and makes what is missing of it.
    fn parent(&self, path: &[u8]) -> Outcome<OwnedFd> {
        match self.open_beneath(path) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(failed("open", path)),
        }
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let (above, last) = split(&path[..end]);
            let parent = self.open_beneath(above).map_err(failed("open", above))?;
            match mkdirat(&parent, last, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(FileError::system("make the directory", path, errno)),
            }
        }
        self.open_beneath(path).map_err(failed("open", path))
    }

    fn open_beneath(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        open_by(&self.directory, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, resolve)
    }

    /// Sets the times of directories, which each new entry in them has changed.
    fn set_directory_times(&self) -> Outcome<()> {
        for (name, mtime) in self.times.iter().rev() {
            // A later entry or the workload may have replaced the directory.
            let Ok(directory) = self.open_beneath(name) else { continue };
            utimensat(&directory, ".", &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("set the times of", name))?;
        }
        Ok(())
    }
}

/// Copies the content of an entry, and leaves out chunks of zeros, which become holes.
fn copy(entry: &mut Entry<'_, Received<'_>>, file: &mut File, name: &[u8]) -> Outcome<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let count = match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(malformed(name, &error)),
        };
        let part = &buffer[..count];
        let written = if part.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(i64::try_from(count).unwrap_or_default())).map(drop)
        } else {
            file.write_all(part)
        };
        written.map_err(|error| io_failed("write", name, &error))?;
        bytes += count as u64;
    }
    if bytes != entry.size() {
        return Err(invalid(name, "the archive ends in the middle of a file"));
    }
    // A hole at the end has no data after it.
    file.set_len(bytes).map_err(|error| io_failed("write", name, &error))?;
    Ok(bytes)
}

/// Creates a regular file, which only its owner can open before its metadata is set.
fn create_file(parent: &OwnedFd, last: &[u8], name: &[u8]) -> Outcome<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    create(parent, last, name, || openat(parent, last, flags, Mode::RUSR | Mode::WUSR))
        .map(File::from)
}

/// Creates a file, and replaces an existing one that is no directory.
fn create<T>(
    parent: &OwnedFd,
    last: &[u8],
    name: &[u8],
    mut make: impl FnMut() -> rustix::io::Result<T>,
) -> Outcome<T> {
    let made = match make() {
        Err(Errno::EXIST) => {
            unlinkat(parent, last, AtFlags::empty()).map_err(failed("replace", name))?;
            make()
        }
        made => made,
    };
    made.map_err(failed("make", name))
}

/// Sets owner, extended attributes and mode of an open file. The owner is first, because its change
/// clears set-user-id, set-group-id and `security.capability`.
fn set_metadata(file: impl AsFd, name: &[u8], metadata: &Metadata) -> Outcome<()> {
    if let Some((uid, gid)) = metadata.owner {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(failed("set the owner of", name))?;
    }
    for (xattr, value) in &metadata.xattrs {
        match fsetxattr(&file, xattr.as_str(), value, XattrFlags::empty()) {
            // Not every file system has all of them, and not every user may set them.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(FileError::system("set an attribute of", name, errno)),
        }
    }
    fchmod(&file, Mode::from_bits_truncate(metadata.mode)).map_err(failed("set the mode of", name))
}

/// Sets owner and time of a file that is not opened: a link or a pipe.
fn set_special(parent: &OwnedFd, last: &[u8], name: &[u8], metadata: &Metadata) -> Outcome<()> {
    if let Some((uid, gid)) = metadata.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(parent, last, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the owner of", name))?;
    }
    utimensat(parent, last, &times(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the times of", name))
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn link_target(link: Option<Vec<u8>>, name: &[u8]) -> Outcome<Vec<u8>> {
    let link = link.unwrap_or_default();
    check(&link).map_err(|_error| invalid(name, "malformed target of a link"))?;
    Ok(link)
}

/// Returns a name of the archive relative to the directory, without `.` and empty components.
fn relative(name: &[u8]) -> Outcome<Vec<u8>> {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let parts: Vec<&[u8]> = parts.collect();
    if parts.contains(&b"..".as_slice()) || name.contains(&0) {
        return Err(invalid(name, "expected a name without `..` and NUL"));
    }
    Ok(parts.join(&b'/'))
}

/// Splits a relative name into the directory and the last component.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&name[..slash], &name[slash + 1..]),
        None => (b"", name),
    }
}
