//! Well-formed layers: the unpacked tree has the entries, metadata and contents of the archive.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use a3s_box_oci::Digest;
use tar::EntryType;

use crate::archive::{TIME, Tar, header};
use crate::bench::{Bench, GZIP, ROOT, amd64, chain, gzip, names, tree};

const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

#[test]
fn entry_of_each_type_is_restored() {
    let bench = Bench::new();
    let long = format!("{}/leaf", "long-name-of-a-directory".repeat(5));
    let tar = Tar::new()
        .entry(EntryType::Directory, "./", 0o750, b"")
        .entry(EntryType::Directory, "./ro/", 0o1555, b"")
        .entry(EntryType::Regular, "./ro/su", 0o6755, b"setuid")
        .symlink("link", "/ro/su")
        .hard_link("hard", "/ro/su")
        .entry(EntryType::Fifo, "pipe", 0o620, b"")
        .entry(EntryType::Char, "null", 0o666, b"")
        .pax(&[("path", long.as_bytes()), ("uid", b"100000"), ("mtime", b"12.000000345")])
        .file("short", "by pax");
    let layer = bench.unpack_tar(tar).unwrap();
    let at = format!("11:22 {TIME}.000000000");
    let found = tree(&layer.path);
    let parent = long.split_once('/').unwrap().0;
    let expected = [
        ("", ROOT.to_owned()),
        ("hard", format!("6755 {at} file setuid")),
        ("link", format!("777 {at} link /ro/su")),
        (parent, "755 0:0 0.000000000 dir".to_owned()),
        (&long, "644 100000:22 12.000000345 file by pax".to_owned()),
        ("pipe", format!("620 {at} fifo")),
        ("ro", format!("1555 {at} dir")),
        ("ro/su", format!("6755 {at} file setuid")),
    ];
    assert_eq!(found, expected.map(|(name, entry)| (name.to_owned(), entry)).into_iter().collect());
    let inode = |name: &str| fs::metadata(layer.path.join(name)).unwrap().ino();
    assert_eq!(inode("hard"), inode("ro/su"));
    // The skipped device counts as an entry. The content of a hard link counts once.
    assert_eq!((layer.facts.entries, layer.facts.bytes), (8, 12));
    assert_eq!(layer.facts.skipped_devices, 1);
}

#[test]
fn extended_attributes_are_restored_except_overlayfs_and_selinux_ones() {
    let bench = Bench::new();
    // A value of `security.capability` in revision 2 (linux/capability.h).
    let capability = b"\x01\0\0\x02\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.text", b"two\nlines"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
        ])
        .file("file", "");
    let layer = bench.unpack_tar(tar).unwrap();
    let mut names = [0_u8; 256];
    let length = rustix::fs::listxattr(layer.path.join("file"), &mut names).unwrap();
    let mut found: Vec<String> = names[..length]
        .split_inclusive(|byte| *byte == 0)
        .map(|name| name.escape_ascii().to_string())
        .collect();
    found.sort();
    assert_eq!(found, ["security.capability\\x00", "user.text\\x00"]);
    let mut value = [0_u8; 64];
    let length = rustix::fs::getxattr(layer.path.join("file"), "user.text", &mut value).unwrap();
    assert_eq!(&value[..length], b"two\nlines");
}

