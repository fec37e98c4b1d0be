//! Hostile layers: file name and archive of each. `layers.txt` has the expected results.
//!
//! A link or name that leads out of the tree leads to `/mnt/canary`, or to `dir` or `secret` in it.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use crate::archive::{Tar, header};

/// A file of the corpus.
pub(crate) struct Case {
    pub(crate) file: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// A path that leads to the root of the host from any tree of the cache.
const UP: &str = "../../../../../../../../../../../..";

/// Returns all layers of the corpus.
pub(crate) fn cases() -> Vec<Case> {
    let all = [
        symlinks(),
        hard_links(),
        names(),
        kinds(),
        whiteouts(),
        attributes(),
        bombs(),
        sizes(),
        truncated(),
        headers(),
        desync(),
        duplicates(),
    ];
    all.into_iter().flatten().collect()
}

/// Returns a case of an uncompressed archive.
fn tar(file: &'static str, tar: &Tar) -> Case {
    Case { file, bytes: tar.bytes() }
}

/// Compresses with the highest level, so that a bomb has the largest ratio.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Compresses with a high level, so that the files of the corpus are small.
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 19).unwrap()
}

/// Symbolic links that lead out of the tree, in the place of a parent, a file or the root.
fn symlinks() -> Vec<Case> {
    let up = format!("{UP}/mnt/canary");
    vec![
        tar("symlink-absolute.tar", &Tar::new().symlink("s", "/mnt/canary").file("s/planted", "")),
        tar("symlink-relative.tar", &Tar::new().symlink("s", &up).file("s/planted", "")),
        tar(
            "symlink-chain.tar",
            &Tar::new()
                .symlink("a", "b/c")
                .symlink("b", "..")
                .symlink("c", "/mnt")
                .file("a/canary/planted", ""),
        ),
        tar(
            "symlink-magic.tar",
            &Tar::new()
                .symlink("s", "/proc/self/root/mnt/canary")
                .file("s/planted", "")
                .symlink("t", "/proc/self/cwd")
                .file("t/planted", ""),
        ),
        // CVE-2025-47290: a link replaces a directory that the unpacker has already found.
        tar(
            "symlink-swapped.tar",
            &Tar::new()
                .dir("d")
                .file("d/before", "")
                .symlink("d", "/mnt/canary")
                .file("d/planted", "")
                .file("d/secret", "changed"),
        ),
        tar(
            "symlink-replaced.tar",
            &Tar::new().symlink("s", "/mnt/canary/secret").file("s", "changed"),
        ),
        // CVE-2026-33056: an unpacker sets the mode of a directory on the target of a link.
        tar(
            "symlink-chmod.tar",
            &Tar::new()
                .symlink("s", "/mnt/canary")
                .entry(EntryType::Directory, "s", 0o777, b"")
                .symlink("t", "/mnt/canary/dir")
                .entry(EntryType::Directory, "t/", 0o777, b""),
        ),
        tar("symlink-loop.tar", &Tar::new().symlink("l", "l").file("l/x", "")),
        tar(
            "symlink-loop-of-two.tar",
            &Tar::new().symlink("a", "b/x").symlink("b", "a/x").file("a/x", ""),
        ),
        tar("symlink-empty.tar", &Tar::new().symlink("s", "")),
        // CVE-2021-29136: the root becomes a link, and later layers are unpacked at its target.
        tar("root-symlink.tar", &Tar::new().symlink("./", "/mnt/canary").file("planted", "")),
        tar("root-symlink-dot.tar", &Tar::new().symlink("/.", "/mnt/canary")),
        tar("root-file.tar", &Tar::new().file("/", "x")),
        tar("root-hard-link.tar", &Tar::new().file("a", "").hard_link("./", "a")),
        tar("root-described.tar", &Tar::new().entry(EntryType::Directory, "./", 0o6000, b"")),
        tar("root-device.tar", &Tar::new().entry(EntryType::Char, "./", 0o644, b"")),
    ]
}

