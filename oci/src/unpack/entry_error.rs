//! Errors of single entries of a layer.

use std::io;

use a3s_box_sys::HostError;
use nix::errno::Errno;

use super::mapped::MappedIds;
use super::path::{PATH_BYTES, PathError};
use super::steps::StepsError;

/// An entry that cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The name cannot be used.
    #[error("unusable name")]
    Name(#[source] PathError),
    /// The name of a hard link's target cannot be used.
    #[error("unusable hard link target")]
    LinkName(#[source] PathError),
    /// The name has the prefix of a whiteout, but the rest is not a possible file name.
    #[error("malformed whiteout name")]
    Whiteout,
    /// An entry for the root of the layer is not a directory.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// A component of the entry's path is not a directory.
    #[error("a parent of the entry is not a directory")]
    ParentNotDirectory,
    /// The path of the entry leads through more symbolic links than the kernel follows.
    #[error("too many symbolic links on the way to the entry")]
    SymlinkLoop,
    /// The way to the entry, or the ways to all entries of the layer, have more names than a limit.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// The target of a symbolic link is empty, too long or has a NUL byte.
    #[error("malformed symbolic link: expected a target of 1 to {PATH_BYTES} bytes without NUL")]
    SymlinkTarget,
    /// An extended attribute cannot be stored.
    #[error(
        "malformed extended attribute `{name}`: expected a name of at most 255 bytes, with a part after its namespace, and a value of at most 65535 bytes"
    )]
    Xattr {
        /// The full name.
        name: String,
    },
    /// The target of a hard link does not exist.
    #[error(
        "hard link target `{target}` does not exist: expected a file of this layer or of one below"
    )]
    HardLinkTarget {
        /// The target.
        target: String,
    },
    /// The target of a hard link is a directory.
    #[error("hard link target `{target}` is a directory")]
    HardLinkToDirectory {
        /// The target.
        target: String,
    },
    /// The owner is not mapped in the user namespace of the process.
    #[error(
        "owner {uid}:{gid} is not mapped in the user namespace of this process: its user ids are {uids}, its group ids {gids}"
    )]
    Unmapped {
        /// User id of the entry.
        uid: u32,
        /// Group id of the entry.
        gid: u32,
        /// User ids that are mapped.
        uids: MappedIds,
        /// Group ids that are mapped.
        gids: MappedIds,
    },
    /// The process lacks a capability.
    #[error(
        "not permitted to {action}: layers can be unpacked by root only, or in a user namespace"
    )]
    Privilege {
        /// The refused action.
        action: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// A system call failed. Only `failed` creates this variant, so that a missing capability
    /// becomes
    /// `Privilege`.
    #[error(transparent)]
    Host(HostError),
}

impl EntryError {
    /// Returns whether the host caused the error, and not the content of the layer.
    pub(super) fn is_caused_by_host(&self) -> bool {
        matches!(self, Self::Host(_) | Self::Privilege { .. } | Self::Unmapped { .. })
    }
}

/// Returns a function that converts the error of `action`.
pub(super) fn failed<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> EntryError {
    move |error| {
        let source: io::Error = error.into();
        match source.kind() {
            // The kind covers `EPERM` and `EACCES`, which the kernel returns if a capability is
            // missing.
            io::ErrorKind::PermissionDenied => EntryError::Privilege { action, source },
            _ => EntryError::Host(HostError::of(action)(source)),
        }
    }
}

/// Converts the error of opening the parent directory of an entry.
pub(super) fn path_error(errno: Errno) -> EntryError {
    match errno {
        Errno::ENOTDIR => EntryError::ParentNotDirectory,
        Errno::ELOOP => EntryError::SymlinkLoop,
        errno => failed("open the directory of an entry")(errno),
    }
}