#[test]
fn later_entry_replaces_an_earlier_one_of_any_type() {
    let bench = Bench::new();
    let tar = Tar::new()
        .dir("dir-to-file/with/content")
        .file("dir-to-file", "new")
        .file("file-to-dir", "old")
        .dir("file-to-dir")
        .file("file-to-dir/new", "")
        .symlink("link-to-dir", "/etc")
        .dir("link-to-dir")
        .file("link-to-dir/new", "")
        .file("twice", "old")
        .hard_link("keeps-old", "twice")
        .file("twice", "new")
        .hard_link("twice", "./twice")
        .dir("merged")
        .file("merged/kept", "")
        .entry(EntryType::Directory, "merged", 0o700, b"");
    let layer = bench.unpack_tar(tar).unwrap();
    let read = |name: &str| fs::read_to_string(layer.path.join(name)).unwrap();
    assert_eq!(
        (read("dir-to-file"), read("twice"), read("keeps-old")),
        ("new".into(), "new".into(), "old".into())
    );
    let names = names(&layer.path);
    for name in ["file-to-dir/new", "link-to-dir/new", "merged/kept"] {
        assert!(names.iter().any(|found| found == name), "{name} of {names:?}");
    }
    assert!(fs::symlink_metadata(layer.path.join("link-to-dir")).unwrap().is_dir());
    assert_eq!(fs::metadata(layer.path.join("merged")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn symlink_of_another_owner_in_a_sticky_directory_is_resolved() {
    let bench = Bench::new();
    // With `fs.protected_symlinks` (`proc_sys_fs(5)`) the kernel refuses to follow this link if it
    // is the last component of a path.
    let mut tmp = header(EntryType::Directory, "tmp", 0o1777);
    tmp.set_uid(0);
    let tar = Tar::new()
        .append(tmp, "", b"")
        .symlink("tmp/link", "/srv")
        .file("tmp/link/a", "content")
        .hard_link("b", "tmp/link/a");
    let layer = bench.unpack_tar(tar).unwrap();
    assert_eq!(fs::read_to_string(layer.path.join("b")).unwrap(), "content");
    assert_eq!(names(&layer.path), ["b", "srv", "srv/a", "tmp", "tmp/link"]);
}

#[test]
fn symlinked_parent_is_resolved_in_the_tree_and_created_if_missing() {
    let bench = Bench::new();
    let tar = Tar::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/a", "")
        .symlink("absolute", "/usr/../../../usr/lib")
        .file("absolute/b", "")
        .symlink("dangling", "/opt/new")
        .file("dangling/c", "");
    let layer = bench.unpack_tar(tar).unwrap();
    assert_eq!(
        names(&layer.path),
        [
            "absolute",
            "dangling",
            "lib",
            "opt",
            "opt/new",
            "opt/new/c",
            "usr",
            "usr/lib",
            "usr/lib/a",
            "usr/lib/b"
        ]
    );
}

#[test]
fn whiteout_applies_at_any_position_and_not_in_an_opaque_directory() {
    let device = |path: std::path::PathBuf| {
        fs::symlink_metadata(path).is_ok_and(|found| found.mode() & 0o170_000 == 0o020_000)
    };
    let opaque = |path: std::path::PathBuf| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value)
            .is_ok_and(|length| &value[..length] == b"y")
    };
    let bench = Bench::new();
    let tar = Tar::new()
        .file("d/.wh.gone", "a body that is not wanted")
        .file(".wh.again", "")
        .dir("again")
        .file("again/.wh.ghost", "")
        .file("stays", "new")
        .file(".wh.stays", "")
        .file("o/.wh.ghost", "")
        .file("o/.wh..wh..opq", "")
        .file("stays/.wh.x", "")
        .file(".wh..wh.plnk/1.2", "");
    let layer = bench.unpack_tar(tar).unwrap();
    assert_eq!(names(&layer.path), ["again", "d", "d/gone", "o", "stays"]);
    assert!(device(layer.path.join("d/gone")));
    assert!(
        opaque(layer.path.join("again"))
            && opaque(layer.path.join("o"))
            && !opaque(layer.path.join("d"))
    );
    assert_eq!(fs::read_to_string(layer.path.join("stays")).unwrap(), "new");
    assert!(!layer.facts.opaque_root);
    let layer = bench
        .unpack_tar(Tar::new().file(".wh..wh..opq", "").file(".wh.a", "").file("b", ""))
        .unwrap();
    assert!(layer.facts.opaque_root);
    assert_eq!(names(&layer.path), ["b"]);
}

#[test]
fn plain_empty_compressed_and_mislabelled_blobs_are_unpacked() {
    let bench = Bench::new();
    let tar = Tar::new().file("a", "content").then(b"ignored, but part of the DiffID").bytes();
    let (front, back) = tar.split_at(700);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    // The threads pass a layer on in parts of 256 KiB. This layer has several, and the last one is
    // full.
    let large = Tar::new().file("a", &"content".repeat(200_000)).bytes();
    let large =
        [&large[..], &vec![0; large.len().next_multiple_of(1 << 18) - large.len()]].concat();
    // A skippable frame of three bytes (RFC 8878, 3.1.2).
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let cases = [
        ("application/vnd.oci.image.layer.v1.tar", tar.clone(), tar.clone(), 1),
        (GZIP, [gzip(front), gzip(b""), gzip(back)].concat(), tar.clone(), 1),
        (GZIP, [gzip(&tar), vec![0; 300_000]].concat(), tar.clone(), 1),
        (GZIP, Vec::new(), Vec::new(), 0),
        (GZIP, gzip(b""), Vec::new(), 0),
        (GZIP, gzip(&[0; 1024]), vec![0; 1024], 0),
        (ZSTD, zstd(&tar), tar.clone(), 1),
        (ZSTD, [skippable, zstd(front), zstd(b""), zstd(back)].concat(), tar.clone(), 1),
        (ZSTD, Vec::new(), Vec::new(), 0),
        (ZSTD, zstd(&large), large.clone(), 1),
        (GZIP, gzip(&large), large.clone(), 1),
        ("application/vnd.oci.image.layer.v1.tar", large.clone(), large.clone(), 1),
        // The media types are wrong here. The blob's first bytes select the decompressor, and the
        // DiffID verifies the result.
        (GZIP, zstd(&tar), tar.clone(), 1),
        (ZSTD, gzip(&tar), tar.clone(), 1),
        (GZIP, tar.clone(), tar.clone(), 1),
        ("application/vnd.oci.image.layer.v1.tar", gzip(&tar), tar.clone(), 1),
    ];
    for (media_type, blob, tar, entries) in cases {
        let blob = bench.blob(media_type, &blob);
        bench
            .publish(&[bench.image_of("linux/amd64", &[blob], &[Digest::of(&tar)]).descriptor("")]);
        let image = bench.layout().resolve(None, &amd64()).unwrap();
        let layer =
            bench.unpack(&image.layers[0]).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(layer.facts.entries, entries);
    }
}

#[test]
fn umask_does_not_change_the_tree() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let bench = Bench::new();
    let layer = bench.unpack_tar(Tar::new().file("implicit/file", "").dir("dir")).unwrap();
    let mode = |name: &str| fs::metadata(layer.path.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(["", "implicit", "implicit/file", "dir"].map(mode), [0o755, 0o755, 0o644, 0o755]);
}

#[test]
fn tree_equals_the_one_that_gnu_tar_extracts() {
    let bench = Bench::new();
    let (source, expected) = (bench.path("source"), bench.path("expected"));
    fs::create_dir_all(&expected).unwrap();
    // The crate's own sources, with links, a pipe, long and quoted names, and a set-user-ID file.
    let script = r#"cp -a "$1" "$2" && cd "$2" && ln -s Cargo.toml link && ln Cargo.toml hard && mkfifo pipe &&
        mkdir -p "$(printf 'n%.0s' $(seq 200))/$(printf 'm%.0s' $(seq 200))" && touch 'é "\' && chmod 4711 Cargo.toml &&
        tar --format=pax -cf ../pax.tar . && tar --format=gnu -cf ../gnu.tar . &&
        tar --numeric-owner -xpf ../pax.tar -C "$3""#;
    let crate_dir = env!("CARGO_MANIFEST_DIR");
    let status = Command::new("sh")
        .args(["-ec", script, "sh", crate_dir])
        .args([&source, &expected])
        .status()
        .unwrap();
    assert!(status.success());
    for format in ["pax", "gnu"] {
        let tar = fs::read(bench.path(&format!("{format}.tar"))).unwrap();
        let blob = bench.blob(GZIP, &gzip(&tar));
        bench
            .publish(&[bench.image_of("linux/amd64", &[blob], &[Digest::of(&tar)]).descriptor("")]);
        let layer =
            bench.unpack(&bench.layout().resolve(None, &amd64()).unwrap().layers[0]).unwrap();
        let mut expected = tree(&expected);
        if format == "gnu" {
            // Headers of the GNU format have whole seconds only.
            for entry in expected.values_mut() {
                let (head, tail) = entry.split_once('.').unwrap();
                *entry = format!("{head}.000000000{}", &tail[9..]);
            }
        }
        // GNU tar applies the entry for the root.
        expected.insert(String::new(), ROOT.to_owned());
        assert_eq!(tree(&layer.path), expected, "{format}");
    }
}