/// Hard links to files of the host, to missing files and to files of the wrong type.
fn hard_links() -> Vec<Case> {
    let up = format!("{UP}/mnt/canary/secret");
    vec![
        tar("hard-link-absolute.tar", &Tar::new().hard_link("h", "/mnt/canary/secret")),
        tar("hard-link-dotdot.tar", &Tar::new().hard_link("h", &up)),
        tar(
            "hard-link-through-symlink.tar",
            &Tar::new().symlink("s", "/mnt/canary").hard_link("h", "s/secret"),
        ),
        tar(
            "hard-link-through-relative-symlink.tar",
            &Tar::new().symlink("s", UP).hard_link("h", "s/mnt/canary/secret"),
        ),
        // CVE-2021-32760: an unpacker sets owner and mode of the hard link on the target of the
        // symbolic link.
        tar(
            "hard-link-to-symlink.tar",
            &Tar::new().symlink("s", "/mnt/canary/secret").hard_link("h", "s"),
        ),
        tar(
            "hard-link-to-symlink-written.tar",
            &Tar::new()
                .symlink("s", "/mnt/canary/secret")
                .hard_link("h", "s")
                .file("h", "changed")
                .file("s", "changed"),
        ),
        tar("hard-link-to-directory.tar", &Tar::new().dir("d").hard_link("h", "d")),
        tar("hard-link-to-root.tar", &Tar::new().hard_link("h", "/")),
        tar("hard-link-to-itself.tar", &Tar::new().hard_link("h", "h")),
        tar(
            "hard-link-to-whiteout.tar",
            &Tar::new().file(".wh.hidden", "").hard_link("h", "hidden"),
        ),
        tar(
            "hard-link-over-its-target.tar",
            &Tar::new().dir("d").file("d/f", "").hard_link("d", "d/f"),
        ),
    ]
}

/// Names that lead out of the tree, and names that no file can have.
fn names() -> Vec<Case> {
    let (long, path) = ("n".repeat(256), "0123456789/".repeat(400));
    let named = |name: &str| Tar::new().pax(&[("path", name.as_bytes())]).file("short", "");
    vec![
        tar("name-dotdot.tar", &Tar::new().file("../planted", "")),
        tar("name-dotdot-inside.tar", &Tar::new().file("a/../../planted", "")),
        tar("name-dotdot-alone.tar", &Tar::new().dir("..")),
        tar("name-dotdot-absolute.tar", &Tar::new().file("/../mnt/canary/planted", "")),
        tar("name-dotdot-pax.tar", &named("../planted")),
        tar("name-absolute.tar", &Tar::new().file("/mnt/canary/planted", "")),
        tar("name-absolute-slashes.tar", &Tar::new().file("///mnt//canary/secret", "")),
        tar("name-empty.tar", &Tar::new().file("", "x")),
        tar("name-nul-pax.tar", &named("a\0b")),
        tar("name-newline.tar", &Tar::new().file("a\n\u{1b}[2J", "")),
        tar("name-too-long.tar", &named(&long)),
        tar("name-path-too-long.tar", &named(&path)),
        tar("name-too-deep.tar", &named(&"d/".repeat(257))),
        tar("name-below-file.tar", &Tar::new().file("f", "").file("f/x", "")),
    ]
}

