//! The overlay mount that makes a root file system of layers and a private writable folder.
//!
//! The mount is made in the caller's mount namespace, which should be private to it, so that the
//! mount ends with the process. It is attached when it is complete. What a box writes is thrown away
//! at its end, so nothing of it is ever synced. Where the kernel says that overlayfs cannot be had,
//! the root is a copy of the layers.

use std::fs::{DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::cache::CachedLayer;
use crate::clone::{CloneError, Method, flatten};
use crate::mount::{Flavour, LAYERS_LIMIT, Overlay, attach, errno};
use crate::stack::{InheritedDir, LayerStack};
use crate::unpack::remove_tree;

/// Mount flags: setuid bits and device nodes of a box have no power on the host.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const OPEN_PATH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

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
    /// The root file system cannot be made by copying.
    #[error("cannot copy the layers to `{}`, as overlayfs cannot be had ({refusal})", upper.display())]
    Copy {
        /// Where the copy was to be.
        upper: PathBuf,
        /// Why it was to be a copy.
        refusal: String,
        /// What is wrong.
        source: CloneError,
    },
}

/// How a root file system was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMethod {
    /// There are no layers: it is the upper folder.
    Empty,
    /// An overlay of the layers.
    Overlay,
    /// A copy that shares its blocks with the layers.
    Reflink,
    /// A copy.
    Copy,
}

impl MountError {
    pub(crate) fn folder(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Folder { operation, path: path.to_owned(), source }
    }
}

/// A root file system to be mounted.
#[derive(Debug)]
pub struct OverlaySpec<'a> {
    /// The image's layers, bottom first; none gives a root of `upper` alone. Their leases outlive
    /// the mount.
    pub layers: &'a [CachedLayer],
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
    /// A new upper folder takes what the layers leave to it: the metadata of the root, and of
    /// directories that a layer uses without describing them. One that is there stays as it is, as
    /// a box may have changed all that.
    ///
    /// Without overlayfs, a new upper folder becomes a copy of the layers, and is the root.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made or opened, when there are too many layers, or when the kernel
    /// refuses.
    pub fn mount(&self) -> Result<RootMethod, MountError> {
        let stack = LayerStack::of(self.layers)?;
        let upper = make_folder(&self.upper, 0o755)?;
        if stack.lower.is_empty() {
            return self.bind_upper().map(|()| RootMethod::Empty);
        }
        if stack.lower.len() > LAYERS_LIMIT {
            return Err(MountError::TooManyLayers { found: stack.lower.len() });
        }
        self.remove_work()?;
        make_folder(&self.work, 0o700)?;
        let flavour = File::open(&self.work).and_then(Flavour::of_process);
        let flavour = flavour.map_err(|source| MountError::folder("try", &self.work, source))?;
        let lower = stack.lower.iter().map(|path| open_folder(path));
        let lower = lower.collect::<Result<Vec<_>, _>>()?;
        match self.mount_stack(&lower, flavour) {
            Ok(root) => {
                if upper == Folder::New {
                    self.inherit(&root, &stack.inherited)?;
                }
                attach(&root, &self.target).map_err(|source| self.refused(source))?;
                Ok(RootMethod::Overlay)
            }
            Err(refusal) if upper == Folder::New && is_without_overlay(&refusal, flavour) => {
                tracing::warn!(%refusal, "overlayfs cannot be had: copying the layers");
                self.copy(&lower, &stack.inherited, flavour, &refusal)
            }
            Err(refusal) => Err(self.refused(refusal)),
        }
    }

    /// Makes the root by copying into the upper folder.
    fn copy(
        &self,
        lower: &[OwnedFd],
        inherited: &[InheritedDir],
        flavour: Flavour,
        refusal: &io::Error,
    ) -> Result<RootMethod, MountError> {
        let upper = open_folder(&self.upper)?;
        let method = flatten(lower, &upper, flavour).map_err(|source| MountError::Copy {
            upper: self.upper.clone(),
            refusal: refusal.to_string(),
            source,
        })?;
        self.inherit(&upper, inherited)?;
        self.bind_upper()?;
        Ok(match method {
            Method::Reflink => RootMethod::Reflink,
            Method::Copy => RootMethod::Copy,
        })
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

    fn mount_stack(&self, lower: &[OwnedFd], flavour: Flavour) -> io::Result<OwnedFd> {
        let open = |path| open(path, OPEN_PATH, Mode::empty());
        let (upper, work) = (open(&self.upper)?, open(&self.work)?);
        Overlay { lower, upper: &upper, work: &work, flavour, volatile: true }.mount()
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
        // A user namespace may not take away what the file system's own mount has.
        let own = fstatvfs(&upper_fd).map_err(|errno| self.refused(errno.into()))?.flags();
        let kept =
            if own.contains(FsFlags::ST_NOEXEC) { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
        mount(None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | FLAGS | kept)
    }

    fn refused(&self, source: io::Error) -> MountError {
        MountError::Mount { target: self.target.clone(), source }
    }

    /// Gives directories the metadata of those that describe them, deepest first, as changing one
    /// changes its parent.
    fn inherit(&self, root: &OwnedFd, inherited: &[InheritedDir]) -> Result<(), MountError> {
        for directory in inherited.iter().rev() {
            let model = directory.from.symlink_metadata();
            let model =
                model.map_err(|source| MountError::folder("look at", &directory.from, source))?;
            let path = if directory.path.as_os_str().is_empty() {
                b"."
            } else {
                directory.path.as_os_str().as_bytes()
            };
            let how = OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
            let inherit = || {
                let merged = File::from(openat2(root, path, how)?);
                fchown(&merged, Some(model.uid()), Some(model.gid()))?;
                merged.set_permissions(Permissions::from_mode(model.mode() & 0o7777))?;
                merged.set_times(FileTimes::new().set_modified(model.modified()?))
            };
            inherit().map_err(|source| {
                MountError::folder(
                    "set the metadata of",
                    &self.target.join(&directory.path),
                    source,
                )
            })?;
        }
        Ok(())
    }
}

/// Says whether a refusal means that overlayfs cannot be had here: the kernel is without it, or does
/// not know what it was asked for, or takes no such file system for an upper folder, or allows no
/// user namespace to mount it.
fn is_without_overlay(refusal: &io::Error, flavour: Flavour) -> bool {
    match errno(refusal) {
        Some(Errno::ENODEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => true,
        Some(Errno::EPERM) => flavour == Flavour::User,
        _ => false,
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

fn open_folder(path: &Path) -> Result<OwnedFd, MountError> {
    open(path, OPEN_PATH, Mode::empty())
        .map_err(|errno| MountError::folder("open folder", path, errno.into()))
}
