//! The formats of blobs and archives.

use tar::EntryType;

use super::{base, root};
use crate::archive::{Tar, header};
use crate::case::{Case, check};
use crate::layout::{GZIP, Layer, gzip};
use crate::verdict::Verdict::{Accepts, Differs, Refuses};

// The reasons why tools disagree.
const NO_OLD_SPARSE: &str =
    "umoci and containerd do not support the sparse files of GNU tar's own format";
const NO_ZSTD: &str = "umoci 0.4.7 does not support zstd";
const GZIP_PADDING: &str =
    "gzip ignores zeros after a member as padding, but Go's reader expects another member";
const BYTES_DECIDE: &str =
    "umoci trusts the media type, but containerd and this crate detect the format";
const BYTES_DECIDE_HERE: &str =
    "umoci and containerd trust the media type, but this crate detects the format";
const NO_DOCKER_TYPES: &str = "umoci does not support the media types of Docker";
const EMPTY_BLOB: &str = "umoci requires a gzip header, but an empty blob is an empty layer";
const POSIX_FILE: &str = "POSIX recommends to read this type as a regular file";
const GLOBAL: &str = "umoci reads the header as an entry of an unknown type";
const TWO_NAMES: &str = "readers disagree about which of the two names has precedence";

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Returns an archive that no other case has. containerd does not unpack a layer again if it has
/// unpacked one with the same DiffID before.
fn tar(name: &str) -> Vec<u8> {
    base().file("name", name).bytes()
}

/// Returns the only layer of an image, whose blob `encode` makes from the archive.
fn layer(media_type: &'static str, tar: &[u8], encode: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Layer> {
    vec![Layer::of(media_type, encode(tar), tar)]
}

#[test]
fn each_compression_is_read() {
    let members = |tar: &[u8]| [gzip(&tar[..700]), gzip(b""), gzip(&tar[700..])].concat();
    let frames = |tar: &[u8]| {
        [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(&tar[..700]), zstd(&tar[700..])].concat()
    };
    check(
        "compression",
        &[
            Case::of("plain", layer(PLAIN, &tar("plain"), <[u8]>::to_vec)),
            Case::of("gzip", layer(GZIP, &tar("gzip"), gzip)),
            Case::of("zstd", layer(ZSTD, &tar("zstd"), zstd))
                .because(NO_ZSTD)
                .umoci(Refuses("blob is not correct mediatype")),
            Case::of("gzip-members", layer(GZIP, &tar("gzip-members"), members)),
            Case::of("zstd-frames", layer(ZSTD, &tar("zstd-frames"), frames))
                .because(NO_ZSTD)
                .umoci(Refuses("blob is not correct mediatype")),
            Case::of(
                "zeros-behind-gzip",
                layer(GZIP, &root().file("z", "1").bytes(), |tar| {
                    [gzip(tar), vec![0; 1000]].concat()
                }),
            )
            .because(GZIP_PADDING)
            .umoci(Refuses("invalid header"))
            .containerd(Refuses("invalid header"))
            .with(&[("z", "file 644 11:22 1700000000 `1`")]),
            Case::of(
                "garbage-behind-gzip",
                layer(GZIP, &tar("garbage-behind-gzip"), |tar| {
                    [gzip(tar), b"garbage".to_vec()].concat()
                }),
            )
            .umoci(Refuses("unexpected EOF"))
            .containerd(Refuses("unexpected EOF"))
            .refused("behind"),
            Case::of(
                "gzip-cut-off",
                layer(GZIP, &tar("gzip-cut-off"), |tar| {
                    let mut all = gzip(tar);
                    all.truncate(all.len() - 4);
                    all
                }),
            )
            .umoci(Refuses("unexpected EOF"))
            .containerd(Refuses("unexpected EOF"))
            .refused("read"),
            Case::of(
                "plain-labelled-gzip",
                layer(GZIP, &tar("plain-labelled-gzip"), <[u8]>::to_vec),
            )
            .because(BYTES_DECIDE)
            .umoci(Refuses("invalid header")),
            Case::of("gzip-labelled-plain", layer(PLAIN, &root().file("f", "1").bytes(), gzip))
                .because(BYTES_DECIDE_HERE)
                .umoci(Refuses("unexpected EOF"))
                .containerd(Refuses("unexpected EOF"))
                .with(&[("f", "file 644 11:22 1700000000 `1`")]),
            Case::of("zstd-labelled-gzip", layer(GZIP, &tar("zstd-labelled-gzip"), zstd))
                .because(BYTES_DECIDE)
                .umoci(Refuses("invalid header")),
            Case::of("gzip-labelled-zstd", layer(ZSTD, &tar("gzip-labelled-zstd"), gzip))
                .because(NO_ZSTD)
                .umoci(Refuses("blob is not correct mediatype")),
        ],
    );
}

