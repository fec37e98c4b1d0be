//! Block roots in the cache: layer files and metadata images are made once, replaced when they are
//! damaged, kept while boxes use them, and used in later boots if they were synced.

use std::env;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_oci::{BlockRoot, CacheError, Image, Progress, Retention};
use nix::libc;

use crate::archive::Tar;
use crate::bench::{Bench, ROOT, amd64, chain};
use crate::blocks::{compose, layer_path, tree_of};
use crate::locks::try_lock;

/// Environment variable with the directory in which the child of a test reads a layer and hangs.
const HANG_IN: &str = "A3S_OCI_TEST_HANG_IN";

/// Returns an image of three layers: the second one changes the first one, and the third one has no
/// data.
fn image(bench: &Bench) -> Image {
    let lower = Tar::new().file("a", "lower").dir("d").file("d/b", &"b".repeat(5000));
    bench.resolved(&[lower, Tar::new().file("a", "upper").file("d/.wh.b", ""), Tar::new().dir("d")])
}

/// Returns the path of the only metadata image in the cache.
fn image_path(bench: &Bench) -> PathBuf {
    let ready = fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap();
    let mut images = ready.map(|entry| entry.unwrap().path().join("root.erofs"));
    images.find(|path| path.exists()).unwrap()
}

fn names(bench: &Bench, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(bench.path("cache/layers-v5").join(directory)).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_correct(bench: &Bench, expected_hits: usize, case: &str) {
    let root = compose(bench).unwrap_or_else(|error| panic!("{case}: {error:?}"));
    assert_eq!(root.hits, expected_hits, "{case}");
    let found = tree_of(bench, &root);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["", "a", "d"], "{case}");
    assert!(found[""] == ROOT && found["a"].ends_with("file upper"), "{case}: {found:?}");
}

/// A change of a file.
type Change = fn(&Path);

fn flip(path: &Path, offset_from_end: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let offset = file.metadata().unwrap().len() - offset_from_end;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], offset).unwrap();
}

fn flip_at(path: &Path, offset: u64) {
    flip(path, fs::metadata(path).unwrap().len() - offset);
}

