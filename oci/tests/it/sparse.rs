//! Sparse files in the four formats of GNU tar: archives that GNU tar writes, and malformed ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use a3s_box_oci::{
    ArchiveError, CacheError, CachedLayer, Digest, LayerError, Limits, PaxError, SparseError,
};
use tar::EntryType;

use crate::archive::Tar;
use crate::bench::{Bench, GZIP, ROOT, amd64, chain, gzip, tree};
use crate::blocks::mounted_tree;

/// Shell script that creates files with holes at each place, with more extents than one header
/// holds, and with long names.
const SOURCE: &str = r#"
mkdir source && cd source
put() { dd if=/dev/urandom of="$1" bs="$3" seek="$2" oflag=seek_bytes count=1 conv=notrunc status=none; }
long="$(printf 'd%.0s' $(seq 120))/$(printf 'f%.0s' $(seq 120))"
mkdir "${long%/*}"
put first 1048576 4096 && put middle 0 4096 && put middle 1048576 5000
put last 0 4096 && truncate -s 2M last
truncate -s 3M hole && : >empty && put plain 0 70000
for i in $(seq 0 70); do put many $((i * 65536)) 4096; done
put "$long" 524288 100 && ln "$long" hard && chmod 4750 many && chown 7:8 many
cp --sparse=always many .wh.hidden-by-a-sparse-file
"#;

/// Returns an archive with a file of 100 bytes, given its map of extents and its data.
type Make<'a> = &'a dyn Fn(&[(u64, u64)], &[u8]) -> Tar;

/// The formats: name, options of GNU tar, and bytes that occur only in archives of this format.
const FORMATS: [(&str, &str, &[u8]); 4] = [
    ("gnu", "--format=gnu", b"././@LongLink"),
    ("0.0", "--format=pax --sparse-version=0.0", b" GNU.sparse.offset=65536\n"),
    ("0.1", "--format=pax --sparse-version=0.1", b" GNU.sparse.map="),
    ("1.0", "--format=pax --sparse-version=1.0", b" GNU.sparse.major=1\n"),
];

