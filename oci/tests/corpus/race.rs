//! A thread exchanges files of the layout or of the cache while a layer is unpacked, as a hostile
//! process could.
//!
//! Nothing outside of the tree may change, and an accepted layer must match its digests. The races
//! are random, so each test repeats them until both outcomes have occurred.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tar::EntryType;

use crate::archive::Tar;
use crate::bench::{Bench, names};
use crate::{CANARY, Canary, cache_directory, unpack};

/// Smallest number of attempts of each race. The exchange happens at another moment in each.
const ATTEMPTS: usize = 200;

/// Largest number of attempts, after which the test fails if one outcome has not occurred.
const ATTEMPTS_AT_MOST: usize = 20_000;

/// Time between two exchanges, in which all files are in place, so that some attempts succeed.
const PAUSE: Duration = Duration::from_micros(300);

/// A thread that exchanges pairs of names and exchanges them back, until the value is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Swapper {
    /// Starts the thread. It calls `find` for the pairs before each round.
    fn start(find: impl Fn() -> Vec<(PathBuf, PathBuf)> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let swap = |(one, other): &(PathBuf, PathBuf)| {
            // The error is ignored: a name may not exist yet, or may be removed already.
            let _ = renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE);
        };
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for pair in &find() {
                    swap(pair);
                    swap(pair);
                    thread::sleep(PAUSE);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn layout_that_changes_while_it_is_read_matches_its_digests_or_is_refused() {
    let canary = Canary::build();
    let bench = Bench::new();
    let manifest = bench.image("linux/amd64", &[Tar::new().file("a", "content")]);
    bench.publish(&[manifest.descriptor("")]);
    let blobs = bench.path("layout/blobs");
    let mut pairs: Vec<(PathBuf, PathBuf)> = fs::read_dir(blobs.join("sha256"))
        .unwrap()
        .enumerate()
        .map(|(number, entry)| (entry.unwrap().path(), bench.path(&format!("twin{number}"))))
        .collect();
    for (number, (blob, twin)) in pairs.iter().enumerate() {
        match number {
            0 => symlink(Path::new(CANARY).join("secret"), twin).unwrap(),
            1 => fs::create_dir(twin).unwrap(),
            // Only the digest can detect the change, because the size is the same.
            _ => fs::write(twin, "x".repeat(fs::read(blob).unwrap().len())).unwrap(),
        }
    }
    symlink(CANARY, bench.path("twin")).unwrap();
    pairs.push((blobs, bench.path("twin")));
    let swapper = Swapper::start(move || pairs.clone());
    let (mut accepted, mut refused) = (0, 0);
    for attempt in 0..ATTEMPTS_AT_MOST {
        if attempt >= ATTEMPTS && accepted > 0 && refused > 0 {
            break;
        }
        match unpack(&bench) {
            Ok(layers) => {
                accepted += 1;
                assert_eq!(names(&layers[0].path), ["a"]);
                assert_eq!(fs::read_to_string(layers[0].path.join("a")).unwrap(), "content");
            }
            Err(_) => refused += 1,
        }
        fs::remove_dir_all(bench.path("cache")).unwrap_or_default();
    }
    drop(swapper);
    assert_eq!(canary.changes(), None);
    assert!(
        accepted > 0 && refused > 0,
        "the exchange had no effect or no layer was read: {accepted} accepted, {refused} refused"
    );
}

/// Creates the links that lead out of the tree, where an exchange has left another file.
fn make_twins(directory: &Path) {
    for (name, target) in
        [("d", CANARY), ("dir", "/mnt/canary/dir"), ("file", "/mnt/canary/secret")]
    {
        let twin = directory.join(name);
        if twin.is_dir() && !twin.is_symlink() {
            // The unpacker may still write to the directory, which makes the removal fail. The next
            // round tries again.
            let _left = fs::remove_dir_all(&twin);
        } else if !twin.is_symlink() {
            let _left = fs::remove_file(&twin);
        }
        // In most rounds the link exists already (`EEXIST`).
        let _there = symlink(target, twin);
    }
}

#[test]
fn tree_that_changes_while_it_is_unpacked_does_not_lead_out() {
    let canary = Canary::build();
    let bench = Bench::new();
    let tar = (0..10).fold(Tar::new(), |tar, number| {
        let name = |name: &str| format!("d/{name}{number}");
        tar.file(&name("planted"), "planted")
            .file(&format!("d/new{number}/deep/file"), "planted")
            .file("d/secret", "changed")
            .entry(EntryType::Directory, "d/dir", 0o700, b"")
            .file("d/dir/file", "changed")
            .symlink(&name("link"), "secret")
            .hard_link(&name("hard"), "d/secret")
            .entry(EntryType::Fifo, "d/pipe", 0o777, b"")
            .file("d/.wh.gone", "")
    });
    // The last entry is refused, so that each attempt unpacks the layer again.
    bench.resolved(&[tar.file("", "refused")]);
    let staging = cache_directory(&bench, "staging");
    // The links are in a directory beside the cache. They are exchanged with files of the tree.
    let twins = bench.path("twins");
    fs::create_dir(&twins).unwrap();
    let swapper = Swapper::start(move || {
        make_twins(&twins);
        let Ok(layers) = fs::read_dir(&staging) else { return Vec::new() };
        layers
            .flat_map(|layer| {
                let tree = layer.unwrap().path().join("tree");
                [
                    ("d", "d"),
                    ("d/dir", "dir"),
                    ("d/secret", "file"),
                    ("d/pipe", "file"),
                    ("d/dir/file", "file"),
                ]
                .map(|(name, twin)| (tree.join(name), twins.join(twin)))
            })
            .collect()
    });
    let mut errors = std::collections::BTreeSet::new();
    for attempt in 0..ATTEMPTS_AT_MOST {
        if attempt >= ATTEMPTS && errors.len() > 1 {
            break;
        }
        errors.insert(unpack(&bench).expect_err("an entry is refused"));
        assert_eq!(canary.changes(), None);
    }
    drop(swapper);
    assert_eq!(canary.changes(), None);
    // Without an exchange the only error is the refusal of the last entry.
    assert!(errors.len() > 1, "the exchange had no effect: {errors:?}");
}
