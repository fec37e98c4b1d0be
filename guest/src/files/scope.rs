//! The part of the file system that a call sees, and the resolution of paths in it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use a3s_box_proto::files::{Entry, FailureKind, FileType, Scope};
use rustix::fs::{
    self, AtFlags, FileType as Kind, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;

use super::failure::{FileError, Outcome, failed};
use crate::account::{AccountError, Accounts};
use crate::syscall;

/// Maximum length of a path in bytes, without the final NUL (`PATH_MAX`).
const PATH_BYTES: usize = 4095;

/// Maximum number of attempts to resolve a path with `..` while directories are renamed elsewhere
/// (`EAGAIN` of `openat2(2)`).
const ATTEMPTS: u32 = 64;

/// Permissions and the bits set-user-id, set-group-id and sticky.
pub(super) const MODE_BITS: u32 = 0o7777;

/// The root to which the paths of a call are relative.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
}

/// A name in an open directory.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) parent: OwnedFd,
    pub(super) name: &'a [u8],
}

impl Root {
    /// Takes the ids of the scope's user, for the rest of this process, and opens the scope's root.
    pub(super) fn enter(scope: Option<Scope>) -> Outcome<Self> {
        let Scope { user, root } = scope.unwrap_or_default();
        if !user.is_empty() {
            let account = Accounts::read(Path::new("/")).and_then(|all| all.resolve(&user));
            let account = account.map_err(|error| user_error(&error))?;
            syscall::assume_user(&account.credentials).map_err(|error| {
                let message = format!("cannot act as user `{user}`: {error}");
                FileError::new(FailureKind::PermissionDenied, b"", &message)
            })?;
        }
        // Modes are set as the caller says.
        rustix::process::umask(Mode::empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::open("/", flags, Mode::empty()).map_err(failed("open", b"/"))?;
        let of_box = Self { directory };
        if root.is_empty() {
            return Ok(of_box);
        }
        Ok(Self { directory: of_box.open(&root, flags)? })
    }

    /// Opens a path, which never leads out of the root.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> Outcome<OwnedFd> {
        check(path)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_by(&self.directory, path, flags, resolve).map_err(failed("open", path))
    }

    /// Opens a file to read its content.
    pub(super) fn open_regular(&self, path: &[u8]) -> Outcome<(File, Stat)> {
        // O_NONBLOCK, because the open of a named pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = self.open(path, flags)?;
        let stat = fstat(&file).map_err(failed("look at", path))?;
        match Kind::from_raw_mode(stat.st_mode) {
            Kind::RegularFile => Ok((File::from(file), stat)),
            Kind::Directory => Err(FileError::system("read", path, Errno::ISDIR)),
            _ => Err(FileError::new(
                FailureKind::NotARegularFile,
                path,
                &format!("`{}` is not a regular file", path.escape_ascii()),
            )),
        }
    }

    /// Opens the directory of the last name of a path. The name can exist or not, but is neither
    /// `.` nor `..`.
    pub(super) fn place<'a>(&self, path: &'a [u8]) -> Outcome<Place<'a>> {
        check(path)?;
        let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (directory, name) = (&path[..start], &path[start..end]);
        if matches!(name, b"" | b"." | b"..") {
            return Err(FileError::invalid(path, "expected a path that ends with a name"));
        }
        let directory = if directory.is_empty() { b"." } else { directory };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Place { parent: self.open(directory, flags)?, name })
    }
}

impl Place<'_> {
    /// Returns the metadata of the file with this name, or `None` if there is none.
    pub(super) fn stat(&self, path: &[u8]) -> Outcome<Option<Stat>> {
        match statat(&self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(FileError::system("look at", path, errno)),
        }
    }
}

/// Opens a path by `openat2(2)`, and tries again when a rename elsewhere has disturbed the kernel.
pub(super) fn open_by(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let open = || openat2(&directory, path, flags, Mode::empty(), resolve);
    let mut opened = open();
    for _ in 1..ATTEMPTS {
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
        opened = open();
    }
    opened
}

/// Checks what the kernel would refuse with a less useful error.
pub(super) fn check(path: &[u8]) -> Outcome<()> {
    if path.is_empty() || path.contains(&0) {
        return Err(FileError::invalid(path, "expected a path of at least one byte, without NUL"));
    }
    if path.len() > PATH_BYTES {
        return Err(FileError::system("use the path", path, Errno::NAMETOOLONG));
    }
    Ok(())
}

/// Returns the mode of a request, or `default` if it has none.
pub(super) fn mode(requested: Option<u32>, default: u32, path: &[u8]) -> Outcome<Mode> {
    let mode = requested.unwrap_or(default);
    if mode > MODE_BITS {
        return Err(FileError::invalid(path, "expected a mode of at most 07777"));
    }
    Ok(Mode::from_bits_truncate(mode))
}

/// Returns the message for the metadata of a file.
pub(super) fn entry(name: &[u8], stat: &Stat, link: Vec<u8>) -> Entry {
    let kind = match Kind::from_raw_mode(stat.st_mode) {
        Kind::RegularFile => FileType::Regular,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Unknown => FileType::Unspecified,
    };
    Entry {
        name: name.to_vec(),
        r#type: kind.into(),
        mode: stat.st_mode & MODE_BITS,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
        modified_seconds: stat.st_mtime,
        modified_nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        link,
        inode: stat.st_ino,
    }
}

/// Returns the target of a symbolic link, and nothing for other files. `name` is relative to
/// `directory`, or empty for the file `directory` itself.
pub(super) fn target(
    directory: impl AsFd,
    name: &[u8],
    stat: &Stat,
) -> rustix::io::Result<Vec<u8>> {
    if Kind::from_raw_mode(stat.st_mode) != Kind::Symlink {
        return Ok(Vec::new());
    }
    readlinkat(directory, name, Vec::new()).map(std::ffi::CString::into_bytes)
}

fn user_error(error: &AccountError) -> FileError {
    let kind = match error {
        AccountError::Read { .. } | AccountError::NotUsable { .. } => FailureKind::Io,
        AccountError::UnknownUser { .. }
        | AccountError::UnknownGroup { .. }
        | AccountError::IdOutOfRange { .. } => FailureKind::NoSuchUser,
    };
    FileError::new(kind, b"", &crate::kmsg::chain(error))
}
