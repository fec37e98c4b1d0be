//! The extended attributes in which overlayfs stores its marks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};

/// An attribute that only the machine's root can set, and nothing looks at.
const PROBE_XATTR: &str = "trusted.a3s-box.probe";

/// Which extended attributes overlayfs keeps its marks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverlayXattrs {
    /// `trusted.overlay.*`, which only the machine's root can write.
    Trusted,
    /// `user.overlay.*`, for a user namespace.
    User,
}

impl OverlayXattrs {
    /// Finds the namespace of xattrs that this process can use, by a trial on a directory of its own.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written to.
    pub(crate) fn of_process(directory: impl AsFd) -> io::Result<Self> {
        match fsetxattr(&directory, PROBE_XATTR, b"", XattrFlags::empty()) {
            Ok(()) => match fremovexattr(&directory, PROBE_XATTR) {
                // Another process that asks the same may have removed it.
                Ok(()) | Err(rustix::io::Errno::NODATA) => Ok(Self::Trusted),
                Err(errno) => Err(errno.into()),
            },
            Err(rustix::io::Errno::PERM) => Ok(Self::User),
            // A file system without such attributes: overlayfs is to say what it lacks.
            Err(rustix::io::Errno::NOTSUP) => Ok(Self::Trusted),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The attribute that hides what lower layers have in a directory; its value is `y`.
    pub(crate) fn opaque_xattr(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// The options that must not depend on the kernel's build: an image must not be able to
    /// redirect lookups, and an upper directory is used with one stack of layers only.
    ///
    /// With `userxattr` the kernel refuses to be told about redirections and metadata copies, and
    /// does neither (`Documentation/filesystems/overlayfs.rst`).
    pub(crate) fn options(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            Self::Trusted => &[
                ("index", Some("off")),
                ("metacopy", Some("off")),
                // `off` would still follow the redirections of layers, where the kernel's build
                // says so.
                ("redirect_dir", Some("nofollow")),
            ],
            Self::User => &[("index", Some("off")), ("userxattr", None)],
        }
    }
}

/// Says whether overlayfs hides what lower layers have in a directory.
pub(crate) fn is_opaque(directory: &OwnedFd, overlay_xattrs: OverlayXattrs) -> nix::Result<bool> {
    let mut value = [0_u8; 1];
    match fgetxattr(directory, overlay_xattrs.opaque_xattr(), &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        // Nothing but `y` is ever set, and a longer value is none of ours.
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::RANGE | rustix::io::Errno::NOTSUP) => {
            Ok(false)
        }
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
    }
}
