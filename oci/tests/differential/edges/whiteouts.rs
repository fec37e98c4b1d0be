//! Whiteouts and opaque directories.

use tar::EntryType;

use super::{base, root};
use crate::archive::Tar;
use crate::case::{Case, check};
use crate::verdict::Verdict::{Accepts, Differs, Refuses};

// The reasons why tools disagree.
const LINK_UNSEEN: &str =
    "the overlayfs snapshotter unpacks each layer alone, so its directory hides the lower symlink";
const OWN_LAYER: &str =
    "a whiteout hides lower layers only, but containerd applies it to its own layer too";
const NOT_HIDDEN: &str =
    "the overlayfs snapshotter merges the directory with the lower one that the whiteout hides";
const NODE_IN_THE_WAY: &str =
    "the overlayfs snapshotter cannot make a directory in place of the device node of a whiteout";
const DIR_MADE: &str =
    "a whiteout of a missing file has no effect, but containerd makes the directory";
const NODE_LISTED: &str =
    "overlayfs lists the device node of a whiteout in a directory that it does not merge";
const FILE_BECOMES_DIR: &str =
    "a whiteout of a missing file has no effect, but containerd replaces the lower file or fails";
const NO_SUCH_NAMES: &str =
    "the specification reserves such names for whiteouts, and no layer could remove the directory";
const MARK_MAKES_DIR: &str =
    "an opaque whiteout that hides no file has no effect, but containerd makes the directory";
const ROOT_MARK: &str = "overlayfs ignores the opaque mark on the root of a layer";

#[test]
fn whiteouts_hide_files_of_lower_layers() {
    check(
        "whiteout",
        &[
            Case::of(
                "of-a-file",
                vec![base().into(), Tar::new().dir("a").file("a/.wh.x", "").into()],
            ),
            Case::of("of-a-dir", vec![base().into(), Tar::new().file(".wh.a", "").into()]),
            Case::of("of-a-symlink", vec![base().into(), Tar::new().file(".wh.link", "").into()]),
            Case::of(
                "of-one-name-of-two",
                vec![
                    base().hard_link("b/hard", "b/z").into(),
                    Tar::new().file("b/.wh.z", "").into(),
                ],
            )
            .overlayfs(Differs(&[("b", "mtime now")])),
            Case::of(
                "with-a-body-and-as-a-dir",
                vec![
                    base().into(),
                    Tar::new()
                        .file(".wh.top", "a body without a meaning")
                        .entry(EntryType::Directory, "a/.wh.x", 0o755, b"")
                        .symlink("a/.wh.y", "b")
                        .into(),
                ],
            )
            .overlayfs(Differs(&[("a", "mtime now")])),
            Case::of(
                "in-a-dir-not-described",
                vec![
                    base().into(),
                    Tar::new().file("private/x", "1").into(),
                    Tar::new().file("private/.wh.x", "").into(),
                ],
            )
            .overlayfs(Differs(&[("private", "mtime now")])),
            Case::of(
                "through-a-lower-symlink",
                vec![base().into(), Tar::new().file("link/.wh.z", "").into()],
            )
            .because(LINK_UNSEEN)
            .overlayfs(Differs(&[
                ("b/z", "file"),
                ("link", "kind dir, mode 755, mtime now, content "),
                ("link/z", "ghost"),
            ])),
            Case::of(
                "then-again-and-back",
                vec![
                    base().into(),
                    Tar::new().file(".wh.a", "").file(".wh.top", "").into(),
                    Tar::new().file(".wh.a", "").into(),
                    Tar::new().dir("a").file("a/n", "4").file("top", "4").into(),
                ],
            ),
        ],
    );
}

