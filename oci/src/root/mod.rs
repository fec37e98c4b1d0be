//! The overlay mount that makes a root file system of layers and a private writable directory.
//!
//! The mount is made in the caller's mount namespace, which should be private to it, so that the
//! mount ends with the process. It is attached when it is complete. What a box writes is thrown away
//! at its end, so nothing of it is ever synced. Where the kernel says that overlayfs cannot be had,
//! the root is a copy of the layers.

mod contents;
mod copy;

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use self::contents::Method;
use self::copy::flatten;
use crate::host::directory::open_dir;
use crate::host::metadata::{UNDESCRIBED_DIR_MODE, copy_metadata, reset_metadata};
use crate::host::overlay_mount::{LAYERS_LIMIT, Overlay, attach, errno};
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::remove::remove_tree;
use crate::stack::members::Stack;

/// Mount flags: setuid bits and device nodes of a box have no power on the host.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const OPEN_PATH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A root file system that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A directory cannot be made, opened or looked at.
    #[error(transparent)]
    Host(#[from] HostError),
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
    /// The root file system cannot be made by copying.
    #[error("cannot copy the layers to `{}`, as overlayfs cannot be had ({refusal})", upper.display())]
    Copy {
        /// Where the copy was to be.
        upper: PathBuf,
        /// Why it was to be a copy.
        refusal: String,
        /// What is wrong.
        source: HostError,
    },
}

/// How a root file system was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMethod {
    /// There are no layers: it is the upper directory.
    Empty,
    /// An overlay of the layers.
    Overlay,
    /// A copy that shares its blocks with the layers.
    Reflink,
    /// A copy.
    Copy,
}

/// A root file system to be mounted.
#[derive(Debug)]
pub struct OverlaySpec<'a> {
    /// What is mounted; nothing gives a root of `upper` alone. It is to outlive the mount, as it
    /// keeps the layers from being removed.
    pub stack: &'a Stack,
    /// Directory that takes what is written; made if it is missing.
    pub upper: PathBuf,
    /// Directory for overlayfs itself, on the file system of `upper`; made anew if it is there.
    pub work: PathBuf,
    /// Where to mount; must exist.
    pub target: PathBuf,
}

/// Whether a directory was there.
#[derive(PartialEq)]
enum Directory {
    New,
    Old,
}

