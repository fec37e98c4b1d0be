//! Packs a tree as a tar archive while the tree may change.
//!
//! The metadata of a file comes from its open descriptor, and so does its content. A name that is
//! replaced between two looks is therefore never packed with the metadata of another file. Each
//! directory stays open while its content is packed, so that no link and no rename leads elsewhere.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;

use a3s_box_proto::files::{FailureKind, PackRequest, PackResponse};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, major, minor, openat,
    statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::channel::{CHUNK_BYTES, Channel};
use super::directory::{MAX_DEPTH, next_name, open_directory, too_deep};
use super::extended::XATTR_PREFIX;
use super::failure::{FileError, Outcome, io_failed};
use super::scope::{MODE_BITS, Root, target};

/// Maximum memory for the names of files with several hard links. Once it is used up, a further
/// name of a file is packed as a file of its own.
const LINK_BYTES: usize = 16 << 20;

/// Memory of the map for a name, beyond its bytes.
const LINK_COST: usize = 64;

/// Length of the name fields of a header.
const NAME_FIELD: usize = 100;

/// Highest number that an octal field of eight bytes holds.
const OCTAL_MAX: u64 = 0o7_777_777;

/// Maximum length of the list of extended attributes, and of a value (`xattr(7)`).
const XATTR_BYTES: usize = 64 * 1024;

/// Sends a tree as an archive.
pub(super) fn pack(request: PackRequest, channel: &mut Channel) -> Outcome<()> {
    let PackRequest { scope, path, name } = request;
    let root = Root::enter(scope)?;
    let name = if name.is_empty() { last_name(&path) } else { &name };
    if matches!(name, b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(FileError::invalid(name, "expected `name` to be a single file name"));
    }
    let builder = Builder::new(BufWriter::with_capacity(CHUNK_BYTES, Chunks { channel }));
    let mut packer =
        Packer { builder, path: &path, links: HashMap::new(), link_bytes: 0, changed: None };
    packer.pack_root(&root, name)?;
    let Packer { builder, changed, .. } = packer;
    builder
        .into_inner()
        .and_then(|mut chunks| chunks.flush())
        .map_err(|error| stream_error(&error))?;
    match changed {
        None => Ok(()),
        Some(changed) => Err(FileError::new(
            FailureKind::Changed,
            &changed,
            &format!("`{}` changed while it was packed", changed.escape_ascii()),
        )),
    }
}

/// Returns the last component of a path, or `.` if that is no name.
fn last_name(path: &[u8]) -> &[u8] {
    let last = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty());
    last.filter(|name| !matches!(*name, b"..")).unwrap_or(b".")
}

/// Sends what is written to it.
struct Chunks<'a> {
    channel: &'a mut Channel,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let sent = self.channel.send(&PackResponse { data: part.to_vec() });
        sent.map_err(|_gone| io::ErrorKind::BrokenPipe)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Packer<'a> {
    builder: Builder<BufWriter<Chunks<'a>>>,
    /// The path of the request, for errors.
    path: &'a [u8],
    /// The first name in the archive of each file with several hard links, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    link_bytes: usize,
    /// The first name whose file changed.
    changed: Option<Vec<u8>>,
}

/// An entry to be appended.
struct NewEntry<'a> {
    kind: EntryType,
    stat: &'a Stat,
    name: &'a [u8],
    link: &'a [u8],
    xattrs: Vec<(String, Vec<u8>)>,
}

/// A directory whose content is being packed.
struct Level {
    directory: Dir,
    name: Vec<u8>,
}

