//! Directories of the host that a guest gets.
//!
//! libkrun opens a directory by its path, late and in the guest's time (`PassthroughFs::init`, 1.19.7):
//! by then another one may stand there. So the directory is opened here, compared with the one that the
//! config was validated with, and libkrun is told a path that leads to what is open, whatever has
//! become of its name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use a3s_box_krun::Access;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// A directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    #[error("`{}` was replaced while the box was prepared", path.display())]
    Replaced { path: PathBuf },
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// A directory that is to be shared, as it was when the config was validated.
#[derive(Clone, Debug)]
pub(crate) struct SharedDirectory {
    /// Without symbolic links.
    pub(crate) path: PathBuf,
    /// Device and number.
    pub(crate) inode: (u64, u64),
}

/// A directory that stays the same.
#[derive(Debug)]
pub(crate) struct PinnedDirectory(OwnedFd);

/// A directory of the host for the guest.
#[derive(Debug)]
pub(crate) struct PinnedShare {
    pub(crate) tag: String,
    pub(crate) directory: PinnedDirectory,
    pub(crate) access: Access,
}

impl SharedDirectory {
    /// Opens the directory. To be called in the mount namespace where it is used: the kernel makes no
    /// mount from an fd of another one.
    pub(crate) fn pin(&self) -> Result<PinnedDirectory, ShareError> {
        let replaced = || ShareError::Replaced { path: self.path.clone() };
        let open_error = |source| ShareError::Open { path: self.path.clone(), source };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let directory = match openat2(AT_FDCWD, &self.path, how) {
            Err(Errno::ELOOP | Errno::ENOTDIR | Errno::ENOENT) => return Err(replaced()),
            opened => File::from(opened.map_err(|errno| open_error(errno.into()))?),
        };
        let found = directory.metadata().map_err(open_error)?;
        match (found.dev(), found.ino()) == self.inode {
            true => Ok(PinnedDirectory(directory.into())),
            false => Err(replaced()),
        }
    }
}

impl PinnedDirectory {
    /// Puts `mount` in the place of the directory, of which it is a mount.
    pub(crate) fn replace(&mut self, mount: OwnedFd) {
        self.0 = mount;
    }

    /// A path to the directory, for as long as this is open. The dot is for `O_NOFOLLOW`, with which
    /// libkrun opens it: that is about the last name only.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/.", self.0.as_raw_fd()).into()
    }
}

impl AsFd for PinnedDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{OpenOptionsExt, symlink};

    use super::*;

    /// A directory with a file of its name in it.
    fn directory(parent: &std::path::Path, name: &str) -> SharedDirectory {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(name), "").unwrap();
        let found = path.metadata().unwrap();
        SharedDirectory { inode: (found.dev(), found.ino()), path }
    }

    /// Opens a directory as `PassthroughFs::init` of libkrun does, and lists what it would serve.
    fn served(path: &std::path::Path) -> Vec<std::ffi::OsString> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let opened =
            fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).unwrap();
        let listed = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        listed.unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn directory_that_was_replaced_since_it_was_validated_is_refused() {
        let replacements: [fn(&std::path::Path); 4] = [
            |path| symlink(path.with_file_name("other"), path).unwrap(),
            |path| fs::rename(path.with_file_name("other"), path).unwrap(),
            |path| fs::write(path, "").unwrap(),
            |_| {},
        ];
        for (i, replace) in replacements.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let parent = dir.path().canonicalize().unwrap();
            let shared = directory(&parent, "shared");
            directory(&parent, "other");
            shared.pin().unwrap();
            fs::rename(&shared.path, parent.join("moved")).unwrap();
            replace(&shared.path);
            let error = shared.pin().unwrap_err();
            assert!(matches!(error, ShareError::Replaced { .. }), "{i}: {error}");
        }
    }

    #[test]
    fn symlink_on_the_way_to_the_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().canonicalize().unwrap();
        fs::create_dir(parent.join("way")).unwrap();
        let shared = directory(&parent.join("way"), "shared");
        fs::rename(parent.join("way"), parent.join("moved")).unwrap();
        symlink(parent.join("moved"), parent.join("way")).unwrap();
        let error = shared.pin().unwrap_err();
        assert!(matches!(error, ShareError::Replaced { .. }), "{error}");
    }

    #[test]
    fn pinned_directory_is_the_one_that_libkrun_opens_whatever_its_name_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().canonicalize().unwrap();
        let shared = directory(&parent, "shared");
        directory(&parent, "other");
        let pinned = shared.pin().unwrap();
        fs::rename(&shared.path, parent.join("moved")).unwrap();
        symlink(parent.join("other"), &shared.path).unwrap();
        assert_eq!(served(&pinned.path()), ["shared"]);
        assert_eq!(served(&shared.path.join(".")), ["other"], "its name leads elsewhere");
    }
}
