//! Shares: directories of the host that a guest can see.
//!
//! libkrun opens a share by its path, late, when the guest mounts it (`PassthroughFs::init`,
//! 1.19.7). Another directory can have this path by then. So this module opens the directory early,
//! compares its inode with the one that the config was validated with, and gives libkrun a path in
//! `/proc/self/fd`, which leads to the open directory even if its name has changed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use a3s_box_krun::{Access, ShareCache};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    #[error("`{}` was replaced while the box was prepared", path.display())]
    Replaced { path: PathBuf },
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// A directory to share, as it was when the config was validated.
#[derive(Clone, Debug)]
pub(crate) struct SharedDirectory {
    /// Path without symbolic links.
    pub(crate) path: PathBuf,
    /// Device and inode number.
    pub(crate) inode: (u64, u64),
}

/// An open directory, which cannot be replaced by another one.
#[derive(Debug)]
pub(crate) struct PinnedDirectory(OwnedFd);

/// An open share, with the properties of its mount in the guest.
#[derive(Debug)]
pub(crate) struct PinnedShare {
    pub(crate) tag: String,
    pub(crate) directory: PinnedDirectory,
    pub(crate) access: Access,
    pub(crate) cache: ShareCache,
}

impl SharedDirectory {
    /// Opens the directory, and refuses it if it is not the one that was validated.
    ///
    /// Callers must call it in the mount namespace in which the fd is used, because the kernel
    /// refuses to clone a mount of another namespace (`open_tree(2)`, EINVAL).
    pub(crate) fn pin(&self) -> Result<PinnedDirectory, ShareError> {
        let replaced = || ShareError::Replaced { path: self.path.clone() };
        let open_error = |source| ShareError::Open { path: self.path.clone(), source };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // The validated path has no symbolic link, so a link in it is a replacement.
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let directory = match openat2(AT_FDCWD, &self.path, how) {
            // The path had no symlink, was a directory and existed when it was validated.
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
    /// Replaces the fd by `mount`, which is a detached mount of the same directory.
    pub(crate) fn replace(&mut self, mount: OwnedFd) {
        self.0 = mount;
    }

    /// Returns a path to the directory that is valid while the fd is open. libkrun opens it with
    /// `O_NOFOLLOW`, which refuses a link as the last component only, so the path ends in a dot.
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

    /// Makes a directory that contains a file with the name of the directory.
    fn directory(parent: &std::path::Path, name: &str) -> SharedDirectory {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(name), "").unwrap();
        let found = path.metadata().unwrap();
        SharedDirectory { inode: (found.dev(), found.ino()), path }
    }

    /// Opens a directory as libkrun's `PassthroughFs::init` does, and lists its entries.
    fn served(path: &std::path::Path) -> Vec<std::ffi::OsString> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let opened =
            fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).unwrap();
        let listed = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        listed.unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn directory_that_was_replaced_after_validation_is_refused() {
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
    fn symlink_in_the_path_of_the_directory_is_not_followed() {
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
    fn libkrun_opens_the_pinned_directory_even_if_its_name_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().canonicalize().unwrap();
        let shared = directory(&parent, "shared");
        directory(&parent, "other");
        let pinned = shared.pin().unwrap();
        fs::rename(&shared.path, parent.join("moved")).unwrap();
        symlink(parent.join("other"), &shared.path).unwrap();
        assert_eq!(served(&pinned.path()), ["shared"]);
        assert_eq!(
            served(&shared.path.join(".")),
            ["other"],
            "the name leads to the other directory"
        );
    }
}
