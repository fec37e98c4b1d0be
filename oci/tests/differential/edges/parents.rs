//! Parent directories of entries: symbolic links to them, and directories without an entry.

use tar::EntryType;

use super::{base, owned, root};
use crate::archive::Tar;
use crate::case::{Case, check};
use crate::verdict::Verdict::{Accepts, Differs, Refuses};

// The reasons why tools disagree.
const LINK_UNSEEN: &str =
    "the overlayfs snapshotter unpacks each layer alone, so its directory hides the lower symlink";
const NODE_IN_THE_WAY: &str =
    "the overlayfs snapshotter cannot make a directory in place of the device node of a whiteout";
const FILE_UNSEEN: &str =
    "the overlayfs snapshotter unpacks each layer alone, so its directory hides the lower file";

#[test]
fn symlinks_of_the_same_layer_are_followed_in_the_tree() {
    check(
        "symlink",
        &[
            Case::of("relative", vec![root().dir("d").symlink("s", "d").file("s/f", "1").into()]),
            Case::of(
                "absolute-link",
                vec![root().dir("d").symlink("s", "/d").file("s/f", "1").into()],
            ),
            Case::of(
                "upwards-link",
                vec![root().dir("d").symlink("d/s", "../../../..").file("d/s/f", "1").into()],
            ),
            Case::of(
                "chain",
                vec![root().dir("d").symlink("s", "d").symlink("t", "s").file("t/f", "1").into()],
            ),
            Case::of("dangling", vec![root().symlink("s", "gone").file("s/f", "1").into()])
                .umoci(Differs(&[("gone", "mtime now")]))
                .overlayfs(Differs(&[("gone", "mtime now")])),
            Case::of(
                "dangling-absolute",
                vec![root().symlink("s", "/gone/deep").file("s/f", "1").into()],
            )
            .umoci(Differs(&[("gone", "mtime now"), ("gone/deep", "mtime now")]))
            .overlayfs(Differs(&[("gone", "mtime now"), ("gone/deep", "mtime now")])),
            Case::of(
                "loop",
                vec![root().symlink("s", "t").symlink("t", "s").file("s/f", "1").into()],
            )
            .umoci(Refuses("too many levels of symbolic links"))
            .containerd(Refuses("too many links"))
            .refused("too many symbolic links"),
            Case::of(
                "to-a-file",
                vec![root().file("f", "1").symlink("s", "f").file("s/g", "1").into()],
            )
            .umoci(Refuses("not a directory"))
            .containerd(Refuses("not a directory"))
            .refused("not a directory"),
        ],
    );
}

#[test]
fn symlinks_of_lower_layers_are_followed_in_the_tree() {
    let lower = |target: &str| base().symlink("s", target).into();
    check(
        "lower-symlink",
        &[
            Case::of("lower", vec![base().into(), Tar::new().file("link/n", "2").into()])
                .because(LINK_UNSEEN)
                .overlayfs(Differs(&[
                    ("b/n", "absent"),
                    ("link", "kind dir, mode 755, mtime now, content "),
                    ("link/n", "file"),
                ])),
            Case::of("lower-absolute", vec![lower("/b"), Tar::new().file("s/n", "2").into()])
                .because(LINK_UNSEEN)
                .overlayfs(Differs(&[
                    ("b/n", "absent"),
                    ("s", "kind dir, mode 755, mtime now, content "),
                    ("s/n", "file"),
                ])),
            Case::of("lower-upwards", vec![lower("../../b"), Tar::new().file("s/n", "2").into()])
                .because(LINK_UNSEEN)
                .overlayfs(Differs(&[
                    ("b/n", "absent"),
                    ("s", "kind dir, mode 755, mtime now, content "),
                    ("s/n", "file"),
                ])),
            Case::of("lower-dangling", vec![lower("gone"), Tar::new().file("s/n", "2").into()])
                .because(LINK_UNSEEN)
                .umoci(Differs(&[("gone", "mtime now")]))
                .overlayfs(Differs(&[
                    ("gone", "absent"),
                    ("gone/n", "absent"),
                    ("s", "kind dir, mode 755, owner 0:0, mtime now, content "),
                    ("s/n", "file"),
                ])),
            Case::of(
                "lower-with-dirs",
                vec![base().into(), Tar::new().dir("link/d").file("link/d/n", "2").into()],
            )
            .because(LINK_UNSEEN)
            .overlayfs(Differs(&[
                ("b/d", "absent"),
                ("b/d/n", "absent"),
                ("link", "kind dir, mode 755, mtime now, content "),
                ("link/d", "dir"),
                ("link/d/n", "file"),
            ])),
            Case::of(
                "lower-over-a-file",
                vec![base().into(), Tar::new().file("link/z", "2").into()],
            )
            .because(LINK_UNSEEN)
            .overlayfs(Differs(&[
                ("b/z", "content `1`"),
                ("link", "kind dir, mode 755, mtime now, content "),
                ("link/z", "file"),
            ])),
            Case::of(
                "lower-twice",
                vec![
                    base().into(),
                    Tar::new().file("link/n", "2").into(),
                    Tar::new().file("link/m", "3").into(),
                ],
            )
            .because(LINK_UNSEEN)
            .overlayfs(Differs(&[
                ("b/m", "absent"),
                ("b/n", "absent"),
                ("link", "kind dir, mode 755, mtime now, content "),
                ("link/m", "file"),
                ("link/n", "file"),
            ])),
            Case::of(
                "lower-hidden-first",
                vec![base().into(), Tar::new().file(".wh.link", "").file("link/n", "2").into()],
            )
            .because(NODE_IN_THE_WAY)
            .umoci(Differs(&[("link", "mtime now")]))
            .overlayfs(Refuses("not a directory")),
            Case::of("lower-loop", vec![lower("s"), Tar::new().file("s/n", "2").into()])
                .umoci(Refuses("too many levels of symbolic links"))
                .containerd(Refuses("too many links"))
                .refused("too many symbolic links"),
        ],
    );
}

