//! The metadata of a file or directory, taken from another.

use std::fs::{File, FileTimes, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::time::SystemTime;

use rustix::fs::{XattrFlags, fsetxattr};

use crate::host::xattr::{kept_names_of, value_of};

/// Mode of a directory that nothing describes; what other tools use.
pub(crate) const UNDESCRIBED_DIR_MODE: u32 = 0o755;

/// Gives the open file or directory `to` owner, attributes, mode and times of `from`, in the order in
/// which nothing is cleared again: a change of the owner clears setuid bits and
/// `security.capability`.
pub(crate) fn copy_metadata(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let (from, to) = (File::from(from.try_clone()?), File::from(to.try_clone()?));
    let model = from.metadata()?;
    fchown(&to, Some(model.uid()), Some(model.gid()))?;
    for name in kept_names_of(&from)? {
        fsetxattr(&to, name.as_slice(), &value_of(&from, &name)?, XattrFlags::empty())?;
    }
    to.set_permissions(Permissions::from_mode(model.mode() & 0o7777))?;
    to.set_times(FileTimes::new().set_accessed(model.accessed()?).set_modified(model.modified()?))
}

/// Gives a directory that nothing describes its metadata: root's, and the same in each run.
pub(crate) fn reset_metadata(directory: &OwnedFd) -> io::Result<()> {
    let directory = File::from(directory.try_clone()?);
    fchown(&directory, Some(0), Some(0))?;
    directory.set_permissions(Permissions::from_mode(UNDESCRIBED_DIR_MODE))?;
    let zero = SystemTime::UNIX_EPOCH;
    directory.set_times(FileTimes::new().set_accessed(zero).set_modified(zero))
}
