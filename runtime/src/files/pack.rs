//! Packs a tree of this host as an archive for a box.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NOFOLLOW;
use tar::{Builder, EntryType, Header};

use super::client::CHUNK_BYTES;
use super::error::FilesError;

/// Maximum number of levels of directories, each of which is open.
const MAX_DEPTH: usize = 256;

/// Length of the name fields of a header.
const NAME_FIELD: usize = 100;

/// Pax records: keys and values.
type Records = Vec<(&'static str, Vec<u8>)>;

/// Passes the archive of a tree to `send` in chunks. Returns the number of bytes.
pub(super) fn pack(
    source: &Path,
    name: &[u8],
    send: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<u64, FilesError> {
    let chunks = Chunks { send, bytes: 0 };
    let mut builder = Builder::new(BufWriter::with_capacity(CHUNK_BYTES, chunks));
    pack_tree(&mut builder, source, name)?;
    let mut buffer = builder.into_inner().map_err(FilesError::Stream)?;
    buffer.flush().map_err(FilesError::Stream)?;
    Ok(buffer.get_ref().bytes)
}

struct Chunks<S> {
    send: S,
    bytes: u64,
}

impl<S: FnMut(Vec<u8>) -> io::Result<()>> Write for Chunks<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(CHUNK_BYTES)];
        (self.send)(part.to_vec())?;
        self.bytes += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pack_tree(
    builder: &mut Builder<impl Write>,
    source: &Path,
    name: &[u8],
) -> Result<(), FilesError> {
    let mut levels = Vec::new();
    if pack_file(builder, source, name)?.is_dir() {
        levels
            .push((fs::read_dir(source).map_err(FilesError::host("read", source))?, name.to_vec()));
    }
    while let Some((directory, above)) = levels.last_mut() {
        let Some(entry) = directory.next() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(FilesError::host("read a directory of", source))?;
        let path = entry.path();
        let name = [above, entry.file_name().as_bytes()].join(&b'/');
        if pack_file(builder, &path, &name)?.is_dir() {
            if levels.len() == MAX_DEPTH {
                return Err(FilesError::Limit { what: "levels", limit: MAX_DEPTH as u64 });
            }
            levels.push((fs::read_dir(&path).map_err(FilesError::host("read", &path))?, name));
        }
    }
    Ok(())
}

/// Packs one file, and returns its type.
fn pack_file(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &[u8],
) -> Result<FileType, FilesError> {
    let found = fs::symlink_metadata(path).map_err(FilesError::host("look at", path))?;
    let kind = found.file_type();
    if kind.is_dir() {
        append(
            builder,
            header(EntryType::Directory, &found),
            [&[name, b"/"].concat(), b""],
            io::empty(),
        )?;
    } else if kind.is_symlink() {
        let link = fs::read_link(path).map_err(FilesError::host("read", path))?;
        let link = link.as_os_str().as_bytes();
        append(builder, header(EntryType::Symlink, &found), [name, link], io::empty())?;
    } else if kind.is_file() {
        // The name may have become a link since.
        let opened = File::options().read(true).custom_flags(O_NOFOLLOW).open(path);
        let file = opened.map_err(FilesError::host("open", path))?;
        let found = file.metadata().map_err(FilesError::host("look at", path))?;
        let mut body = Body { left: found.len(), file, error: None };
        let appended = append(builder, header(EntryType::Regular, &found), [name, b""], &mut body);
        if let Some(error) = body.error {
            return Err(FilesError::host("read", path)(error));
        }
        appended?;
    } else {
        let what = if kind.is_socket() { "a socket" } else { "a device or a named pipe" };
        let error = io::Error::other(format!("{what} cannot be copied into a box"));
        return Err(FilesError::host("copy", path)(error));
    }
    Ok(kind)
}

/// Returns the header of an entry without its names, and its pax records.
fn header(kind: EntryType, found: &Metadata) -> (Header, Records) {
    let mut header = Header::new_ustar();
    let mut records = Vec::new();
    header.set_entry_type(kind);
    header.set_mode(found.mode() & 0o7777);
    // The guest gives the files to the user of the client.
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(if kind == EntryType::Regular { found.len() } else { 0 });
    // Times before 1970 become 1970.
    let seconds = u64::try_from(found.mtime()).unwrap_or_default();
    header.set_mtime(seconds);
    if found.mtime() >= 0 && found.mtime_nsec() > 0 {
        let time = format!("{seconds}.{:09}", found.mtime_nsec());
        records.push(("mtime", time.into_bytes()));
    }
    (header, records)
}

/// Appends an entry with its name and the target of its link.
fn append(
    builder: &mut Builder<impl Write>,
    (mut header, mut records): (Header, Records),
    [name, link]: [&[u8]; 2],
    body: impl Read,
) -> Result<(), FilesError> {
    let fields = header.as_old_mut();
    for (field, key, value) in
        [(&mut fields.name, "path", name), (&mut fields.linkname, "linkpath", link)]
    {
        let length = value.len().min(NAME_FIELD);
        field[..length].copy_from_slice(&value[..length]);
        if value.len() > NAME_FIELD {
            records.push((key, value.to_vec()));
        }
    }
    header.set_cksum();
    let records = records.iter().map(|(key, value)| (*key, value.as_slice()));
    builder
        .append_pax_extensions(records)
        .and_then(|()| builder.append(&header, body))
        .map_err(FilesError::Stream)
}

/// The content of a file, with exactly the size of its header.
struct Body {
    file: File,
    left: u64,
    /// The file could not be read, or has ended early.
    error: Option<io::Error>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let error = match self.file.read(&mut buffer[..wanted]) {
            Ok(0) => io::Error::other("the file has shrunk while it was copied"),
            Ok(count) => {
                self.left -= count as u64;
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => error,
        };
        self.error = Some(error);
        Err(io::ErrorKind::Other.into())
    }
}
