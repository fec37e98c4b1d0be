//! The error of one entry of a layer.

use std::io;

use a3s_box_sys::HostError;
use nix::errno::Errno;

use super::mapped::MappedIds;
use super::path::{PATH_BYTES, PathError};

/// An entry that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The name cannot be used.
    #[error("unusable name")]
    Name(#[source] PathError),
    /// The name of a hard link's target cannot be used.
    #[error("unusable hard link target")]
    LinkName(#[source] PathError),
    /// The name is that of a whiteout which hides nothing that could exist.
    #[error("malformed whiteout name")]
    Whiteout,
    /// The root of the layer is something else than a directory.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// Something on the way to the entry is not a directory.
    #[error("a parent of the entry is not a directory")]
    ParentNotDirectory,
    /// The way to the entry has too many symbolic links.
    #[error("too many symbolic links on the way to the entry")]
    SymlinkLoop,
    /// The target of a symbolic link is none.
    #[error("malformed symbolic link: expected a target of 1 to {PATH_BYTES} bytes without NUL")]
    SymlinkTarget,
    /// The target of a hard link is nowhere.
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
    /// The owner is nobody in the user namespace of the process.
    #[error(
        "owner {uid}:{gid} is not mapped in the user namespace of this process: its user ids are {uids}, its group ids {gids}"
    )]
    Unmapped {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
        /// The users that files can have.
        uids: MappedIds,
        /// The groups that files can have.
        gids: MappedIds,
    },
    /// The process lacks a capability.
    #[error(
        "not permitted to {action}: layers can be unpacked by root only, or in a user namespace"
    )]
    Privilege {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed. `failed` makes it, so that a missing capability becomes `Privilege`.
    #[error(transparent)]
    Host(HostError),
}

impl EntryError {
    /// Whether it says something about the host rather than about the layer.
    pub(super) fn is_of_host(&self) -> bool {
        matches!(self, Self::Host(_) | Self::Privilege { .. } | Self::Unmapped { .. })
    }
}

/// Makes an error of what `action` returned.
pub(super) fn failed<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> EntryError {
    move |error| {
        let source: io::Error = error.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => EntryError::Privilege { action, source },
            _ => EntryError::Host(HostError::of(action)(source)),
        }
    }
}

pub(super) fn path_error(errno: Errno) -> EntryError {
    match errno {
        Errno::ENOTDIR => EntryError::ParentNotDirectory,
        Errno::ELOOP => EntryError::SymlinkLoop,
        errno => failed("open the directory of an entry")(errno),
    }
}