/// Devices, set-user-ID files, pipes and unknown entry types.
fn kinds() -> Vec<Case> {
    let device = |kind, name: &str, major, minor| {
        let mut header = Header::new_gnu();
        header.clone_from(&header_of(kind, name));
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header
    };
    vec![
        tar(
            "setuid.tar",
            &Tar::new().entry(EntryType::Regular, "su", 0o6755, b"x").entry(
                EntryType::Directory,
                "d",
                0o7777,
                b"",
            ),
        ),
        tar("fifo.tar", &Tar::new().entry(EntryType::Fifo, "p", 0o666, b"")),
        tar("device-char.tar", &Tar::new().header(device(EntryType::Char, "mem", 1, 1), b"")),
        tar("device-block.tar", &Tar::new().header(device(EntryType::Block, "sda", 8, 0), b"")),
        tar(
            "device-hard-link.tar",
            &Tar::new()
                .header(device(EntryType::Char, "mem", 1, 1), b"")
                .hard_link("link", "mem")
                .hard_link("again", "link"),
        ),
        tar(
            "device-hard-link-first.tar",
            &Tar::new().hard_link("link", "mem").header(device(EntryType::Char, "mem", 1, 1), b""),
        ),
        // The device is gone when the link comes.
        tar(
            "device-hard-link-replaced.tar",
            &Tar::new()
                .dir("d")
                .header(device(EntryType::Char, "d/mem", 1, 1), b"")
                .symlink("d", "/mnt/canary")
                .hard_link("link", "d/mem"),
        ),
        // Overlayfs treats a character device 0:0 as a whiteout.
        tar(
            "device-whiteout.tar",
            &Tar::new().file("a", "").header(device(EntryType::Char, "b", 0, 0), b""),
        ),
        tar("kind-sparse.tar", &Tar::new().entry(EntryType::GNUSparse, "a", 0o644, b"")),
        tar("kind-unknown.tar", &Tar::new().entry(EntryType::new(b'Z'), "a", 0o644, b"")),
        tar("kind-volume.tar", &Tar::new().entry(EntryType::new(b'V'), "a", 0o644, b"")),
    ]
}

/// Returns a header with mode 0644.
fn header_of(kind: EntryType, name: &str) -> Header {
    header(kind, name, 0o644)
}

/// Whiteouts with malformed names, below links, or of the wrong entry type.
fn whiteouts() -> Vec<Case> {
    vec![
        tar("whiteout-nameless.tar", &Tar::new().file("a", "").file(".wh.", "")),
        tar("whiteout-dot.tar", &Tar::new().file("a", "").file(".wh..", "")),
        tar("whiteout-dotdot.tar", &Tar::new().file("d/.wh...", "")),
        tar("whiteout-of-nameless.tar", &Tar::new().file("a", "").file(".wh..wh.", "")),
        tar("whiteout-directory.tar", &Tar::new().file(".wh.d/x", "")),
        tar(
            "whiteout-through-symlink.tar",
            &Tar::new()
                .symlink("s", "/mnt/canary")
                .file("s/.wh.secret", "")
                .file("s/.wh..wh..opq", ""),
        ),
        tar(
            "whiteout-is-a-symlink.tar",
            &Tar::new().symlink(".wh.a", "/mnt/canary").hard_link(".wh.b", "/mnt/canary/secret"),
        ),
    ]
}

/// Extended attributes that would change the meaning of a file for the host or for overlayfs.
fn attributes() -> Vec<Case> {
    let of = |name: &str, value: &[u8]| {
        let key = format!("SCHILY.xattr.{name}");
        let pax = |tar: Tar| tar.pax(&[(key.as_str(), value)]);
        pax(pax(Tar::new()).dir("d")).file("f", "")
    };
    vec![
        tar("xattr-overlay-opaque.tar", &of("trusted.overlay.opaque", b"y")),
        tar("xattr-overlay-redirect.tar", &of("trusted.overlay.redirect", b"/mnt")),
        tar("xattr-overlay-metacopy.tar", &of("trusted.overlay.metacopy", b"")),
        tar("xattr-overlay-origin.tar", &of("trusted.overlay.origin", b"\0")),
        tar("xattr-user-overlay-opaque.tar", &of("user.overlay.opaque", b"y")),
        tar("xattr-user-overlay-redirect.tar", &of("user.overlay.redirect", b"/mnt")),
        tar("xattr-user-overlay-metacopy.tar", &of("user.overlay.metacopy", b"")),
        tar("xattr-user-overlay-whiteout.tar", &of("user.overlay.whiteout", b"y")),
        tar("xattr-trusted.tar", &of("trusted.a", b"x")),
        tar("xattr-selinux.tar", &of("security.selinux", b"system_u:object_r:etc_t:s0")),
        tar("xattr-nameless.tar", &of("", b"x")),
        tar("xattr-name-with-nul.tar", &of("user.\0\u{1b}[2J", b"")),
        tar(
            "sparse-record-control.tar",
            &Tar::new().pax(&[("GNU.sparse.\u{1b}[2J", b"1")]).file("a", ""),
        ),
        tar("xattr-name-too-long.tar", &of(&format!("user.{}", "n".repeat(300)), b"")),
        Case {
            file: "xattr-value-too-long.tar.zst",
            bytes: zstd(&of("user.a", &[b'v'; 70_000]).bytes()),
        },
        tar(
            "xattr-of-symlink.tar",
            &Tar::new()
                .pax(&[("SCHILY.xattr.user.a", b"x"), ("SCHILY.xattr.trusted.a", b"x")])
                .symlink("s", "/mnt/canary/secret"),
        ),
    ]
}

