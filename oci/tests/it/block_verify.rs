//! Damage in layer files and metadata images is found by verification, also where a start does not
//! look, reported with path and kind, and repaired unless a box uses the content.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use a3s_box_oci::{Damage, Image, Verified};

use crate::archive::Tar;
use crate::bench::{Bench, gzip};
use crate::blocks::{compose, layer_path};

/// Returns an image whose lower layer has the data blocks of `d/a` (0), of `d/b` (1 and 2), and an
/// index behind them.
fn image(bench: &Bench) -> Image {
    let b = "b".repeat(5000);
    let lower = Tar::new().dir("d").file("d/a", "a").file("d/b", &b).symlink("l", "d");
    bench.resolved(&[lower, Tar::new().file("c", "c")])
}

fn verify(bench: &Bench, image: &Image) -> Verified {
    let progress = &mut |_, _| ControlFlow::Continue(());
    bench.cache().verify(&bench.layout(), &image.layers, progress).unwrap()
}

fn image_path(bench: &Bench) -> PathBuf {
    let ready = fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap();
    let mut images = ready.map(|entry| entry.unwrap().path().join("root.erofs"));
    images.find(|path| path.exists()).unwrap()
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
}

fn found(damages: &[Damage]) -> Vec<(&str, &str, &str)> {
    damages
        .iter()
        .map(|damage| (damage.layer.as_str(), damage.path.to_str().unwrap(), damage.what))
        .collect()
}

#[test]
fn damage_of_each_part_of_a_layer_file_is_found_and_repaired() {
    let bench = Bench::new();
    let image = image(&bench);
    drop(compose(&bench).unwrap());
    let path = layer_path(&bench, &image, 0);
    let whole = fs::read(&path).unwrap();
    let end = whole.len() as u64;
    let blocks = 3 * 4096;
    let offsets = [
        (0, "d/a", "content"),
        // The rest of the last block of a file is zeros, which a process can see.
        (4095, "d/a", "content"),
        (4096, "d/b", "content"),
        (blocks - 1, "d/b", "content"),
        (blocks, "", "index"),
        (end - 73, "", "index"),
        (end - 72, "", "trailer"),
        (end - 1, "", "trailer"),
    ];
    let layer = image.layers[0].diff_id.to_string();
    let check = |expected: (&str, &str)| {
        let verified = verify(&bench, &image);
        assert_eq!(found(&verified.rebuilt), [(&layer[..], expected.0, expected.1)]);
        assert_eq!((verified.intact, verified.in_use.len()), (2, 0), "{expected:?}");
        assert_eq!(fs::read(&path).unwrap(), whole);
    };
    for (offset, entry, what) in offsets {
        flip(&path, offset);
        check((entry, what));
    }
    fs::write(&path, &whole[..4096]).unwrap();
    check(("d/b", "content"));
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    check(("", "trailer"));
    assert_eq!(verify(&bench, &image).intact, 3);
    assert_eq!(fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap().count(), 0);
    assert_eq!(compose(&bench).unwrap().hits, 2);
}

#[test]
fn damaged_metadata_image_is_found_and_repaired_with_intact_layer_files() {
    let bench = Bench::new();
    let image = image(&bench);
    drop(compose(&bench).unwrap());
    let path = image_path(&bench);
    let whole = fs::read(&path).unwrap();
    // The superblock, the inodes, and the end.
    for offset in [1030, 4200, whole.len() as u64 - 1] {
        flip(&path, offset);
        let verified = verify(&bench, &image);
        let [(_, "", "metadata image")] = found(&verified.rebuilt)[..] else {
            panic!("{offset}: {verified:?}")
        };
        assert_eq!((verified.intact, verified.in_use.len()), (2, 0));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn content_in_use_is_reported_and_kept() {
    let bench = Bench::new();
    let image = image(&bench);
    let root = compose(&bench).unwrap();
    let inodes = || {
        let paths = [layer_path(&bench, &image, 0), image_path(&bench)];
        paths.map(|path| fs::metadata(path).unwrap().ino())
    };
    let before = inodes();
    assert_eq!(verify(&bench, &image).intact, 3);
    assert_eq!(inodes(), before, "intact content is kept");
    flip(&image_path(&bench), 4200);
    let verified = verify(&bench, &image);
    assert_eq!((verified.intact, verified.rebuilt.len()), (2, 0));
    assert_eq!(found(&verified.in_use)[0].2, "metadata image");
    flip(&layer_path(&bench, &image, 0), 4100);
    let verified = verify(&bench, &image);
    assert_eq!((verified.intact, verified.rebuilt.len()), (1, 0));
    let layer = image.layers[0].diff_id.to_string();
    assert_eq!(found(&verified.in_use), [(&layer[..], "d/b", "content")]);
    assert_eq!(inodes(), before);
    drop(root);
    let verified = verify(&bench, &image);
    assert_eq!((verified.intact, verified.rebuilt.len(), verified.in_use.len()), (1, 2, 0));
}

#[test]
fn each_form_that_the_cache_has_is_verified_and_no_other_is_made() {
    let bench = Bench::new();
    let image = image(&bench);
    let ready = || -> Vec<String> {
        let entries = fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap()[..6].to_owned())
            .collect();
        names.sort();
        names
    };
    // A layer that is missing is read, which verifies its blob.
    assert_eq!(verify(&bench, &image), Verified::default());
    assert_eq!(ready(), ["file-s", "file-s", "root-s"]);
    drop(bench.compose(&image).unwrap());
    assert_eq!(verify(&bench, &image).intact, 5);
    let tree = Bench::new();
    let image = self::image(&tree);
    drop(tree.compose(&image).unwrap());
    assert_eq!(verify(&tree, &image).intact, 2);
    assert_eq!(fs::read_dir(tree.path("cache/layers-v5/ready")).unwrap().count(), 2);
}

#[test]
fn wrong_blob_is_an_error_and_the_layer_file_is_kept() {
    let bench = Bench::new();
    let image = image(&bench);
    drop(compose(&bench).unwrap());
    let blob = bench.blob_path(image.layers[0].digest);
    fs::write(&blob, gzip(b"another")).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    bench.cache().verify(&bench.layout(), &image.layers, progress).unwrap_err();
    assert_eq!(fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap().count(), 0);
    assert_eq!(compose(&bench).unwrap().hits, 2);
}
