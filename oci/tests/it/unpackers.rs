//! Work by unpackers: honest ones, and those that a blob has taken over, which claim success for
//! wrong content. They are threads here. `tests/wire/unpacker.rs` has the processes.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use a3s_box_oci::{
    BlockRoot, CacheError, Digest, Fault, Image, LayerCache, LayerError, OnTaskProgress, Stack,
    Task, UnpackerFailure, Unpackers,
};

use crate::archive::Tar;
use crate::bench::{Bench, GZIP, gzip, tree};

/// What an unpacker does: it gets the task, its files, and an error by which it can fail.
type Act = fn(&Task, Vec<OwnedFd>) -> Result<(), Option<Fault>>;

/// Unpackers that all do the same.
#[derive(Debug)]
struct Acting {
    act: Act,
    started: Arc<AtomicUsize>,
}

impl Unpackers for Acting {
    fn run(
        &self,
        task: &Task,
        files: &[BorrowedFd<'_>],
        _lock: BorrowedFd<'_>,
        _progress: &mut OnTaskProgress<'_>,
    ) -> Result<(), UnpackerFailure> {
        self.started.fetch_add(1, Ordering::Relaxed);
        let files = files.iter().map(|file| file.try_clone_to_owned().unwrap()).collect();
        let failure = |fault| UnpackerFailure { fault, source: "it has failed".into() };
        (self.act)(task, files).map_err(failure)
    }
}

/// Does the task.
fn honest(task: &Task, files: Vec<OwnedFd>) -> Result<(), Option<Fault>> {
    let progress: &mut OnTaskProgress<'_> = &mut |_, _| ControlFlow::Continue(());
    task.perform(files, progress).map_err(|error| task.fault(&error))
}

/// Returns a cache whose unpackers do this, and the number of unpackers that were started.
fn cache(bench: &Bench, act: Act) -> (LayerCache, Arc<AtomicUsize>) {
    let started = Arc::new(AtomicUsize::new(0));
    let unpackers = Acting { act, started: Arc::clone(&started) };
    (bench.cache().with_unpackers(Box::new(unpackers)), started)
}

fn stack(bench: &Bench, cache: &LayerCache, image: &Image) -> Result<Stack, CacheError> {
    cache.compose(&bench.layout(), &image.layers, &mut |_, _| ControlFlow::Continue(()))
}

fn block(bench: &Bench, cache: &LayerCache, image: &Image) -> Result<BlockRoot, CacheError> {
    cache.compose_block(&bench.layout(), &image.layers, &mut |_, _| ControlFlow::Continue(()))
}

/// Returns an image whose second layer must be unpacked on top of the first.
fn image(bench: &Bench) -> Image {
    let lower = Tar::new().dir("target").symlink("link", "target").file("x", "x");
    bench.resolved(&[lower, Tar::new().file("link/y", "y").file(".wh.x", "")])
}

/// Returns a path to the directory of a tree task.
fn directory(files: &[OwnedFd]) -> PathBuf {
    format!("/proc/self/fd/{}", files[1].as_raw_fd()).into()
}

/// Does the task, and then something else in the staging directory of a tree.
fn then(task: &Task, files: Vec<OwnedFd>, act: fn(&Path)) -> Result<(), Option<Fault>> {
    let kept = files[1].try_clone().unwrap();
    honest(task, files)?;
    act(&directory(&[kept.try_clone().unwrap(), kept]));
    Ok(())
}

/// Returns the names in a directory of the cache.
fn names(bench: &Bench, name: &str) -> Vec<String> {
    let entries = fs::read_dir(bench.path("cache/layers-v5").join(name)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn unpackers_make_the_same_as_the_process_itself() {
    let (here, there) = (Bench::new(), Bench::new());
    let images = [image(&here), image(&there)];
    let (cache, started) = cache(&there, honest);
    let stacks = [here.compose(&images[0]).unwrap(), stack(&there, &cache, &images[1]).unwrap()];
    // Two layers alone, and one on top.
    assert_eq!(started.load(Ordering::Relaxed), 3);
    let [a, b] = stacks.map(|stack| {
        let mut trees: Vec<_> = stack.trees().map(tree).collect();
        // The time of a whiteout is that of its making.
        trees.iter_mut().for_each(|tree| tree.retain(|_, found| !found.ends_with("device 0")));
        trees
    });
    assert!(a == b && a.len() == 2, "{a:?}\n{b:?}");
    let roots = [block(&here, &here.cache(), &images[0]), block(&there, &cache, &images[1])];
    // Two layers, and the metadata image.
    assert_eq!(started.load(Ordering::Relaxed), 6);
    let [a, b] = roots.map(|root| {
        let bytes = |part: &a3s_box_oci::DiskPart| {
            fs::read(format!("/proc/self/fd/{}", part.file.as_raw_fd())).unwrap()
        };
        root.unwrap().parts.iter().map(bytes).collect::<Vec<_>>()
    });
    assert!(a == b && a.len() == 3);
    let verified = cache
        .verify(&there.layout(), &images[1].layers, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    assert!(verified.rebuilt.is_empty() && verified.intact == 5, "{verified:?}");
    assert!(started.load(Ordering::Relaxed) >= 6 + 5);
}

/// What an unpacker of a tree leaves that is not the content of its layer.
const LIES_ABOUT_A_TREE: [(&str, Act); 13] = [
    ("nothing", |_, _| Ok(())),
    ("mark", |task, files| then(task, files, |path| fs::write(path.join("synced"), "").unwrap())),
    ("boot", |task, files| then(task, files, |path| symlink("x", path.join("boot")).unwrap())),
    ("more", |task, files| then(task, files, |path| fs::write(path.join("x"), "").unwrap())),
    ("pipe", |task, files| {
        then(task, files, |path| {
            fs::remove_file(path.join("facts.json")).unwrap();
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::unistd::mkfifo(&path.join("facts.json"), mode).unwrap();
        })
    }),
    ("link", |task, files| {
        then(task, files, |path| {
            fs::remove_dir_all(path.join("tree")).unwrap();
            symlink("/etc", path.join("tree")).unwrap();
        })
    }),
    ("second name", |task, files| {
        then(task, files, |path| {
            fs::hard_link(path.join("seams"), path.join("tree/seams")).unwrap();
        })
    }),
    ("numbers", |task, files| {
        then(task, files, |path| {
            let facts = fs::read_to_string(path.join("facts.json")).unwrap();
            let facts = facts.replacen("\"bytes\":1", &format!("\"bytes\":{}", u64::MAX), 1);
            assert!(facts.contains("18446744073709551615"), "{facts}");
            fs::write(path.join("facts.json"), facts).unwrap();
        })
    }),
    ("path", |task, files| {
        then(task, files, |path| fs::write(path.join("seams"), b"dx/../../y\0").unwrap())
    }),
    ("absolute path", |task, files| {
        then(task, files, |path| fs::write(path.join("seams"), b"d/etc\0").unwrap())
    }),
    ("size", |task, files| {
        then(task, files, |path| {
            let file = File::options().write(true).open(path.join("seams")).unwrap();
            file.set_len(1 << 40).unwrap();
        })
    }),
    ("mode", |task, files| {
        then(task, files, |path| {
            fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        })
    }),
    ("owner", |task, files| {
        then(task, files, |path| {
            std::os::unix::fs::chown(path.join("facts.json"), Some(1), Some(1)).unwrap();
        })
    }),
];

#[test]
fn wrong_content_of_a_tree_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("f", "1")]);
    for (lie, act) in LIES_ABOUT_A_TREE {
        let (cache, started) = cache(&bench, act);
        let error = stack(&bench, &cache, &image).unwrap_err();
        assert!(matches!(error, CacheError::Forged { .. }), "{lie}: {error:?}");
        assert_eq!(started.load(Ordering::Relaxed), 1, "{lie}");
        bench.assert_cache_is_empty();
    }
    stack(&bench, &cache(&bench, honest).0, &image).unwrap();
}

#[test]
fn wrong_content_of_a_block_root_is_refused_and_leaves_nothing() {
    fn write(files: Vec<OwnedFd>, index: usize, bytes: &[u8]) -> Result<(), Option<Fault>> {
        let mut files = files;
        File::from(files.swap_remove(index)).write_all(bytes).unwrap();
        Ok(())
    }
    const LIES: [(&str, usize, Act); 4] = [
        ("nothing", 0, |_, _| Ok(())),
        ("text", 0, |_, files| write(files, 1, &[b'x'; 5000])),
        // The metadata image of all layers has no blob.
        ("no image", 1, |task, files| match task.layers() {
            1 => honest(task, files),
            _ => Ok(()),
        }),
        ("wrong image", 1, |task, files| match task.layers() {
            1 => honest(task, files),
            _ => write(files, 0, &[0; 8192]),
        }),
    ];
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("f", "1"), Tar::new().file("g", "2")]);
    for (lie, at_image, act) in LIES {
        let error = block(&bench, &cache(&bench, act).0, &image).unwrap_err();
        assert!(matches!(error, CacheError::Forged { .. }), "{lie}: {error:?}");
        // The layer files were honest.
        assert_eq!(names(&bench, "ready").len(), 2 * at_image, "{lie}");
        assert!(names(&bench, "staging").is_empty() && names(&bench, "stacks").is_empty(), "{lie}");
        let _removed = fs::remove_dir_all(bench.path("cache"));
    }
}

