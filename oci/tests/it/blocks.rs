//! Block roots: layer files and metadata images in a directory, and the disks of them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use a3s_box_oci::{
    BlobError, BlockError, BlockImage, BlockLimits, Digest, IndexError, LayerError, Limits,
    Progress, TreeLimits,
};
use nix::mount::{MntFlags, umount2};

use crate::archive::Tar;
use crate::bench::{Bench, GZIP, amd64, gzip, tree};
use crate::disk::mount_disk;

/// Makes the block root of the only image of a bench in its directory `blocks`.
fn compose_within(bench: &Bench, limits: &BlockLimits) -> Result<BlockImage, BlockError> {
    let (layout, directory) = (bench.layout(), bench.path("blocks"));
    fs::create_dir_all(&directory).unwrap();
    let image = layout.resolve(None, &amd64()).unwrap();
    let opened = fs::File::open(directory).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    BlockImage::compose(&layout, &image.layers, opened.as_fd(), limits, progress)
}

fn compose(bench: &Bench) -> Result<BlockImage, BlockError> {
    compose_within(bench, &BlockLimits::default())
}

/// Publishes an image of these layers, and makes its block root.
fn compose_layers(bench: &Bench, layers: &[Tar]) -> Result<BlockImage, BlockError> {
    bench.resolved(layers);
    compose(bench)
}

/// Makes the block root of the image of a bench, mounts it, and returns its description by
/// [`tree`].
pub(crate) fn mounted_tree(bench: &Bench) -> BTreeMap<String, String> {
    let image = compose(bench).unwrap();
    let target = bench.path("root");
    fs::create_dir(&target).unwrap();
    mount_disk(&bench.path("blocks"), &image, &target);
    let found = tree(&target);
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir(&target).unwrap();
    fs::remove_dir_all(bench.path("blocks")).unwrap();
    found
}