fn cut(path: &Path, bytes: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

/// A mark of another boot, as if the content was not synced before the host crashed.
fn reboot(path: &Path) {
    let boot = path.with_file_name("boot");
    fs::remove_file(&boot).unwrap();
    symlink("another-boot", boot).unwrap();
}

/// Damages that a start finds.
const DAMAGES: [(&str, Change); 8] = [
    ("last byte", |path| flip(path, 1)),
    ("first byte of a trailer", |path| flip(path, 72)),
    ("one byte too short", |path| cut(path, 1)),
    ("empty", |path| fs::write(path, "").unwrap()),
    ("too long", |path| {
        let length = fs::metadata(path).unwrap().len();
        File::options().write(true).open(path).unwrap().set_len(length + 1).unwrap();
    }),
    ("missing", |path| fs::remove_file(path).unwrap()),
    ("directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    ("not synced before a reboot", reboot),
];

#[test]
fn block_root_is_found_without_its_blobs() {
    let bench = Bench::new();
    let image = image(&bench);
    let cold = compose(&bench).unwrap();
    assert_eq!((cold.hits, cold.unpacked_bytes), (0, 5 + 5000 + 5));
    fs::remove_dir_all(bench.path("layout/blobs/sha256")).unwrap();
    let progress = &mut |_, _| ControlFlow::Continue(());
    let warm = bench.cache().compose_block(&bench.layout(), &image.layers, progress).unwrap();
    assert_eq!((warm.hits, warm.unpacked_bytes), (3, 0));
    let sizes =
        |root: &BlockRoot| -> Vec<u64> { root.parts.iter().map(|part| part.bytes).collect() };
    assert_eq!(sizes(&warm), sizes(&cold));
    assert_eq!(tree_of(&bench, &warm), tree_of(&bench, &cold));
}

#[test]
fn damaged_layer_file_is_made_again_unless_it_is_in_use() {
    for (case, damage) in DAMAGES {
        let bench = Bench::new();
        let image = image(&bench);
        let root = compose(&bench).unwrap();
        let path = layer_path(&bench, &image, 0);
        damage(&path);
        match compose(&bench) {
            Err(CacheError::Damaged { path: found }) => {
                assert_eq!(found, path.parent().unwrap(), "{case}");
            }
            other => panic!("{case}: {other:?}"),
        }
        drop(root);
        assert_correct(&bench, 2, case);
        assert_correct(&bench, 3, case);
    }
}

#[test]
fn damaged_metadata_image_is_made_again_unless_it_is_in_use() {
    // The last byte of an image is not read at a start.
    let superblock: (&str, Change) = ("superblock", |path| flip_at(path, 1030));
    for (case, damage) in DAMAGES[2..].iter().chain([&superblock]) {
        let bench = Bench::new();
        image(&bench);
        let root = compose(&bench).unwrap();
        damage(&image_path(&bench));
        let refused = compose(&bench);
        assert!(matches!(refused, Err(CacheError::Damaged { .. })), "{case}: {refused:?}");
        drop(root);
        assert_correct(&bench, 3, case);
        assert_correct(&bench, 3, case);
    }
}

#[test]
fn image_and_list_of_other_layers_are_made_again() {
    // All devices have one block, so that their sizes tell nothing.
    let layers = |names: [&str; 2]| names.map(|name| Tar::new().file(name, name));
    let (bench, other) = (Bench::new(), Bench::new());
    bench.resolved(&layers(["a", "b"]));
    other.resolved(&layers(["x", "y"]));
    drop((compose(&bench).unwrap(), compose(&other).unwrap()));
    let assert_own = |case: &str| {
        let root = compose(&bench).unwrap();
        let found = tree_of(&bench, &root);
        let content = |name: &str| found[name].rsplit(' ').next().unwrap().to_owned();
        assert_eq!((root.hits, content("a"), content("b")), (2, "a".into(), "b".into()), "{case}");
    };
    fs::copy(image_path(&other), image_path(&bench)).unwrap();
    assert_own("image of other layers");
    let list = bench.path("cache/layers-v5/stacks").join(&names(&bench, "stacks")[0]);
    let text = fs::read_to_string(&list).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    lines.swap(1, 2);
    fs::write(&list, lines.join("\n") + "\n").unwrap();
    assert_own("list of another order");
    assert_eq!(fs::read_to_string(&list).unwrap(), text);
}

#[test]
fn damaged_index_is_found_when_layers_are_merged() {
    let bench = Bench::new();
    let image = image(&bench);
    drop(compose(&bench).unwrap());
    let path = layer_path(&bench, &image, 0);
    // The last byte of the index is in front of the trailer.
    flip(&path, 73);
    assert_correct(&bench, 3, "a start without a merge does not read the index");
    fs::remove_dir_all(image_path(&bench).parent().unwrap()).unwrap();
    let in_use = lease_of(&bench, &image, 0);
    let refused = compose(&bench);
    assert!(matches!(refused, Err(CacheError::Damaged { .. })), "{refused:?}");
    drop(in_use);
    assert_correct(&bench, 2, "a start with a merge reads the layer again");
}

/// Takes a shared lock of a layer file, as a box does.
fn lease_of(bench: &Bench, image: &Image, layer: usize) -> File {
    let name = image.layers[layer].id().to_string().replace(':', "-");
    let lock =
        File::open(bench.path("cache/layers-v5/locks").join(format!("file-{name}"))).unwrap();
    assert!(try_lock(&lock, libc::F_RDLCK));
    lock
}

#[test]
fn concurrent_starts_read_a_layer_once() {
    let bench = Bench::new();
    let layer = (0..2000).fold(Tar::new(), |tar, n| tar.file(&format!("file{n}"), "content"));
    let image = bench.resolved(&[layer]);
    let (readers, waits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let hits: usize = thread::scope(|scope| {
        let work = || {
            let mut started = false;
            let progress = &mut |_, progress| {
                match progress {
                    Progress::Waiting => drop(waits.fetch_add(1, Ordering::Relaxed)),
                    Progress::Unpacking { .. } if !started => {
                        started = true;
                        readers.fetch_add(1, Ordering::Relaxed);
                        // Gives the other threads time to wait for the lock.
                        thread::sleep(Duration::from_millis(200));
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            };
            bench.cache().compose_block(&bench.layout(), &image.layers, progress).unwrap().hits
        };
        let others: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        others.into_iter().map(|other| other.join().unwrap()).sum()
    });
    assert_eq!((hits, readers.into_inner()), (3, 1));
    assert!(waits.into_inner() > 0);
    let ready = names(&bench, "ready");
    assert!(ready.len() == 2 && names(&bench, "staging").is_empty(), "{ready:?}");
}

#[test]
fn synced_block_root_is_used_in_later_boots() {
    let bench = Bench::new();
    let image = image(&bench);
    let root = compose(&bench).unwrap();
    assert!(bench.cache().sync_block(&root).unwrap(), "the first call syncs");
    assert!(!bench.cache().sync_block(&root).unwrap(), "the second call has nothing to sync");
    // The third layer has no data and is no device, but it is synced too.
    (0..3).for_each(|layer| reboot(&layer_path(&bench, &image, layer)));
    reboot(&image_path(&bench));
    drop(root);
    fs::remove_dir_all(bench.path("cache/layers-v5/stacks")).unwrap();
    assert_correct(&bench, 3, "synced");
}

#[test]
fn block_root_in_use_is_kept_and_an_unused_one_is_removed() {
    let bench = Bench::new();
    image(&bench);
    let root = compose(&bench).unwrap();
    let nothing = Retention { max_bytes: Some(0), max_age: Some(Duration::ZERO) };
    let kept = bench.cache().collect(&nothing).unwrap();
    assert_eq!((kept.removed, kept.kept), (0, 4));
    // Two blocks and the index; one block and the index; the image: with 4 KiB blocks, three blocks
    // of data and at least one for the end of each file.
    assert!((24 << 10..256 << 10).contains(&kept.kept_bytes), "{kept:?}");
    drop(root);
    assert_correct(&bench, 3, "kept");
    let removed = bench.cache().collect(&nothing).unwrap();
    assert_eq!((removed.removed, removed.freed_bytes), (4, kept.kept_bytes));
    assert!(
        ["ready", "staging", "locks", "stacks"].iter().all(|name| names(&bench, name).is_empty())
    );
    assert_correct(&bench, 0, "removed");
}

#[test]
fn damaged_content_is_removed_by_retention() {
    let bench = Bench::new();
    let image = image(&bench);
    drop(compose(&bench).unwrap());
    flip(&layer_path(&bench, &image, 0), 1);
    flip_at(&image_path(&bench), 1030);
    let collected = bench.cache().collect(&Retention::default()).unwrap();
    assert_eq!((collected.removed, collected.kept), (2, 2));
    assert!(names(&bench, "stacks").is_empty(), "the list names removed content");
}

#[test]
fn refused_layer_leaves_nothing_and_the_layers_below_stay() {
    let bench = Bench::new();
    let bad = Tar::new().file("a/below-a-file", "x");
    let image = bench.resolved(&[Tar::new().file("a", "x"), bad]);
    match compose(&bench) {
        Err(CacheError::Layer { layer, .. }) => assert_eq!(layer, image.layers[1].digest),
        other => panic!("{other:?}"),
    }
    let lower = layer_path(&bench, &image, 0).parent().unwrap().file_name().unwrap().to_owned();
    assert_eq!(names(&bench, "ready"), [lower.into_string().unwrap()]);
    assert!(names(&bench, "staging").is_empty() && names(&bench, "stacks").is_empty());
}

#[test]
fn error_of_a_full_disk_is_reported_and_no_files_are_left() {
    let bench = Bench::new();
    // The cache is on a file system of 1 MiB, and the layer has a file of 7 MiB.
    bench.resolved(&[Tar::new().file("a", &"content".repeat(1 << 20))]);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    fs::create_dir(bench.path("cache")).unwrap();
    let (cache, options) = (bench.path("cache"), Some("size=1m,mode=700"));
    nix::mount::mount(Some("tmpfs"), &cache, Some("tmpfs"), nix::mount::MsFlags::empty(), options)
        .unwrap();
    let text = chain(&compose(&bench).unwrap_err());
    assert!(text.contains("No space left on device"), "{text}");
    bench.assert_cache_is_empty();
}

#[test]
fn concurrent_collection_and_use_do_not_fail_or_remove_content_in_use() {
    let bench = Bench::new();
    let image = image(&bench);
    let (ends, nothing) = (AtomicBool::new(false), Retention { max_bytes: Some(0), max_age: None });
    let rounds: usize = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    bench.cache().collect(&nothing).unwrap();
                }
            });
        }
        let start = || {
            let mut rounds = 0;
            while !ends.load(Ordering::Relaxed) {
                let progress = &mut |_, _| ControlFlow::Continue(());
                let (cache, layout) = (bench.cache(), bench.layout());
                let root = cache.compose_block(&layout, &image.layers, progress).unwrap();
                let blocks: Vec<_> = root.parts[1..].iter().map(|part| part.bytes / 4096).collect();
                assert_eq!(blocks, [3, 1]);
                // A file that was removed has no name.
                assert!(root.parts.iter().all(|part| part.file.metadata().unwrap().nlink() == 1));
                rounds += 1;
            }
            rounds
        };
        let boxes: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
        thread::sleep(Duration::from_secs(2));
        ends.store(true, Ordering::Relaxed);
        boxes.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(rounds > 10, "{rounds} rounds");
}

#[test]
fn killed_reading_publishes_nothing_and_the_next_start_succeeds() {
    // Only a process can be killed, not a thread. The test therefore runs its own executable as a
    // child, which reads a layer until the test kills it.
    if let Some(dir) = env::var_os(HANG_IN) {
        let bench = Bench::at(Path::new(&dir));
        let (layout, marker) = (bench.layout(), bench.path("started"));
        let image = layout.resolve(None, &amd64()).unwrap();
        let progress = &mut |_, progress| {
            if matches!(progress, Progress::Unpacking { entries: 512.., .. }) {
                File::create(&marker).unwrap();
                thread::sleep(Duration::from_secs(60));
            }
            ControlFlow::Continue(())
        };
        bench.cache().compose_block(&layout, &image.layers, progress).unwrap();
        return;
    }
    let bench = Bench::new();
    bench.resolved(&[(0..2000).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), "content"))]);
    let name = "block_cache::killed_reading_publishes_nothing_and_the_next_start_succeeds";
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name])
        .env(HANG_IN, &bench.root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !bench.path("started").exists() {
        assert!(started.elapsed() < Duration::from_secs(30), "the child has not begun to read");
        thread::sleep(Duration::from_millis(5));
    }
    let lock = bench.path("cache/layers-v5/locks").join(&names(&bench, "locks")[0]);
    // Whoever waits for the child finds its pid.
    assert_eq!(fs::read_to_string(&lock).unwrap(), child.id().to_string());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((names(&bench, "ready").len(), names(&bench, "staging").len()), (0, 1));
    assert_eq!(compose(&bench).unwrap().hits, 0);
    assert_eq!((names(&bench, "ready").len(), names(&bench, "staging").len()), (2, 0));
    assert_eq!(fs::read_to_string(&lock).unwrap(), "");
}