impl Packer<'_> {
    fn pack_root(&mut self, root: &Root, name: &[u8]) -> Outcome<()> {
        let path = self.path;
        let error = |errno| FileError::system("pack", path, errno);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A path that ends with `/` or `/.` leads through a link.
        let found = root.open(path, flags)?;
        let stat = fstat(&found).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = Dir::new(openat(&found, ".", flags, Mode::empty()).map_err(error)?);
            return self.pack_tree(directory.map_err(error)?, name);
        }
        let place = root.place(path)?;
        self.pack_file(&place.parent, place.name, name).map(drop)
    }

    /// Packs a directory and what is below it.
    fn pack_tree(&mut self, directory: Dir, name: &[u8]) -> Outcome<()> {
        let device = self.pack_directory(&directory, name)?.st_dev;
        let mut levels = vec![Level { directory, name: name.to_vec() }];
        while let Some(level) = levels.last_mut() {
            let failed = |errno| FileError::system("read the directory", &level.name, errno);
            let Some(entry) = next_name(&mut level.directory).map_err(failed)? else {
                levels.pop();
                continue;
            };
            let name = [&level.name, entry.as_slice()].join(&b'/');
            let fd = level.directory.fd().map_err(failed)?;
            let Some(below) = self.pack_file(fd, &entry, &name)? else { continue };
            let stat = self.pack_directory(&below, &name)?;
            // Other file systems are not of the tree: /proc has files without end.
            if stat.st_dev != device {
                continue;
            }
            if levels.len() == MAX_DEPTH {
                return Err(too_deep(&name));
            }
            levels.push(Level { directory: below, name });
        }
        Ok(())
    }

    /// Packs the file at `entry` of a directory. Returns a directory open, without packing it.
    fn pack_file(&mut self, parent: impl AsFd, entry: &[u8], name: &[u8]) -> Outcome<Option<Dir>> {
        let error = |errno| FileError::system("pack", name, errno);
        let stat = match statat(&parent, entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It was removed since its name was read.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(error(errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match open_directory(&parent, entry) {
                Ok(directory) => return Ok(Some(directory)),
                Err(errno) => self.skip_changed(name, errno)?,
            },
            FileType::RegularFile => {
                // O_NONBLOCK, because a pipe may have taken the name.
                let flags = OFlags::RDONLY
                    | OFlags::NOFOLLOW
                    | OFlags::NONBLOCK
                    | OFlags::NOCTTY
                    | OFlags::CLOEXEC;
                match openat(&parent, entry, flags, Mode::empty()) {
                    Ok(file) => self.pack_regular(File::from(file), name)?,
                    Err(errno) => self.skip_changed(name, errno)?,
                }
            }
            FileType::Symlink => match target(&parent, entry, &stat) {
                Ok(link) => {
                    self.append_bodyless(EntryType::Symlink, &stat, name, &link)?;
                }
                // It is no link any more.
                Err(errno) => self.skip_changed(name, errno)?,
            },
            FileType::Fifo => {
                self.append_bodyless(EntryType::Fifo, &stat, name, b"")?;
            }
            FileType::CharacterDevice => {
                self.append_bodyless(EntryType::Char, &stat, name, b"")?;
            }
            FileType::BlockDevice => {
                self.append_bodyless(EntryType::Block, &stat, name, b"")?;
            }
            // tar has no type for sockets, which are of use only to the process that made them.
            FileType::Socket | FileType::Unknown => {}
        }
        Ok(None)
    }

    /// Goes on without a file that another type of file has replaced. Other errors end the call.
    fn skip_changed(&mut self, name: &[u8], errno: Errno) -> Outcome<()> {
        match errno {
            Errno::NOENT => Ok(()),
            Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::NXIO => {
                self.set_changed(name);
                Ok(())
            }
            errno => Err(FileError::system("pack", name, errno)),
        }
    }

    fn set_changed(&mut self, name: &[u8]) {
        self.changed.get_or_insert_with(|| name.to_vec());
    }

    fn pack_directory(&mut self, directory: &Dir, name: &[u8]) -> Outcome<Stat> {
        let failed = |errno| FileError::system("pack", name, errno);
        let fd = directory.fd().map_err(failed)?;
        let stat = fstat(fd).map_err(failed)?;
        let xattrs = xattrs(fd).map_err(failed)?;
        let name = [name, b"/"].concat();
        let kind = EntryType::Directory;
        self.append(NewEntry { kind, stat: &stat, name: &name, link: b"", xattrs }, io::empty())?;
        Ok(stat)
    }

    fn pack_regular(&mut self, file: File, name: &[u8]) -> Outcome<()> {
        let failed = |errno| FileError::system("pack", name, errno);
        let stat = fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.set_changed(name);
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode).cloned() {
                return self.append_bodyless(EntryType::Link, &stat, name, &first);
            }
            if self.link_bytes + name.len() + LINK_COST <= LINK_BYTES {
                self.link_bytes += name.len() + LINK_COST;
                self.links.insert(inode, name.to_vec());
            }
        }
        let xattrs = xattrs(&file).map_err(failed)?;
        let left = u64::try_from(stat.st_size).unwrap_or_default();
        let mut body = Body { file, left, is_short: false, error: None };
        let entry = NewEntry { kind: EntryType::Regular, stat: &stat, name, link: b"", xattrs };
        let appended = self.append(entry, &mut body);
        if let Some(errno) = body.error {
            return Err(FileError::system("read", name, errno));
        }
        appended?;
        // The time of the last change tells a file that was written in between from one that was
        // only read, even if its size is the same.
        let after = fstat(&body.file).map_err(failed)?;
        let times = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if body.is_short || times(&after) != times(&stat) {
            self.set_changed(name);
        }
        Ok(())
    }

    /// Appends an entry that has neither a body nor extended attributes.
    fn append_bodyless(
        &mut self,
        kind: EntryType,
        stat: &Stat,
        name: &[u8],
        link: &[u8],
    ) -> Outcome<()> {
        self.append(NewEntry { kind, stat, name, link, xattrs: Vec::new() }, io::empty())
    }

    /// Appends an entry with its pax records.
    fn append(&mut self, entry: NewEntry<'_>, body: impl Read) -> Outcome<()> {
        let NewEntry { kind, stat, name, link, xattrs } = entry;
        let (header, mut records) = header_of(kind, stat, name, link);
        records.extend(xattrs);
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.builder
            .append_pax_extensions(records)
            .and_then(|()| self.builder.append(&header, body))
            .map_err(|error| stream_error(&error))
    }
}