/// The config of an image claims which `DiffID` a blob has. Only the process that decompresses the
/// blob finds out, and here the blob has taken it over.
#[test]
fn blob_with_the_diff_id_of_another_image_changes_nothing_of_that_image() {
    const CLAIMS: Act = |task, files| {
        if task.names_files() {
            let path = directory(&files);
            fs::write(path.join("tree/f"), "evil").unwrap();
            let facts = r#"{"bytes":4,"hole_bytes":0,"entries":1,"skipped_devices":0,
                "opaque_root":false,"undecided":0}"#;
            fs::write(path.join("facts.json"), facts).unwrap();
            fs::write(path.join("seams"), "").unwrap();
        } else if task.layers() == 1 {
            // It makes the layer file of other bytes, which do not have this DiffID.
            let evil = gzip(&Tar::new().file("f", "evil").bytes());
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(&evil).unwrap();
            drop(writer);
            let mut files = files;
            files[0] = reader.into();
            // The work itself finds the wrong DiffID, after it has written all data.
            let _refused = honest(task, files);
        }
        Ok(())
    };
    let bench = Bench::new();
    let archive = Tar::new().file("f", "good").bytes();
    let evil = bench.blob(GZIP, &gzip(&Tar::new().file("f", "evil").bytes()));
    let claimed = bench.image_of("linux/amd64", &[evil], &[Digest::of(&archive)]);
    bench.publish(&[claimed.descriptor("")]);
    let resolve = || bench.layout().resolve(None, &a3s_box_oci::Platform::host()).unwrap();
    let of_evil = resolve();
    let (evil_cache, _) = cache(&bench, CLAIMS);
    stack(&bench, &evil_cache, &of_evil).unwrap();
    let made = block(&bench, &evil_cache, &of_evil);
    assert!(made.is_err(), "the metadata image was not made");
    for compressed in [true, false] {
        let (media_type, bytes) = match compressed {
            true => (GZIP, gzip(&archive)),
            false => ("application/vnd.oci.image.layer.v1.tar", archive.clone()),
        };
        let good = bench.blob(media_type, &bytes);
        let good = bench.image_of("linux/amd64", &[good], &[Digest::of(&archive)]);
        bench.publish(&[good.descriptor("")]);
        let of_good = resolve();
        assert_eq!(of_good.layers[0].diff_id, of_evil.layers[0].diff_id);
        let (cache, started) = cache(&bench, honest);
        let stack = stack(&bench, &cache, &of_good).unwrap();
        assert_eq!((stack.hits, started.load(Ordering::Relaxed)), (0, 1));
        let found = fs::read(stack.trees().next().unwrap().join("f")).unwrap();
        assert_eq!(found, b"good");
        let root = block(&bench, &cache, &of_good).unwrap();
        assert_eq!((root.hits, started.load(Ordering::Relaxed)), (0, 3));
    }
}

