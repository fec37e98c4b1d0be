//! The layer cache: each layer unpacked once, for all boxes, under the name of its content.
//!
//! ```text
//! <dir>/                        0700, as image trees hold setuid files; see `store`
//! └── layers-v2[-user-<map>]/   0700, as all in it; a new format gets a new name,
//!     │                         and what is unpacked in a user namespace is apart, by its id maps
//!     ├── ready/<name>/         verified; never written again
//!     │   ├── tree/             what overlayfs mounts; whiteouts are in its form
//!     │   ├── facts.json, dependencies see `record`
//!     │   ├── boot              link to the id of the boot in which it was written
//!     │   └── synced            empty; made once all of it is on the disk
//!     ├── stacks/<chain>        which of these make an image's root, see `compose`
//!     ├── staging/<name>/       the same as in ready, being made by the holder of the exclusive lock
//!     └── locks/<name>          flock: exclusive to make or remove, shared while in use; its time is
//!                               that of the last use; see `retention` for what is removed
//!
//! names:  sha256-<hex>          a layer unpacked alone, by its DiffID
//!         on-sha256-<hex>       a layer unpacked on top of those below it, by its ChainID
//!         meta-sha256-<hex>     directories that get back a lower layer's metadata, by the ChainID
//! ```
//!
//! # What a crash leaves
//!
//! A layer appears by one rename, so a process that dies leaves a staging directory and no lock; the
//! next one that unpacks removes such directories. A crash of the machine is another matter: the rename
//! may be on the disk and the files not. So a layer counts in the boot in which it was written, as
//! all see the same page cache, and in later boots only when it has been marked as `synced`, which
//! is done after `syncfs`, off the path of a start. A layer that is not is unpacked again.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, syncfs, unlinkat};

use crate::cache::record::Record;
use crate::host::directory::{OPEN_DIR, names_in};
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::private_dir::{
    StoreError, check_parents, private_directory, private_directory_in,
};
use crate::host::remove::remove_tree;
use crate::image::digest::Digest;
use crate::stack::compose::Stack;
use crate::unpack::cross_layer::CrossLayerDependencies;
use crate::unpack::error::LayerError;
use crate::unpack::facts::LayerFacts;
use crate::unpack::limits::Limits;

/// Directory of the current format.
const FORMAT_DIR: &str = "layers-v2";

/// Digits of a digest that tell the id maps of user namespaces apart: a user has one or two.
const ID_MAP_DIGITS: usize = 16;

/// The tree of a layer, in its directory.
pub(crate) const TREE: &str = "tree";

/// Link to the id of the boot in which a layer was written, in its directory.
const BOOT: &str = "boot";

/// Marks a layer that is on the disk, in its directory.
const SYNCED: &str = "synced";

/// Changes with each boot (`proc_sys_kernel(5)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Time between two looks at a lock that another process holds: short against unpacking, long
/// against the look.
const WAIT_STEP: Duration = Duration::from_millis(10);