#[test]
fn whiteouts_do_not_hide_files_of_their_own_layer() {
    check(
        "own-whiteout",
        &[
            Case::of(
                "file-then-its-whiteout",
                vec![
                    base().into(),
                    Tar::new().dir("a").file("a/x", "2").file("a/.wh.x", "").into(),
                ],
            )
            .because(OWN_LAYER)
            .overlayfs(Refuses("file exists"))
            .native(Differs(&[("a/x", "absent")])),
            Case::of(
                "whiteout-then-file",
                vec![
                    base().into(),
                    Tar::new().dir("a").file("a/.wh.x", "").file("a/x", "2").into(),
                ],
            ),
            Case::of(
                "whiteout-then-dir",
                vec![base().into(), Tar::new().file(".wh.a", "").dir("a").file("a/n", "2").into()],
            )
            .because(NOT_HIDDEN)
            .overlayfs(Differs(&[("a/x", "file"), ("a/y", "file")])),
            Case::of(
                "dir-then-its-whiteout",
                vec![base().into(), Tar::new().dir("a").file("a/n", "2").file(".wh.a", "").into()],
            )
            .because(OWN_LAYER)
            .umoci(Differs(&[("a", "mtime now")]))
            .overlayfs(Refuses("file exists"))
            .native(Refuses("no such file or directory"))
            .with(&[("a", "dir 755 11:22 1700000000")]),
            Case::of(
                "whiteout-then-dir-not-described",
                vec![
                    base().into(),
                    Tar::new().file(".wh.private", "").file("private/n", "2").into(),
                ],
            )
            .because(NODE_IN_THE_WAY)
            .umoci(Differs(&[("private", "mtime now")]))
            .overlayfs(Refuses("not a directory")),
            Case::of(
                "whiteout-of-a-file-then-dir",
                vec![
                    base().into(),
                    Tar::new().file(".wh.top", "").dir("top").file("top/n", "2").into(),
                ],
            ),
            Case::of(
                "whiteout-below-a-new-dir",
                vec![
                    base().into(),
                    Tar::new()
                        .file(".wh.a", "")
                        .dir("a")
                        .file("a/.wh.x", "")
                        .file("a/y", "2")
                        .into(),
                ],
            ),
        ],
    );
}

#[test]
fn whiteouts_of_missing_files_have_no_effect() {
    check(
        "whiteout-of-a-missing-file",
        &[
            Case::of("in-the-root", vec![base().into(), Tar::new().file(".wh.gone", "").into()]),
            Case::of(
                "in-the-first-layer",
                vec![root().dir("d").file("d/.wh.x", "").file(".wh.y", "").into()],
            ),
            Case::of(
                "in-a-missing-dir",
                vec![base().into(), Tar::new().file("q/.wh.x", "").into()],
            )
            .because(DIR_MADE)
            .overlayfs(Differs(&[("q", "dir"), ("q/x", "ghost")]))
            .native(Differs(&[("q", "dir")])),
            Case::of(
                "in-a-new-dir",
                vec![
                    base().into(),
                    Tar::new().dir("q").file("q/.wh.x", "").file("q/n", "2").into(),
                ],
            )
            .because(NODE_LISTED)
            .overlayfs(Differs(&[("q/x", "ghost")])),
            Case::of("below-a-file", vec![base().into(), Tar::new().file("top/.wh.x", "").into()])
                .because(FILE_BECOMES_DIR)
                .overlayfs(Differs(&[
                    ("top", "kind dir, mode 755, owner 0:0, mtime now, content "),
                    ("top/x", "ghost"),
                ]))
                .native(Refuses("not a directory")),
            Case::of(
                "of-aufs",
                vec![
                    base().into(),
                    Tar::new().file(".wh..wh.plnk", "").file("a/.wh..wh.aufs", "").into(),
                ],
            )
            .overlayfs(Differs(&[("a", "mtime now")])),
        ],
    );
}

#[test]
fn malformed_whiteouts_are_refused() {
    let after_base = |name| vec![base().into(), Tar::new().file(name, "").into()];
    check(
        "malformed-whiteout",
        &[
            Case::of("without-a-name", after_base("a/.wh."))
                .umoci(Refuses("no such file or directory"))
                .containerd(Refuses("invalid whiteout name"))
                .refused("malformed whiteout name"),
            Case::of("of-the-dir-itself", after_base("a/.wh.."))
                .umoci(Refuses("no such file or directory"))
                .containerd(Refuses("invalid whiteout name"))
                .refused("malformed whiteout name"),
            Case::of("of-the-parent", after_base("a/.wh..."))
                .umoci(Refuses("no such file or directory"))
                .containerd(Refuses("invalid whiteout name"))
                .refused("malformed whiteout name"),
            Case::of(
                "dir-with-the-name-of-a-whiteout",
                vec![base().into(), Tar::new().dir(".wh.d").file(".wh.d/f", "2").into()],
            )
            .because(NO_SUCH_NAMES)
            .umoci(Accepts)
            .containerd(Accepts)
            .refused("malformed whiteout name"),
        ],
    );
}

