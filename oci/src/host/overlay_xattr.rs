//! The extended attributes in which overlayfs stores its marks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use serde::{Deserialize, Serialize};

/// An attribute to try out whether this process can set `trusted.*`. No other program reads it.
const PROBE_XATTR: &str = "trusted.a3s-box.probe";

/// The namespace of the extended attributes in which overlayfs stores its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OverlayXattrs {
    /// `trusted.overlay.*`, which needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.*`, for mounts in another user namespace (mount option `userxattr`).
    User,
}

impl OverlayXattrs {
    /// Finds the namespace that this process can use, by setting an attribute on `directory`.
    ///
    /// A trial is more reliable than to compare user namespaces or capabilities, because security
    /// modules can refuse the attribute too.
    ///
    /// # Errors
    ///
    /// When the attribute cannot be set for another reason than a missing capability or missing
    /// support, for example because the file system is read-only.
    pub(crate) fn of_process(directory: impl AsFd) -> io::Result<Self> {
        match fsetxattr(&directory, PROBE_XATTR, b"", XattrFlags::empty()) {
            Ok(()) => match fremovexattr(&directory, PROBE_XATTR) {
                // Another process that makes the same trial can have removed the attribute.
                Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(Self::Trusted),
                Err(errno) => Err(errno.into()),
            },
            Err(rustix::io::Errno::PERM) => Ok(Self::User),
            // The file system has no such attributes. The overlay mount then fails with an error
            // that explains this.
            Err(rustix::io::Errno::NOTSUP) => Ok(Self::Trusted),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the attribute that marks a directory as opaque. Its value is `y`.
    pub(crate) fn opaque_xattr(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Returns the mount options whose defaults depend on the build of the host kernel.
    ///
    /// `metacopy` and `redirect_dir` are disabled, because an image could otherwise redirect
    /// lookups to other directories of the layers. `index` is disabled, because it ties an upper
    /// directory to its layers, and each upper directory is used with one stack only.
    ///
    /// With `userxattr` the kernel disables redirects and metadata copies itself, and refuses these
    /// two options (`Documentation/filesystems/overlayfs.rst`).
    pub(crate) fn options(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            Self::Trusted => &[
                ("index", Some("off")),
                ("metacopy", Some("off")),
                // `off` would still follow existing redirects if the host kernel is built with
                // `CONFIG_OVERLAY_FS_REDIRECT_ALWAYS_FOLLOW`.
                ("redirect_dir", Some("nofollow")),
            ],
            Self::User => &[("index", Some("off")), ("userxattr", None)],
        }
    }
}

/// Returns whether a directory is marked as opaque, so that overlayfs hides the lower layers' files
/// in it.
pub(crate) fn is_opaque(directory: &OwnedFd, overlay_xattrs: OverlayXattrs) -> nix::Result<bool> {
    let mut value = [0_u8; 1];
    match fgetxattr(directory, overlay_xattrs.opaque_xattr(), &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        // This crate sets only the value `y`. `ERANGE` means that the value is longer.
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::RANGE | rustix::io::Errno::NOTSUP) => {
            Ok(false)
        }
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
    }
}
