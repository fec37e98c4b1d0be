//! Metadata of entries: times, modes, owners, extended attributes and types.

use tar::EntryType;

use super::{base, owned, root};
use crate::archive::{Tar, header};
use crate::case::{Case, check};
use crate::verdict::Verdict::{Differs, Refuses};

// The reasons why tools disagree.
const BEFORE_1970: &str = "containerd replaces times before 1970 by 0";
const AFTER_2262: &str =
    "umoci's 64-bit nanoseconds overflow in 2262, and containerd replaces later times by 0";
const EMPTY_VALUE: &str = "umoci 0.4.7 drops attributes with an empty value";
const ATTRIBUTES_LEFT: &str =
    "an entry describes all attributes of a directory, but containerd keeps earlier ones";
const NONE_ON_SYMLINKS: &str = "the kernel does not support `user.*` attributes on symlinks";
const TRUSTED: &str =
    "umoci sets `trusted.*` attributes, by which an image could control the host's overlayfs";
const LABELS: &str =
    "containerd sets labels, which are valid only on the machine that built the image";
const OVERLAY_ATTRIBUTE: &str =
    "an image must not set attributes of overlayfs; this one hides no file in any of the trees";
const NO_DEVICES: &str =
    "a box has its own `/dev`, and the device nodes of an image must not exist on the host";
const WHITEOUT_DEVICE: &str =
    "this crate makes no device nodes, and the device 0:0 is a whiteout only in an overlay mount";

#[test]
fn times_are_set_with_nanoseconds() {
    let at =
        |tar: Tar, time: &str, name: &str| tar.pax(&[("mtime", time.as_bytes())]).file(name, "1");
    let mut negative = header(EntryType::Regular, "negative", 0o644);
    negative.as_old_mut().mtime = [0xff; 12];
    let mut huge = header(EntryType::Regular, "huge", 0o644);
    huge.set_mtime(1 << 35);
    check(
        "time",
        &[
            Case::of(
                "sub-second",
                vec![at(at(root(), "1700000000.123456789", "f"), "1.5", "g").into()],
            ),
            Case::of("sub-nanosecond", vec![at(root(), "1700000000.1234567891", "f").into()]),
            Case::of(
                "of-dirs",
                vec![
                    root()
                        .pax(&[("mtime", b"5.000000001")])
                        .dir("d")
                        .file("d/f", "1")
                        .pax(&[("mtime", b"6.5")])
                        .dir("d/e")
                        .file("d/e/f", "1")
                        .into(),
                    Tar::new().pax(&[("mtime", b"7.5")]).dir("d").file("d/g", "1").into(),
                ],
            ),
            Case::of(
                "of-symlinks",
                vec![root().pax(&[("mtime", b"5.000000001")]).symlink("s", "x").into()],
            ),
            Case::of("zero", vec![at(root(), "0", "f").into()]),
            Case::of("before-1970", vec![at(at(root(), "-1", "f"), "-1.25", "g").into()])
                .because(BEFORE_1970)
                .containerd(Differs(&[("f", "mtime 0"), ("g", "mtime 0")])),
            Case::of("before-1970-base-256", vec![root().append(negative, "", b"1").into()])
                .because(BEFORE_1970)
                .containerd(Differs(&[("negative", "mtime 0")])),
            Case::of("after-2500", vec![at(root(), "17000000000", "f").into()])
                .because(AFTER_2262)
                .umoci(Differs(&[("f", "mtime -1446744074.290448384")]))
                .containerd(Differs(&[("f", "mtime 0")]))
                .with(&[("f", "file 644 11:22 17000000000 `1`")]),
            Case::of("after-3000-octal", vec![root().append(huge, "", b"1").into()])
                .because(AFTER_2262)
                .umoci(Differs(&[("huge", "mtime -2533749780.580896768")]))
                .containerd(Differs(&[("huge", "mtime 0")]))
                .with(&[("huge", "file 644 11:22 34359738368 `1`")]),
            Case::of("beyond-any-clock", vec![at(root(), "9223372036854775807", "f").into()])
                .because(AFTER_2262)
                .umoci(Differs(&[("f", "mtime -1")]))
                .containerd(Differs(&[("f", "mtime 0")]))
                .with(&[("f", "file 644 11:22 9223372036854775807 `1`")]),
        ],
    );
}