/// Returns the names of the files in the directory of the block root.
fn files(bench: &Bench) -> Vec<String> {
    let entries = fs::read_dir(bench.path("blocks")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn layer_error(made: Result<BlockImage, BlockError>) -> LayerError {
    match made {
        Err(BlockError::Layer { source, .. }) => source,
        other => panic!("expected an error of the layer, found {other:?}"),
    }
}

/// Returns bytes without a block of zeros.
fn noise(length: usize) -> String {
    "0123456789abcdef".chars().cycle().take(length).collect()
}

#[test]
fn large_and_small_files_have_their_content_and_zeros_take_no_space() {
    let bench = Bench::new();
    let zeros = "\0".repeat(3 << 20);
    let mixed = [&noise(5000), &zeros, &noise(70_000), &zeros[..9000], "x"].concat();
    let large = noise((4 << 20) + 123);
    bench.resolved(&[
        Tar::new().file("large", &large).file("zeros", &zeros).file("empty", ""),
        Tar::new().file("mixed", &mixed).file("small", "small").hard_link("other", "large"),
    ]);
    let image = compose(&bench).unwrap();
    // 1025 blocks of `large`; 2, 18 and 1 blocks of `mixed`, and one of `small`. The long runs of
    // zeros are holes.
    let blocks: Vec<u64> = image.data.iter().map(|part| part.bytes / 4096).collect();
    assert!(blocks[0] == 1025 && (21..=23).contains(&blocks[1]), "{blocks:?}");
    let content = (large.len() + zeros.len(), mixed.len() + 5);
    let facts: Vec<u64> = image.layers.iter().map(|layer| layer.bytes).collect();
    assert_eq!(facts, [content.0 as u64, content.1 as u64]);
    assert_eq!(image.inodes, 6);
    let found = mounted_tree(&bench);
    for (name, content) in [("large", &large), ("zeros", &zeros), ("mixed", &mixed)] {
        assert!(found[name].ends_with(&format!("file {}", content.as_bytes().escape_ascii())));
    }
    assert!(found["small"].ends_with("file small") && found["empty"].ends_with("file "));
    assert_eq!(found["other"], found["large"]);
}

#[test]
fn layer_of_many_files_takes_few_system_calls() {
    let bench = Bench::new();
    let many =
        (0..20_000).fold(Tar::new(), |tar, number| tar.file(&format!("{number:0>90}"), "content"));
    bench.resolved(&[many]);
    // `syscw` counts the write calls of this thread (`proc_pid_io(5)`).
    let writes = || {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("syscw: "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = writes();
    let image = compose(&bench).unwrap();
    let calls = writes() - before;
    assert_eq!(image.inodes, 20_001);
    // 80 MiB of data and 3 MiB of index and metadata, in writes of at least 256 KiB.
    assert!(calls < 340, "{calls} writes");
    println!("20,000 files in {calls} writes");
}

#[test]
fn layer_that_is_not_the_one_of_the_image_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let tar = Tar::new().file("f", &noise(3 << 20)).bytes();
    let publish = |blob: &[u8], diff_id| {
        let blob = bench.blob(GZIP, blob);
        let image = bench.image_of("linux/amd64", std::slice::from_ref(&blob), &[diff_id]);
        bench.publish(&[image.descriptor("")]);
        blob
    };
    publish(&gzip(&tar), Digest::of(b"another"));
    let error = layer_error(compose(&bench));
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
    assert_eq!(files(&bench), [""; 0]);
    // A changed byte of the blob.
    let blob = publish(&gzip(&tar), Digest::of(&tar));
    let file = fs::File::options().write(true).open(bench.blob_path(blob.digest)).unwrap();
    file.write_all_at(b"!", blob.size - 1).unwrap();
    let error = layer_error(compose(&bench));
    assert!(matches!(error, LayerError::Blob(BlobError::Digest { .. })), "{error:?}");
    assert_eq!(files(&bench), [""; 0]);
    // An archive that is cut off.
    publish(&gzip(&tar[..tar.len() / 2]), Digest::of(&tar[..tar.len() / 2]));
    let error = layer_error(compose(&bench));
    assert!(matches!(error, LayerError::Archive { .. }), "{error:?}");
    assert_eq!(files(&bench), [""; 0]);
}

#[test]
fn limits_count_content_holes_and_inodes() {
    let bench = Bench::new();
    let sparse = || Tar::new().old_sparse("s", 1 << 30, &[(0, 1)], b"x").file("f", "1");
    bench.resolved(&[sparse()]);
    let within = |unpacked_bytes| BlockLimits {
        layer: Limits { unpacked_bytes, ..Limits::default() },
        ..BlockLimits::default()
    };
    let error = layer_error(compose_within(&bench, &within((1 << 30) - 1)));
    assert!(matches!(error, LayerError::Limit { what: "unpacked bytes", .. }), "{error:?}");
    assert_eq!(files(&bench), [""; 0]);
    let image = compose_within(&bench, &within((1 << 30) + (1 << 20))).unwrap();
    assert_eq!(image.data[0].bytes, 2 * 4096);
    let tree = TreeLimits { inodes: 2, ..TreeLimits::default() };
    let few = BlockLimits { tree, ..BlockLimits::default() };
    let error = compose_within(&bench, &few).unwrap_err();
    assert!(matches!(error, BlockError::Limit { what: "inodes", limit: 2 }), "{error:?}");
}

#[test]
fn layer_file_is_made_once_and_shared() {
    let bench = Bench::new();
    let base = || Tar::new().file("base", "1");
    let first = compose_layers(&bench, &[base(), Tar::new().file("a", "2"), base()]).unwrap();
    // The third layer is the first one again. It is one part of the disk.
    assert_eq!(first.data.len(), 2);
    let inode = |name: &str| fs::metadata(bench.path("blocks").join(name)).unwrap().ino();
    let before = inode(&first.data[0].name);
    let second = compose_layers(&bench, &[base(), Tar::new().dir("d")]).unwrap();
    assert_eq!(second.data, first.data[..1], "a layer without content is no part of the disk");
    assert_eq!(inode(&first.data[0].name), before);
    assert_eq!(files(&bench).len(), 4);
}

#[test]
fn damaged_layer_file_is_found() {
    let bench = Bench::new();
    let image = compose_layers(&bench, &[Tar::new().file("f", "content").dir("d")]).unwrap();
    let path = bench.path("blocks").join(&image.data[0].name);
    let whole = fs::read(&path).unwrap();
    for changed in 4096..whole.len() {
        let mut damaged = whole.clone();
        damaged[changed] ^= 0x20;
        fs::write(&path, damaged).unwrap();
        let error = compose(&bench).unwrap_err();
        assert!(matches!(error, BlockError::Index { .. }), "byte {changed}: {error:?}");
    }
    for length in [0, 63, 64, 4096, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = compose(&bench).unwrap_err();
        let is_trailer =
            matches!(error, BlockError::Index { source: IndexError::Trailer { .. }, .. });
        assert!(is_trailer, "{length} bytes: {error:?}");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(compose(&bench).unwrap(), image);
}

#[test]
fn progress_is_reported_for_each_layer_and_cancels_the_work() {
    let bench = Bench::new();
    let image = bench
        .resolved(&[Tar::new().file("f", &noise(9 << 20)), Tar::new().file("g", &noise(9 << 20))]);
    let directory = bench.path("blocks");
    fs::create_dir(&directory).unwrap();
    let opened = fs::File::open(directory).unwrap();
    let mut seen = Vec::new();
    let made = BlockImage::compose(
        &bench.layout(),
        &image.layers,
        opened.as_fd(),
        &BlockLimits::default(),
        &mut |layer, progress| {
            let Progress::Unpacking { entries, .. } = progress else { panic!("{progress:?}") };
            seen.push((layer, entries));
            if layer == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    );
    let digest = image.layers[1].digest;
    assert!(matches!(made, Err(BlockError::Cancelled { layer }) if layer == digest), "{made:?}");
    assert!(seen.len() >= 3 && seen.last().unwrap().0 == 1, "{seen:?}");
    assert_eq!(files(&bench).len(), 1, "the file of the first layer stays");
}