/// Returns the header of an entry, and the pax records for what the header has no room for.
fn header_of(
    kind: EntryType,
    stat: &Stat,
    name: &[u8],
    link: &[u8],
) -> (Header, Vec<(String, Vec<u8>)>) {
    let mut header = Header::new_ustar();
    let mut records = Vec::new();
    let mut record = |key: &str, value: Vec<u8>| records.push((key.to_owned(), value));
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & MODE_BITS);
    let size = if kind == EntryType::Regular {
        u64::try_from(stat.st_size).unwrap_or_default()
    } else {
        0
    };
    header.set_size(size);
    for (key, id) in [("uid", stat.st_uid), ("gid", stat.st_gid)] {
        if u64::from(id) > OCTAL_MAX {
            record(key, id.to_string().into_bytes());
        }
    }
    header.set_uid(u64::from(stat.st_uid).min(OCTAL_MAX));
    header.set_gid(u64::from(stat.st_gid).min(OCTAL_MAX));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 {
        record("mtime", pax_time(stat.st_mtime, stat.st_mtime_nsec).into_bytes());
    }
    if matches!(kind, EntryType::Char | EntryType::Block) {
        // Both calls fail only for a header without these fields, which a ustar header has.
        drop(header.set_device_major(major(stat.st_rdev)));
        drop(header.set_device_minor(minor(stat.st_rdev)));
    }
    let fields = header.as_old_mut();
    for (field, key, value) in
        [(&mut fields.name, "path", name), (&mut fields.linkname, "linkpath", link)]
    {
        let length = value.len().min(NAME_FIELD);
        field[..length].copy_from_slice(&value[..length]);
        if value.len() > NAME_FIELD {
            record(key, value.to_vec());
        }
    }
    header.set_cksum();
    (header, records)
}

/// Formats a time as pax does: a decimal number of seconds. The nanoseconds count forwards, also
/// before 1970.
fn pax_time(seconds: i64, nanoseconds: u64) -> String {
    match (seconds, nanoseconds) {
        (0.., _) | (_, 0) => format!("{seconds}.{nanoseconds:09}"),
        _ => {
            let whole = seconds.unsigned_abs() - 1;
            format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
        }
    }
}

/// Returns the extended attributes of a file as pax records. Those that the user may not read are
/// left out.
fn xattrs(file: impl AsFd) -> rustix::io::Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0; XATTR_BYTES];
    let length = match flistxattr(&file, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut records = Vec::new();
    let mut value = vec![0; XATTR_BYTES];
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // A key of pax ends at `=`, and the reader of keys expects UTF-8.
        let Some(key) = name.to_str().ok().filter(|key| !key.contains('=')) else { continue };
        match fgetxattr(&file, name, &mut value[..]) {
            Ok(length) => {
                records.push((format!("{XATTR_PREFIX}{key}"), value[..length].to_vec()));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(records)
}

/// The content of a file, with exactly the size of its header.
struct Body {
    file: File,
    left: u64,
    /// The file has ended early, and zeros stand for the rest.
    is_short: bool,
    /// The file could not be read.
    error: Option<Errno>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let part = &mut buffer[..wanted];
        let count = if self.is_short { 0 } else { self.read_file(part)? };
        let count = if count == 0 {
            self.is_short = true;
            part.fill(0);
            wanted
        } else {
            count
        };
        self.left -= count as u64;
        Ok(count)
    }
}

impl Body {
    /// Reads from the file. Keeps the error, which has to be told from one of the stream.
    fn read_file(&mut self, part: &mut [u8]) -> io::Result<usize> {
        match self.file.read(part) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.error = Some(Errno::from_io_error(&error).unwrap_or(Errno::IO));
                Err(error)
            }
            read => read,
        }
    }
}

/// The error of a write to the channel: PID 1 has given up the call.
fn stream_error(error: &io::Error) -> FileError {
    io_failed("send the archive of", b"", error)
}
