//! Makes the directories that overlayfs needs for its writes.
//!
//! Overlayfs shows the root of the upper directory as the root of the box, and not that of the
//! image. A new upper directory therefore gets the metadata of the image's root. An existing one
//! keeps its own, because the box may have changed it.

use std::fs::{self, DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// Name of the directory that receives the writes.
pub(super) const UPPER: &str = "upper";

/// Name of the directory that overlayfs has to itself. It must be on the file system of the upper
/// directory.
pub(super) const WORK: &str = "work";

/// Name of the upper directory until it has its metadata.
const NEW: &str = "upper.new";

/// Mode of the work directory. Overlayfs makes its own directories in it.
const WORK_MODE: u32 = 0o700;

/// Largest size of a list of attribute names and of a value, in bytes (`XATTR_LIST_MAX` and
/// `XATTR_SIZE_MAX`, Linux include/uapi/linux/limits.h).
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// Makes the directories [`UPPER`] and [`WORK`] in `place`, with the metadata of `image` for the
/// first one. Existing ones stay as they are.
pub(super) fn prepare(image: &Path, place: &Path) -> io::Result<()> {
    make(&place.join(WORK), WORK_MODE)?;
    let upper = place.join(UPPER);
    if upper.try_exists()? {
        return Ok(());
    }
    // A guest can be killed at any time. The rename makes an upper directory with half of its
    // metadata impossible, because a later start would keep it.
    let new = place.join(NEW);
    make(&new, WORK_MODE)?;
    copy_metadata(&File::open(image)?, &File::open(&new)?)?;
    fs::rename(new, upper)
}

/// Makes a directory. An existing one is no error.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Copies owner, extended attributes, mode and times of a directory. The times come last, because
/// the other calls could change them.
fn copy_metadata(from: &File, to: &File) -> io::Result<()> {
    let model = from.metadata()?;
    fchown(to, Some(model.uid()), Some(model.gid()))?;
    copy_xattrs(from, to)?;
    to.set_permissions(Permissions::from_mode(model.mode() & 0o7777))?;
    to.set_times(FileTimes::new().set_accessed(model.accessed()?).set_modified(model.modified()?))
}

/// Copies the extended attributes that the upper file system can have.
fn copy_xattrs(from: &File, to: &File) -> io::Result<()> {
    let mut list = vec![0; MAX_XATTR_BYTES];
    let length = match flistxattr(from, list.as_mut_slice()) {
        // An EROFS without any attributes may report that it supports none.
        Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    let mut value = vec![0; MAX_XATTR_BYTES];
    // The list consists of names that end with NUL (listxattr(2)).
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Overlayfs takes its own marks from this namespace.
        if name.starts_with(b"trusted.") {
            continue;
        }
        let length = fgetxattr(from, name, value.as_mut_slice())?;
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // An ACL, on a guest kernel whose ext4 or tmpfs is built without them. The mode of the
            // directory still has the bits of its owner, group and others.
            Err(Errno::NOTSUP) => {}
            set => set?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_directory_has_its_name_only_when_it_has_its_metadata() {
        let place = tempfile::tempdir().unwrap();
        prepare(&place.path().join("missing"), place.path()).unwrap_err();
        assert!(!place.path().join(UPPER).exists());
        let image = tempfile::tempdir().unwrap();
        fs::set_permissions(image.path(), Permissions::from_mode(0o2711)).unwrap();
        prepare(image.path(), place.path()).unwrap();
        let mode = place.path().join(UPPER).metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o2711);
        assert!(!place.path().join(NEW).exists());
    }
}
