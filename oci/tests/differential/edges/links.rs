//! Hard links.

use tar::EntryType;

use super::{base, owned, root};
use crate::archive::Tar;
use crate::case::{Case, check};
use crate::verdict::Verdict::{Accepts, Differs, Refuses};

// The reasons why tools disagree.
const LINK_METADATA: &str =
    "the target's entry describes the file, but containerd applies the link's metadata to it";
const ALONE: &str =
    "the overlayfs snapshotter unpacks each layer alone, and the target is missing in this layer";
const PARTED: &str =
    "overlayfs copies the lower file for the linked name, so its other names keep the old inode";
const WHITEOUT_FIRST: &str =
    "whiteouts precede all entries of their layer, so the target is removed before it is linked";
const LATE: &str =
    "the other tools need the target before the link, but a layer is used only as a whole";
const NOTHING_TO_DO: &str =
    "the link exists already, but the other tools remove its only name before they link it";
const WHITEOUT_LINKED: &str =
    "the overlayfs snapshotter makes a hard link to the device node of the whiteout";

/// Differences of the tools that apply all layers to one tree: links to links share one inode.
const ONE_INODE: &[(&str, &str)] =
    &[("a/x", "same as a/x"), ("h1", "same as a/x"), ("h2", "same as a/x")];

#[test]
fn hard_links_of_a_layer_share_one_inode() {
    check(
        "link",
        &[
            Case::of(
                "to-a-file",
                vec![root().file("f", "1").hard_link("g", "f").hard_link("h", "g").into()],
            ),
            Case::of(
                "to-a-symlink",
                vec![root().file("f", "1").symlink("s", "f").hard_link("h", "s").into()],
            ),
            Case::of(
                "to-a-fifo",
                vec![root().entry(EntryType::Fifo, "f", 0o600, b"").hard_link("h", "f").into()],
            )
            .because(LINK_METADATA)
            .containerd(Differs(&[("f", "mode 644"), ("h", "mode 644")])),
            Case::of(
                "absolute",
                vec![root().file("f", "1").hard_link("h", "/f").hard_link("i", "./f").into()],
            ),
            Case::of(
                "through-a-symlink",
                vec![
                    root().dir("d").file("d/f", "1").symlink("s", "d").hard_link("h", "s/f").into(),
                ],
            ),
            Case::of(
                "with-other-metadata",
                vec![
                    root()
                        .file("f", "1")
                        .append(owned(EntryType::Link, "h", 0o600, 5), "f", b"")
                        .into(),
                ],
            )
            .because(LINK_METADATA)
            .containerd(Differs(&[("f", "mode 600, owner 5:6"), ("h", "mode 600, owner 5:6")])),
            Case::of(
                "over-a-file",
                vec![root().file("f", "1").file("h", "old").hard_link("h", "f").into()],
            ),
            Case::of(
                "over-a-dir",
                vec![root().file("f", "1").dir("h").file("h/n", "").hard_link("h", "f").into()],
            ),
            Case::of(
                "twice",
                vec![root().file("f", "1").hard_link("h", "f").hard_link("h", "f").into()],
            ),
            Case::of("upwards", vec![root().file("f", "1").hard_link("h", "../../f").into()]),
        ],
    );
}