#[test]
fn file_of_each_format_equals_the_file_that_gnu_tar_read() {
    let bench = Bench::new();
    let run = |script: &str| {
        let output = Command::new("bash").args(["-euc", script]).current_dir(&bench.root).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(SOURCE);
    let source = bench.path("source");
    for (name, options, mark) in FORMATS {
        run(&format!("tar --sparse {options} -cf {name}.tar -C source ."));
        let tar = fs::read(bench.path(&format!("{name}.tar"))).unwrap();
        assert!(tar.len() < 1 << 20, "{name}: the archive has no holes: {}", tar.len());
        assert!(tar.windows(mark.len()).any(|found| found == mark), "{name}: another format");
        let layer =
            unpack(&bench, &tar).unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let mut expected = tree(&source);
        expected.remove(".wh.hidden-by-a-sparse-file").unwrap();
        expected.remove("").unwrap();
        let mut found = tree(&layer.path);
        assert_eq!(found.remove("").unwrap(), ROOT);
        assert!(found.remove("hidden-by-a-sparse-file").unwrap().contains("device 0"));
        let mut of_blocks = mounted_tree(&bench);
        assert_eq!(of_blocks.remove("").unwrap(), ROOT);
        assert!(of_blocks == found, "{name}: the block root differs");
        if name == "gnu" {
            // Headers of the GNU format have whole seconds only.
            for entry in expected.values_mut() {
                let (head, tail) = entry.split_once('.').unwrap();
                *entry = format!("{head}.000000000{}", &tail[9..]);
            }
        }
        assert!(found == expected, "{name}: {:?} {:?}", found.keys(), expected.keys());
        // Equal contents do not prove holes. The number of allocated blocks does.
        for file in ["first", "middle", "last", "hole", "many"] {
            let blocks = |root: &std::path::Path| root.join(file).metadata().unwrap().blocks();
            let (made, read) = (blocks(&layer.path), blocks(&source));
            assert!(made <= read, "{name}: `{file}` has {made} blocks, the source has {read}");
        }
        let sizes = ["first", "middle", "last", "hole", "empty", "plain", "many", "hard"]
            .map(|file| source.join(file).metadata().unwrap().len());
        assert_eq!(layer.facts.bytes, sizes.iter().sum::<u64>(), "{name}");
        fs::remove_dir_all(bench.path("cache")).unwrap();
    }
}

/// Publishes an image whose only layer is this archive, and unpacks it.
fn unpack(bench: &Bench, tar: &[u8]) -> Result<CachedLayer, CacheError> {
    let blob = bench.blob(GZIP, &gzip(tar));
    bench.publish(&[bench.image_of("linux/amd64", &[blob], &[Digest::of(tar)]).descriptor("")]);
    bench.unpack(&bench.layout().resolve(None, &amd64()).unwrap().layers[0])
}

/// Unpacks a layer that must be refused, and returns its error.
fn refusal(tar: &Tar) -> LayerError {
    let bench = Bench::new();
    let outcome = unpack(&bench, &tar.bytes());
    bench.assert_cache_is_empty();
    match outcome {
        Err(CacheError::Layer { source, .. }) => source,
        other => panic!("expected an error of the layer, found {other:?}"),
    }
}

/// Unpacks a layer with a malformed sparse file, and returns the error of the file.
fn malformed(tar: &Tar) -> SparseError {
    match refusal(tar) {
        LayerError::Archive {
            source: ArchiveError::Sparse(error) | ArchiveError::Pax(PaxError::Sparse(error)),
            ..
        } => error,
        other => panic!("expected an error of a sparse file, found {other:?}"),
    }
}

#[test]
fn map_that_does_not_match_the_file_is_refused_in_each_format() {
    let old = |map: &[(u64, u64)], body: &[u8]| Tar::new().old_sparse("a", 100, map, body);
    let text = |map: &[(u64, u64)]| -> Vec<String> {
        map.iter().map(|(offset, length)| format!("{offset},{length}")).collect()
    };
    let listed = |map: &[(u64, u64)], body: &[u8]| {
        let (count, list) = (map.len().to_string(), text(map).join(","));
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", b"100"),
                ("GNU.sparse.numblocks", count.as_bytes()),
                ("GNU.sparse.map", list.as_bytes()),
            ])
            .entry(EntryType::Regular, "a", 0o644, body)
    };
    let in_body = |map: &[(u64, u64)], body: &[u8]| {
        let mut text = format!("{}\n{}\n", map.len(), text(map).join("\n").replace(',', "\n"));
        text.extend(std::iter::repeat_n('\0', text.len().next_multiple_of(512) - text.len()));
        Tar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"100"),
            ])
            .entry(EntryType::Regular, "a", 0o644, &[text.as_bytes(), body].concat())
    };
    let formats: [Make<'_>; 3] = [&old, &listed, &in_body];
    let last = i64::MAX.unsigned_abs();
    for (format, make) in formats.into_iter().enumerate() {
        let good = unpack(&Bench::new(), &make(&[(1, 2), (50, 3)], b"abcde").bytes()).unwrap();
        assert_eq!(good.facts.bytes, 100);
        for map in [
            &[(0, 3), (2, 2)][..],
            &[(50, 3), (1, 2)],
            &[(96, 5)],
            &[(101, 0), (0, 5)],
            &[(last, last), (last, 5)],
        ] {
            let error = malformed(&make(map, b"abcde"));
            assert!(matches!(error, SparseError::Extent { .. }), "{format} {map:?}: {error}");
        }
        for body in [&b""[..], b"abcd", b"abcdef", &[b'x'; 1024]] {
            let error = malformed(&make(&[(1, 2), (50, 3)], body));
            let found = body.len() as u64;
            assert_eq!(error, SparseError::DataSize { expected: 5, found }, "{format}");
        }
    }
}

#[test]
fn truncated_or_ustar_header_of_a_sparse_file_is_refused() {
    let extents: Vec<(u64, u64)> = (0..40).map(|at| (2 * at, 1)).collect();
    let whole = Tar::new().old_sparse("a", 100, &extents, &[b'x'; 40]).bytes();
    unpack(&Bench::new(), &whole).unwrap();
    for length in [512, 513, 1024, 1535, 1536, 1560] {
        let bench = Bench::new();
        let text = chain(&unpack(&bench, &whole[..length]).unwrap_err());
        assert!(text.ends_with("the archive is cut off"), "{length}: {text}");
        bench.assert_cache_is_empty();
    }
    // Only the GNU format has a map in its header, so the magic of ustar makes it malformed.
    let mut ustar = whole;
    ustar[257..265].copy_from_slice(b"ustar\x0000");
    ustar[148..156].fill(b' ');
    let sum: u32 = ustar[..512].iter().map(|byte| u32::from(*byte)).sum();
    ustar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let text = chain(&unpack(&Bench::new(), &ustar).unwrap_err());
    assert!(text.ends_with("the header of a sparse file is not in the GNU format"), "{text}");
}

