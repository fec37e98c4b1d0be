//! The locks of the cache: what a process with a lease can do, and what it prevents. The tests take
//! the same locks as another process would.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, SystemTime};

use a3s_box_oci::{CacheError, Layer, Progress, Retention};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::archive::Tar;
use crate::bench::Bench;

/// Tries to take a lock of the cache on a file: `F_RDLCK` is shared, `F_WRLCK` exclusive, and
/// `F_UNLCK` releases it. Returns `false` if another lock excludes it.
pub(crate) fn try_lock(file: &File, kind: i32) -> bool {
    match set_lock(file, kind) {
        Err(Errno::EAGAIN) => false,
        locked => locked.map(|()| true).unwrap(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the kinds of locks are 0, 1 and 2")]
fn set_lock(file: &File, kind: i32) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

/// Returns the path of the lock of a layer's tree.
fn lock_path(bench: &Bench, layer: &Layer) -> PathBuf {
    bench.path("cache/layers-v5/locks").join(layer.id().to_string().replace(':', "-"))
}

fn open(path: PathBuf) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn wait_for_a_lock_can_be_cancelled_and_a_lease_is_a_shared_lock() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().dir("a")]);
    // Opening the cache creates its directories.
    drop(bench.cache());
    // The test holds the exclusive lock of the layer, as a process that unpacks it does.
    let other = open(lock_path(&bench, &image.layers[0]));
    assert!(try_lock(&other, libc::F_WRLCK));
    let mut waits = 0;
    let outcome = bench.cache().get_or_unpack(&bench.layout(), &image.layers[0], &mut |progress| {
        assert_eq!(progress, Progress::Waiting);
        waits += 1;
        if waits < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(outcome, Err(CacheError::Cancelled { .. })), "{outcome:?}");
    assert!(try_lock(&other, libc::F_UNLCK));
    let layer = bench.unpack(&image.layers[0]).unwrap();
    // A layer in use can be used by others, but not removed.
    assert!(!try_lock(&other, libc::F_WRLCK));
    assert!(try_lock(&other, libc::F_RDLCK));
    assert!(try_lock(&other, libc::F_UNLCK));
    drop(layer.lease);
    assert!(try_lock(&other, libc::F_WRLCK));
}

#[test]
fn holder_of_a_lease_cannot_write_to_it_or_exclude_others_by_it() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().dir("a")]);
    let held = bench.unpack(&image.layers[0]).unwrap();
    let lease = File::from(OwnedFd::from(held.lease));
    (&lease).write_all(b"x").unwrap_err();
    lease.set_len(1 << 20).unwrap_err();
    assert_eq!(set_lock(&lease, libc::F_WRLCK), Err(Errno::EBADF), "the fd is for reading only");
    // A lock of flock(2) is none of the cache's locks.
    lease.lock().unwrap();
    assert!(bench.unpack(&image.layers[0]).unwrap().hit);
    let nothing = Retention { max_bytes: Some(0), max_age: None };
    assert_eq!(bench.cache().collect(&nothing).unwrap().removed, 0, "the layer is in use");
    drop(lease);
    assert_eq!(bench.cache().collect(&nothing).unwrap().removed, 1);
}

#[test]
fn collection_empties_lock_files_also_of_layers_in_use() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().dir("a"), Tar::new().dir("b")]);
    drop(bench.compose(&image).unwrap());
    let used = bench
        .cache()
        .get_or_unpack(&bench.layout(), &image.layers[0], &mut |_| ControlFlow::Continue(()));
    let used = used.unwrap();
    let gone = bench.path("cache/layers-v5/locks/sha256-gone");
    let locks = [0, 1].map(|layer| lock_path(&bench, &image.layers[layer]));
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for lock in [&locks[0], &locks[1], &gone] {
        fs::write(lock, vec![b'x'; 1 << 20]).unwrap();
        open(lock.clone()).set_modified(hour_ago).unwrap();
    }
    let collected = bench.cache().collect(&Retention::default()).unwrap();
    assert_eq!((collected.removed, collected.kept), (0, 2));
    for lock in &locks {
        let found = fs::metadata(lock).unwrap();
        assert_eq!((found.len(), found.modified().unwrap()), (0, hour_ago), "{lock:?}");
    }
    assert!(!gone.exists());
    drop(used);
}

#[test]
fn lock_file_has_the_pid_of_the_process_that_makes_the_layer() {
    let bench = Bench::new();
    let image = bench.resolved(&[Tar::new().dir("a")]);
    drop(bench.cache());
    let lock = lock_path(&bench, &image.layers[0]);
    fs::write(&lock, "the content of another process").unwrap();
    let mut found = Vec::new();
    let progress = &mut |_| {
        found.push(fs::read_to_string(&lock).unwrap());
        ControlFlow::Continue(())
    };
    bench.cache().get_or_unpack(&bench.layout(), &image.layers[0], progress).unwrap();
    let expected = process::id().to_string();
    assert!(!found.is_empty() && found.iter().all(|text| *text == expected), "{found:?}");
    assert_eq!(fs::read_to_string(&lock).unwrap(), "");
}

#[test]
fn wait_for_restored_metadata_can_be_cancelled() {
    let bench = Bench::new();
    // The upper layer has no entry for `d`, so that its metadata must be restored.
    let image = bench.resolved(&[Tar::new().dir("d"), Tar::new().file("d/f", "x")]);
    drop(bench.compose(&image).unwrap());
    let ready = bench.path("cache/layers-v5/ready");
    let names = fs::read_dir(&ready).unwrap().map(|entry| entry.unwrap().file_name());
    let name = names.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("meta-"));
    let name = name.unwrap();
    fs::remove_dir_all(ready.join(&name)).unwrap();
    let other = open(bench.path("cache/layers-v5/locks").join(name));
    assert!(try_lock(&other, libc::F_WRLCK));
    let progress = &mut |_, progress| match progress {
        Progress::Waiting => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let outcome = bench.cache().compose(&bench.layout(), &image.layers, progress);
    assert!(matches!(outcome, Err(CacheError::Cancelled { .. })), "{outcome:?}");
    assert!(try_lock(&other, libc::F_UNLCK));
    bench.compose(&image).unwrap();
}