#[test]
fn hard_links_to_files_of_lower_layers_are_made() {
    check(
        "lower-link",
        &[
            Case::of(
                "to-a-lower-file",
                vec![base().into(), Tar::new().hard_link("hard", "a/x").into()],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "to-a-lower-symlink",
                vec![base().into(), Tar::new().hard_link("hard", "link").into()],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "to-a-lower-file-in-a-dir-of-this-layer",
                vec![
                    base().into(),
                    Tar::new().dir("a").hard_link("a/hard", "a/x").file("a/y", "2").into(),
                ],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "to-a-lower-link",
                vec![
                    base().hard_link("b/hard", "b/z").into(),
                    Tar::new().hard_link("third", "b/hard").into(),
                ],
            )
            .because(PARTED)
            .umoci(Differs(&[("b/z", "same as b/hard")]))
            .native(Differs(&[("b/z", "same as b/hard")]))
            .blocks(Differs(&[("b/z", "same as b/hard")]))
            .overlayfs(Refuses("no such file or directory"))
            .with(&[("b/z", "file 644 11:22 1700000000 `1`")]),
            Case::of(
                "to-two-layers-below",
                vec![
                    base().into(),
                    Tar::new().file("n", "2").into(),
                    Tar::new().hard_link("hard", "a/x").into(),
                ],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "to-a-link-to-a-lower-file",
                vec![
                    base().into(),
                    Tar::new().hard_link("h1", "a/x").into(),
                    Tar::new().hard_link("h2", "h1").into(),
                ],
            )
            .because(PARTED)
            .umoci(Differs(ONE_INODE))
            .native(Differs(ONE_INODE))
            .blocks(Differs(ONE_INODE))
            .overlayfs(Refuses("no such file or directory"))
            .with(&[
                ("a/x", "file 644 11:22 1700000000 `1`"),
                ("h1", "file 644 11:22 1700000000 `1` same as h1"),
                ("h2", "file 644 11:22 1700000000 `1` same as h1"),
            ]),
            Case::of(
                "through-a-lower-symlink",
                vec![base().into(), Tar::new().hard_link("hard", "link/z").into()],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "over-a-lower-file",
                vec![base().into(), Tar::new().hard_link("top", "a/x").into()],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "in-place-of-the-target",
                vec![base().into(), Tar::new().hard_link("hard", "a/x").file("a/x", "2").into()],
            )
            .because(ALONE)
            .overlayfs(Refuses("no such file or directory")),
            Case::of(
                "rename",
                vec![base().into(), Tar::new().hard_link("hard", "a/x").file("a/.wh.x", "").into()],
            )
            .because(WHITEOUT_FIRST)
            .umoci(Accepts)
            .native(Accepts)
            .overlayfs(Refuses("no such file or directory"))
            .refused("does not exist"),
            Case::of(
                "to-itself-below",
                vec![root().file("top", "1").into(), Tar::new().hard_link("top", "top").into()],
            )
            .because(NOTHING_TO_DO)
            .umoci(Refuses("no such file or directory"))
            .containerd(Refuses("no such file or directory"))
            .with(&[("top", "file 644 11:22 1700000000 `1`")]),
        ],
    );
}

#[test]
fn hard_links_without_a_target_are_refused() {
    check(
        "refused-link",
        &[
            Case::of(
                "to-a-missing-file",
                vec![base().into(), Tar::new().hard_link("hard", "gone").into()],
            )
            .umoci(Refuses("no such file or directory"))
            .containerd(Refuses("no such file or directory"))
            .refused("hard link target"),
            Case::of("before-its-target", vec![root().hard_link("h", "f").file("f", "1").into()])
                .because(LATE)
                .umoci(Refuses("no such file or directory"))
                .containerd(Refuses("no such file or directory"))
                .with(&[
                    ("f", "file 644 11:22 1700000000 `1` same as f"),
                    ("h", "file 644 11:22 1700000000 `1` same as f"),
                ]),
            Case::of("to-itself", vec![root().hard_link("h", "h").into()])
                .umoci(Refuses("no such file or directory"))
                .containerd(Refuses("no such file or directory"))
                .refused("hard link target"),
            Case::of("to-a-dir", vec![root().dir("d").hard_link("h", "d").into()])
                .umoci(Refuses("operation not permitted"))
                .containerd(Refuses("operation not permitted"))
                .refused("is a directory"),
            Case::of("to-a-lower-dir", vec![base().into(), Tar::new().hard_link("h", "a").into()])
                .umoci(Refuses("operation not permitted"))
                .overlayfs(Refuses("no such file or directory"))
                .native(Refuses("operation not permitted"))
                .refused("is a directory"),
            Case::of(
                "to-a-file-hidden-in-this-layer",
                vec![base().into(), Tar::new().file(".wh.top", "").hard_link("hard", "top").into()],
            )
            .because(WHITEOUT_LINKED)
            .umoci(Refuses("no such file or directory"))
            .overlayfs(Accepts)
            .native(Refuses("no such file or directory"))
            .refused("hard link target"),
            Case::of(
                "to-a-file-hidden-in-a-lower-layer",
                vec![
                    base().into(),
                    Tar::new().file(".wh.top", "").into(),
                    Tar::new().hard_link("hard", "top").into(),
                ],
            )
            .umoci(Refuses("no such file or directory"))
            .containerd(Refuses("no such file or directory"))
            .refused("hard link target"),
        ],
    );
}