#[test]
fn incomplete_or_contradictory_records_of_a_sparse_file_are_refused() {
    let with = |records: &[(&str, &[u8])], kind| {
        malformed(&Tar::new().pax(records).entry(kind, "a", 0o644, b""))
    };
    let orphan = with(&[("GNU.sparse.name", b"a")], EntryType::Regular);
    assert_eq!(orphan, SparseError::Incomplete { missing: "GNU.sparse.size" });
    let newer = with(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], EntryType::Regular);
    assert_eq!(newer, SparseError::Version { found: "2.0".into() });
    let unknown = with(&[("GNU.sparse.mystery", b"1")], EntryType::Regular);
    assert_eq!(unknown, SparseError::Key { key: "GNU.sparse.mystery".into() });
    let map: [(&str, &[u8]); 3] =
        [("GNU.sparse.size", b"9"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,0")];
    for kind in [EntryType::Directory, EntryType::Symlink, EntryType::Fifo, EntryType::Char] {
        assert_eq!(with(&map, kind), SparseError::NotAFile, "{kind:?}");
    }
    let twice = malformed(&Tar::new().pax(&map).old_sparse("a", 9, &[(0, 0)], b""));
    assert_eq!(twice, SparseError::Ambiguous { what: "map" });
    let version_1: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
    for (body, expected) in [
        (&b""[..], SparseError::Map),
        (b"1\n", SparseError::Map),
        (&[b'1'; 512], SparseError::Map),
        (&b"0\n0\n".repeat(128)[..512], SparseError::DataSize { expected: 0, found: 0 }),
    ] {
        let tar = Tar::new().pax(&version_1).entry(EntryType::Regular, "a", 0o644, body);
        match expected {
            // This body is a valid map with 0 extents, so the layer is unpacked.
            SparseError::DataSize { .. } => drop(unpack(&Bench::new(), &tar.bytes()).unwrap()),
            expected => assert_eq!(malformed(&tar), expected),
        }
    }
}

#[test]
fn holes_count_against_the_size_limit_before_the_file_is_created() {
    let limits = || Limits { unpacked_bytes: 1 << 30, ..Limits::default() };
    let outcome = |tar: &Tar| {
        let bench = Bench::new();
        let cache = bench.cache().with_limits(limits());
        let blob = bench.blob(GZIP, &gzip(&tar.bytes()));
        let image = bench.image_of("linux/amd64", &[blob], &[Digest::of(&tar.bytes())]);
        bench.publish(&[image.descriptor("")]);
        let layer = bench.layout().resolve(None, &amd64()).unwrap().layers[0];
        let outcome = cache
            .get_or_unpack(&bench.layout(), &layer, &mut |_| std::ops::ControlFlow::Continue(()));
        outcome.map(|layer| layer.facts.bytes).map_err(|error| chain(&error))
    };
    let half = |tar: Tar, name| tar.old_sparse(name, 600 << 20, &[(600 << 20, 0)], b"");
    assert_eq!(outcome(&half(Tar::new(), "a")), Ok(600 << 20));
    for too_large in [
        Tar::new().old_sparse("a", 1 << 50, &[(0, 1)], b"x"),
        Tar::new().old_sparse("a", u64::MAX, &[], b""),
        half(half(Tar::new(), "a"), "b"),
        // These files are not sparse. The archive ends before their bodies.
        Tar::new().pax(&[("size", b"1125899906842624")]).file("a", ""),
        Tar::new().pax(&[("size", b"18446744073709551615")]).file("a", ""),
    ] {
        let text = outcome(&too_large).unwrap_err();
        assert!(text.contains("exceeds the limit on unpacked bytes"), "{text}");
    }
}
