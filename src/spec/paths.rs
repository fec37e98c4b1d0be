//! The shim's own directories and files: `paths` of the config, validated.
//!
//! Other paths of the config are compared with the state directory and the cache directory. A share
//! must not overlap them, and an image or an output file must not be where the shim removes files.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use a3s_box_core::config::{ConfigError, PathsConfig};
use a3s_box_core::{BoxDir, BoxId};
use a3s_box_krun::MAX_SOCKET_PATH_BYTES;
use a3s_box_oci::StoreError;

use super::field::absolute;

/// Checks the paths by themselves: whether they are absolute, and short enough for sockets.
pub(super) fn check(paths: &PathsConfig, id: &BoxId) -> Result<(), ConfigError> {
    absolute("paths.state_dir", &paths.state_dir)?;
    absolute("paths.cache_dir", &paths.cache_dir)?;
    for (field, file) in [("paths.libkrunfw", &paths.libkrunfw), ("paths.guest", &paths.guest)] {
        file.as_deref().map_or(Ok(()), |file| absolute(field, file))?;
    }
    let longest = BoxDir::new(&paths.state_dir, id).longest_socket_path();
    let bytes = longest.as_os_str().len();
    if bytes > MAX_SOCKET_PATH_BYTES {
        let found = format!("a socket path of {bytes} bytes (`{}`)", longest.display());
        let expected = format!("at most {MAX_SOCKET_PATH_BYTES}: choose a shorter directory or id");
        return Err(ConfigError::invalid("paths.state_dir", found, expected));
    }
    Ok(())
}

/// Device and inode number of a file.
pub(super) type Inode = (u64, u64);

/// The location of a file on this host, which may not exist yet.
#[derive(Debug)]
pub(super) struct Location {
    /// Path in which symbolic links are resolved, as far as it exists.
    pub(super) path: PathBuf,
    /// Inode of the file; none if it does not exist.
    pub(super) inode: Option<Inode>,
    /// Inodes of the file and of its parent directories, as far as they exist. They identify a
    /// directory that is bind-mounted in two places, and therefore has two paths.
    lineage: Vec<Inode>,
}

impl Location {
    /// Finds the location of `path`.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        for existing in path.ancestors() {
            let canonical = match existing.canonicalize() {
                // A component that does not exist is not a symbolic link, so it can be appended as
                // it is.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                canonical => canonical?,
            };
            let inode =
                |directory: &Path| directory.metadata().map(|found| (found.dev(), found.ino()));
            let lineage = canonical.ancestors().map(inode).collect::<io::Result<Vec<_>>>()?;
            let missing = path.strip_prefix(existing).unwrap_or(Path::new(""));
            let inode = lineage.first().copied().filter(|_| missing.as_os_str().is_empty());
            // `..` behind a missing directory is resolved in the text, because the shim would
            // resolve it in the same way once the directory is made.
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

    /// Returns whether this location is `directory` or inside of it.
    fn is_in(&self, directory: &Self) -> bool {
        self.is_below(&directory.path, directory.inode)
    }

    /// Returns whether this location is the directory with this path and inode, or inside of it.
    pub(super) fn is_below(&self, path: &Path, inode: Option<Inode>) -> bool {
        self.path.starts_with(path) || inode.is_some_and(|inode| self.lineage.contains(&inode))
    }
}

/// The directories that only the shim uses.
#[derive(Debug)]
pub(super) struct ShimDirectories {
    state: Location,
    cache: Location,
    /// The box directory.
    own: Location,
}

impl ShimDirectories {
    /// Finds the directories and checks that no other user can replace them.
    pub(super) fn find(paths: &PathsConfig, id: &BoxId) -> Result<Self, ConfigError> {
        let find = |field, path: &Path| {
            check_parents(field, path)?;
            Location::find(path).map_err(|error| unusable(field, path, &error))
        };
        Ok(Self {
            state: find("paths.state_dir", &paths.state_dir)?,
            cache: find("paths.cache_dir", &paths.cache_dir)?,
            own: find("paths.state_dir", BoxDir::new(&paths.state_dir, id).path())?,
        })
    }

    /// Refuses a share that contains a directory of the shim or is inside of one. Its guest could
    /// read and change other boxes and the layers of all boxes.
    pub(super) fn refuse_share(&self, field: &str, share: &Location) -> Result<(), ConfigError> {
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

    /// Refuses an image in a directory where it would be removed.
    pub(super) fn refuse_layout(&self, path: &Path) -> Result<(), ConfigError> {
        self.refuse_in_cache("image.layout", path)?;
        if !is_in(path, &self.own) {
            return Ok(());
        }
        let found = format!("`{}`, which is in the box's own directory", path.display());
        let expected =
            "a directory elsewhere: the box directory is cleared when the box starts and ends";
        Err(ConfigError::invalid("image.layout", found, expected))
    }

    /// Refuses a file or directory in the layer cache, which removes unknown files.
    pub(super) fn refuse_in_cache(&self, field: &str, path: &Path) -> Result<(), ConfigError> {
        if !is_in(path, &self.cache) {
            return Ok(());
        }
        let found =
            format!("`{}`, which is in the layer cache (`paths.cache_dir`)", path.display());
        let expected = "a path elsewhere: any file in the layer cache can be removed at any time";
        Err(ConfigError::invalid(field, found, expected))
    }
}

/// Returns whether `path` is inside of `directory`. A path whose location cannot be found is not.
/// The phase that opens it later reports the reason.
fn is_in(path: &Path, directory: &Location) -> bool {
    Location::find(path).is_ok_and(|location| location.is_in(directory))
}

/// Checks that no other user can replace a directory on the way to `path`.
pub(super) fn check_parents(field: &str, path: &Path) -> Result<(), ConfigError> {
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
