//! Operations on the host's file systems that several modules of this crate share.
//!
//! ```text
//! directory      opens directories by paths that an image has shaped, and lists them
//! remove         removes trees of any depth
//! private_dir    directories that no other user can reach or replace
//! file_lock      locks on open files
//! trusted_path   paths, resolved with a check of the owner of each component
//! metadata       copies owner, mode, times and extended attributes from one inode to another
//! xattr          reads extended attributes, and decides which of them are kept
//! overlay_xattr  the extended attributes in which overlayfs stores its marks
//! overlay_mount  overlay mounts
//! text           prints text of an image without control characters
//! scratch_dir    a temporary directory for tests that mount
//! ```

pub(crate) mod directory;
pub(crate) mod file_lock;
pub(crate) mod metadata;
pub(crate) mod overlay_mount;
pub(crate) mod overlay_xattr;
pub(crate) mod private_dir;
pub(crate) mod remove;
pub(crate) mod text;
pub(crate) mod trusted_path;
pub(crate) mod xattr;

#[cfg(test)]
pub(crate) mod scratch_dir;
