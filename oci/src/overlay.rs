//! The overlay mount that makes a root file system of layers and a private writable folder.
//!
//! Folders are handed to the kernel as `/proc/self/fd/<n>`: whatever characters a path has, nothing needs escaping, and
//! some two hundred layers fit into the one page that `mount(2)` takes, on any kernel since 5.11. The mount is made in
//! the caller's mount namespace, which should be private to it, so that the mount ends with the process.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::cache::CachedLayer;

/// Bound on the options of `mount(2)`: one page with its NUL; the kernel cuts what is longer without saying so.
const OPTIONS_LIMIT_BYTES: usize = 4095;

/// Options that must not depend on the kernel's build: an image must not be able to redirect lookups, and an upper
/// folder is used with one stack of layers only.
const FIXED_OPTIONS: &str = "index=off,metacopy=off,redirect_dir=off";

/// Mount flags: setuid bits and device nodes of a box have no power on the host.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// A root file system that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A folder cannot be made or opened.
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
    #[error(
        "{layers} layers are too many for one overlay mount: their options take {found} bytes, expected at most {OPTIONS_LIMIT_BYTES}"
    )]
    TooManyLayers {
        /// The number of layers.
        layers: usize,
        /// The length of the options.
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

/// A root file system to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlaySpec {
    /// Layers, topmost first, as overlayfs lists them; [`lower_dirs`] makes the list. None gives a root of `upper` alone.
    pub lower: Vec<PathBuf>,
    /// Folder that takes what is written; made if it is missing.
    pub upper: PathBuf,
    /// Folder for overlayfs itself, on the file system of `upper`; made if it is missing.
    pub work: PathBuf,
    /// Where to mount; must exist.
    pub target: PathBuf,
}

/// Lists the trees of an image's layers, given bottom first, in the order of a mount.
///
/// A layer that hides all below it ends the list, as overlayfs does not honour that mark on the root of a layer. Of a
/// layer that occurs twice the topmost stays: it decides about all of its paths again, and the kernel takes none twice.
#[must_use]
pub fn lower_dirs(layers: &[CachedLayer]) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for layer in layers.iter().rev() {
        if !lower.contains(&layer.path) {
            lower.push(layer.path.clone());
        }
        if layer.facts.opaque_root {
            break;
        }
    }
    lower
}

impl OverlaySpec {
    /// Makes the missing folders and mounts the root file system.
    ///
    /// A new upper folder takes mode and owner of the topmost layer's root, because the upper's are those of the mount.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made or opened, when there are too many layers, or when the kernel refuses.
    pub fn mount(&self) -> Result<(), MountError> {
        make_folder(&self.upper, 0o755, self.lower.first().map(PathBuf::as_path))?;
        make_folder(&self.work, 0o700, None)?;
        if self.lower.is_empty() {
            return self.bind_upper();
        }
        let lower: Vec<OwnedFd> =
            self.lower.iter().map(|path| open_folder(path)).collect::<Result<_, _>>()?;
        let (upper, work) = (open_folder(&self.upper)?, open_folder(&self.work)?);
        let lower: Vec<String> = lower.iter().map(proc_path).collect::<Vec<_>>();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},{FIXED_OPTIONS}",
            lower.join(":"),
            proc_path(&upper),
            proc_path(&work)
        );
        if options.len() > OPTIONS_LIMIT_BYTES {
            return Err(MountError::TooManyLayers { layers: lower.len(), found: options.len() });
        }
        self.mount_with(Some("overlay"), Some("overlay"), FLAGS, Some(&options))
    }

    /// Mounts the upper folder itself: an overlay without layers is not allowed, and not needed.
    fn bind_upper(&self) -> Result<(), MountError> {
        let upper = self.upper.as_path();
        mount(Some(upper), &self.target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| self.mount_error(errno.into()))?;
        self.mount_with(None, None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | FLAGS, None)
    }

    fn mount_with(
        &self,
        source: Option<&str>,
        kind: Option<&str>,
        flags: MsFlags,
        options: Option<&str>,
    ) -> Result<(), MountError> {
        mount(source, &self.target, kind, flags, options)
            .map_err(|errno| self.mount_error(errno.into()))
    }

    fn mount_error(&self, source: io::Error) -> MountError {
        MountError::Mount { target: self.target.clone(), source }
    }
}

/// Makes a folder that is missing, like the folder `model` if there is one; one that is there stays as it is.
fn make_folder(path: &Path, mode: u32, model: Option<&Path>) -> Result<(), MountError> {
    let failed = |operation, path: &Path, source| MountError::Folder {
        operation,
        path: path.to_owned(),
        source,
    };
    match DirBuilder::new().mode(mode).create(path) {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.map_err(|source| failed("make folder", path, source))?,
    }
    let (uid, gid, mode) = match model {
        Some(model) => {
            let found = model
                .symlink_metadata()
                .map_err(|source| failed("look at layer", model, source))?;
            (Some(found.uid()), Some(found.gid()), found.mode() & 0o7777)
        }
        None => (None, None, mode),
    };
    chown(path, uid, gid)
        // Set again: making a folder heeds the umask, and changing the owner clears bits.
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|source| failed("set the owner and mode of", path, source))
}

fn open_folder(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|errno| MountError::Folder {
        operation: "open",
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
