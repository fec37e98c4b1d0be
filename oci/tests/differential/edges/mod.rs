//! Generated images. Each is small and tests one property.
//!
//! Most images have an entry for the root in their first layer, as most real ones do.

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

/// Returns the first layer of most images.
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

/// Returns a layer with an entry for its root.
fn root() -> Tar {
    Tar::new().dir("./")
}

/// Returns a header with another owner. The group id is the user id plus one, so that a tool that
/// swaps the two is detected.
fn owned(kind: EntryType, name: &str, mode: u32, owner: u64) -> tar::Header {
    let mut header = header(kind, name, mode);
    header.set_uid(owner);
    header.set_gid(owner + 1);
    header
}