#[test]
fn opaque_whiteouts_hide_the_content_of_lower_directories() {
    let opaque = "a/.wh..wh..opq";
    check(
        "opaque",
        &[
            Case::of(
                "opaque-first",
                vec![base().into(), Tar::new().dir("a").file(opaque, "").file("a/n", "2").into()],
            ),
            Case::of(
                "opaque-last",
                vec![
                    base().into(),
                    Tar::new().dir("a").file("a/n", "2").file("a/y", "2").file(opaque, "").into(),
                ],
            ),
            Case::of(
                "opaque-alone",
                vec![base().into(), Tar::new().dir("a").file(opaque, "").into()],
            ),
            Case::of(
                "opaque-not-described",
                vec![
                    base().into(),
                    Tar::new().file("private/x", "1").into(),
                    Tar::new().file("private/.wh..wh..opq", "").file("private/n", "3").into(),
                ],
            )
            .overlayfs(Differs(&[("private", "mtime now")])),
            Case::of(
                "opaque-with-whiteouts",
                vec![
                    base().into(),
                    Tar::new()
                        .dir("a")
                        .file(opaque, "")
                        .file("a/.wh.x", "")
                        .file("a/n", "2")
                        .into(),
                ],
            )
            .because(NODE_LISTED)
            .overlayfs(Differs(&[("a/x", "ghost")])),
            Case::of(
                "opaque-with-dirs-in-it",
                vec![
                    base().dir("a/d").file("a/d/old", "1").into(),
                    Tar::new().dir("a").dir("a/d").file("a/d/new", "2").file(opaque, "").into(),
                    Tar::new().dir("a").dir("a/d").file("a/d/newest", "3").into(),
                ],
            ),
            Case::of(
                "opaque-twice",
                vec![
                    base().into(),
                    Tar::new().dir("a").file(opaque, "").file("a/n", "2").into(),
                    Tar::new().dir("a").file(opaque, "").file("a/m", "3").into(),
                ],
            ),
            Case::of(
                "opaque-new-dir",
                vec![
                    base().into(),
                    Tar::new().dir("q").file("q/.wh..wh..opq", "").file("q/n", "2").into(),
                ],
            ),
            Case::of(
                "opaque-missing-dir",
                vec![base().into(), Tar::new().file("q/.wh..wh..opq", "").into()],
            )
            .because(MARK_MAKES_DIR)
            .containerd(Differs(&[("q", "dir")])),
            Case::of(
                "opaque-over-a-file",
                vec![
                    base().into(),
                    Tar::new().dir("top").file("top/.wh..wh..opq", "").file("top/n", "2").into(),
                ],
            ),
            Case::of(
                "opaque-below-a-file",
                vec![base().into(), Tar::new().file("top/.wh..wh..opq", "").into()],
            )
            .because(FILE_BECOMES_DIR)
            .overlayfs(Differs(&[("top", "kind dir, mode 755, owner 0:0, mtime now, content ")]))
            .native(Refuses("not a directory")),
            Case::of(
                "opaque-through-a-lower-symlink",
                vec![base().into(), Tar::new().file("link/.wh..wh..opq", "").into()],
            )
            .because(LINK_UNSEEN)
            .overlayfs(Differs(&[("b/z", "file"), ("link", "kind dir, mode 755, content ")])),
            Case::of(
                "opaque-root",
                vec![
                    base().into(),
                    Tar::new().file(".wh..wh..opq", "").dir("a").file("a/n", "2").into(),
                ],
            )
            .because(ROOT_MARK)
            .overlayfs(Differs(&[
                ("a/x", "file"),
                ("a/y", "file"),
                ("b", "dir"),
                ("b/z", "file"),
                ("link", "symlink"),
                ("private", "dir"),
                ("top", "file"),
            ])),
            Case::of(
                "opaque-root-described",
                vec![
                    base().into(),
                    root().file(".wh..wh..opq", "").dir("a").file("a/n", "2").into(),
                ],
            )
            .because(ROOT_MARK)
            .overlayfs(Differs(&[
                ("a/x", "file"),
                ("a/y", "file"),
                ("b", "dir"),
                ("b/z", "file"),
                ("link", "symlink"),
                ("private", "dir"),
                ("top", "file"),
            ])),
            Case::of(
                "opaque-root-last",
                vec![
                    base().into(),
                    Tar::new().dir("a").file("a/n", "2").file(".wh..wh..opq", "").into(),
                    Tar::new().file("top", "3").into(),
                ],
            )
            .because(ROOT_MARK)
            .umoci(Differs(&[("a", "mtime now")]))
            .overlayfs(Differs(&[
                ("a/x", "file"),
                ("a/y", "file"),
                ("b", "dir"),
                ("b/z", "file"),
                ("link", "symlink"),
                ("private", "dir"),
            ])),
        ],
    );
}