/// Small files that expand to many bytes, entries or names. See [`limits`](crate::limits).
fn bombs() -> Vec<Case> {
    let repeated = |byte: &str, mib: usize| Tar::new().file("f", &byte.repeat(mib << 20)).bytes();
    let many = |make: &dyn Fn(Tar, usize) -> Tar| (0..1500).fold(Tar::new(), make).bytes();
    // A name has at most 256 components, so this is the deepest tree that names alone can make.
    let deep = (1..=256).fold(Tar::new(), |tar, depth| {
        tar.pax(&[("path", "d/".repeat(depth).as_bytes())]).dir("d")
    });
    let below = deep.bytes();
    // Only the outer stream is decompressed, so its content is not an archive.
    let nested: Vec<u8> = (0..3).fold(repeated("\0", 4), |bytes, _| gzip(&bytes));
    let case = |file, bytes| Case { file, bytes };
    vec![
        case("bomb-gzip.tar.gz", gzip(&repeated("x", 3))),
        case("bomb-zstd.tar.zst", zstd(&repeated("x", 8))),
        // Zeros become holes, which only the limit on unpacked bytes counts.
        case("zeros-gzip.tar.gz", gzip(&repeated("\0", 3))),
        case("zeros-zstd.tar.zst", zstd(&repeated("\0", 8))),
        case("bomb-zeros.tar.zst", zstd(&repeated("\0", 40))),
        // The body of a whiteout is never written, so its zeros are no holes.
        case(
            "bomb-zeros-of-a-whiteout.tar.gz",
            gzip(&Tar::new().file(".wh.f", &"\0".repeat(3 << 20)).bytes()),
        ),
        case("bomb-zstd-window.tar.zst", frame(0x90, &Tar::new().file("f", "").bytes())),
        case("bomb-gzip-behind-the-end.tar.gz", gzip(&[vec![0; 1024], vec![0; 3 << 20]].concat())),
        case("bomb-nested-gzip.tar.gz", nested),
        // 1500 entries, or names of 80 bytes each, are more than the limits of the tests.
        case("bomb-entries.tar.zst", zstd(&many(&|tar, _| tar.file("f", "")))),
        case(
            "bomb-directories.tar.zst",
            zstd(&many(&|tar, number| tar.dir(&format!("{}-{number}", "n".repeat(80))))),
        ),
        case(
            "bomb-whiteouts.tar.zst",
            zstd(&many(&|tar, number| tar.file(&format!(".wh.{}-{number}", "n".repeat(80)), ""))),
        ),
        case(
            "bomb-global-headers.tar.zst",
            zstd(&many(&|tar, _| tar.header(header_of(EntryType::XGlobalHeader, "g"), b""))),
        ),
        case("bomb-deep.tar.zst", zstd(&below)),
        case("bomb-symlink-hops.tar.zst", zstd(&hops().bytes())),
    ]
}