#[test]
fn media_types_of_oci_and_docker_are_accepted() {
    check(
        "media-type",
        &[
            Case::of(
                "docker-gzip",
                layer(
                    "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    &tar("docker-gzip"),
                    gzip,
                ),
            )
            .umoci(Refuses("blob is not correct mediatype"))
            .because(NO_DOCKER_TYPES),
            Case::of(
                "docker-plain",
                layer(
                    "application/vnd.docker.image.rootfs.diff.tar",
                    &tar("docker-plain"),
                    <[u8]>::to_vec,
                ),
            )
            .umoci(Refuses("blob is not correct mediatype"))
            .because(NO_DOCKER_TYPES),
            Case::of(
                "nondistributable",
                layer(
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                    &tar("nondistributable"),
                    gzip,
                ),
            ),
            Case::of(
                "docker-foreign",
                layer(
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                    &tar("docker-foreign"),
                    gzip,
                ),
            )
            .because(NO_DOCKER_TYPES)
            .umoci(Refuses("blob is not correct mediatype")),
            Case::of(
                "unknown",
                layer("application/vnd.example.layer.tar+gzip", &tar("unknown"), gzip),
            )
            .umoci(Refuses("blob is not correct mediatype"))
            .containerd(Refuses("no processor for media-type"))
            .refused("media type"),
        ],
    );
}

#[test]
fn empty_layers_are_accepted() {
    let with = |middle: Layer| vec![base().into(), middle, Tar::new().file("n", "2").into()];
    let empty = |media_type, blob| with(Layer::of(media_type, blob, b""));
    check(
        "empty",
        &[
            Case::of("no-entries", with(Tar::new().into())),
            Case::of("no-bytes-in-gzip", empty(GZIP, gzip(b""))),
            Case::of("no-bytes-plain", empty(PLAIN, Vec::new())),
            Case::of("no-bytes-labelled-gzip", empty(GZIP, Vec::new()))
                .because(EMPTY_BLOB)
                .umoci(Refuses("EOF")),
            Case::of(
                "repeated",
                vec![
                    base().into(),
                    Tar::new().into(),
                    Tar::new().file("a/x", "2").into(),
                    Tar::new().file("a/.wh.x", "").into(),
                    Tar::new().file("a/x", "2").into(),
                    Tar::new().into(),
                ],
            )
            .overlayfs(Differs(&[("a", "mtime now")])),
            Case::of(
                "forty",
                (0..40)
                    .map(|number| {
                        root()
                            .file(&format!("f{number}"), "1")
                            .file("last", &number.to_string())
                            .into()
                    })
                    .collect(),
            ),
        ],
    );
}

#[test]
fn archives_with_and_without_an_end_are_read() {
    let all = tar("ends");
    let cut = |bytes: usize| all[..all.len() - bytes].to_vec();
    let gzipped = |tar: Vec<u8>| layer(GZIP, &tar, gzip);
    let behind_one_block = [cut(512), Tar::new().file("behind", "1").bytes()].concat();
    check(
        "end",
        &[
            Case::of("without-an-end", gzipped(cut(1024))),
            Case::of("one-zero-block", gzipped(cut(512))),
            Case::of("junk-behind-the-end", gzipped(base().then(&b"junk".repeat(1000)).bytes())),
            Case::of(
                "archive-behind-the-end",
                gzipped([all.clone(), Tar::new().file("behind", "1").bytes()].concat()),
            ),
            Case::of("entry-behind-one-zero-block", gzipped(behind_one_block))
                .umoci(Refuses("invalid tar header"))
                .containerd(Refuses("invalid tar header"))
                .refused("single zero block"),
            Case::of(
                "cut-off-in-a-body",
                gzipped(root().file("f", &"1".repeat(1000)).bytes()[..1200].to_vec()),
            )
            .umoci(Refuses("unexpected EOF"))
            .containerd(Refuses("unexpected EOF"))
            .refused("cut off"),
            Case::of(
                "cut-off-in-the-padding",
                gzipped(root().file("f", "1").bytes()[..1025].to_vec()),
            ),
            Case::of("cut-off-in-a-header", gzipped(all[..700].to_vec()))
                .umoci(Refuses("unexpected EOF"))
                .containerd(Refuses("unexpected EOF"))
                .refused("cut off"),
        ],
    );
}

