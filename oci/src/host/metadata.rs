//! Copies the metadata of a file or directory to another one.

use std::fs::{File, FileTimes, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::time::SystemTime;

use rustix::fs::{XattrFlags, fsetxattr};

use crate::host::xattr::{kept_names_of, value_of};

/// Mode of a directory for which no layer has an entry. Other tools use the same mode.
pub(crate) const UNDESCRIBED_DIR_MODE: u32 = 0o755;

/// Copies owner, extended attributes, mode and times from one open file or directory to another.
///
/// The owner is set first, because `fchown(2)` clears the setuid and setgid bits and
/// `security.capability`. The times are set last, because the other calls could change them.
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

/// Sets the metadata of a directory for which no layer has an entry. It is constant, so that each
/// run gives the same root file system.
pub(crate) fn reset_metadata(directory: &OwnedFd) -> io::Result<()> {
    let directory = File::from(directory.try_clone()?);
    fchown(&directory, Some(0), Some(0))?;
    directory.set_permissions(Permissions::from_mode(UNDESCRIBED_DIR_MODE))?;
    let zero = SystemTime::UNIX_EPOCH;
    directory.set_times(FileTimes::new().set_accessed(zero).set_modified(zero))
}
