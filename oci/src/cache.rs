//! The layer cache: each layer unpacked once, for all boxes, under the name of its content.
//!
//! ```text
//! <dir>/                        owned by us, not writable by others
//! └── layers-v1[-user]/         0700, as image trees hold setuid files; a new format gets a new name,
//!     │                         and what is unpacked in a user namespace is apart
//!     ├── ready/<hex>/          a verified layer; <hex> is the DiffID; never written again
//!     │   ├── tree/             what overlayfs mounts; whiteouts are in its form
//!     │   ├── facts.json        `LayerFacts`
//!     │   └── implicit-dirs     paths, each with a NUL behind it: directories that no entry describes
//!     ├── staging/<hex>/        the same, being unpacked by the holder of the exclusive lock
//!     └── locks/<hex>           empty; flock: exclusive to unpack or remove, shared while in use
//! ```
//!
//! A layer appears by one rename, after its file system has been written to the disk (`syncfs`),
//! and the rename itself is synced: after a crash of the machine a layer is complete or not there.
//! A process that dies leaves its staging folder and no lock; the next one that unpacks removes
//! such folders. Locks go with the processes that hold them, and lock files stay, for removing one
//! would let two processes hold different files of the same name.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{Uid, syncfs};

use crate::digest::Digest;
use crate::image::Layer;
use crate::layout::Layout;
use crate::mount::Flavour;
use crate::record;
use crate::unpack::{LayerError, LayerFacts, Limits, OnProgress, Progress, remove_tree, unpack};

/// Folder of the current format.
const FORMAT_DIR: &str = "layers-v1";

/// The same for a user namespace, whose marks and owners are others.
const USER_FORMAT_DIR: &str = "layers-v1-user";

/// Time between two looks at a lock that another process holds: short against unpacking, long
/// against the look.
const WAIT_STEP: Duration = Duration::from_millis(10);

const OPEN_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A cache that cannot be used, or a layer that cannot be put into it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A folder of the cache belongs to somebody else, who could change what boxes run.
    #[error("cache folder `{}` belongs to another user: expected uid {expected}, found {found}", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Our effective user.
        expected: u32,
        /// The folder's owner.
        found: u32,
    },
    /// A folder of the cache is open to others.
    #[error("cache folder `{}` is open to other users: expected none of mode {forbidden:#o}, found {found:#o}", path.display())]
    Mode {
        /// The folder.
        path: PathBuf,
        /// Permissions that others must not have.
        forbidden: u32,
        /// The folder's permissions.
        found: u32,
    },
    /// The system refused an operation on the cache itself.
    #[error("cannot {operation} `{}`", path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What the cache has recorded about a layer is damaged.
    #[error("the record of the cached layer `{}` is damaged: remove this folder", path.display())]
    Record {
        /// The layer's folder.
        path: PathBuf,
    },
    /// The layer cannot be unpacked.
    #[error("cannot unpack layer `{layer}`")]
    Layer {
        /// Digest of the layer's blob.
        layer: Digest,
        /// What is wrong.
        source: LayerError,
    },
    /// The progress function asked for the end.
    #[error("unpacking of layer `{layer}` was cancelled")]
    Cancelled {
        /// Digest of the layer's blob.
        layer: Digest,
    },
}

/// A layer cache; any number of processes may use it at the same time.
#[derive(Debug)]
pub struct LayerCache {
    path: PathBuf,
    ready: OwnedFd,
    staging: OwnedFd,
    locks: OwnedFd,
    limits: Limits,
}

/// A layer in the cache.
#[derive(Debug)]
pub struct CachedLayer {
    /// The tree, for overlayfs; nobody may write to it.
    pub path: PathBuf,
    /// Whether the layer was there already.
    pub hit: bool,
    /// What is known about the layer.
    pub facts: LayerFacts,
    /// Directories that the layer uses without describing them; the mount gives them a lower
    /// layer's metadata.
    pub(crate) implicit_dirs: Vec<PathBuf>,
    /// Keeps the layer from being removed; to be kept for as long as the layer is mounted.
    pub lease: LayerLease,
}

/// A shared lock on a layer; it ends when the fd is closed, at the latest with the process.
#[derive(Debug)]
pub struct LayerLease(OwnedFd);

impl AsFd for LayerLease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<LayerLease> for OwnedFd {
    fn from(lease: LayerLease) -> Self {
        lease.0
    }
}

