//! The overlay mount that makes a root file system of layers and a private writable folder.
//!
//! The mount is made in the caller's mount namespace, which should be private to it, so that the
//! mount ends with the process. It is attached when it is complete. What a box writes is thrown away
//! at its end, so nothing of it is ever synced.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::compose::Stack;
use crate::metadata::{UNDESCRIBED_DIR_MODE, copy_metadata, reset_metadata};
use crate::mount::{LAYERS_LIMIT, Overlay, attach};
use crate::unpack::remove_tree;

/// Mount flags: setuid bits and device nodes of a box have no power on the host.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// A root file system that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A folder cannot be made, opened or looked at.
    #[error("cannot {operation} `{}`", path.display())]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There are more layers than one mount can have.
    #[error("the image has {found} layers: one overlay mount can have at most {LAYERS_LIMIT}")]
    TooManyLayers {
        /// The number of layers.
        found: usize,
    },
    /// The kernel refused the mount.
    #[error("cannot mount the root file system at `{}`", target.display())]
    Mount {
        /// Where.
        target: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl MountError {
    pub(crate) fn folder(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Folder { operation, path: path.to_owned(), source }
    }
}

/// A root file system to be mounted.
#[derive(Debug)]
pub struct OverlaySpec<'a> {
    /// What is mounted; nothing gives a root of `upper` alone. It is to outlive the mount, as it
    /// keeps the layers from being removed.
    pub stack: &'a Stack,
    /// Folder that takes what is written; made if it is missing.
    pub upper: PathBuf,
    /// Folder for overlayfs itself, on the file system of `upper`; made anew if it is there.
    pub work: PathBuf,
    /// Where to mount; must exist.
    pub target: PathBuf,
}

/// Whether a folder was there.
#[derive(PartialEq)]
enum Folder {
    New,
    Old,
}

impl OverlaySpec<'_> {
    /// Makes the folders and mounts the root file system.
    ///
    /// A new upper folder takes the metadata that the image's root has. One that is there stays as
    /// it is, as a box may have changed that.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made or opened, when there are too many layers, or when the kernel
    /// refuses.
    pub fn mount(&self) -> Result<(), MountError> {
        if make_folder(&self.upper, UNDESCRIBED_DIR_MODE)? == Folder::New {
            let inherit = || match &self.stack.root {
                Some(model) => copy_metadata(&open_dir(model)?, &open_dir(&self.upper)?),
                None => reset_metadata(&open_dir(&self.upper)?),
            };
            inherit().map_err(|source| {
                MountError::folder("set the metadata of folder", &self.upper, source)
            })?;
        }
        if self.stack.members.is_empty() {
            return self.bind_upper();
        }
        self.remove_work()?;
        make_folder(&self.work, 0o700)?;
        let root = self.mount_stack()?;
        attach(&root, &self.target).map_err(|source| self.refused(source))
    }

    /// Removes overlayfs' own folder: the kernel refuses one of a mount that never synced.
    fn remove_work(&self) -> Result<(), MountError> {
        let (Some(parent), Some(name)) = (self.work.parent(), self.work.file_name()) else {
            return Ok(());
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(parent, flags, Mode::empty())
            .and_then(|parent| remove_tree(parent.as_fd(), name.as_bytes()))
            .map_err(|errno| MountError::folder("remove folder", &self.work, errno.into()))
    }

    fn mount_stack(&self) -> Result<OwnedFd, MountError> {
        let members = &self.stack.members;
        if members.len() > LAYERS_LIMIT {
            return Err(MountError::TooManyLayers { found: members.len() });
        }
        let topmost_first = members.iter().rev();
        let lower =
            topmost_first.map(|member| open_folder(&member.tree)).collect::<Result<Vec<_>, _>>()?;
        let (upper, work) = (open_folder(&self.upper)?, open_folder(&self.work)?);
        let flavour = self.stack.flavour;
        Overlay { lower: &lower, upper: &upper, work: &work, flavour, volatile: true }
            .mount()
            .map_err(|source| self.refused(source))
    }

    /// Mounts the upper folder itself: an overlay without layers is not allowed, and not needed.
    fn bind_upper(&self) -> Result<(), MountError> {
        let upper = self.upper.to_string_lossy();
        let upper_fd = open_folder(&self.upper)?;
        let by_fd = format!("/proc/thread-self/fd/{}", upper_fd.as_raw_fd());
        tracing::debug!(%upper, "no layers: mounting the upper folder");
        let mount = |source: Option<&str>, flags| {
            mount(source, &self.target, None::<&str>, flags, None::<&str>)
                .map_err(|errno| self.refused(errno.into()))
        };
        mount(Some(&by_fd), MsFlags::MS_BIND)?;
        mount(None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | FLAGS)
    }

    fn refused(&self, source: io::Error) -> MountError {
        MountError::Mount { target: self.target.clone(), source }
    }
}

/// Makes a folder that is missing; one that is there stays as it is.
fn make_folder(path: &Path, mode: u32) -> Result<Folder, MountError> {
    let failed = |source| MountError::folder("make folder", path, source);
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Folder::Old),
        made => made.map_err(failed)?,
    }
    // Set again, as making it heeds the umask.
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    Ok(Folder::New)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn open_folder(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .map_err(|errno| MountError::folder("open folder", path, errno.into()))
}
