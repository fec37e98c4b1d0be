//! The place of a file that the shim writes for people: a name in an open directory.
//!
//! The shim often runs as root, and the path comes from a config. If another user could change the
//! directory, a symbolic link of theirs would lead the shim to any file of root. Each component of
//! the path is therefore checked when the directory is opened, and all files in it are opened
//! relative to its fd, without following a link.
//!
//! In a directory with the sticky bit, such as `/tmp`, other users can make files before the shim
//! does. A file there must belong to this user or to root. It must also have no second name, because
//! another user can give a file of root a second name (link(2), `fs.protected_hardlinks`).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use a3s_box_oci::{StoreError, open_protected};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::geteuid;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("other users could lead the output to another file")]
    Exposed(#[source] StoreError),
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}`: found {found}, expected {expected}", path.display())]
    Unsuitable { path: PathBuf, found: String, expected: &'static str },
}

/// A name in an open directory, in which no other user can replace the files of this user.
#[derive(Debug)]
pub(crate) struct OutputPlace {
    /// Path of the file in the config, for errors.
    pub(crate) path: PathBuf,
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
    /// Whether other users can make files in the directory.
    is_shared: bool,
}

impl OutputPlace {
    /// Opens the directory of the file at `path`, and checks each component on the way to it.
    pub(crate) fn find(path: &Path) -> Result<Self, OutputError> {
        let failed = |source| OutputError::Open { path: path.to_owned(), source };
        let (parent, name) = path
            .parent()
            .zip(path.file_name())
            .ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
        let reached = open_protected(parent).map_err(|error| match error {
            StoreError::Host(error) => failed(error.source),
            exposed @ StoreError::Exposed { .. } => OutputError::Exposed(exposed),
        })?;
        let (path, name) = (path.to_owned(), name.to_owned());
        Ok(Self { path, directory: reached.directory, name, is_shared: reached.is_shared })
    }

    /// Returns the type of the file. Returns nothing if there is none.
    pub(crate) fn kind(&self) -> Result<Option<SFlag>, OutputError> {
        match fstatat(&self.directory, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(file_type(&found))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed(errno)),
        }
    }

    /// Opens the file to append to it, and creates it with `O_CREAT` in `flags`.
    ///
    /// `O_NONBLOCK` keeps the open from waiting for the reader of a FIFO, and `O_NOCTTY` keeps a
    /// terminal from becoming the controlling one of the shim.
    pub(crate) fn open(&self, flags: OFlag) -> Result<File, OutputError> {
        let flags = flags
            | OFlag::O_APPEND
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&self.directory, &*self.name, flags, owner_only)
            .map_err(|errno| self.failed(errno))?;
        let found = fstat(&file).map_err(|errno| self.failed(errno))?;
        if self.is_own(&found) {
            return Ok(File::from(file));
        }
        Err(OutputError::Unsuitable {
            path: self.path.clone(),
            found: format!(
                "a file of user {} with {} names, in a directory that other users can write to",
                found.st_uid, found.st_nlink
            ),
            expected: "one that the shim has made: remove the file, or choose another directory",
        })
    }

    /// Returns whether a file of the directory cannot have been put there by another user.
    pub(super) fn is_own(&self, found: &FileStat) -> bool {
        let is_trusted = found.st_uid == 0 || found.st_uid == geteuid().as_raw();
        !self.is_shared || is_trusted && found.st_nlink == 1
    }

    fn failed(&self, errno: Errno) -> OutputError {
        OutputError::Open { path: self.path.clone(), source: errno.into() }
    }
}

impl AsFd for OutputPlace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Returns the type of a file (inode(7)).
pub(super) fn file_type(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

/// Describes a file that is not a regular file.
pub(crate) fn description(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFLNK => "a symlink",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    /// A user that is neither root nor the user of the tests.
    const STRANGER: Option<u32> = Some(1);

    /// Makes a directory with the directory `logs`, which has `mode`.
    fn logs(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().canonicalize().unwrap().join("logs");
        fs::create_dir(&logs).unwrap();
        fs::set_permissions(&logs, Permissions::from_mode(mode)).unwrap();
        (directory, logs)
    }

    #[test]
    fn file_in_a_directory_that_others_can_change_is_refused() {
        for mode in [0o777, 0o775, 0o702] {
            let (_directory, logs) = logs(mode);
            fs::create_dir(logs.join("inner")).unwrap();
            for path in ["file", "inner/file"] {
                let error = OutputPlace::find(&logs.join(path)).unwrap_err();
                let OutputError::Exposed(StoreError::Exposed { path, .. }) = &error else {
                    panic!("{error:?}");
                };
                assert_eq!(*path, logs);
            }
        }
        let (directory, logs) = logs(0o755);
        chown(&logs, STRANGER, None).unwrap();
        let error = OutputPlace::find(&logs.join("file")).unwrap_err();
        assert!(matches!(error, OutputError::Exposed(_)), "{error:?}");
        // A link of another user on the way is refused, even if it leads to a private directory.
        let link = directory.path().join("link");
        symlink(directory.path(), &link).unwrap();
        OutputPlace::find(&link.join("file")).unwrap();
        lchown(&link, STRANGER, None).unwrap();
        let error = OutputPlace::find(&link.join("file")).unwrap_err();
        assert!(matches!(error, OutputError::Exposed(_)), "{error:?}");
    }

    #[test]
    fn link_at_the_end_of_the_path_is_not_followed() {
        let (directory, logs) = logs(0o755);
        let place = OutputPlace::find(&logs.join("file")).unwrap();
        assert_eq!(place.kind().unwrap(), None);
        // The link is made after the directory was checked.
        symlink(directory.path().join("target"), logs.join("file")).unwrap();
        assert_eq!(place.kind().unwrap(), Some(SFlag::S_IFLNK));
        let error = place.open(OFlag::O_WRONLY | OFlag::O_CREAT).unwrap_err();
        assert!(matches!(error, OutputError::Open { .. }), "{error:?}");
        assert!(!directory.path().join("target").exists());
    }

    #[test]
    fn file_that_another_user_may_have_made_in_a_sticky_directory_is_refused() {
        let (directory, logs) = logs(0o1777);
        let path = logs.join("file");
        let open = || OutputPlace::find(&path).unwrap().open(OFlag::O_WRONLY | OFlag::O_CREAT);
        drop(open().unwrap());
        drop(open().unwrap());
        let is_refused = || matches!(open(), Err(OutputError::Unsuitable { .. }));
        // A second name of a file of root.
        fs::write(directory.path().join("precious"), "").unwrap();
        fs::remove_file(&path).unwrap();
        fs::hard_link(directory.path().join("precious"), &path).unwrap();
        assert!(is_refused());
        fs::remove_file(directory.path().join("precious")).unwrap();
        drop(open().unwrap());
        // `O_CREAT` itself fails for it if `fs.protected_regular` is set.
        chown(&path, STRANGER, None).unwrap();
        open().unwrap_err();
        let existing = || OutputPlace::find(&path).unwrap().open(OFlag::O_WRONLY);
        assert!(matches!(existing(), Err(OutputError::Unsuitable { .. })));
        // Nobody else can make files in a directory without these permissions.
        fs::set_permissions(&logs, Permissions::from_mode(0o755)).unwrap();
        drop(existing().unwrap());
    }
}
