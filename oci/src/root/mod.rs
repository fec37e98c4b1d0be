//! Mounts the root file system of a box: an overlay of the layers and a private upper directory.
//!
//! The mount is created in the mount namespace of the caller. Callers should use a private mount
//! namespace, so that the mount ends with the process. The mount is attached to its target only
//! when it is complete. The writes of a box are deleted at its end, so that the overlay is volatile
//! and never synced. If the host kernel does not support the overlay mount, the root file system is
//! a copy of the layers.

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

pub use self::contents::copy_contents;

use self::contents::Method;
use self::copy::flatten;
use crate::host::directory::open_dir;
use crate::host::metadata::{UNDESCRIBED_DIR_MODE, reset_metadata};
use crate::host::overlay_mount::{LAYERS_LIMIT, Overlay, attach, errno};
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::remove::remove_tree;
use crate::stack::members::Stack;

/// Mount flags. Without them, setuid files and device nodes of a box would be effective on the
/// host.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const OPEN_PATH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A root file system that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A directory cannot be created, opened or examined.
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
        /// The mount point.
        target: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The layers cannot be copied.
    #[error("cannot copy the layers to `{}`, as overlayfs cannot be had ({refusal})", upper.display())]
    Copy {
        /// The target of the copy.
        upper: PathBuf,
        /// The reason why overlayfs could not be used.
        refusal: String,
        /// The error of the copy.
        source: HostError,
    },
}

/// The method by which a root file system was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMethod {
    /// A bind mount of the upper directory, because the image has no layers.
    Empty,
    /// An overlay mount of the layers.
    Overlay,
    /// A copy of the layers whose files share their blocks with the layers.
    Reflink,
    /// A copy of the layers.
    Copy,
}

/// The parameters of a root file system.
#[derive(Debug)]
pub struct OverlaySpec<'a> {
    /// The layers. An empty stack gives a root of `upper` alone. Callers must keep the stack as
    /// long as the mount exists, because it holds the lease that keeps the layers in the cache.
    pub stack: &'a Stack,
    /// The upper directory, which receives all writes. It is created if it is missing.
    pub upper: PathBuf,
    /// The work directory of overlayfs, on the file system of `upper`. An existing one is replaced.
    pub work: PathBuf,
    /// The mount point, which must exist.
    pub target: PathBuf,
}

/// Whether a directory existed before.
#[derive(PartialEq)]
enum Directory {
    New,
    Old,
}

impl OverlaySpec<'_> {
    /// Creates the directories and mounts the root file system.
    ///
    /// A new upper directory receives the metadata of a new root: mode 0755, owner 0:0 and time 0.
    /// Overlayfs shows the root of the upper directory. An existing one keeps its metadata, because
    /// a box can have changed it.
    ///
    /// If the host kernel does not support the overlay mount, the layers are copied to a new upper
    /// directory, which becomes the root.
    ///
    /// # Errors
    ///
    /// When a directory cannot be created or opened, when there are too many layers, when the
    /// kernel refuses the mount, or when the copy fails.
    pub fn mount(&self) -> Result<RootMethod, MountError> {
        let upper = make_directory(&self.upper, UNDESCRIBED_DIR_MODE)?;
        if upper == Directory::New {
            self.reset_root()?;
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
        // A stack has its bottom layer first, and overlayfs takes the topmost layer first.
        let lower = members.iter().rev().map(|member| open_directory(&member.tree));
        let lower = lower.collect::<Result<Vec<_>, _>>()?;
        match self.mount_stack(&lower) {
            Ok(root) => {
                attach(&root, &self.target).map_err(|source| self.refused(source))?;
                Ok(RootMethod::Overlay)
            }
            // The layers are copied only to a new upper directory. An existing one holds changes of
            // the box relative to the layers, and would have to be merged with them.
            Err(refusal)
                if upper == Directory::New
                    && is_unsupported(&refusal, self.stack.overlay_xattrs) =>
            {
                tracing::warn!(%refusal, "overlayfs cannot be had: copying the layers");
                self.copy(&lower, &refusal)
            }
            Err(refusal) => Err(self.refused(refusal)),
        }
    }

    /// Sets the metadata of the upper directory to that of a new root.
    fn reset_root(&self) -> Result<(), MountError> {
        let reset = || reset_metadata(&open_dir(&self.upper)?);
        Ok(reset().map_err(HostError::at("set the metadata of directory", &self.upper))?)
    }

    /// Copies the layers to the upper directory, and mounts it as the root.
    fn copy(&self, lower: &[OwnedFd], refusal: &io::Error) -> Result<RootMethod, MountError> {
        let upper = open_directory(&self.upper)?;
        let copied = flatten(lower, &upper, self.stack.overlay_xattrs);
        let method = copied.map_err(|source| MountError::Copy {
            upper: self.upper.clone(),
            refusal: refusal.to_string(),
            source,
        })?;
        // The copy has changed the time of the directory.
        self.reset_root()?;
        self.bind_upper()?;
        Ok(match method {
            Method::Reflink => RootMethod::Reflink,
            Method::Copy => RootMethod::Copy,
        })
    }

    /// Removes the work directory. A volatile mount leaves `work/incompat/volatile` in it, and the
    /// kernel then refuses to mount it again.
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

    /// Mounts the upper directory itself, because overlayfs refuses a mount without lower layers.
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
        // `MS_BIND` ignores the other flags, which need a remount. In a user namespace the kernel
        // refuses to clear `noexec` of the original mount (`mount_namespaces(7)`).
        let own = fstatvfs(&upper_fd).map_err(|errno| self.refused(errno.into()))?.flags();
        let kept =
            if own.contains(FsFlags::ST_NOEXEC) { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
        mount(None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | FLAGS | kept)
    }

    fn refused(&self, source: io::Error) -> MountError {
        MountError::Mount { target: self.target.clone(), source }
    }
}

/// Returns whether an error means that overlayfs cannot be used on this host: the kernel has no
/// overlayfs (`ENODEV`) or not the options or system calls, the file system cannot hold an upper
/// directory (`EINVAL`), or user namespaces must not mount overlayfs (`EPERM`, before Linux 5.11).
fn is_unsupported(refusal: &io::Error, overlay_xattrs: OverlayXattrs) -> bool {
    match errno(refusal) {
        Some(Errno::ENODEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => true,
        // Old kernels refuse overlayfs only in user namespaces. Elsewhere `EPERM` has another
        // reason, such as a security module.
        Some(Errno::EPERM) => overlay_xattrs == OverlayXattrs::User,
        _ => false,
    }
}

/// Creates a directory. An existing one is not changed.
fn make_directory(path: &Path, mode: u32) -> Result<Directory, HostError> {
    let failed = HostError::at("make directory", path);
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Directory::Old),
        made => made.map_err(failed)?,
    }
    // `mkdir(2)` clears the bits of the umask, so that the mode is set again.
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(HostError::at("make directory", path))?;
    Ok(Directory::New)
}

fn open_directory(path: &Path) -> Result<OwnedFd, HostError> {
    open(path, OPEN_PATH, Mode::empty()).map_err(HostError::at("open directory", path))
}
