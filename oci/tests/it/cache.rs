//! The layer cache: concurrent callers unpack a layer once, a failure leaves nothing behind, and a
//! cache that other users can change is refused.

use std::env;
use std::fs::{self, File, Permissions};
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::archive::Tar;
use crate::bench::{Bench, amd64, chain, names};
use a3s_box_oci::{CacheError, Layer, LayerCache, Progress, StoreError};

/// Environment variable with the directory in which the child of a test unpacks and hangs.
const HANG_IN: &str = "A3S_OCI_TEST_HANG_IN";

/// Returns a layer with 2000 files, so that it calls `progress` several times.
fn big_layer() -> Tar {
    (0..2000).fold(Tar::new(), |tar, number| tar.file(&format!("file{number}"), "content"))
}

#[test]
fn cached_layer_is_returned_without_its_blob() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("a", "content")]);
    let cold = bench.unpack(&image.layers[0]).unwrap();
    fs::remove_dir_all(bench.path("layout/blobs")).unwrap();
    let warm = bench.unpack(&image.layers[0]).unwrap();
    assert!(!cold.hit && warm.hit);
    assert_eq!((&cold.path, cold.facts), (&warm.path, warm.facts));
    assert_eq!(names(&warm.path), ["a"]);
}

#[test]
fn cancelled_unpacking_leaves_no_files_and_the_next_call_succeeds() {
    let bench = Bench::new();
    let image = bench.resolved(&[big_layer()]);
    // Each round cancels at another call of `progress`.
    for calls in 1..6 {
        let mut left = calls;
        let outcome = bench.cache().get_or_unpack(&bench.layout(), &image.layers[0], &mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(outcome, Err(CacheError::Cancelled { .. })), "{outcome:?}");
        bench.assert_cache_is_empty();
    }
    assert!(!bench.unpack(&image.layers[0]).unwrap().hit);
}

#[test]
fn error_of_a_full_disk_is_reported_and_no_files_are_left() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().file("a", &"content".repeat(1 << 20))]);
    // The cache is on a file system of 1 MiB, and the layer has a file of 7 MiB.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    fs::create_dir(bench.path("cache")).unwrap();
    let cache = bench.path("cache");
    let options = Some("size=1m,mode=700");
    nix::mount::mount(Some("tmpfs"), &cache, Some("tmpfs"), nix::mount::MsFlags::empty(), options)
        .unwrap();
    let text = chain(&bench.unpack(&image.layers[0]).unwrap_err());
    assert!(
        text.contains("cannot unpack entry `a`: cannot write a file: No space left on device"),
        "{text}"
    );
    bench.assert_cache_is_empty();
}