#[test]
fn directories_without_an_entry_have_the_metadata_of_lower_layers() {
    check(
        "implicit",
        &[
            Case::of(
                "lower-described",
                vec![base().into(), Tar::new().file("private/n", "2").into()],
            )
            .overlayfs(Differs(&[("private", "mtime now")])),
            Case::of(
                "lower-described-two-below",
                vec![
                    base().into(),
                    Tar::new().file("private/n", "2").into(),
                    Tar::new().file("private/m", "3").into(),
                ],
            )
            .overlayfs(Differs(&[("private", "mtime now")])),
            Case::of(
                "lower-described-deep",
                vec![
                    base()
                        .append(owned(EntryType::Directory, "private/deep", 0o711, 9), "", b"")
                        .into(),
                    Tar::new().file("private/deep/n", "2").into(),
                ],
            )
            .overlayfs(Differs(&[("private", "mtime now"), ("private/deep", "mtime now")])),
            Case::of("new", vec![root().file("d/e/f", "1").into()])
                .umoci(Differs(&[("d", "mtime now"), ("d/e", "mtime now")]))
                .overlayfs(Differs(&[("d", "mtime now"), ("d/e", "mtime now")])),
            Case::of(
                "described-later",
                vec![
                    root()
                        .file("d/f", "1")
                        .append(owned(EntryType::Directory, "d", 0o700, 7), "", b"")
                        .into(),
                ],
            ),
            Case::of(
                "described-by-an-upper-layer",
                vec![
                    root().file("d/f", "1").into(),
                    Tar::new().append(owned(EntryType::Directory, "d", 0o700, 7), "", b"").into(),
                ],
            ),
            Case::of("below-a-file", vec![root().file("f", "1").file("f/g", "1").into()])
                .umoci(Refuses("not a directory"))
                .containerd(Refuses("not a directory"))
                .refused("not a directory"),
            Case::of(
                "below-a-lower-file",
                vec![base().into(), Tar::new().file("top/n", "2").into()],
            )
            .because(FILE_UNSEEN)
            .umoci(Refuses("not a directory"))
            .overlayfs(Accepts)
            .native(Refuses("not a directory"))
            .refused("not a directory"),
            Case::of(
                "below-a-fifo",
                vec![
                    base().entry(EntryType::Fifo, "p", 0o600, b"").into(),
                    Tar::new().file("p/n", "2").into(),
                ],
            )
            .because(FILE_UNSEEN)
            .umoci(Refuses("not a directory"))
            .overlayfs(Accepts)
            .native(Refuses("not a directory"))
            .refused("not a directory"),
        ],
    );
}
