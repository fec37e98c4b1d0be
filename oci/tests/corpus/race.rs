//! Somebody who swaps things while they are used: nothing outside may be touched, and what is
//! accepted must be what the digests say.

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

/// Attempts of each race; each is lost somewhere else.
const ATTEMPTS: usize = 200;

/// Most attempts, should one side always win.
const ATTEMPTS_AT_MOST: usize = 20_000;

/// What is left of the time in which things are as they should be: some attempts succeed.
const PAUSE: Duration = Duration::from_micros(300);

/// Swaps names and swaps them back, again and again, until the value is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Swapper {
    /// Swaps the names of each pair; `find` is asked anew each time.
    fn start(find: impl Fn() -> Vec<(PathBuf, PathBuf)> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let swap = |(one, other): &(PathBuf, PathBuf)| {
            // What is to be swapped may not be there yet, or not any more.
            let _ = renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE);
        };
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
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
fn layout_that_changes_while_it_is_read_is_what_its_digests_say_or_refused() {
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
            // The same size, another content.
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
    assert!(accepted > 0 && refused > 0, "no race: {accepted} accepted, {refused} refused");
}

/// Makes links that lead out, anew where one was swapped for something that stayed.
fn make_twins(directory: &Path) {
    for (name, target) in
        [("d", CANARY), ("dir", "/mnt/canary/dir"), ("file", "/mnt/canary/secret")]
    {
        let twin = directory.join(name);
        if twin.is_dir() && !twin.is_symlink() {
            // The other side may still be writing to it; then the next time will do.
            let _left = fs::remove_dir_all(&twin);
        } else if !twin.is_symlink() {
            let _left = fs::remove_file(&twin);
        }
        let _there = symlink(target, twin);
    }
}

#[test]
fn tree_that_changes_while_it_is_made_leads_nowhere_else() {
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
    bench.resolved(&[tar.file("", "refused")]);
    let staging = cache_directory(&bench, "staging");
    // The directory that is written to, and links that lead out, in the directory beside the tree.
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
    assert!(errors.len() > 1, "no race: {errors:?}");
}
