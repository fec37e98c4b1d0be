//! The directories of the cache, opened and checked once.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::error::CacheError;
use super::name::TREE;
use super::task::Unpackers;
use super::wait::WaitLimits;
use crate::block::root_tree::TreeLimits;
use crate::host::directory::names_in;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::private_dir::{private_directory, private_directory_in};
use crate::host::trusted_path::check_parents;
use crate::image::digest::Digest;
use crate::unpack::limits::Limits;

/// Directory of the current format.
const FORMAT_DIR: &str = "layers-v5";

/// Number of digits in the digest of a user namespace's id maps. A user has one or two such maps,
/// so 64 bits are enough to tell them apart.
const ID_MAP_DIGITS: usize = 16;

/// A random id that changes with each boot (`proc_sys_kernel(5)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A layer cache. Any number of processes can use it at the same time.
///
/// ```
/// use a3s_box_oci::{LayerCache, Limits, Retention};
///
/// # if std::process::Command::new("id").arg("-u").output()?.stdout != b"0\n" { return Ok(()); }
/// let dir = std::env::temp_dir().join(format!("layer-cache-{}", std::process::id()));
/// let limits = Limits { entries: 100_000, ..Limits::default() };
/// let cache = LayerCache::open(&dir)?.with_limits(limits);
/// // `cache.compose(…)` unpacks the layers of an image. Later, old layers are removed:
/// let collected = cache.collect(&Retention { max_bytes: Some(10 << 30), max_age: None })?;
/// assert_eq!((collected.removed, collected.kept), (0, 0));
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LayerCache {
    /// The directory of the current format.
    path: PathBuf,
    pub(crate) overlay_xattrs: OverlayXattrs,
    pub(crate) ready: OwnedFd,
    pub(crate) stacks: OwnedFd,
    pub(crate) staging: OwnedFd,
    pub(crate) locks: OwnedFd,
    /// The id of the current boot.
    pub(crate) boot: OsString,
    pub(crate) limits: Limits,
    pub(crate) tree_limits: TreeLimits,
    pub(super) wait_limits: WaitLimits,
    pub(super) unpackers: Option<Box<dyn Unpackers>>,
}

impl LayerCache {
    /// Opens the cache in the directory `dir`. Directories that do not exist are made, with mode
    /// 0700.
    ///
    /// # Errors
    ///
    /// Fails if the directory belongs to another user, if other users can enter it, or if another
    /// user could replace it.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(HostError::at("make the cache directory", dir))?;
        // Once the parents are checked, no other user can replace the directory before it is
        // opened.
        check_parents(dir)?;
        // `private_directory` refuses a path that is a symbolic link. The links that
        // `check_parents` accepts are therefore resolved first.
        let path = dir.canonicalize().map_err(HostError::at("find the cache directory", dir))?;
        let outer = private_directory(&path)?;
        // The trial is made in the cache directory, because the file system decides as well whether
        // it supports the attributes.
        let overlay_xattrs =
            OverlayXattrs::of_process(&outer).map_err(HostError::at("set an attribute on", dir))?;
        let name = format_dir(overlay_xattrs)
            .map_err(HostError::at("read the id maps of this process for", dir))?;
        let path = path.join(&name);
        let format = private_directory_in(outer.as_fd(), Path::new(&name), &path)?;
        let inner =
            |name: &str| private_directory_in(format.as_fd(), Path::new(name), &path.join(name));
        // The cache is changed only relative to these fds, so that the checks stay valid even if a
        // directory of the path is renamed.
        let (ready, stacks, staging, locks) =
            (inner("ready")?, inner("stacks")?, inner("staging")?, inner("locks")?);
        let boot = fs::read_to_string(BOOT_ID)
            .map_err(HostError::at("read the id of the boot for", dir))?;
        let boot = OsString::from(boot.trim_end());
        Ok(Self {
            path,
            overlay_xattrs,
            ready,
            stacks,
            staging,
            locks,
            boot,
            limits: Limits::default(),
            tree_limits: TreeLimits::default(),
            wait_limits: WaitLimits::default(),
            unpackers: None,
        })
    }

    /// Sets the limits for layers that are unpacked from now on.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Sets the limits for the trees of block roots that are made from now on.
    #[must_use]
    pub fn with_tree_limits(self, tree_limits: TreeLimits) -> Self {
        Self { tree_limits, ..self }
    }

    /// Has all work on the bytes of images done by other processes from now on.
    #[must_use]
    pub fn with_unpackers(self, unpackers: Box<dyn Unpackers>) -> Self {
        Self { unpackers: Some(unpackers), ..self }
    }

    /// Returns the path of a name in the cache.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the directory of the layer `name`.
    pub(crate) fn layer_path(&self, name: &str) -> PathBuf {
        self.path.join("ready").join(name)
    }

    /// Returns the tree of the layer `name`.
    pub(crate) fn tree_path(&self, name: &str) -> PathBuf {
        self.layer_path(name).join(TREE)
    }

    /// Returns the lock file of the layer `name`.
    pub(super) fn lock_path(&self, name: &str) -> PathBuf {
        self.path.join("locks").join(name)
    }

    /// Removes a file from `directory`, which errors call `directory_name`. A file that does not
    /// exist is no error, because another process may have removed it.
    pub(crate) fn remove_file(
        &self,
        directory: &OwnedFd,
        directory_name: &str,
        name: &str,
    ) -> Result<(), CacheError> {
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", &format!("{directory_name}/{name}"))(errno)),
        }
    }

    /// Returns a function that makes the error of `action` on `name`, a path in the cache.
    pub(crate) fn error<E: Into<io::Error>>(
        &self,
        action: &'static str,
        name: &str,
    ) -> impl FnOnce(E) -> CacheError + use<E> {
        let path = self.path.join(name);
        move |error| HostError::at(action, &path)(error).into()
    }
}

/// Lists the names in a directory of the cache.
pub(super) fn names(dir: &OwnedFd) -> nix::Result<Vec<String>> {
    // The names that this crate makes are ASCII, so that nothing is lost for them.
    let text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
    Ok(names_in(dir)?.into_iter().map(text).collect())
}

/// Returns the modification time of a file in a directory of the cache, if it exists.
pub(super) fn modified(dir: &OwnedFd, name: &str) -> Option<SystemTime> {
    let found = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    let seconds = u64::try_from(found.st_mtime).ok()?;
    let nanoseconds = u32::try_from(found.st_mtime_nsec).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
}

/// Returns the name of the directory of the current format.
///
/// Layers that were unpacked in a user namespace are kept apart: their overlay xattrs have other
/// names, and the owners of their files depend on the id maps.
fn format_dir(overlay_xattrs: OverlayXattrs) -> io::Result<String> {
    if overlay_xattrs == OverlayXattrs::Trusted {
        return Ok(FORMAT_DIR.to_owned());
    }
    // The maps are hashed, because a directory name can have at most 255 bytes and a map can have
    // hundreds of lines.
    let mut maps = fs::read("/proc/self/uid_map")?;
    maps.extend(fs::read("/proc/self/gid_map")?);
    let digits: String = Digest::of(&maps).hex().chars().take(ID_MAP_DIGITS).collect();
    Ok(format!("{FORMAT_DIR}-user-{digits}"))
}