#[test]
fn headers_of_all_formats_are_read() {
    let sized = |kind, name| {
        let mut header = header(kind, name, 0o755);
        header.set_size(512);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let body_less = [
        root().bytes()[..512].to_vec(),
        sized(EntryType::Directory, "d"),
        sized(EntryType::Fifo, "p"),
        Tar::new().file("f", "1").bytes(),
    ]
    .concat();
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"20000"),
    ];
    // The map at the start of the body: the number of extents, and the offset and length of each.
    // It is padded to a block.
    let mut extents = b"2\n1\n2\n10000\n1\n".to_vec();
    extents.resize(512, 0);
    extents.extend(b"abc");
    let mut damaged = tar("damaged");
    damaged[3] ^= 1;
    let mut old = header(EntryType::Regular, "old/", 0o755);
    old.as_old_mut().linkflag = [0];
    check(
        "header",
        &[
            Case::of("sizes-without-bodies", layer(GZIP, &body_less, gzip)),
            Case::of("old-dir", vec![root().append(old, "", b"").file("old/f", "1").into()]),
            Case::of(
                "sparse-gnu",
                vec![root().old_sparse("f", 20_000, &[(1, 2), (10_000, 1)], b"abc").into()],
            )
            .because(NO_OLD_SPARSE)
            .umoci(Refuses("unknown typeflag"))
            .containerd(Refuses("unhandled tar header type 83"))
            .with(&[("f", "file 644 11:22 1700000000 20000 bytes 3d4e15738f4f030c")]),
            Case::of(
                "sparse-pax",
                vec![root().pax(&sparse).entry(EntryType::Regular, "x", 0o644, &extents).into()],
            ),
            Case::of(
                "contiguous",
                vec![root().entry(EntryType::Continuous, "f", 0o644, b"1").into()],
            )
            .because(POSIX_FILE)
            .umoci(Refuses("unknown typeflag"))
            .containerd(Refuses("unhandled tar header type 55"))
            .with(&[("f", "file 644 11:22 1700000000 `1`")]),
            Case::of(
                "global-pax",
                vec![
                    root()
                        .entry(EntryType::XGlobalHeader, "g", 0o644, b"16 comment=none\n")
                        .file("f", "1")
                        .into(),
                ],
            )
            .because(GLOBAL)
            .umoci(Refuses("unknown typeflag")),
            Case::of(
                "unknown-type",
                vec![root().entry(EntryType::new(b'Z'), "f", 0o644, b"").into()],
            )
            .umoci(Refuses("unknown typeflag"))
            .containerd(Refuses("unhandled tar header type 90"))
            .refused("entry type"),
            Case::of(
                "pax-key-twice",
                vec![root().pax(&[("path", b"first"), ("path", b"second")]).file("f", "1").into()],
            ),
            Case::of(
                "pax-and-gnu-name",
                vec![
                    root()
                        .pax(&[("path", b"pax")])
                        .entry(EntryType::GNULongName, "././@LongLink", 0o644, b"gnu\0")
                        .file("f", "1")
                        .into(),
                ],
            )
            .because(TWO_NAMES)
            .umoci(Accepts)
            .containerd(Accepts)
            .refused("ambiguous"),
            Case::of(
                "pax-without-an-entry",
                vec![root().file("f", "1").pax(&[("path", b"g")]).into()],
            ),
            Case::of("damaged-header", layer(GZIP, &damaged, gzip))
                .umoci(Refuses("invalid tar header"))
                .containerd(Refuses("invalid tar header"))
                .refused("checksum"),
        ],
    );
}
