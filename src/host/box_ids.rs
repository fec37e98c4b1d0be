//! The ids of the host that a box has while it runs.
//!
//! The VMM of a shim that root started must be no user of the host. It gets 65,536 ids that no user,
//! group or other box has, as user ids and as group ids:
//!
//! ```text
//!  <state_dir>/.ids/<first id>   empty; locked (flock(2)) by the shim whose box has these ids
//! ```
//!
//! The kernel releases the lock when the shim ends, even after SIGKILL. The search for a free range
//! begins at a number that is derived from the state directory and the box's id, so that it rarely
//! finds a range that another box has, and boxes of different state directories rarely meet.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use a3s_box_core::config::IdsConfig;
use a3s_box_sys::HostError;
use a3s_box_sys::user_namespace::IdMap;
use nix::fcntl::OFlag;

use crate::spec::{IDS_PER_BOX, VmSpec};

/// Directory of the locks, in the state directory. No box has this name, because the id of a box
/// begins with a letter or a digit.
const LOCKS: &str = ".ids";

/// Why a box gets no ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoxIdsError {
    #[error(
        "all {ranges} ranges of 65536 ids are in use: stop a box, or enlarge `confinement.ids`"
    )]
    AllInUse { ranges: u32 },
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The ids of a box. They are its own as long as this value exists.
#[derive(Debug)]
pub(crate) struct BoxIds {
    first: u32,
    _lock: File,
}

impl BoxIds {
    /// Takes ids that no other box has. The state directory must exist.
    pub(crate) fn take(spec: &VmSpec) -> Result<Self, BoxIdsError> {
        let directory = spec.paths.state_dir.join(LOCKS);
        let mut hasher = DefaultHasher::new();
        (&directory, &*spec.id).hash(&mut hasher);
        Self::take_from(&directory, spec.ids, hasher.finish())
    }

    fn take_from(directory: &Path, ids: IdsConfig, start: u64) -> Result<Self, BoxIdsError> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(HostError::at("make", directory))?,
        }
        let ranges = ids.count / IDS_PER_BOX;
        for step in 0..u64::from(ranges) {
            let number = start.wrapping_add(step) % u64::from(ranges);
            // The number is less than that of the ranges, so the last id of the range fits.
            let first = ids.first + u32::try_from(number).unwrap_or_default() * IDS_PER_BOX;
            let path = directory.join(first.to_string());
            if let Some(lock) = try_lock(&path).map_err(HostError::at("lock", &path))? {
                return Ok(Self { first, _lock: lock });
            }
        }
        Err(BoxIdsError::AllInUse { ranges })
    }

    /// Returns the map of the box's user namespace: 0 to 65,535 inside.
    pub(crate) fn map(&self) -> IdMap {
        IdMap { first: self.first, count: IDS_PER_BOX }
    }

    /// Returns the id of the host that the VMM has, as a user and as a group. It is 0 in the box's
    /// user namespace.
    pub(crate) fn vmm(&self) -> u32 {
        self.first
    }

    /// Returns the id of the host that gate and passt have. It is 65,535 in the box's user
    /// namespace, which is no id of a file: in 16 bits it is -1.
    pub(crate) fn carrier(&self) -> u32 {
        self.first + (IDS_PER_BOX - 1)
    }
}

/// Locks a file, and makes it first if it is missing. Returns `None` if another shim has the lock.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    // flock(2) needs no permission to write, and the VMM keeps this fd.
    let open = || OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).mode(0o400).custom_flags(OFlag::O_NOFOLLOW.bits());
            drop(options.open(path)?);
            open()?
        }
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn take(directory: &Path, start: u64) -> Result<BoxIds, BoxIdsError> {
        let ids = IdsConfig { first: 1 << 20, count: 3 * IDS_PER_BOX + 7 };
        BoxIds::take_from(&directory.join(LOCKS), ids, start)
    }

    #[test]
    fn boxes_that_run_have_different_ids_and_return_them() {
        let directory = tempfile::tempdir().unwrap();
        let boxes = [4, 4, u64::MAX].map(|start| take(directory.path(), start).unwrap());
        let mut firsts: Vec<u32> = boxes.iter().map(BoxIds::vmm).collect();
        assert_eq!(firsts[0], (1 << 20) + IDS_PER_BOX);
        firsts.sort_unstable();
        let expected = [0, 1, 2].map(|number| (1 << 20) + number * IDS_PER_BOX);
        assert_eq!(firsts, expected);
        let error = take(directory.path(), 0).unwrap_err();
        assert!(matches!(error, BoxIdsError::AllInUse { ranges: 3 }), "{error}");
        // Only the ids of the box that ends are free again.
        let [ended, _second, _third] = boxes;
        let freed = ended.vmm();
        drop(ended);
        let again = take(directory.path(), 0).unwrap();
        assert_eq!(again.vmm(), freed);
        assert_eq!(again.carrier() - again.vmm(), 65_535);
        assert_eq!(fs::read_dir(directory.path().join(LOCKS)).unwrap().count(), 3);
    }

    #[test]
    fn planted_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join(LOCKS);
        fs::create_dir(&locks).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", locks.join((1 << 20).to_string())).unwrap();
        let error = take(directory.path(), 0).unwrap_err();
        assert!(matches!(error, BoxIdsError::Host(_)), "{error}");
    }
}
