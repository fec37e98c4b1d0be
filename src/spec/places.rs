//! The directories that the shim keeps its own things in, and what may therefore not be there or be given
//! to a guest.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use a3s_box_core::config::{ConfigError, PathsConfig};
use a3s_box_core::{BoxDir, BoxId};
use a3s_box_oci::StoreError;

/// Device and number of a file.
pub(super) type Inode = (u64, u64);

/// Where something is on this host, or will be.
#[derive(Debug)]
pub(super) struct Place {
    /// Without symbolic links, as far as it exists.
    pub(super) path: PathBuf,
    /// What is there, if it exists.
    pub(super) inode: Option<Inode>,
    /// What is there and the directories that hold it, as far as they exist. A directory that is mounted in
    /// two places has two paths, and the same inode.
    lineage: Vec<Inode>,
}

impl Place {
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        for existing in path.ancestors() {
            let canonical = match existing.canonicalize() {
                // What is missing has no symbolic links.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                canonical => canonical?,
            };
            let inode =
                |directory: &Path| directory.metadata().map(|found| (found.dev(), found.ino()));
            let lineage = canonical.ancestors().map(inode).collect::<io::Result<Vec<_>>>()?;
            let missing = path.strip_prefix(existing).unwrap_or(Path::new(""));
            let inode = lineage.first().copied().filter(|_| missing.as_os_str().is_empty());
            let mut path = canonical;
            for component in missing.components() {
                match component {
                    Component::ParentDir => drop(path.pop()),
                    name => path.push(name),
                }
            }
            return Ok(Self { path, inode, lineage });
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Whether this is `directory`, or in it.
    fn is_in(&self, directory: &Self) -> bool {
        self.path.starts_with(&directory.path)
            || directory.inode.is_some_and(|inode| self.lineage.contains(&inode))
    }
}

/// The directories of the shim.
#[derive(Debug)]
pub(super) struct Places {
    state: Place,
    cache: Place,
    /// The box's own.
    own: Place,
}

impl Places {
    /// Finds the directories, and checks that nobody else can replace them.
    pub(super) fn find(paths: &PathsConfig, id: &BoxId) -> Result<Self, ConfigError> {
        let find = |field, path: &Path| {
            check_parents(field, path)?;
            Place::find(path).map_err(|error| unusable(field, path, &error))
        };
        Ok(Self {
            state: find("paths.state_dir", &paths.state_dir)?,
            cache: find("paths.cache_dir", &paths.cache_dir)?,
            own: find("paths.state_dir", BoxDir::new(&paths.state_dir, id).path())?,
        })
    }

    /// Refuses a directory for a guest that holds a directory of the shim, or is in one: the guest could
    /// read and change other boxes, and the layers of all.
    pub(super) fn refuse_share(&self, field: &str, share: &Place) -> Result<(), ConfigError> {
        let stores = [
            (&self.state, "state directory", "state_dir"),
            (&self.cache, "layer cache", "cache_dir"),
        ];
        for (store, name, setting) in stores {
            let relation = match (share.is_in(store), store.is_in(share)) {
                (false, false) => continue,
                (true, true) => "is",
                (true, false) => "is in",
                (false, true) => "holds",
            };
            let found = format!(
                "`{}`, which {relation} the {name} `{}` (`paths.{setting}`)",
                share.path.display(),
                store.path.display()
            );
            let expected = "a directory that neither holds nor is in one of the shim's own";
            return Err(ConfigError::invalid(field, found, expected));
        }
        Ok(())
    }

    /// Refuses an image that would not last.
    pub(super) fn refuse_layout(&self, path: &Path) -> Result<(), ConfigError> {
        self.refuse_in_cache("image.layout", path)?;
        if !is_in(path, &self.own) {
            return Ok(());
        }
        let found = format!("`{}`, which is in the box's own directory", path.display());
        let expected = "a directory elsewhere: the box's own is cleared when it starts and ends";
        Err(ConfigError::invalid("image.layout", found, expected))
    }

    /// Refuses a file or directory in the cache, where nothing else lasts.
    pub(super) fn refuse_in_cache(&self, field: &str, path: &Path) -> Result<(), ConfigError> {
        if !is_in(path, &self.cache) {
            return Ok(());
        }
        let found =
            format!("`{}`, which is in the layer cache (`paths.cache_dir`)", path.display());
        let expected = "a place elsewhere: whatever is in the cache may be removed at any time";
        Err(ConfigError::invalid(field, found, expected))
    }
}

/// What cannot be found is not in a directory of ours. Whoever opens it says what is wrong.
fn is_in(path: &Path, directory: &Place) -> bool {
    Place::find(path).is_ok_and(|place| place.is_in(directory))
}

fn check_parents(field: &str, path: &Path) -> Result<(), ConfigError> {
    match a3s_box_oci::check_parents(path) {
        Ok(()) => Ok(()),
        Err(StoreError::Exposed { path: parent, found, expected }) => {
            let found = format!("`{}` in `{}`, {found}", path.display(), parent.display());
            Err(ConfigError::invalid(field, found, expected))
        }
        Err(StoreError::Host(error)) => Err(unusable(field, path, &error.source)),
    }
}

fn unusable(field: &str, path: &Path, error: &io::Error) -> ConfigError {
    let found = format!("`{}` ({error})", path.display());
    ConfigError::invalid(field, found, "a directory that exists or can be made")
}

/// Refuses a path that is not absolute, or that no system call takes.
pub(super) fn absolute(path: &str, found: &Path) -> Result<(), ConfigError> {
    if found.is_absolute() && !found.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    let found = format!("`{}`", found.display());
    Err(ConfigError::invalid(path, found, "an absolute path"))
}