#[test]
fn killed_unpacking_publishes_no_layer_and_the_next_call_succeeds() {
    // Only a process can be killed, not a thread. The test therefore runs its own executable as a
    // child, which unpacks until the test kills it.
    if let Some(dir) = env::var_os(HANG_IN) {
        let bench = Bench::at(Path::new(&dir));
        hang(&bench, &bench.layout().resolve(None, &amd64()).unwrap().layers[0]);
        return;
    }
    let bench = Bench::new();
    let image = bench.resolved(&[big_layer(), Tar::new().dir("other")]);
    let name = "cache::killed_unpacking_publishes_no_layer_and_the_next_call_succeeds";
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", name])
        .env(HANG_IN, &bench.root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let marker = bench.path("started");
    let started = Instant::now();
    while !marker.exists() {
        assert!(started.elapsed() < Duration::from_secs(30), "the child has not begun to unpack");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let staging = bench.path("cache/layers-v5/staging");
    assert_eq!(fs::read_dir(bench.path("cache/layers-v5/ready")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 1);
    // The next call removes the unfinished tree of the dead process, even for another layer.
    assert!(!bench.unpack(&image.layers[1]).unwrap().hit);
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);
    let layer = bench.unpack(&image.layers[0]).unwrap();
    assert_eq!((layer.hit, names(&layer.path).len()), (false, 2000));
}

#[test]
fn concurrent_calls_unpack_a_layer_once() {
    let bench = Bench::new();
    let image = bench.resolved(&[big_layer()]);
    let (unpackings, waits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let hits = thread::scope(|scope| {
        let work = || {
            let mut started = false;
            let progress = &mut |progress| {
                match progress {
                    Progress::Waiting => drop(waits.fetch_add(1, Ordering::Relaxed)),
                    Progress::Unpacking { .. } if !started => {
                        started = true;
                        unpackings.fetch_add(1, Ordering::Relaxed);
                        // Gives the other threads time to wait for the lock.
                        thread::sleep(Duration::from_millis(200));
                    }
                    Progress::Unpacking { .. }
                    | Progress::Publishing
                    | Progress::OnTop
                    | Progress::Cached => {}
                }
                ControlFlow::Continue(())
            };
            bench.cache().get_or_unpack(&bench.layout(), &image.layers[0], progress).unwrap().hit
        };
        let others: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        others.into_iter().map(|other| other.join().unwrap()).filter(|hit| *hit).count()
    });
    assert_eq!((hits, unpackings.into_inner()), (3, 1));
    assert!(waits.into_inner() > 0);
}

#[test]
fn layers_keep_their_order_and_a_repeated_layer_is_unpacked_once() {
    let bench = Bench::new();
    let small = |name: &str| Tar::new().file(name, "");
    let image = bench.resolved(&[small("a"), big_layer(), small("a"), small("b"), small("c")]);
    drop(bench.unpack(&image.layers[3]).unwrap());
    let cached = Mutex::new(Vec::new());
    let mut progress = |i, progress| {
        if progress == Progress::Cached {
            cached.lock().unwrap().push(i);
        }
        ControlFlow::Continue(())
    };
    let stack = bench.cache().compose(&bench.layout(), &image.layers, &mut progress).unwrap();
    let found: Vec<_> = stack.trees().map(|tree| names(tree).len()).collect();
    assert_eq!(found, [2000, 1, 1, 1], "the topmost of two equal layers stays");
    assert_eq!(stack.hits, 2, "one of the two equal layers, and the layer that was cached before");
    assert_eq!(cached.into_inner().unwrap(), [3]);
}

#[test]
fn error_of_one_layer_is_returned_and_ends_the_work_on_all() {
    let bench = Bench::new();
    let image = bench.resolved(&[big_layer(), Tar::new().file("", ""), Tar::new().dir("b")]);
    match bench.compose(&image) {
        Err(CacheError::Layer { layer, .. }) => assert_eq!(layer, image.layers[1].digest),
        other => panic!("{other:?}"),
    }
    let staging = fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap();
    assert_eq!(staging.count(), 0);
}

#[test]
fn cache_that_others_can_change_is_refused() {
    let bench = Bench::new();
    drop(bench.cache());
    let mode = |path: &str| fs::metadata(bench.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("cache"), mode("cache/layers-v5"), mode("cache/layers-v5/ready")),
        (0o700, 0o700, 0o700)
    );
    let open = || LayerCache::open(&bench.path("cache"));
    let chmod = |path: &str, mode| {
        fs::set_permissions(bench.path(path), Permissions::from_mode(mode)).unwrap();
    };
    let refused = |path: &str, expected: &str| {
        let error = open().unwrap_err();
        let CacheError::Store(store @ StoreError::Exposed { path: found, .. }) = &error else {
            panic!("{error:?}")
        };
        let text = store.to_string();
        assert!(*found == bench.path(path) && text.contains(expected), "{text}");
    };
    for mode in [0o755, 0o1777, 0o710] {
        chmod("cache", mode);
        let expected =
            format!("with mode {mode:04o}, expected a directory of user 0 with mode 0700");
        refused("cache", &expected);
    }
    chmod("cache", 0o700);
    for inner in ["", "/ready", "/stacks", "/staging", "/locks"] {
        let inner = format!("cache/layers-v5{inner}");
        chmod(&inner, 0o711);
        refused(&inner, "with mode 0711");
        chmod(&inner, 0o700);
    }
    chown(bench.path("cache/layers-v5"), Some(1), None).unwrap();
    refused("cache/layers-v5", "found a directory of user 1 with mode 0700");
    chown(bench.path("cache/layers-v5"), Some(0), None).unwrap();
    drop(open().unwrap());
    // A symbolic link in place of a directory of the cache could lead to another user's directory.
    fs::rename(bench.path("cache/layers-v5/ready"), bench.path("elsewhere")).unwrap();
    symlink(bench.path("elsewhere"), bench.path("cache/layers-v5/ready")).unwrap();
    refused("cache/layers-v5/ready", "a symbolic link or a file");
    // In a parent that all users can write to, another user could replace the cache.
    chmod("", 0o777);
    refused("", "a parent directory of user 0 with mode 0777");
}

/// Ways to damage a layer in the cache, given its directory.
const DAMAGES: [fn(&Path); 4] = [
    |directory| fs::write(directory.join("facts.json"), "{}").unwrap(),
    |directory| fs::remove_file(directory.join("seams")).unwrap(),
    |directory| fs::remove_dir_all(directory.join("tree")).unwrap(),
    |directory| {
        // The layer was not synced before the host crashed: its mark names another boot.
        fs::remove_file(directory.join("boot")).unwrap();
        symlink("another-boot", directory.join("boot")).unwrap();
    },
];

#[test]
fn damaged_layer_is_unpacked_again_unless_it_is_in_use() {
    for damage in DAMAGES {
        let bench = Bench::new();
        let image = bench.resolved(&[Tar::new().dir("a")]);
        let layer = bench.unpack(&image.layers[0]).unwrap();
        let directory = layer.path.parent().unwrap().to_owned();
        damage(&directory);
        let text = chain(&bench.unpack(&image.layers[0]).unwrap_err());
        assert!(text.starts_with("the cached layer `") && text.contains("in use"), "{text}");
        drop(layer.lease);
        let again = bench.unpack(&image.layers[0]).unwrap();
        assert!(!again.hit);
        assert_eq!(names(&again.path), ["a"]);
        assert!(bench.unpack(&image.layers[0]).unwrap().hit);
    }
}

#[test]
fn synced_layer_is_used_in_later_boots() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().dir("a"), Tar::new().dir("b")]);
    let stack = bench.compose(&image).unwrap();
    assert!(bench.cache().sync(&stack).unwrap(), "the first call syncs the layers");
    assert!(!bench.cache().sync(&stack).unwrap(), "the second call has nothing to sync");
    for tree in stack.trees() {
        DAMAGES[3](tree.parent().unwrap());
    }
    drop(stack);
    assert_eq!(bench.compose(&image).unwrap().hits, 2);
}

/// Unpacks a layer, and sleeps after 512 entries until the process is killed.
fn hang(bench: &Bench, layer: &Layer) {
    let progress = &mut |progress| {
        if matches!(progress, Progress::Unpacking { entries: 512.., .. }) {
            File::create(bench.path("started")).unwrap();
            thread::sleep(Duration::from_secs(60));
        }
        ControlFlow::Continue(())
    };
    bench.cache().get_or_unpack(&bench.layout(), layer, progress).unwrap();
}