#[test]
fn modes_and_owners_are_set() {
    check(
        "mode",
        &[
            Case::of(
                "special-bits",
                vec![
                    root()
                        .entry(EntryType::Regular, "setuid", 0o4755, b"1")
                        .entry(EntryType::Regular, "setgid", 0o2755, b"1")
                        .entry(EntryType::Directory, "sticky", 0o1777, b"")
                        .entry(EntryType::Directory, "setgid-dir", 0o2775, b"")
                        .file("setgid-dir/f", "1")
                        .dir("setgid-dir/d")
                        .entry(EntryType::Regular, "none", 0, b"1")
                        .into(),
                ],
            ),
            Case::of(
                "read-only-dirs",
                vec![
                    root()
                        .entry(EntryType::Directory, "d", 0o555, b"")
                        .file("d/f", "1")
                        .entry(EntryType::Directory, "e", 0, b"")
                        .file("e/f", "1")
                        .into(),
                    Tar::new().file("d/g", "2").into(),
                ],
            )
            .overlayfs(Differs(&[("d", "mtime now")])),
            Case::of(
                "owners",
                vec![
                    root()
                        .append(owned(EntryType::Regular, "f", 0o644, 65534), "", b"1")
                        .append(owned(EntryType::Symlink, "s", 0o777, 1000), "f", b"")
                        .append(owned(EntryType::Fifo, "p", 0o4755, 1000), "", b"")
                        .pax(&[("uid", b"3000000000"), ("gid", b"4000000000")])
                        .file("large", "1")
                        .into(),
                ],
            ),
            Case::of(
                "type-bits-in-the-mode",
                vec![
                    root()
                        .entry(EntryType::Regular, "f", 0o100_644, b"1")
                        .entry(EntryType::Directory, "d", 0o040_750, b"")
                        .into(),
                ],
            ),
        ],
    );
}

/// The capability `cap_net_raw=ep` in the format of the kernel (`struct vfs_cap_data`, revision 2).
const CAPABILITY: &[u8; 20] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The ACL `u::rw-,u:7:r--,g::r--,m::r--,o::r--` in the format of the kernel: a version, and for
/// each entry its tag, permissions and id.
const ACL: &[u8; 44] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\
    \x02\0\x04\0\x07\0\0\0\
    \x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\
    \x20\0\x04\0\xff\xff\xff\xff";

#[test]
fn extended_attributes_of_users_are_set() {
    let and =
        |tar: Tar, name: &str, value: &[u8]| tar.pax(&[(&format!("SCHILY.xattr.{name}"), value)]);
    let of = |name: &str, value: &[u8]| and(root(), name, value);
    check(
        "attribute",
        &[
            Case::of(
                "capability",
                vec![
                    of("security.capability", CAPABILITY)
                        .append(owned(EntryType::Regular, "f", 0o4755, 7), "", b"1")
                        .into(),
                ],
            ),
            Case::of("user", vec![of("user.a", b"x\ny=\xff").file("f", "1").into()]),
            Case::of("user-empty", vec![of("user.a", b"").file("f", "1").into()])
                .because(EMPTY_VALUE)
                .umoci(Differs(&[("f", "xattrs ")])),
            Case::of(
                "on-a-dir",
                vec![
                    of("user.a", b"1").dir("d").file("d/f", "1").into(),
                    Tar::new().dir("d").into(),
                ],
            )
            .because(ATTRIBUTES_LEFT)
            .native(Differs(&[("d", "xattrs user.a=1")])),
            Case::of(
                "on-a-dir-not-described-above",
                vec![of("user.a", b"1").dir("d").into(), Tar::new().file("d/f", "1").into()],
            )
            .overlayfs(Differs(&[("d", "mtime now")])),
            Case::of(
                "replaced",
                vec![
                    of("user.a", b"1").dir("d").into(),
                    and(Tar::new(), "user.b", b"2").dir("d").into(),
                ],
            )
            .because(ATTRIBUTES_LEFT)
            .native(Differs(&[("d", "xattrs user.a=1 user.b=2")])),
            Case::of("acl", vec![of("system.posix_acl_access", ACL).file("f", "1").into()]),
            Case::of("user-on-a-symlink", vec![of("user.a", b"1").symlink("s", "x").into()])
                .because(NONE_ON_SYMLINKS)
                .umoci(Refuses("operation not permitted")),
            Case::of("trusted", vec![of("trusted.a", b"1").file("f", "1").into()])
                .because(TRUSTED)
                .umoci(Differs(&[("f", "xattrs trusted.a=1")])),
            Case::of("selinux", vec![of("security.selinux", b"label").file("f", "1").into()])
                .because(LABELS)
                .containerd(Differs(&[("f", "xattrs security.selinux=label")])),
            Case::of(
                "opaque-by-attribute",
                vec![
                    base().into(),
                    and(Tar::new(), "trusted.overlay.opaque", b"y")
                        .dir("a")
                        .file("a/n", "2")
                        .into(),
                ],
            ),
            Case::of(
                "opaque-by-user-attribute",
                vec![
                    base().into(),
                    and(Tar::new(), "user.overlay.opaque", b"y").dir("a").file("a/n", "2").into(),
                ],
            )
            .because(OVERLAY_ATTRIBUTE)
            .umoci(Differs(&[("a", "xattrs user.overlay.opaque=y")]))
            .containerd(Differs(&[("a", "xattrs user.overlay.opaque=y")]))
            .with(&[("a", "dir 755 11:22 1700000000")]),
        ],
    );
}