impl OverlaySpec<'_> {
    /// Makes the directories and mounts the root file system.
    ///
    /// A new upper directory takes the metadata that the image's root has. One that is there stays as
    /// it is, as a box may have changed that.
    ///
    /// Without overlayfs, a new upper directory becomes a copy of the layers, and is the root.
    ///
    /// # Errors
    ///
    /// When a directory cannot be made or opened, when there are too many layers, or when the kernel
    /// refuses.
    pub fn mount(&self) -> Result<RootMethod, MountError> {
        let upper = make_directory(&self.upper, UNDESCRIBED_DIR_MODE)?;
        if upper == Directory::New {
            self.inherit_root()?;
        }
        let members = &self.stack.members;
        if members.is_empty() {
            return self.bind_upper().map(|()| RootMethod::Empty);
        }
        if members.len() > LAYERS_LIMIT {
            return Err(MountError::TooManyLayers { found: members.len() });
        }
        self.remove_work()?;
        make_directory(&self.work, 0o700)?;
        let lower = members.iter().rev().map(|member| open_directory(&member.tree));
        let lower = lower.collect::<Result<Vec<_>, _>>()?;
        match self.mount_stack(&lower) {
            Ok(root) => {
                attach(&root, &self.target).map_err(|source| self.refused(source))?;
                Ok(RootMethod::Overlay)
            }
            Err(refusal)
                if upper == Directory::New
                    && is_without_overlay(&refusal, self.stack.overlay_xattrs) =>
            {
                tracing::warn!(%refusal, "overlayfs cannot be had: copying the layers");
                self.copy(&lower, &refusal)
            }
            Err(refusal) => Err(self.refused(refusal)),
        }
    }

    /// Gives the upper directory the metadata of the image's root.
    fn inherit_root(&self) -> Result<(), MountError> {
        let inherit = || match &self.stack.root {
            Some(model) => copy_metadata(&open_dir(model)?, &open_dir(&self.upper)?),
            None => reset_metadata(&open_dir(&self.upper)?),
        };
        Ok(inherit().map_err(HostError::at("set the metadata of directory", &self.upper))?)
    }

    /// Makes the root by copying into the upper directory.
    fn copy(&self, lower: &[OwnedFd], refusal: &io::Error) -> Result<RootMethod, MountError> {
        let upper = open_directory(&self.upper)?;
        let copied = flatten(lower, &upper, self.stack.overlay_xattrs);
        let method = copied.map_err(|source| MountError::Copy {
            upper: self.upper.clone(),
            refusal: refusal.to_string(),
            source,
        })?;
        self.inherit_root()?;
        self.bind_upper()?;
        Ok(match method {
            Method::Reflink => RootMethod::Reflink,
            Method::Copy => RootMethod::Copy,
        })
    }

    /// Removes overlayfs' own directory: the kernel refuses one of a mount that never synced.
    fn remove_work(&self) -> Result<(), MountError> {
        let (Some(parent), Some(name)) = (self.work.parent(), self.work.file_name()) else {
            return Ok(());
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(parent, flags, Mode::empty())
            .and_then(|parent| remove_tree(parent.as_fd(), name.as_bytes()))
            .map_err(HostError::at("remove directory", &self.work))?;
        Ok(())
    }

    fn mount_stack(&self, lower: &[OwnedFd]) -> io::Result<OwnedFd> {
        let open = |path| open(path, OPEN_PATH, Mode::empty());
        let (upper, work) = (open(&self.upper)?, open(&self.work)?);
        let overlay_xattrs = self.stack.overlay_xattrs;
        Overlay { lower, upper: &upper, work: &work, overlay_xattrs, volatile: true }.mount()
    }

    /// Mounts the upper directory itself: an overlay without layers is not allowed, and not needed.
    fn bind_upper(&self) -> Result<(), MountError> {
        let upper = self.upper.to_string_lossy();
        let upper_fd = open_directory(&self.upper)?;
        let by_fd = format!("/proc/thread-self/fd/{}", upper_fd.as_raw_fd());
        tracing::debug!(%upper, "no layers: mounting the upper directory");
        let mount = |source: Option<&str>, flags| {
            mount(source, &self.target, None::<&str>, flags, None::<&str>)
                .map_err(|errno| self.refused(errno.into()))
        };
        mount(Some(&by_fd), MsFlags::MS_BIND)?;
        // A user namespace may not take away what the file system's own mount has.
        let own = fstatvfs(&upper_fd).map_err(|errno| self.refused(errno.into()))?.flags();
        let kept =
            if own.contains(FsFlags::ST_NOEXEC) { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
        mount(None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | FLAGS | kept)
    }

    fn refused(&self, source: io::Error) -> MountError {
        MountError::Mount { target: self.target.clone(), source }
    }
}

/// Says whether a refusal means that overlayfs cannot be had here: the kernel is without it, or does
/// not know what it was asked for, or takes no such file system for an upper directory, or allows no
/// user namespace to mount it.
fn is_without_overlay(refusal: &io::Error, overlay_xattrs: OverlayXattrs) -> bool {
    match errno(refusal) {
        Some(Errno::ENODEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => true,
        Some(Errno::EPERM) => overlay_xattrs == OverlayXattrs::User,
        _ => false,
    }
}

/// Makes a directory that is missing; one that is there stays as it is.
fn make_directory(path: &Path, mode: u32) -> Result<Directory, HostError> {
    let failed = HostError::at("make directory", path);
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Directory::Old),
        made => made.map_err(failed)?,
    }
    // Set again, as making it heeds the umask.
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(HostError::at("make directory", path))?;
    Ok(Directory::New)
}

fn open_directory(path: &Path) -> Result<OwnedFd, HostError> {
    open(path, OPEN_PATH, Mode::empty()).map_err(HostError::at("open directory", path))
}