impl LayerCache {
    /// Opens the cache in the folder `dir`; what is missing is made, with access for the owner
    /// only.
    ///
    /// # Errors
    ///
    /// When the folder belongs to another user, or others can write to it.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        let error = |operation| {
            move |source| CacheError::System { operation, path: dir.to_owned(), source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(error("make the cache folder"))?;
        let path = dir.canonicalize().map_err(error("find the cache folder"))?;
        let outer = OwnedFd::from(File::open(&path).map_err(error("open the cache folder"))?);
        check_access(&outer, &path, 0o022)?;
        let name = match Flavour::of_process(&outer).map_err(error("write to the cache folder"))? {
            Flavour::Trusted => FORMAT_DIR,
            Flavour::User => USER_FORMAT_DIR,
        };
        let path = path.join(name);
        let format = private_dir(outer.as_fd(), name, &path)?;
        let inner = |name: &str| private_dir(format.as_fd(), name, &path.join(name));
        let (ready, staging, locks) = (inner("ready")?, inner("staging")?, inner("locks")?);
        Ok(Self { path, ready, staging, locks, limits: Limits::default() })
    }

    /// Sets the limits for layers that are unpacked from now on.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Returns a layer if it is in the cache, and nobody is about to remove it.
    pub(crate) fn get(&self, layer: &Layer) -> Result<Option<CachedLayer>, CacheError> {
        let name = layer.diff_id.hex();
        if !self.is_ready(&name)? {
            return Ok(None);
        }
        let lock = self.lock_file(&name)?;
        match lock.try_lock_shared() {
            Ok(()) if self.is_ready(&name)? => self.cached(&name, lock).map(Some),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(self.error("lock", &format!("locks/{name}"))(source))
            }
        }
    }

    /// Returns a layer from the cache, after unpacking it from `layout` if it is not there.
    ///
    /// `progress` is called every few milliseconds while there is work to do or to wait for, and
    /// may end it. When another process is unpacking the same layer, this waits for it, and takes
    /// over should it fail.
    ///
    /// # Errors
    ///
    /// When the layer is not what the image says, is malformed, exceeds a limit or cannot be
    /// written, and when `progress` ended the work. In each case nothing of it can be seen in the
    /// cache.
    pub fn get_or_unpack(
        &self,
        layout: &Layout,
        layer: &Layer,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<CachedLayer, CacheError> {
        let name = layer.diff_id.hex();
        let mut hit = true;
        loop {
            if let Some(cached) = self.get(layer)? {
                return Ok(CachedLayer { hit, ..cached });
            }
            let lock = self.lock_file(&name)?;
            match lock.try_lock() {
                // Between the look and the lock another process may have published the layer.
                Ok(()) if self.is_ready(&name)? => {}
                Ok(()) => {
                    self.unpack(layout, layer, &name, progress)?;
                    hit = false;
                }
                Err(TryLockError::WouldBlock) => {
                    if progress(Progress::Waiting).is_break() {
                        return Err(CacheError::Cancelled { layer: layer.digest });
                    }
                    std::thread::sleep(WAIT_STEP);
                }
                Err(TryLockError::Error(source)) => {
                    return Err(self.error("lock", &format!("locks/{name}"))(source));
                }
            }
        }
    }

    /// Unpacks and publishes a layer; the caller holds its exclusive lock.
    fn unpack(
        &self,
        layout: &Layout,
        layer: &Layer,
        name: &str,
        progress: &mut OnProgress<'_>,
    ) -> Result<(), CacheError> {
        self.sweep(name)?;
        let published = self.stage(layout, layer, name, progress).and_then(|()| self.publish(name));
        if published.is_err()
            && let Err(errno) = remove_tree(self.staging.as_fd(), name.as_bytes())
        {
            // The first error is the one to report; the next unpacking tries again.
            tracing::warn!(layer = %layer.digest, %errno, "cannot remove a staging folder");
        }
        published
    }

    fn stage(
        &self,
        layout: &Layout,
        layer: &Layer,
        name: &str,
        progress: &mut OnProgress<'_>,
    ) -> Result<(), CacheError> {
        let layer_error = |source| match source {
            LayerError::Cancelled => CacheError::Cancelled { layer: layer.digest },
            source => CacheError::Layer { layer: layer.digest, source },
        };
        let blob = layout.open_blob(layer.digest, layer.size_bytes);
        let blob = blob.map_err(|source| layer_error(source.into()))?;
        let folder = format!("staging/{name}");
        let make = || {
            mkdirat(&self.staging, name, Mode::S_IRWXU)?;
            let folder = openat(&self.staging, name, OPEN_DIR, Mode::empty())?;
            mkdirat(&folder, "tree", Mode::S_IRWXU)?;
            let root = openat(&folder, "tree", OPEN_DIR, Mode::empty())?;
            Ok((folder, root))
        };
        let (staged, root) =
            make().map_err(|errno: Errno| self.error("make", &folder)(errno.into()))?;
        let (facts, implicit_dirs) =
            unpack(blob, layer, root, &self.limits, progress).map_err(layer_error)?;
        if progress(Progress::Publishing).is_break() {
            return Err(CacheError::Cancelled { layer: layer.digest });
        }
        record::write(&staged, &facts, &implicit_dirs)
            .map_err(self.error("write the record of", &folder))?;
        // The fd is older than the tree's files, so this also reports errors of writing them back.
        syncfs(&staged).map_err(|errno| self.error("sync", &folder)(errno.into()))
    }

    fn publish(&self, name: &str) -> Result<(), CacheError> {
        let error = |errno: Errno| self.error("publish", &format!("ready/{name}"))(errno.into());
        renameat(&self.staging, name, &self.ready, name).map_err(error)?;
        nix::unistd::fsync(&self.ready).map_err(error)
    }

    /// Removes staging folders whose process is gone: ours by `name`, whose lock we hold, and those
    /// with a free lock.
    fn sweep(&self, name: &str) -> Result<(), CacheError> {
        let error = |errno: Errno| self.error("sweep", "staging")(errno.into());
        for stale in list(&self.staging).map_err(error)? {
            let held = stale == name;
            let lock = if held { None } else { Some(self.lock_file(&stale)?) };
            if lock.as_ref().is_none_or(|lock| lock.try_lock().is_ok()) {
                tracing::debug!(%stale, "removing the staging folder of a dead process");
                remove_tree(self.staging.as_fd(), stale.as_bytes()).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Describes a published layer, as one that was there; `lock` is a shared lock on it.
    fn cached(&self, name: &str, lock: File) -> Result<CachedLayer, CacheError> {
        let folder = format!("ready/{name}");
        let opened = openat(&self.ready, name, OPEN_DIR, Mode::empty()).map_err(io::Error::from);
        let record = opened.and_then(|folder| record::read(&folder));
        let record = record.map_err(self.error("read the record of", &folder))?;
        let path = self.path.join(folder);
        let (facts, implicit_dirs) =
            record.ok_or_else(|| CacheError::Record { path: path.clone() })?;
        let (path, lease) = (path.join("tree"), LayerLease(lock.into()));
        Ok(CachedLayer { path, hit: true, facts, implicit_dirs, lease })
    }

    fn lock_file(&self, name: &str) -> Result<File, CacheError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.locks, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|errno| self.error("open lock", &format!("locks/{name}"))(errno.into()))
    }

    fn is_ready(&self, name: &str) -> Result<bool, CacheError> {
        match fstatat(&self.ready, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.error("look at", &format!("ready/{name}"))(errno.into())),
        }
    }

    fn error(&self, operation: &'static str, what: &str) -> impl FnOnce(io::Error) -> CacheError {
        let path = self.path.join(what);
        move |source| CacheError::System { operation, path, source }
    }
}

