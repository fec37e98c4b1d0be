//! Block roots: layer files and metadata images, and the disks of them. How the cache keeps them is
//! the subject of `block_cache`.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};

use a3s_box_oci::{
    BlobError, BlockError, BlockRoot, CacheError, Digest, Image, LayerCache, LayerError, Limits,
    Progress, TreeLimits,
};
use nix::mount::{MntFlags, umount2};

use crate::archive::Tar;
use crate::bench::{Bench, GZIP, ROOT, amd64, gzip, tree};
use crate::disk::mount_disk;

/// Makes the block root of the only image of a bench in a cache.
fn compose_in(bench: &Bench, cache: &LayerCache) -> Result<BlockRoot, CacheError> {
    let layout = bench.layout();
    let image = layout.resolve(None, &amd64()).unwrap();
    cache.compose_block(&layout, &image.layers, &mut |_, _| ControlFlow::Continue(()))
}

/// Makes the block root of the only image of a bench.
pub(crate) fn compose(bench: &Bench) -> Result<BlockRoot, CacheError> {
    compose_in(bench, &bench.cache())
}

/// Publishes an image of these layers, and makes its block root.
fn compose_layers(bench: &Bench, layers: &[Tar]) -> Result<BlockRoot, CacheError> {
    bench.resolved(layers);
    compose(bench)
}

/// Makes the block root of the image of a bench, mounts it, and returns its description by
/// [`tree`].
pub(crate) fn mounted_tree(bench: &Bench) -> BTreeMap<String, String> {
    tree_of(bench, &compose(bench).unwrap())
}

/// Mounts a block root, and returns its description by [`tree`].
pub(crate) fn tree_of(bench: &Bench, root: &BlockRoot) -> BTreeMap<String, String> {
    let target = bench.path("root");
    fs::create_dir(&target).unwrap();
    mount_disk(&bench.root, root, &target);
    let found = tree(&target);
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir(&target).unwrap();
    found
}

/// Returns the numbers of blocks of the devices of a block root.
fn device_blocks(root: &BlockRoot) -> Vec<u64> {
    root.parts[1..].iter().map(|part| part.bytes / 4096).collect()
}

/// Returns the path of the content of a cached layer file.
pub(crate) fn layer_path(bench: &Bench, image: &Image, layer: usize) -> std::path::PathBuf {
    let name = image.layers[layer].id().to_string().replace(':', "-");
    bench.path("cache/layers-v5/ready").join(format!("file-{name}/layer"))
}

#[track_caller]
fn layer_error(made: Result<BlockRoot, CacheError>) -> LayerError {
    match made {
        Err(CacheError::Layer { source, .. }) => source,
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
    let root = compose(&bench).unwrap();
    // 1025 blocks of `large`; 2, 18 and 1 blocks of `mixed`, and one of `small`. The long runs of
    // zeros are holes.
    let blocks = device_blocks(&root);
    assert!(blocks[0] == 1025 && (21..=23).contains(&blocks[1]), "{blocks:?}");
    let content = large.len() + zeros.len() + mixed.len() + 5;
    assert_eq!((root.hits, root.unpacked_bytes), (0, content as u64));
    let found = tree_of(&bench, &root);
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
    let root = compose(&bench).unwrap();
    let calls = writes() - before;
    assert_eq!(device_blocks(&root), [20_000]);
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
    bench.assert_cache_is_empty();
    // A changed byte of the blob.
    let blob = publish(&gzip(&tar), Digest::of(&tar));
    let file = fs::File::options().write(true).open(bench.blob_path(blob.digest)).unwrap();
    file.write_all_at(b"!", blob.size - 1).unwrap();
    let error = layer_error(compose(&bench));
    assert!(matches!(error, LayerError::Blob(BlobError::Digest { .. })), "{error:?}");
    bench.assert_cache_is_empty();
    // An archive that is cut off.
    publish(&gzip(&tar[..tar.len() / 2]), Digest::of(&tar[..tar.len() / 2]));
    let error = layer_error(compose(&bench));
    assert!(matches!(error, LayerError::Archive { .. }), "{error:?}");
    bench.assert_cache_is_empty();
}

#[test]
fn limits_count_content_and_holes() {
    let bench = Bench::new();
    let sparse = || Tar::new().old_sparse("s", 1 << 30, &[(0, 1)], b"x").file("f", "1");
    bench.resolved(&[sparse()]);
    let within = |unpacked_bytes| {
        let limits = Limits { unpacked_bytes, ..Limits::default() };
        compose_in(&bench, &bench.cache().with_limits(limits))
    };
    let error = layer_error(within((1 << 30) - 1));
    assert!(matches!(error, LayerError::Limit { what: "unpacked bytes", .. }), "{error:?}");
    bench.assert_cache_is_empty();
    assert_eq!(device_blocks(&within((1 << 30) + (1 << 20)).unwrap()), [2]);
}

#[test]
fn limits_of_the_tree_count_all_layers_and_leave_no_image() {
    let bench = Bench::new();
    // With the root, the image has four inodes. The third layer hides one of them.
    let whiteout = Tar::new().file("a", "3").file(".wh.b", "");
    bench.resolved(&[Tar::new().file("a", "1"), Tar::new().file("b", "2"), whiteout]);
    let within = |inodes| {
        let limits = TreeLimits { inodes, ..TreeLimits::default() };
        compose_in(&bench, &bench.cache().with_tree_limits(limits))
    };
    let made = within(3);
    let is_limit =
        |error: &BlockError| matches!(error, BlockError::Limit { what: "inodes", limit: 3 });
    assert!(matches!(&made, Err(CacheError::Block(error)) if is_limit(error)), "{made:?}");
    let ready = fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap();
    let names: Vec<_> = ready.map(|entry| entry.unwrap().file_name()).collect();
    let is_file = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b"file-");
    assert!(names.len() == 3 && names.iter().all(is_file), "{names:?}");
    assert_eq!(within(4).unwrap().hits, 3);
}

