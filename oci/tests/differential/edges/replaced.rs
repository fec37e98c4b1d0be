//! Entries that replace other entries of the same name.

use tar::EntryType;

use super::{base, owned, root};
use crate::archive::Tar;
use crate::case::{Case, check};
use crate::verdict::Verdict::Differs;

// The reasons why tools disagree.
const MERGED: &str =
    "the overlayfs snapshotter merges the directory with the lower one that the file replaced";

#[test]
fn entry_replaces_a_lower_file_of_any_type() {
    check(
        "replaced",
        &[
            Case::of(
                "file-over-file",
                vec![base().into(), Tar::new().file("top", "longer").into()],
            ),
            Case::of("file-over-dir", vec![base().into(), Tar::new().file("a", "2").into()]),
            Case::of(
                "dir-over-file",
                vec![base().into(), Tar::new().dir("top").file("top/n", "2").into()],
            ),
            Case::of("symlink-over-dir", vec![base().into(), Tar::new().symlink("a", "b").into()]),
            Case::of(
                "dir-over-symlink",
                vec![base().into(), Tar::new().dir("link").file("link/n", "2").into()],
            ),
            Case::of(
                "symlink-over-file",
                vec![base().into(), Tar::new().symlink("top", "b/z").into()],
            ),
            Case::of("file-over-symlink", vec![base().into(), Tar::new().file("link", "2").into()]),
            Case::of(
                "symlink-over-symlink",
                vec![base().into(), Tar::new().symlink("link", "a").into()],
            ),
            Case::of(
                "fifo-over-file",
                vec![base().into(), Tar::new().entry(EntryType::Fifo, "top", 0o640, b"").into()],
            ),
            Case::of(
                "there-and-back",
                vec![
                    base().into(),
                    Tar::new().file("a", "2").into(),
                    Tar::new().dir("a").file("a/n", "3").into(),
                ],
            ),
            Case::of(
                "dir-with-other-metadata",
                vec![
                    base().into(),
                    Tar::new().append(owned(EntryType::Directory, "a", 0o750, 5), "", b"").into(),
                ],
            ),
            Case::of(
                "one-name-of-two",
                vec![base().hard_link("b/hard", "b/z").into(), Tar::new().file("b/z", "2").into()],
            )
            .overlayfs(Differs(&[("b", "mtime now")])),
        ],
    );
}

#[test]
fn last_entry_of_a_name_takes_precedence() {
    check(
        "last-entry",
        &[
            Case::of("file-twice", vec![root().file("f", "1").file("f", "longer").into()]),
            Case::of(
                "dir-twice",
                vec![
                    root()
                        .dir("d")
                        .file("d/f", "1")
                        .append(owned(EntryType::Directory, "d", 0o700, 5), "", b"")
                        .into(),
                ],
            ),
            Case::of("file-then-dir", vec![root().file("f", "1").dir("f").file("f/n", "1").into()]),
            Case::of("dir-then-file", vec![root().dir("f").file("f/n", "1").file("f", "1").into()]),
            Case::of(
                "dir-then-symlink",
                vec![
                    root()
                        .dir("d")
                        .dir("f")
                        .file("f/n", "1")
                        .symlink("f", "d")
                        .file("f/m", "1")
                        .into(),
                ],
            ),
            Case::of(
                "symlink-then-dir",
                vec![root().dir("d").symlink("f", "d").dir("f").file("f/m", "1").into()],
            ),
            Case::of(
                "symlink-then-file",
                vec![root().file("d", "1").symlink("f", "d").file("f", "2").into()],
            ),
            Case::of(
                "earlier-link-keeps-the-old-file",
                vec![root().file("f", "1").hard_link("h", "f").file("f", "2").into()],
            ),
            Case::of(
                "file-then-dir-over-a-lower-dir",
                vec![base().into(), Tar::new().file("a", "2").dir("a").file("a/n", "2").into()],
            )
            .because(MERGED)
            .overlayfs(Differs(&[("a/x", "file"), ("a/y", "file")])),
        ],
    );
}
