//! Names of entries, and entries for the root.

use tar::EntryType;

use super::{base, owned, root};
use crate::archive::{Tar, header};
use crate::case::{Case, check};
use crate::verdict::Verdict::{Accepts, Refuses};

// The reasons why tools disagree.
const NO_NAME: &str =
    "a file needs a name, but containerd reads the entry as one for the root and drops it";
const ROOT_DROPPED: &str = "containerd drops each entry for the root";

#[test]
fn all_spellings_of_a_name_are_accepted() {
    let mut bytes = header(EntryType::Regular, "x", 0o644);
    bytes.as_old_mut().name[..4].copy_from_slice(b"\xff\xfe\n\x01");
    let long = "n".repeat(255);
    let deep = "directory/".repeat(30);
    let gnu = |kind, name: &str| {
        root().entry(kind, "././@LongLink", 0o644, &[name.as_bytes(), b"\0"].concat())
    };
    // Go before 1.8 wrote the prefix of a long name into a GNU header, which has no such field.
    let prefixed = |magic: &[u8; 8], prefix: &[u8]| {
        let mut header = header(EntryType::Regular, "f", 0o644);
        header.as_mut_bytes()[257..265].copy_from_slice(magic);
        header.as_mut_bytes()[345..345 + prefix.len()].copy_from_slice(prefix);
        header
    };
    let times = b"14000000000\x0014000000000\0";
    check(
        "name",
        &[
            Case::of(
                "prefix-in-a-gnu-header",
                vec![root().dir("d").append(prefixed(b"ustar  \0", b"d"), "", b"1").into()],
            ),
            Case::of(
                "times-in-a-gnu-header",
                vec![root().append(prefixed(b"ustar  \0", times), "", b"1").into()],
            ),
            Case::of(
                "binary-prefix-in-a-gnu-header",
                vec![root().append(prefixed(b"ustar  \0", b"d\xff"), "", b"1").into()],
            ),
            Case::of(
                "prefix-in-a-ustar-header-without-version",
                vec![root().dir("d").append(prefixed(b"ustar\0\0\0", b"d"), "", b"1").into()],
            ),
            Case::of("zeros", vec![root().file("z", &"\0".repeat(10_000)).into()]),
            Case::of("absolute", vec![root().dir("/d").file("/d/f", "1").into()]),
            Case::of(
                "dotted",
                vec![root().dir("./d").file("./d/./f", "1").file(".//d//g", "1").into()],
            ),
            Case::of("slash-behind-a-file", vec![root().file("f/", "1").into()]),
            Case::of(
                "any-bytes",
                vec![root().append(bytes, "", b"1").file("b\\ \t\"'é", "1").into()],
            ),
            Case::of(
                "long-pax",
                vec![root().pax(&[("path", long.as_bytes())]).file("f", "1").into()],
            ),
            Case::of(
                "deep-pax",
                vec![
                    root()
                        .pax(&[("path", long.as_bytes())])
                        .dir("d")
                        .pax(&[("path", format!("{long}/{long}").as_bytes())])
                        .file("f", "1")
                        .into(),
                ],
            ),
            Case::of("long-gnu", vec![gnu(EntryType::GNULongName, &long).file("f", "1").into()]),
            Case::of(
                "long-link-gnu",
                vec![gnu(EntryType::GNULongLink, &deep).symlink("s", "x").into()],
            ),
            Case::of(
                "long-link-pax",
                vec![root().pax(&[("linkpath", deep.as_bytes())]).symlink("s", "x").into()],
            ),
            Case::of(
                "long-hard-link",
                vec![
                    root()
                        .pax(&[("path", long.as_bytes())])
                        .file("f", "1")
                        .pax(&[("linkpath", long.as_bytes())])
                        .hard_link("h", "x")
                        .into(),
                ],
            ),
            Case::of(
                "case-and-unicode",
                vec![
                    root()
                        .file("a", "1")
                        .file("A", "2")
                        .file("\u{e9}", "3")
                        .file("e\u{301}", "4")
                        .into(),
                ],
            ),
            Case::of("upwards", vec![root().file("../f", "1").into()]),
            Case::of("upwards-within", vec![root().dir("d").file("d/../f", "1").into()]),
        ],
    );
}

#[test]
fn unusable_names_are_refused() {
    check(
        "refused-name",
        &[
            Case::of("empty", vec![root().file("", "1").into()])
                .because(NO_NAME)
                .umoci(Refuses("malicious tar entry -- refusing to change type of root directory"))
                .containerd(Accepts)
                .refused("the name is empty"),
            Case::of(
                "too-long",
                vec![root().pax(&[("path", "n".repeat(256).as_bytes())]).file("f", "1").into()],
            )
            .umoci(Refuses("file name too long"))
            .containerd(Refuses("file name too long"))
            .refused("the name is too long"),
            Case::of("with-nul", vec![root().pax(&[("path", b"a\0b")]).file("f", "1").into()])
                .umoci(Refuses("invalid tar header"))
                .containerd(Refuses("invalid tar header"))
                .refused("PAX record `path`"),
        ],
    );
}

#[test]
fn root_can_only_be_a_directory() {
    let with_root =
        |mode, owner| Tar::new().append(owned(EntryType::Directory, "./", mode, owner), "", b"");
    check(
        "root",
        &[
            Case::of("described", vec![with_root(0o700, 3).file("f", "1").into()]),
            Case::of(
                "described-again",
                vec![with_root(0o700, 3).file("f", "1").into(), with_root(0o711, 5).into()],
            ),
            Case::of(
                "described-below",
                vec![with_root(0o700, 3).file("f", "1").into(), Tar::new().file("g", "2").into()],
            ),
            Case::of(
                "described-as-slash",
                vec![
                    Tar::new()
                        .append(owned(EntryType::Directory, "/", 0o700, 3), "", b"")
                        .file("f", "1")
                        .into(),
                ],
            ),
            Case::of("not-described", vec![Tar::new().file("f", "1").into()]),
            Case::of("as-a-file", vec![base().into(), Tar::new().file("./", "2").into()])
                .because(ROOT_DROPPED)
                .umoci(Refuses("malicious tar entry -- refusing to change type of root directory"))
                .containerd(Accepts)
                .refused("can only be a directory"),
            Case::of("as-a-symlink", vec![base().into(), Tar::new().symlink("./", "a").into()])
                .because(ROOT_DROPPED)
                .umoci(Refuses("malicious tar entry -- refusing to change type of root directory"))
                .containerd(Accepts)
                .refused("can only be a directory"),
        ],
    );
}