/// Returns a zstd frame of one raw block, with this window descriptor (RFC 8878, 3.1.1.1.2).
fn frame(window: u8, bytes: &[u8]) -> Vec<u8> {
    // Bit 0 marks the last block, bits 1 and 2 are the type, which is 0 for a raw block, and the
    // other bits are the size.
    let block = u32::try_from(bytes.len()).unwrap() << 3 | 1;
    [&crate::ZSTD_MAGIC, &[0, window][..], &block.to_le_bytes()[..3], bytes].concat()
}

/// Returns a layer with links that each lead through the previous link twice, so that the last one
/// leads through a million (2^20).
fn hops() -> Tar {
    (0..20)
        .fold(Tar::new().dir("l0"), |tar, number| {
            let (this, next) = (format!("l{}", number + 1), format!("l{number}"));
            tar.symlink(&this, &format!("{next}/../{next}"))
        })
        .file("l20/x", "")
}

/// Sizes that the archive does not have.
fn sizes() -> Vec<Case> {
    let sized = |kind, name: &str, size: u64| {
        let mut header = header_of(kind, name);
        header.set_size(size);
        header
    };
    let pax = |key: &str, value: &str| Tar::new().pax(&[(key, value.as_bytes())]).file("a", "");
    let raw = |header: Header| {
        let mut header = header;
        header.set_cksum();
        Tar::new().raw(header.as_bytes())
    };
    vec![
        tar("size-huge.tar", &raw(sized(EntryType::Regular, "a", 1 << 40))),
        tar("size-of-all-bits.tar", &raw(sized(EntryType::Regular, "a", u64::MAX))),
        tar("size-huge-in-pax.tar", &pax("size", "18446744073709551615")),
        tar("size-beyond-u64-in-pax.tar", &pax("size", "18446744073709551616")),
        tar("size-negative-in-pax.tar", &pax("size", "-1")),
        tar("size-huge-pax-header.tar", &raw(sized(EntryType::XHeader, "x", 1 << 30))),
        tar("size-huge-long-name.tar", &raw(sized(EntryType::GNULongName, "L", 1 << 30))),
        tar(
            "size-huge-sparse.tar",
            &Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"1099511627776"),
                ])
                .file("a", "0\n"),
        ),
        // A directory has no body, whatever its size field holds, so `next` is the next entry.
        tar(
            "size-of-directory.tar",
            &Tar::new()
                .raw(&{
                    let mut header = sized(EntryType::Directory, "d", 1 << 20);
                    header.set_cksum();
                    header.as_bytes().to_vec()
                })
                .file("next", ""),
        ),
    ]
}

/// Archives and compressed streams that end early, and streams with bytes behind their end.
fn truncated() -> Vec<Case> {
    let whole = Tar::new()
        .pax(&[("path", b"a-name-from-pax"), ("SCHILY.xattr.user.a", b"x")])
        .file("a", &"content".repeat(100))
        .bytes();
    // The archive has the pax header at byte 0, its body at 512, the file's header at 1024, its body
    // of 700 bytes at 1536, and padding from 2236 to 2560.
    let cut = |file, length: usize| Case { file, bytes: whole[..length].to_vec() };
    let (gz, zst) = (gzip(&whole), zstd(&whole));
    let case = |file, bytes: &[u8]| Case { file, bytes: bytes.to_vec() };
    vec![
        cut("truncated-pax-header.tar", 511),
        cut("truncated-before-pax-body.tar", 512),
        cut("truncated-pax-body.tar", 530),
        cut("truncated-before-header.tar", 1024),
        cut("truncated-header.tar", 1300),
        cut("truncated-before-body.tar", 1536),
        cut("truncated-body.tar", 2000),
        cut("truncated-padding.tar", 2300),
        case("truncated-gzip-header.tar.gz", &gz[..5]),
        case("truncated-gzip-body.tar.gz", &gz[..gz.len() / 2]),
        case("truncated-gzip-trailer.tar.gz", &gz[..gz.len() - 3]),
        case("truncated-zstd-magic.tar.zst", &zst[..3]),
        case("truncated-zstd-body.tar.zst", &zst[..zst.len() / 2]),
        case("truncated-zstd-end.tar.zst", &zst[..zst.len() - 1]),
        case("garbage-behind-gzip.tar.gz", &[&gz[..], b"garbage"].concat()),
        case("garbage-behind-zstd.tar.zst", &[&zst[..], b"garbage"].concat()),
        Case {
            file: "garbage-behind-the-end.tar",
            bytes: Tar::new().file("a", "").then(&Tar::new().file("hidden", "").bytes()).bytes(),
        },
        case("garbage.tar", &b"neither an archive nor anything else ".repeat(20)),
    ]
}

