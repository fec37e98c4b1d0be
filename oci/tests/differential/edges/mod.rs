//! Generated images: each is small, and about one thing.
//!
//! Most have a first layer that describes its root, so that there is no time of the test's run.

#![expect(clippy::too_many_lines, reason = "each test is a table of images")]

mod links;
mod metadata;
mod names;
mod parents;
mod replaced;
mod streams;
mod whiteouts;

use tar::EntryType;

use crate::archive::{Tar, header};

/// The first layer of most images.
///
/// ```text
/// /  a/{x,y}  b/z  top  link -> b  private/ (0700, owner 7:8)
/// ```
fn base() -> Tar {
    root()
        .dir("a")
        .file("a/x", "1")
        .file("a/y", "1")
        .dir("b")
        .file("b/z", "1")
        .file("top", "1")
        .symlink("link", "b")
        .append(owned(EntryType::Directory, "private", 0o700, 7), "", b"")
}

/// A layer that describes its root.
fn root() -> Tar {
    Tar::new().dir("./")
}

/// A header with another owner; the group is the owner's successor.
fn owned(kind: EntryType, name: &str, mode: u32, owner: u64) -> tar::Header {
    let mut header = header(kind, name, mode);
    header.set_uid(owner);
    header.set_gid(owner + 1);
    header
}
