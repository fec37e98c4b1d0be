//! The ground that a test stands on: mounts of its own, on which a shim can write to its directories only.
//!
//! ```text
//! /mnt            tmpfs of the test; all other file systems are read-only
//! ├── layout/     the image
//! ├── c/          cache directory, may be a file system of its own
//! ├── s/          state directory
//! ├── disk/       the disk behind such a file system
//! └── log/        configs, and what shims say on standard error
//! ```
//!
//! All this is in a mount namespace of the test's thread, so it ends with the thread, however that
//! ends. `/mnt` passes mounts on, so that one which a shim leaks into its parent's namespace is seen.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitPidFlag, waitpid};

use crate::image::Image;
use crate::tree::{self, Tree};

/// Always there (Filesystem Hierarchy Standard), and never where this test or the shim is.
const DIRECTORY: &str = "/mnt";

/// Of the thread that calls: `/proc/self` is the main thread's.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// Directories of a cache with what cannot be seen by a box.
const UNSEEN: [&str; 2] = ["staging", "locks"];

/// Where a test works.
pub(crate) struct Ground {
    directory: PathBuf,
    /// The mounts that are there without any shim.
    mounts: Vec<String>,
}

impl Ground {
    /// Makes the ground with an image on it.
    pub(crate) fn new(image: &Image) -> Self {
        unshare(CloneFlags::CLONE_NEWNS)
            .unwrap_or_else(|errno| panic!("this test needs root: unshare: {errno}"));
        change("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        protect_the_host();
        mount(Some("test"), DIRECTORY, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        change(DIRECTORY, MsFlags::MS_SHARED);
        // Whatever a shim leaves behind becomes a child of this process.
        set_child_subreaper(true).unwrap();
        let directory = PathBuf::from(DIRECTORY);
        for name in ["c", "disk", "log", "s"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        run("chmod", &["700", "/mnt/c", "/mnt/s"]);
        image.write(&directory.join("layout"));
        let mut ground = Self { directory, mounts: Vec::new() };
        ground.settle();
        ground
    }

    /// Takes the mounts of now as those that a shim must leave.
    pub(crate) fn settle(&mut self) {
        self.mounts = mounts();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts the cache directory on an ext4 of its own, with a journal if there is room for one, on a loop
    /// device.
    pub(crate) fn make_disk(&self, bytes: u64) {
        let disk = self.disk();
        File::create(&disk).unwrap().set_len(bytes).unwrap();
        // An inode for each 2 KiB, so that room ends before inodes do, also after it has grown.
        let options = ["-q", "-E", "lazy_itable_init=0", "-i", "2048"];
        run("mkfs.ext4", &[&options[..], &[disk.to_str().unwrap()]].concat());
        self.mount_disk();
        run("chmod", &["700", self.path("c").to_str().unwrap()]);
    }

    /// Makes the disk larger, with what is on it.
    pub(crate) fn grow_disk(&self, bytes: u64) {
        let disk = self.disk();
        // A disk that has failed is unmounted already.
        let _unmounted = umount2(&self.path("c"), MntFlags::empty());
        OpenOptions::new().write(true).open(&disk).unwrap().set_len(bytes).unwrap();
        let disk = disk.to_str().unwrap();
        // Its exit status tells of repairs, which are no failure; resizing fails on a damaged one.
        drop(Command::new("e2fsck").args(["-fy", disk]).output().unwrap());
        run("resize2fs", &[disk]);
        self.mount_disk();
        begin_another_boot(&self.path("c"));
    }

    fn mount_disk(&self) {
        let (disk, cache) = (self.disk(), self.path("c"));
        run("mount", &["-o", "loop", disk.to_str().unwrap(), cache.to_str().unwrap()]);
    }

    /// Panics unless every tree is right that could be seen if the machine had lost its power now: on a
    /// copy of the disk as it is, without what memory holds of it.
    pub(crate) fn assert_power_may_fail(&self, expected: &BTreeMap<PathBuf, Tree>) {
        let (disk, copy, place) = (self.disk(), self.path("disk/copy"), self.path("power"));
        run("cp", &["--sparse=always", disk.to_str().unwrap(), copy.to_str().unwrap()]);
        fs::create_dir(&place).unwrap();
        run("mount", &["-o", "loop", copy.to_str().unwrap(), place.to_str().unwrap()]);
        begin_another_boot(&place);
        assert_right(&visible(&place), expected);
        umount2(&place, MntFlags::empty()).unwrap();
        fs::remove_dir(&place).unwrap();
        fs::remove_file(&copy).unwrap();
    }

    /// The file behind the loop device.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path("disk").join("ext4")
    }

    /// Removes everything from the cache directory.
    pub(crate) fn clear_cache(&self) {
        for entry in fs::read_dir(self.path("c")).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("lost+found") {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// Every tree that a box could be given, by its path below the cache directory.
    pub(crate) fn visible(&self) -> BTreeMap<PathBuf, Tree> {
        visible(&self.path("c"))
    }

    /// Names in the staging directory.
    pub(crate) fn staged(&self) -> usize {
        formats(&self.path("c")).map(|format| entries(&format.join("staging")).len()).sum()
    }

    /// Panics unless every visible tree is the one that it is in `expected`; returns their bytes.
    pub(crate) fn assert_visible_is_right(&self, expected: &BTreeMap<PathBuf, Tree>) -> u64 {
        let visible = self.visible();
        assert_right(&visible, expected);
        visible.values().map(tree::bytes).sum()
    }

    /// Panics if a shim has left anything but what the cache holds ready.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.staged(), 0, "the staging directory is not empty");
        assert_eq!(entries(&self.path("s")), [""; 0], "the state directory is not empty");
        self.assert_nothing_runs();
        for format in formats(&self.path("c")) {
            for name in entries(&format.join("locks")) {
                let lock = File::open(format.join("locks").join(&name)).unwrap();
                assert!(lock.try_lock().is_ok(), "the lock `{name}` is held");
            }
        }
        self.assert_no_file_elsewhere();
    }

    /// Panics if there is a file outside of the directories of cache and state.
    pub(crate) fn assert_no_file_elsewhere(&self) {
        assert_eq!(
            entries(&self.directory),
            ["c", "disk", "layout", "log", "s"],
            "a file elsewhere"
        );
    }

    /// Panics if a process or a mount is left.
    pub(crate) fn assert_nothing_runs(&self) {
        let start = Instant::now();
        while waitpid(None, Some(WaitPidFlag::WNOHANG)) != Err(Errno::ECHILD) {
            // The fake guest ends when its shim has, which takes a moment.
            assert!(start.elapsed() < Duration::from_secs(5), "a process is left");
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(mounts(), self.mounts, "a mount is left");
    }
}

/// Makes every file system read-only for what this thread starts, so that a file outside of the
/// test's directory is an error where it is made.
fn protect_the_host() {
    // What has no files of its own.
    let pseudo = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue"];
    for mount in mounts() {
        let (kind, place) = mount.split_once(' ').unwrap();
        // A mount that lies under another one cannot be reached, by a shim neither.
        if !pseudo.contains(&kind) && Path::new(place).exists() {
            change(place, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY);
        }
    }
    let refused = fs::write(std::env::temp_dir().join("a3s-box-test"), "");
    assert!(refused.is_err(), "the host's file systems can still be written to");
}

/// Changes a mount.
pub(crate) fn change(target: &str, flags: MsFlags) {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|errno| panic!("cannot change the mount `{target}`: {errno}"));
}

/// Removes what a boot has said about layers: in another one only those on the disk count.
fn begin_another_boot(cache: &Path) {
    for format in formats(cache) {
        for layer in directories(&format.join("ready")) {
            fs::remove_file(layer.join("boot")).unwrap_or_default();
        }
    }
}

/// Whether a box can be given a layer: it is on the disk, or was written in this boot.
fn counts(layer: &Path) -> bool {
    layer.join("synced").exists() || layer.join("boot").symlink_metadata().is_ok()
}

fn visible(cache: &Path) -> BTreeMap<PathBuf, Tree> {
    let mut trees = BTreeMap::new();
    for format in formats(cache) {
        for kind in
            directories(&format).filter(|path| !UNSEEN.iter().any(|name| path.ends_with(name)))
        {
            for layer in directories(&kind).filter(|layer| counts(layer)) {
                let name = layer.strip_prefix(cache).unwrap().to_owned();
                trees.insert(name, tree::read(&layer.join("tree")));
            }
        }
    }
    trees
}

fn assert_right(visible: &BTreeMap<PathBuf, Tree>, expected: &BTreeMap<PathBuf, Tree>) {
    for (name, found) in visible {
        let expected = expected.get(name);
        let expected =
            expected.unwrap_or_else(|| panic!("`{}` is not of this image", name.display()));
        tree::assert_equal(found, expected, &name.display().to_string());
    }
}

/// Each mount's place and type.
fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string(MOUNTS).unwrap();
    let name = |line: &str| {
        let (place, kind) = line.split_once(" - ").unwrap();
        format!("{} {}", kind.split(' ').next().unwrap(), place.split(' ').nth(4).unwrap())
    };
    mounts.lines().map(name).collect()
}

/// Runs a program of the system to its end.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run `{program}`: {error}: install `mount`, `e2fsprogs` and `coreutils`")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {said}", output.status);
}

/// The directories of the formats of a cache.
fn formats(cache: &Path) -> impl Iterator<Item = PathBuf> {
    let is_format = |name: &str| name.starts_with("layers-");
    let cache = cache.to_owned();
    entries(&cache).into_iter().filter(move |name| is_format(name)).map(move |n| cache.join(n))
}

fn directories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let path = path.to_owned();
    entries(&path).into_iter().map(move |name| path.join(name)).filter(|path| path.is_dir())
}

/// Names in a directory, sorted; none in one that is not there.
fn entries(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
