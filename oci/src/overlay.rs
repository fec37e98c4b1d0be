//! The overlay mount that makes a root file system of layers and a private writable folder.
//!
//! Folders are handed to the kernel as `/proc/self/fd/<n>`: whatever characters a path has, nothing
//! needs escaping, and some two hundred layers fit into the one page that `mount(2)` takes, on any
//! kernel since 5.11. The mount is made in the caller's mount namespace, which should be private to
//! it, so that the mount ends with the process.

use std::fs::{DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use crate::cache::CachedLayer;
use crate::stack::{InheritedDir, LayerStack};

/// Bound on the options of `mount(2)`: one page with its NUL; the kernel cuts what is longer
/// without saying so.
const OPTIONS_LIMIT_BYTES: usize = 4095;

/// Options that must not depend on the kernel's build: an image must not be able to redirect
/// lookups, and an upper folder is used with one stack of layers only.
const FIXED_OPTIONS: &str = "index=off,metacopy=off,redirect_dir=off";

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
    #[error(
        "{layers} layers are too many for one overlay mount: their options take {found} bytes, expected at most \
         {OPTIONS_LIMIT_BYTES}"
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
    /// Folder for overlayfs itself, on the file system of `upper`; made if it is missing.
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
    /// Makes the missing folders and mounts the root file system.
    ///
    /// A new upper folder takes what the layers leave to it: the metadata of the root, and of
    /// directories that a layer uses without describing them. One that is there stays as it is, as
    /// a box may have changed all that.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made or opened, when there are too many layers, or when the kernel
    /// refuses.
    pub fn mount(&self) -> Result<(), MountError> {
        let stack = LayerStack::of(self.layers)?;
        let upper = make_folder(&self.upper, 0o755)?;
        make_folder(&self.work, 0o700)?;
        if stack.lower.is_empty() {
            self.bind_upper()?;
        } else {
            self.mount_stack(&stack.lower)?;
        }
        if upper == Folder::New { self.inherit(&stack.inherited) } else { Ok(()) }
    }

    fn mount_stack(&self, lower: &[PathBuf]) -> Result<(), MountError> {
        let lower = lower.iter().map(|path| open_folder(path)).collect::<Result<Vec<_>, _>>()?;
        let (upper, work) = (open_folder(&self.upper)?, open_folder(&self.work)?);
        let options = options(&lower, &upper, &work)?;
        self.mount_with(Some("overlay"), Some("overlay"), FLAGS, Some(&options))
    }

    /// Mounts the upper folder itself: an overlay without layers is not allowed, and not needed.
    fn bind_upper(&self) -> Result<(), MountError> {
        let upper = self.upper.to_string_lossy();
        let by_fd = open_folder(&self.upper)?;
        tracing::debug!(%upper, "no layers: mounting the upper folder");
        self.mount_with(Some(&proc_path(&by_fd)), None, MsFlags::MS_BIND, None)?;
        self.mount_with(None, None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | FLAGS, None)
    }

    fn mount_with(
        &self,
        source: Option<&str>,
        kind: Option<&str>,
        flags: MsFlags,
        options: Option<&str>,
    ) -> Result<(), MountError> {
        mount(source, &self.target, kind, flags, options).map_err(|errno| MountError::Mount {
            target: self.target.clone(),
            source: errno.into(),
        })
    }

    /// Gives directories the metadata of those that describe them, deepest first, as changing one
    /// changes its parent. A root that nothing describes has the time 0, as any such directory.
    fn inherit(&self, inherited: &[InheritedDir]) -> Result<(), MountError> {
        let root = open_folder(&self.target)?;
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
                let merged = File::from(openat2(&root, path, how)?);
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
        if inherited.iter().all(|directory| !directory.path.as_os_str().is_empty()) {
            let times = FileTimes::new().set_modified(UNIX_EPOCH);
            let set = || File::open(&self.target)?.set_times(times);
            set().map_err(|source| MountError::folder("set the time of", &self.target, source))?;
        }
        Ok(())
    }
}

/// Writes the options of an overlay mount.
fn options(lower: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd) -> Result<String, MountError> {
    let paths: Vec<String> = lower.iter().map(proc_path).collect();
    let (upper, work) = (proc_path(upper), proc_path(work));
    let options =
        format!("lowerdir={},upperdir={upper},workdir={work},{FIXED_OPTIONS}", paths.join(":"));
    match options.len() {
        found if found > OPTIONS_LIMIT_BYTES => {
            Err(MountError::TooManyLayers { layers: lower.len(), found })
        }
        _ => Ok(options),
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
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .map_err(|errno| MountError::folder("open folder", path, errno.into()))
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_layers_fit_and_the_kernels_silent_cut_is_an_error() {
        let folder = || open_folder(Path::new("/")).unwrap();
        let (upper, work) = (folder(), folder());
        let lower: Vec<OwnedFd> = (0..300).map(|_| folder()).collect();
        let text = options(&lower[..200], &upper, &work).unwrap();
        assert!(
            text.starts_with("lowerdir=/proc/self/fd/") && text.ends_with(FIXED_OPTIONS),
            "{text}"
        );
        let error = options(&lower, &upper, &work).unwrap_err();
        assert!(matches!(error, MountError::TooManyLayers { layers: 300, .. }), "{error:?}");
    }
}