#[test]
fn unpacker_that_claims_success_for_a_damaged_blob_is_not_believed() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("f", &"1".repeat(10_000))]);
    let path = bench.blob_path(image.layers[0].digest);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    // Neither reads the blob: one claims success, and the other one fails for a reason of its own.
    for act in [|_: &Task, _: Vec<OwnedFd>| Ok(()), honest] {
        let error = stack(&bench, &cache(&bench, act).0, &image).unwrap_err();
        let CacheError::Layer { layer, source: LayerError::Blob(_) } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*layer, image.layers[0].digest);
        bench.assert_cache_is_empty();
    }
}

#[test]
fn unpacker_can_blame_only_layers_of_its_task() {
    /// Digest of no layer here.
    fn other() -> Digest {
        Digest::of(b"another layer")
    }
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("f", "1"), Tar::new().file("g", "2")]);
    let (first, _) = cache(&bench, honest);
    drop(block(&bench, &first, &image).unwrap());
    let files: Vec<String> =
        names(&bench, "ready").into_iter().filter(|name| name.starts_with("file-")).collect();
    // Only the merge is left to do.
    let forget = || {
        for name in names(&bench, "ready").iter().filter(|name| name.starts_with("root-")) {
            fs::remove_dir_all(bench.path("cache/layers-v5/ready").join(name)).unwrap();
        }
    };
    let blame = |act: Act| {
        forget();
        let (cache, started) = cache(&bench, act);
        let error = block(&bench, &cache, &image).unwrap_err();
        let CacheError::Unpacker(failure) = error else { panic!("{error:?}") };
        (failure.fault, started.load(Ordering::Relaxed))
    };
    assert_eq!(blame(|_, _| Err(Some(Fault::Layer(other())))), (None, 1));
    assert_eq!(blame(|_, _| Err(Some(Fault::Index(other())))), (None, 1));
    assert_eq!(names(&bench, "ready"), files);
    // The claim that a sound file is damaged is checked, and does not go on for ever.
    const DAMAGED: Act = |task, _| {
        let text = format!("{task:?}");
        let digest = text.split("digest: ").nth(1).and_then(|rest| rest.split(',').next());
        Err(digest.and_then(|digest| digest.parse().ok()).map(Fault::Index))
    };
    let (fault, started) = blame(DAMAGED);
    assert!(matches!(fault, Some(Fault::Index(_))), "{fault:?}");
    assert_eq!(started, 3);
    assert_eq!(names(&bench, "ready"), files);
}