/// Opens a folder that only we can enter, and makes it if it is missing.
fn private_dir(parent: BorrowedFd<'_>, name: &str, path: &Path) -> Result<OwnedFd, CacheError> {
    let error = |operation| {
        move |errno: Errno| CacheError::System {
            operation,
            path: path.to_owned(),
            source: errno.into(),
        }
    };
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(error("make cache folder")(errno)),
    }
    let dir = openat(parent, name, OPEN_DIR, Mode::empty()).map_err(error("open cache folder"))?;
    check_access(&dir, path, 0o077)?;
    Ok(dir)
}

/// Checks that a folder is ours, and that others have none of the `forbidden` permissions.
fn check_access(dir: &OwnedFd, path: &Path, forbidden: u32) -> Result<(), CacheError> {
    let metadata = dir.try_clone().map(File::from).and_then(|dir| dir.metadata());
    let metadata = metadata.map_err(|source| {
        let (operation, path) = ("look at cache folder", path.to_owned());
        CacheError::System { operation, path, source }
    })?;
    let (expected, path) = (Uid::effective().as_raw(), path.to_owned());
    if metadata.uid() != expected {
        return Err(CacheError::Owner { path, expected, found: metadata.uid() });
    }
    match metadata.mode() & 0o7777 {
        found if found & forbidden != 0 => Err(CacheError::Mode { path, forbidden, found }),
        _ => Ok(()),
    }
}

/// Lists the names in a directory that are layers'.
fn list(dir: &OwnedFd) -> nix::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::openat(dir, ".", OPEN_DIR, Mode::empty())?.iter() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if format!("sha256:{name}").parse::<Digest>().is_ok() {
            names.push(name);
        }
    }
    Ok(names)
}