/// A cache that cannot be used, or a layer that cannot be put into it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Other users could reach or replace a directory of the cache, or it cannot be opened.
    #[error("cannot use the cache directory")]
    Store(#[from] StoreError),
    /// A system call on the cache itself failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A layer in the cache is damaged, and cannot be unpacked anew because boxes use it.
    #[error("the cached layer `{}` is damaged and in use: stop the boxes that use it", path.display())]
    Damaged {
        /// The layer's directory.
        path: PathBuf,
    },
    /// Layers cannot be looked into, or stacked to unpack one on top of them.
    #[error("cannot stack the layers up to `{layer}`")]
    Stack {
        /// Digest of the topmost layer's blob.
        layer: Digest,
        /// What the system said.
        source: io::Error,
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
    pub(crate) overlay_xattrs: OverlayXattrs,
    pub(crate) ready: OwnedFd,
    pub(crate) stacks: OwnedFd,
    pub(crate) staging: OwnedFd,
    pub(crate) locks: OwnedFd,
    boot: OsString,
    pub(crate) limits: Limits,
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
    /// Where it depends on lower layers.
    pub(crate) dependencies: CrossLayerDependencies,
    /// Name in the cache.
    pub(crate) name: String,
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

/// How something in the cache is made.
pub(crate) trait Recipe {
    /// Returns its name.
    fn name(&self) -> String;

    /// Makes it in `directory`, whose empty directory `tree` is the tree.
    fn make(&mut self, directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError>;

    /// Is called every few milliseconds while another process is making it.
    fn wait(&mut self) -> Result<(), CacheError>;
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Missing,
    Ready,
    /// Damaged, or perhaps not on the disk when the machine crashed.
    Unusable,
}

impl LayerCache {
    /// Opens the cache in the directory `dir`; what is missing is made, with access for the owner
    /// only.
    ///
    /// # Errors
    ///
    /// When the directory belongs to another user, others can enter it, or somebody else could put another
    /// one in its place.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(HostError::at("make the cache directory", dir))?;
        check_parents(dir)?;
        let path = dir.canonicalize().map_err(HostError::at("find the cache directory", dir))?;
        let outer = private_directory(&path)?;
        let overlay_xattrs =
            OverlayXattrs::of_process(&outer).map_err(HostError::at("set an attribute on", dir))?;
        let name = format_dir(overlay_xattrs)
            .map_err(HostError::at("read the id maps of this process for", dir))?;
        let path = path.join(&name);
        let format = private_directory_in(outer.as_fd(), Path::new(&name), &path)?;
        let inner =
            |name: &str| private_directory_in(format.as_fd(), Path::new(name), &path.join(name));
        let (ready, stacks, staging, locks) =
            (inner("ready")?, inner("stacks")?, inner("staging")?, inner("locks")?);
        let boot = std::fs::read_to_string(BOOT_ID)
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
        })
    }

    /// Sets the limits for layers that are unpacked from now on.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Returns what stands under `name`, if it is ready and nobody is about to remove it.
    pub(crate) fn get(&self, name: &str) -> Result<Option<CachedLayer>, CacheError> {
        let Some(lease) = self.lease(name)? else { return Ok(None) };
        let record = self.record(name)?;
        let path = self.tree_path(name);
        Ok(record.map(|Record { facts, dependencies }| CachedLayer {
            path,
            hit: true,
            facts,
            dependencies,
            name: name.to_owned(),
            lease,
        }))
    }

    /// Locks what stands under `name` against removal, if it is ready and nobody is about to remove
    /// it.
    pub(crate) fn lease(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        match self.is_ready(name)? {
            true => self.lease_listed(name),
            // A lock, be it for a moment, would keep others from making it.
            false => Ok(None),
        }
    }

    /// The same for what a list says to be there.
    pub(crate) fn lease_listed(&self, name: &str) -> Result<Option<LayerLease>, CacheError> {
        let lock = self.lock_file(name)?;
        match lock.try_lock_shared() {
            Ok(()) if self.is_current(&lock, name)? && self.is_ready(name)? => {
                // Not worth a failure: it only makes the layer look older than it is.
                let _used = lock.set_modified(SystemTime::now());
                Ok(Some(LayerLease(lock.into())))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(self.error("lock", &format!("locks/{name}"))(source))
            }
        }
    }

    /// Returns what `recipe` makes, after making it if it is not there.
    ///
    /// When another process is making the same, this waits for it, and takes over should it fail.
    pub(crate) fn get_or_make(&self, recipe: &mut dyn Recipe) -> Result<CachedLayer, CacheError> {
        let name = recipe.name();
        let mut hit = true;
        loop {
            if let Some(cached) = self.get(&name)? {
                return Ok(CachedLayer { hit, ..cached });
            }
            match self.try_lock(&name)? {
                Some(lock) => {
                    // Between the look and the lock another process may have published it.
                    if !self.is_usable(&name)? {
                        self.make(recipe, &name)?;
                        hit = false;
                    }
                    drop(lock);
                }
                None if self.is_damaged_in_use(&name)? => {
                    return Err(CacheError::Damaged { path: self.path.join("ready").join(&name) });
                }
                None => self.wait_for(recipe)?,
            }
        }
    }

    /// Waits for a moment.
    pub(crate) fn wait_for(&self, recipe: &mut dyn Recipe) -> Result<(), CacheError> {
        recipe.wait()?;
        std::thread::sleep(WAIT_STEP);
        Ok(())
    }

    /// Makes and publishes; the caller holds the exclusive lock.
    fn make(&self, recipe: &mut dyn Recipe, name: &str) -> Result<(), CacheError> {
        self.sweep(name)?;
        self.discard(name)?;
        let published = self.stage(recipe, name).and_then(|()| self.publish(name));
        if published.is_err()
            && let Err(errno) = remove_tree(self.staging.as_fd(), name.as_bytes())
        {
            // The first error is the one to report; the next unpacking tries again.
            tracing::warn!(name, %errno, "cannot remove a staging directory");
        }
        published
    }

    pub(crate) fn stage(&self, recipe: &mut dyn Recipe, name: &str) -> Result<(), CacheError> {
        let directory = format!("staging/{name}");
        let make = || {
            mkdirat(&self.staging, name, Mode::S_IRWXU)?;
            let directory = openat(&self.staging, name, OPEN_DIR, Mode::empty())?;
            mkdirat(&directory, TREE, Mode::S_IRWXU)?;
            let root = openat(&directory, TREE, OPEN_DIR, Mode::empty())?;
            Ok((directory, root))
        };
        let (staged, tree) =
            make().map_err(|errno: Errno| self.error("make", &directory)(errno))?;
        let record = recipe.make(&staged, tree)?;
        let write = || -> io::Result<()> {
            record.write(&staged)?;
            Ok(symlinkat(self.boot.as_os_str(), &staged, BOOT)?)
        };
        write().map_err(self.error("write the record of", &directory))
    }

    fn publish(&self, name: &str) -> Result<(), CacheError> {
        self.publish_as(name, name)
    }

    /// Publishes the staging directory `staged`; the caller holds the exclusive lock of `name`.
    pub(crate) fn publish_as(&self, staged: &str, name: &str) -> Result<(), CacheError> {
        renameat(&self.staging, staged, &self.ready, name)
            .map_err(|errno: Errno| self.error("publish", &format!("ready/{name}"))(errno))
    }

    /// Removes what stands under `name`, by way of its staging directory; the caller holds the exclusive
    /// lock. Returns whether there was something.
    pub(crate) fn discard(&self, name: &str) -> Result<bool, CacheError> {
        let error = |errno: Errno| self.error("remove", &format!("ready/{name}"))(errno);
        // A process that died may have left one.
        remove_tree(self.staging.as_fd(), name.as_bytes()).map_err(error)?;
        match renameat(&self.ready, name, &self.staging, name) {
            Ok(()) => remove_tree(self.staging.as_fd(), name.as_bytes()).map_err(error)?,
            Err(Errno::ENOENT) => return Ok(false),
            Err(errno) => return Err(error(errno)),
        }
        Ok(true)
    }

    /// Removes a layer, unless somebody else uses it.
    pub(crate) fn forget(&self, layer: CachedLayer) -> Result<(), CacheError> {
        drop(layer.lease);
        match self.try_lock(&layer.name)? {
            Some(_lock) => self.discard(&layer.name).map(drop),
            None => Ok(()),
        }
    }

    /// Removes staging directories whose process is gone: ours by `name`, whose lock we hold, and those
    /// with a free lock.
    pub(crate) fn sweep(&self, name: &str) -> Result<(), CacheError> {
        let error = |errno: Errno| self.error("sweep", "staging")(errno);
        for stale in list(&self.staging).map_err(error)? {
            let lock = if stale == name { None } else { self.try_lock(&stale)? };
            if lock.is_some() || stale == name {
                tracing::debug!(%stale, "removing the staging directory of a dead process");
                remove_tree(self.staging.as_fd(), stale.as_bytes()).map_err(error)?;
            }
        }
        Ok(())
    }

    /// Puts a stack on the disk, and marks it so: it then survives a crash of the machine. This may
    /// take seconds, and the stack can be used meanwhile. Returns whether there was something to do.
    ///
    /// # Errors
    ///
    /// When the system cannot write. Nobody uses the layers anew then.
    pub fn sync(&self, stack: &Stack) -> Result<bool, CacheError> {
        let open = |name: &'_ str| {
            let directory = openat(&self.ready, name, OPEN_DIR, Mode::empty());
            directory.map_err(|errno: Errno| self.error("open", &format!("ready/{name}"))(errno))
        };
        let names = stack.members.iter().map(|member| member.name.as_str());
        let mut directories =
            names.map(|name| Ok((name, open(name)?))).collect::<Result<Vec<_>, CacheError>>()?;
        directories.retain(|(_, directory)| !exists(directory, SYNCED));
        if directories.is_empty() {
            return Ok(false);
        }
        // The fd is older than the files of this process, so this also reports errors of writing
        // them back.
        let synced = syncfs(&self.ready);
        let mut failure = None;
        for (name, directory) in directories {
            let marked = synced.and_then(|()| make_file(&directory, SYNCED));
            if let Err(errno) = marked {
                // What is in memory may be lost as well.
                let _unmarked = unlinkat(&directory, BOOT, UnlinkatFlags::NoRemoveDir);
                failure.get_or_insert((name, errno));
            }
        }
        match failure {
            None => Ok(true),
            Some((name, errno)) => Err(self.error("sync", &format!("ready/{name}"))(errno)),
        }
    }

    /// Takes the exclusive lock of `name`, if it is free.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<File>, CacheError> {
        let lock = self.lock_file(name)?;
        match lock.try_lock() {
            Ok(()) => Ok(self.is_current(&lock, name)?.then_some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(self.error("lock", &format!("locks/{name}"))(source))
            }
        }
    }

    /// Whether a lock file still has its name: one that was removed while we waited for it excludes
    /// nobody.
    fn is_current(&self, lock: &File, name: &str) -> Result<bool, CacheError> {
        let found = lock.metadata().map_err(self.error("look at", &format!("locks/{name}")))?;
        Ok(found.nlink() > 0)
    }

    /// Whether boxes use what stands under `name` although it is damaged: nobody makes it then, but
    /// nobody can either.
    fn is_damaged_in_use(&self, name: &str) -> Result<bool, CacheError> {
        let lock = self.lock_file(name)?;
        let is_shared = lock.try_lock_shared().is_ok() && self.is_current(&lock, name)?;
        Ok(is_shared
            && !self.is_usable(name)?
            && self.standing(name)? != Standing::Missing
            && lock.try_lock().is_err())
    }

    fn lock_file(&self, name: &str) -> Result<File, CacheError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.locks, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|errno: Errno| self.error("open lock", &format!("locks/{name}"))(errno))
    }

    /// Reads the record of what stands under `name`; `None` when it is damaged.
    pub(crate) fn record(&self, name: &str) -> Result<Option<Record>, CacheError> {
        let directory = openat(&self.ready, name, OPEN_DIR, Mode::empty()).map_err(io::Error::from);
        match directory.and_then(|directory| Record::read(&directory)) {
            // Something is missing, or something else stands in its place.
            Err(source)
                if [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP]
                    .map(|errno| Some(errno as i32))
                    .contains(&source.raw_os_error()) =>
            {
                Ok(None)
            }
            read => read.map_err(self.error("read the record of", &format!("ready/{name}"))),
        }
    }

    /// Whether something usable stands under `name`.
    fn is_usable(&self, name: &str) -> Result<bool, CacheError> {
        Ok(self.is_ready(name)? && self.record(name)?.is_some())
    }

    /// Whether something usable stands under `name`, as far as its directory tells.
    pub(crate) fn is_ready(&self, name: &str) -> Result<bool, CacheError> {
        Ok(self.standing(name)? == Standing::Ready)
    }

    fn standing(&self, name: &str) -> Result<Standing, CacheError> {
        let error = |errno: Errno| self.error("look at", &format!("ready/{name}"))(errno);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = match openat(&self.ready, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(Standing::Missing),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Standing::Unusable),
            Err(errno) => return Err(error(errno)),
        };
        let is_durable = || {
            exists(&directory, SYNCED)
                || readlinkat(&directory, BOOT).is_ok_and(|id| id == self.boot)
        };
        Ok(match exists(&directory, TREE) && is_durable() {
            true => Standing::Ready,
            false => Standing::Unusable,
        })
    }

    pub(crate) fn tree_path(&self, name: &str) -> PathBuf {
        self.path.join("ready").join(name).join(TREE)
    }

    /// Returns a function that makes the error of `action` on `name`, a path in this cache.
    pub(crate) fn error<E: Into<io::Error>>(
        &self,
        action: &'static str,
        name: &str,
    ) -> impl FnOnce(E) -> CacheError + use<E> {
        let path = self.path.join(name);
        move |error| HostError::at(action, &path)(error).into()
    }
}

fn exists(directory: &OwnedFd, name: &str) -> bool {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

fn make_file(directory: &OwnedFd, name: &str) -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::S_IRUSR).map(drop)
}

/// Lists the names in a directory of the cache.
pub(crate) fn list(dir: &OwnedFd) -> nix::Result<Vec<String>> {
    let text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
    Ok(names_in(dir)?.into_iter().map(text).collect())
}

/// Names the directory of the current format: in a user namespace marks are others, and owners mean
/// something by its id maps only.
fn format_dir(overlay_xattrs: OverlayXattrs) -> io::Result<String> {
    if overlay_xattrs == OverlayXattrs::Trusted {
        return Ok(FORMAT_DIR.to_owned());
    }
    let mut maps = std::fs::read("/proc/self/uid_map")?;
    maps.extend(std::fs::read("/proc/self/gid_map")?);
    let digits: String = Digest::of(&maps).hex().chars().take(ID_MAP_DIGITS).collect();
    Ok(format!("{FORMAT_DIR}-user-{digits}"))
}