/// Header fields with numbers out of range, and headers in the wrong place.
fn headers() -> Vec<Case> {
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = header_of(EntryType::Regular, "a");
        header.set_size(0);
        change(&mut header);
        Tar::new().header(header, b"")
    };
    let size_field = |bytes: &[u8; 12]| {
        let bytes = *bytes;
        with(&move |header| header.as_old_mut().size = bytes)
    };
    let mut bad_checksum = Tar::new().file("a", "").bytes();
    bad_checksum[0] ^= 1;
    // Go before 1.8 wrote the prefix of a long name into a GNU header, which has no such field.
    let prefixed = |magic: &[u8; 8], prefix: &[u8]| {
        let (magic, prefix) = (*magic, prefix.to_vec());
        with(&move |header| {
            header.as_mut_bytes()[257..265].copy_from_slice(&magic);
            header.as_mut_bytes()[345..345 + prefix.len()].copy_from_slice(&prefix);
        })
    };
    let lone = [&[0; 512][..], &Tar::new().file("hidden", "").bytes()].concat();
    vec![
        tar(
            "header-size-negative.tar",
            &size_field(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ),
        tar("header-size-beyond-u64.tar", &size_field(b"\x80\0\0\x01\0\0\0\0\0\0\0\0")),
        tar("header-size-no-digit.tar", &size_field(b"0000000009\0\0")),
        tar("header-size-signed.tar", &size_field(b"-0000000001\0")),
        tar("header-mode-beyond-u64.tar", &with(&|header| header.as_old_mut().mode = [0xff; 8])),
        tar("header-uid-beyond-u32.tar", &with(&|header| header.set_uid(1 << 32))),
        tar("header-uid-minus-one.tar", &with(&|header| header.set_uid(u64::from(u32::MAX)))),
        tar(
            "header-gid-minus-one-in-pax.tar",
            &Tar::new().pax(&[("gid", b"4294967295")]).file("a", ""),
        ),
        tar("header-mtime-beyond-i64.tar", &with(&|header| header.set_mtime(u64::MAX))),
        tar("header-mtime-far.tar", &with(&|header| header.set_mtime(1 << 62))),
        tar("header-gnu-with-prefix.tar", &prefixed(b"ustar  \0", b"home/user")),
        tar("header-gnu-with-prefix-dotdot.tar", &prefixed(b"ustar  \0", b"../../mnt/canary/dir")),
        tar("header-gnu-with-times.tar", &prefixed(b"ustar  \0", b"14000000000\x0014000000000\0")),
        tar("header-gnu-with-binary-prefix.tar", &prefixed(b"ustar  \0", b"home/\xff")),
        tar("header-ustar-without-version.tar", &prefixed(b"ustar\0\0\0", b"home/user")),
        Case { file: "header-checksum.tar", bytes: bad_checksum },
        Case { file: "header-behind-zero-block.tar", bytes: lone },
    ]
}