#[test]
fn named_pipes_are_made_and_devices_are_skipped() {
    let device = |kind, name, major, minor| {
        let mut header = header(kind, name, 0o600);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header
    };
    check(
        "special",
        &[
            Case::of("fifo", vec![root().entry(EntryType::Fifo, "p", 0o620, b"").into()]),
            Case::of(
                "devices",
                vec![
                    root()
                        .dir("dev")
                        .append(device(EntryType::Char, "dev/null", 1, 3), "", b"")
                        .append(device(EntryType::Block, "dev/loop", 7, 0), "", b"")
                        .into(),
                ],
            )
            .because(NO_DEVICES)
            .umoci(Differs(&[("dev/loop", "block 7:0"), ("dev/null", "char 1:3")]))
            .containerd(Differs(&[("dev/loop", "block 7:0"), ("dev/null", "char 1:3")]))
            .with(&[("dev/loop", "absent"), ("dev/null", "absent")]),
            Case::of(
                "links-to-a-device",
                vec![
                    root()
                        .append(device(EntryType::Char, "d", 1, 3), "", b"")
                        .hard_link("e", "d")
                        .hard_link("f", "e")
                        .into(),
                ],
            )
            .because(NO_DEVICES)
            .umoci(Differs(&[("d", "char 1:3"), ("e", "char 1:3"), ("f", "char 1:3")]))
            .containerd(Differs(&[("d", "char 1:3"), ("e", "char 1:3"), ("f", "char 1:3")]))
            .with(&[("d", "absent"), ("e", "absent"), ("f", "absent")]),
            Case::of(
                "link-to-a-lower-device",
                vec![
                    root().append(device(EntryType::Char, "d", 1, 3), "", b"").into(),
                    Tar::new().hard_link("e", "d").into(),
                ],
            )
            .because(NO_DEVICES)
            .umoci(Differs(&[("d", "char 1:3"), ("e", "char 1:3")]))
            .overlayfs(Refuses("no such file or directory"))
            .native(Differs(&[("d", "char 1:3"), ("e", "char 1:3")]))
            .with(&[("d", "absent"), ("e", "absent")]),
            Case::of(
                "link-to-a-hidden-device",
                vec![
                    root().append(device(EntryType::Char, "d", 1, 3), "", b"").into(),
                    Tar::new().file(".wh.d", "").into(),
                    Tar::new().hard_link("e", "d").into(),
                ],
            )
            .umoci(Refuses("no such file or directory"))
            .containerd(Refuses("no such file or directory"))
            .refused("hard link target `d` does not exist"),
            Case::of(
                "device-over-a-file",
                vec![
                    base().into(),
                    Tar::new().append(device(EntryType::Char, "top", 1, 3), "", b"").into(),
                ],
            )
            .because(NO_DEVICES)
            .umoci(Differs(&[("top", "char 1:3")]))
            .containerd(Differs(&[("top", "char 1:3")]))
            .with(&[("top", "absent")]),
            Case::of(
                "device-of-a-whiteout",
                vec![
                    base().into(),
                    Tar::new().append(device(EntryType::Char, "top", 0, 0), "", b"").into(),
                ],
            )
            .because(WHITEOUT_DEVICE)
            .umoci(Differs(&[("top", "char 0:0")]))
            .native(Differs(&[("top", "char 0:0")])),
        ],
    );
}
