//! The templates: made once, complete or absent, and few.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Barrier;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::io::pread;

use super::*;

/// Offset of the UUID in an ext4 file system: the superblock at 1024, and in it `s_uuid` at 0x68
/// (Linux Documentation/filesystems/ext4/super.rst).
const UUID_OFFSET: u64 = 1024 + 0x68;

/// Returns the UUID of a file system. `mkfs.ext4` chooses a random one each time.
fn uuid(file: &File) -> [u8; 16] {
    let mut uuid = [0; 16];
    assert_eq!(pread(file, &mut uuid, UUID_OFFSET).unwrap(), 16);
    assert_ne!(uuid, [0; 16], "the file has no ext4 file system");
    uuid
}

fn names(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache.join(DIRECTORY)).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns a cache directory that does not exist yet.
fn cache() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("new/cache");
    (dir, cache)
}

/// Mounts a file system, which only this thread sees.
fn mount_here(target: &Path, kind: &str, options: &str) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some(kind), target, Some(kind), MsFlags::empty(), Some(options)).unwrap();
}

#[test]
fn template_is_made_once_by_many_at_the_same_time() {
    let (_dir, cache) = cache();
    let barrier = Barrier::new(8);
    let found: Vec<_> = thread::scope(|scope| {
        let open_one = || {
            barrier.wait();
            uuid(&open(&cache, 16).unwrap())
        };
        let all: Vec<_> = (0..8).map(|_| scope.spawn(open_one)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(found.iter().all(|uuid| *uuid == found[0]), "{found:?}");
    assert_eq!(names(&cache), [name(16)]);
}

#[test]
fn drafts_and_truncated_templates_of_dead_processes_are_replaced() {
    let (_dir, cache) = cache();
    open(&cache, 16).unwrap();
    let directory = cache.join(DIRECTORY);
    let template = directory.join(name(16));
    let truncated = OpenOptions::new().write(true).open(&template).unwrap();
    truncated.set_len(4096).unwrap();
    fs::write(template.with_added_extension("new"), "half").unwrap();
    fs::write(directory.join(name(32)).with_added_extension("new"), "half").unwrap();
    let found = open(&cache, 16).unwrap();
    uuid(&found);
    assert_eq!(found.metadata().unwrap().len(), 16 << 20);
    assert_eq!(names(&cache), [name(16)]);
}

#[test]
fn full_cache_is_an_error_that_leaves_no_file() {
    let (_dir, cache) = cache();
    fs::create_dir_all(&cache).unwrap();
    mount_here(&cache, "tmpfs", "mode=0700,size=16k");
    let error = open(&cache, 16).unwrap_err();
    let DiskError::Host(HostError { action: "write", source, .. }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(names(&cache), [""; 0]);
    let larger = MsFlags::MS_REMOUNT;
    mount(None::<&str>, &cache, None::<&str>, larger, Some("size=1m")).unwrap();
    uuid(&open(&cache, 16).unwrap());
}

/// A ramfs does not keep track of holes.
#[test]
fn cache_that_reports_no_holes_is_not_copied_from() {
    let (_dir, cache) = cache();
    fs::create_dir_all(&cache).unwrap();
    mount_here(&cache, "ramfs", "mode=0700");
    let found = open(&cache, 16).unwrap();
    assert_ne!(uuid(&found), uuid(&File::open(cache.join(DIRECTORY).join(name(16))).unwrap()));
    assert!(has_holes(&found, 16));
}

#[test]
fn templates_that_were_not_used_for_the_longest_time_are_removed() {
    let (_dir, cache) = cache();
    let mib = |i: usize| 16 + u32::try_from(i).unwrap();
    let hour = Duration::from_secs(3600);
    for i in 0..MAX_TEMPLATES {
        open(&cache, mib(i)).unwrap().set_modified(SystemTime::now() - hour * 2).unwrap();
    }
    // Each but the second is used.
    for i in (0..MAX_TEMPLATES).filter(|i| *i != 1) {
        let used = open(&cache, mib(i)).unwrap().metadata().unwrap().modified().unwrap();
        assert!(used.elapsed().unwrap() < hour);
    }
    open(&cache, mib(MAX_TEMPLATES)).unwrap();
    let mut expected: Vec<_> =
        (0..=MAX_TEMPLATES).filter(|i| *i != 1).map(|i| name(mib(i))).collect();
    expected.sort();
    assert_eq!(names(&cache), expected);
}

#[test]
fn directory_that_others_can_enter_is_refused() {
    let (_dir, cache) = cache();
    open(&cache, 16).unwrap();
    fs::set_permissions(cache.join(DIRECTORY), fs::Permissions::from_mode(0o755)).unwrap();
    let error = open(&cache, 16).unwrap_err();
    assert!(matches!(error, DiskError::NotPrivate(_)), "{error:?}");
}

#[test]
fn lock_that_another_process_keeps_is_an_error_after_the_time_limit() {
    let dir = tempfile::tempdir().unwrap();
    let lock = || File::open(dir.path()).unwrap();
    let held = lock();
    take(&held, dir.path(), Duration::ZERO).unwrap();
    let error = take(&lock(), dir.path(), LOCK_RETRY * 2).unwrap_err();
    assert!(matches!(error, DiskError::TemplateBusy { .. }), "{error:?}");
    drop(held);
    take(&lock(), dir.path(), Duration::ZERO).unwrap();
}
