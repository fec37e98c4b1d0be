//! Layers that mean harm, where one file of the corpus would not do: every byte, every length, and
//! what is too large.

use std::fs;
use std::path::Path;

use a3s_box_oci::{ArchiveError, BlobError, CacheError, Digest, EntryError, LayerError, Limits};

use crate::archive::Tar;
use crate::bench::{Bench, GZIP, amd64, gzip};

/// Unpacks a layer that must be refused, and returns why.
fn refused(tar: Tar) -> LayerError {
    let bench = Bench::new();
    layer_error(&bench, bench.unpack_tar(tar).map(drop))
}

fn layer_error(bench: &Bench, outcome: Result<(), CacheError>) -> LayerError {
    bench.assert_cache_is_empty();
    match outcome {
        Err(CacheError::Layer { source, .. }) => source,
        other => panic!("expected an error of the layer, found {other:?}"),
    }
}

/// Unpacks a blob as a gzip layer with the given `DiffID`.
fn blob_error(blob: &[u8], diff_id: Digest, damage: impl Fn(&Path)) -> LayerError {
    let bench = Bench::new();
    let blob = bench.blob(GZIP, blob);
    bench.publish(&[bench
        .image_of("linux/amd64", std::slice::from_ref(&blob), &[diff_id])
        .descriptor("")]);
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    damage(&bench.blob_path(blob.digest));
    layer_error(&bench, bench.unpack(&image.layers[0]).map(drop))
}

#[test]
fn blob_that_is_not_the_one_described_is_refused() {
    let tar = Tar::new().file("a", "content").bytes();
    let (blob, diff_id) = (gzip(&tar), Digest::of(&tar));
    let error = blob_error(&blob, diff_id, |path| fs::remove_file(path).unwrap());
    assert!(matches!(error, LayerError::Blob(BlobError::Missing { .. })), "{error:?}");
    let error =
        blob_error(&blob, diff_id, |path| fs::write(path, [&blob[..], b"x"].concat()).unwrap());
    assert!(matches!(error, LayerError::Blob(BlobError::Size { .. })), "{error:?}");
    // Each damaged byte is the digest's affair, also where the archive then makes no sense.
    for position in 0..blob.len() {
        let error = blob_error(&blob, diff_id, |path| {
            let mut damaged = blob.clone();
            damaged[position] ^= 0x55;
            fs::write(path, damaged).unwrap();
        });
        assert!(
            matches!(error, LayerError::Blob(BlobError::Digest { .. })),
            "byte {position}: {error:?}"
        );
    }
}

#[test]
fn something_behind_the_gzip_stream_is_refused() {
    let tar = Tar::new().file("a", "content").bytes();
    let end = gzip(&tar);
    for tail in [&b"x"[..], b"\0\0x", b"\0\x1f\x8b", b"\x1f", b"\x1f\x8b\x08\0"] {
        let error = blob_error(&[&end, tail].concat(), Digest::of(&tar), |_| {});
        assert!(matches!(error, LayerError::Archive { .. }), "{tail:?}: {error:?}");
    }
}

#[test]
fn archive_that_is_not_the_one_described_is_refused() {
    let tar = Tar::new().file("a", "content").bytes();
    let error = blob_error(&gzip(&tar), Digest::of(b"another"), |_| {});
    assert!(
        matches!(error, LayerError::DiffId { found, .. } if found == Digest::of(&tar)),
        "{error:?}"
    );
    let behind_the_end = Tar::new().file("a", "content").then(b"x").bytes();
    let error = blob_error(&gzip(&behind_the_end), Digest::of(&tar), |_| {});
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
}

#[test]
fn compressed_stream_that_is_cut_off_or_goes_on_is_refused() {
    let tar = Tar::new().file("a", &"content".repeat(100)).bytes();
    let blob = gzip(&tar);
    for length in 1..blob.len() {
        let error = blob_error(&blob[..length], Digest::of(&tar), |_| {});
        let expected = matches!(error, LayerError::Archive { source: ArchiveError::Read(_), .. });
        assert!(expected, "{length}: {error:?}");
    }
    let error = blob_error(&[&blob[..], b"garbage"].concat(), Digest::of(&tar), |_| {});
    assert!(matches!(error, LayerError::Archive { .. }), "{error:?}");
    let error = blob_error(&gzip(&tar[..700]), Digest::of(&tar[..700]), |_| {});
    assert!(
        matches!(error, LayerError::Archive { source: ArchiveError::Truncated, .. }),
        "{error:?}"
    );
}

#[test]
fn size_of_a_layer_is_limited() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("zeros", &"\0".repeat(2 << 20))]);
    let cache = bench.cache().with_limits(Limits { unpacked_bytes: 1 << 20, ..Limits::default() });
    let outcome = cache.get_or_unpack(&bench.layout(), &image.layers[0], &mut |_| {
        std::ops::ControlFlow::Continue(())
    });
    let error = layer_error(&bench, outcome.map(drop));
    assert!(matches!(error, LayerError::Limit { what: "unpacked bytes", .. }), "{error:?}");
}

#[test]
fn tree_deeper_than_a_path_is_removed_after_a_failure() {
    let mut tar = Tar::new();
    for number in 0..13 {
        // Each link leads to the end of the last chain of directories, where the next one begins.
        let mut path = format!("l{number}");
        let end = format!("l{}{}", number - 1, "/d".repeat(170));
        tar = match number {
            0 => tar.dir(&path),
            _ => tar.pax(&[("linkpath", end.as_bytes())]).symlink(&path, "end"),
        };
        for _ in 0..170 {
            path += "/d";
            tar = tar.pax(&[("path", path.as_bytes())]).dir("d");
        }
    }
    let error = refused(tar.file("../x", ""));
    assert!(matches!(error, LayerError::Entry { source: EntryError::Name(_), .. }), "{error:?}");
}