/// Archives in which readers disagree about the end of a body, so that one reader finds a `hidden`
/// entry in it, and malformed pax headers.
fn desync() -> Vec<Case> {
    let hidden = Tar::new().file("hidden", "").bytes();
    let size = hidden.len().to_string();
    let outer = |size: u64| {
        let mut header = header_of(EntryType::Regular, "outer");
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let pax = |records: &[(&str, &[u8])], header: Vec<u8>, body: &[u8]| {
        Tar::new().pax(records).raw(&header).raw(body)
    };
    let long_name = |name: &[u8]| {
        let mut header = header_of(EntryType::GNULongName, "././@LongLink");
        header.set_size(name.len() as u64);
        (header, name.to_vec())
    };
    let (long, body) = long_name(b"named-by-L\0");
    vec![
        // CVE-2025-62518: a reader that uses the size of the header finds `hidden` in the body.
        tar("desync-pax-size.tar", &pax(&[("size", size.as_bytes())], outer(0), &hidden)),
        // A reader that ends each record at a newline does the same.
        tar(
            "desync-pax-size-behind-newline.tar",
            &pax(&[("SCHILY.xattr.user.a", b"x\ny"), ("size", size.as_bytes())], outer(0), &hidden),
        ),
        // The pax size is 0 here. A reader that ignores a size of 0 skips `hidden` as a body.
        tar(
            "desync-pax-size-smaller.tar",
            &pax(&[("size", b"0")], outer(hidden.len() as u64), &hidden),
        ),
        // The value of a record contains the text of another record, which must not be used.
        tar(
            "desync-size-in-value.tar",
            &pax(&[("comment", b"x\n13 size=1024\n")], outer(0), &[]).file("b", ""),
        ),
        // The PAX header describes the file, not the long-name header between the two.
        tar(
            "desync-pax-before-long-name.tar",
            &Tar::new()
                .pax(&[("size", size.as_bytes())])
                .header(long, &body)
                .raw(&outer(0))
                .raw(&hidden),
        ),
        tar("desync-body-of-symlink.tar", &{
            let mut header = header_of(EntryType::Symlink, "s");
            header.as_old_mut().linkname[0] = b'a';
            header.set_size(hidden.len() as u64);
            header.set_cksum();
            Tar::new().raw(header.as_bytes()).raw(&hidden[..512])
        }),
        tar("pax-length-lies.tar", &pax_of(b"99 path=a\n")),
        tar("pax-length-zero.tar", &pax_of(b"0 path=a\n")),
        tar("pax-length-beyond-u64.tar", &pax_of(b"99999999999999999999 path=a\n")),
        tar("pax-without-newline.tar", &pax_of(b"9 path=ab")),
        tar("pax-without-equals.tar", &pax_of(b"7 path\n")),
        tar("pax-at-the-end.tar", &Tar::new().pax(&[("path", b"a")])),
        tar("pax-garbage-global.tar", &{
            let mut header = header_of(EntryType::XGlobalHeader, "g");
            header.set_size(7);
            Tar::new().header(header, b"garbage")
        }),
    ]
}

/// Returns an archive with a PAX header of these bytes before a file.
fn pax_of(bytes: &[u8]) -> Tar {
    let mut header = header_of(EntryType::XHeader, "x");
    header.set_size(bytes.len() as u64);
    Tar::new().header(header, bytes).file("a", "")
}

/// Two headers that give a name or a link target to one entry.
fn duplicates() -> Vec<Case> {
    let long = |kind, name: &[u8]| {
        let mut header = header_of(kind, "././@LongLink");
        header.set_size(name.len() as u64);
        // The header and its body have one block each. The zero blocks at the end are cut off.
        Tar::new().header(header, name).bytes()[..1024].to_vec()
    };
    let (name, link) =
        (long(EntryType::GNULongName, b"one\0"), long(EntryType::GNULongLink, b"one\0"));
    let pax = &Tar::new().pax(&[("path", b"two")]).bytes()[..1024];
    let of = |first: &[u8], second: &[u8]| Tar::new().raw(first).raw(second).file("three", "");
    vec![
        tar("twice-long-name.tar", &of(&name, &name)),
        tar("twice-long-link.tar", &of(&link, &link)),
        tar("twice-pax.tar", &of(pax, pax)),
        tar("twice-named-pax-first.tar", &of(pax, &name)),
        tar("twice-named-long-name-first.tar", &of(&name, pax)),
        tar(
            "twice-key.tar",
            &Tar::new().pax(&[("path", b"one"), ("path", b"two")]).file("three", ""),
        ),
    ]
}