#[test]
fn layer_file_is_made_once_and_shared() {
    let bench = Bench::new();
    let base = || Tar::new().file("base", "1");
    let first = compose_layers(&bench, &[base(), Tar::new().file("a", "2"), base()]).unwrap();
    // The third layer is the first one again. It is one part of the disk.
    assert_eq!((first.hits, device_blocks(&first)), (1, vec![1, 1]));
    let image = bench.resolved(&[base(), Tar::new().dir("d")]);
    let inode = || fs::metadata(layer_path(&bench, &image, 0)).unwrap().ino();
    let before = inode();
    let second = compose(&bench).unwrap();
    assert_eq!(device_blocks(&second), [1], "a layer without content is no part of the disk");
    assert_eq!((second.hits, inode()), (1, before));
    // Three layer files and two images.
    assert_eq!(fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap().count(), 5);
}

#[test]
fn block_root_without_layers_is_an_empty_directory() {
    let bench = Bench::new();
    let image = bench.resolved(&[]);
    let progress = &mut |_, _| ControlFlow::Continue(());
    let root = bench.cache().compose_block(&bench.layout(), &image.layers, progress).unwrap();
    assert_eq!((root.parts.len(), root.parts[0].bytes), (1, 8192));
    let entries: Vec<_> = tree_of(&bench, &root).into_iter().collect();
    assert_eq!(entries, [(String::new(), ROOT.to_owned())]);
    // No process can change an image in memory.
    root.parts[0].file.write_all_at(b"!", 0).unwrap_err();
    bench.assert_cache_is_empty();
}

#[test]
fn progress_is_reported_for_each_layer_and_cancels_the_work() {
    let bench = Bench::new();
    let image = bench
        .resolved(&[Tar::new().file("f", &noise(9 << 20)), Tar::new().file("g", &noise(9 << 20))]);
    let compose = |last: (usize, Progress)| {
        let mut seen = Vec::new();
        let made = bench.cache().compose_block(&bench.layout(), &image.layers, &mut |i, step| {
            seen.push((i, step));
            if (i, step) == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (made, seen)
    };
    let (made, seen) = compose((1, Progress::Publishing));
    let digest = image.layers[1].digest;
    assert!(matches!(made, Err(CacheError::Cancelled { layer }) if layer == digest), "{made:?}");
    let steps = |layer| seen.iter().filter(move |(i, _)| *i == layer);
    assert!(steps(1).count() > 3, "{seen:?}");
    assert_eq!(fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap().count(), 0);
    assert!(!layer_path(&bench, &image, 1).exists());
    // The merge can be cancelled too.
    let (made, _) = compose((1, Progress::OnTop));
    assert!(matches!(made, Err(CacheError::Cancelled { layer }) if layer == digest), "{made:?}");
    assert_eq!(fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap().count(), 0);
    let (made, mut seen) = compose((2, Progress::Publishing));
    assert_eq!(made.unwrap().hits, 2);
    // A slow merge reports its progress several times.
    seen.dedup();
    let cached = [(0, Progress::Cached), (1, Progress::Cached)];
    assert_eq!(seen, [&cached[..], &[(0, Progress::OnTop), (1, Progress::OnTop)]].concat());
    let (made, seen) = compose((2, Progress::Publishing));
    assert_eq!((made.unwrap().hits, &seen[..]), (2, &cached[..]));
}
