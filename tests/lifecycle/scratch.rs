//! The scratch directory of a test, in a mount namespace in which nothing else is writable.
//!
//! ```text
//! /mnt            tmpfs of the test; all other file systems are read-only
//! ├── layout/     the image
//! ├── c/          cache directory; optionally a file system of its own
//! ├── s/          state directory
//! ├── disk/       disk image of the cache's file system, if it has one
//! └── log/        configs and logs of the shims
//! ```
//!
//! The mount namespace belongs to the thread of the test. The kernel removes the mounts when the
//! thread ends, even after a panic. `/mnt` is a shared mount, so that a mount which a shim leaks
//! out of its own namespace appears here and the test finds it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use a3s_box_core::config::RootKind;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitPidFlag, waitpid};
use serde_json::{Value, json};

use crate::image::Image;
use crate::tree::{self, Tree};

/// Mount point of the scratch directory. The Filesystem Hierarchy Standard requires `/mnt`, and
/// neither the tests nor the shim are installed below it.
const DIRECTORY: &str = "/mnt";

/// Mounts of the calling thread. `/proc/self` would show the main thread, which is in another mount
/// namespace.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// Both kinds of root.
pub(crate) const ROOT_KINDS: [RootKind; 2] = [RootKind::Block, RootKind::Shared];

/// Directory of the templates of disks, in the cache directory.
const TEMPLATES: &str = "disks-v1";

/// Directory of the locks of ids, in the state directory.
const IDS: &str = ".ids";

/// Directories of a cache from which no box gets a layer.
const INVISIBLE: [&str; 2] = ["staging", "locks"];

/// The scratch directory of a test.
pub(crate) struct Scratch {
    /// Kind of root of the boxes.
    pub(crate) kind: RootKind,
    /// The field `resources` of the boxes' configs.
    pub(crate) resources: Value,
    directory: PathBuf,
    /// The mounts that exist while no shim runs.
    mounts: Vec<String>,
}

impl Scratch {
    /// Enters a new mount namespace and makes the scratch directory with `image` in it, for boxes
    /// with roots of this kind.
    pub(crate) fn new(image: &Image, kind: RootKind) -> Self {
        unshare(CloneFlags::CLONE_NEWNS)
            .unwrap_or_else(|errno| panic!("this test needs root: unshare: {errno}"));
        change("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        make_host_read_only();
        mount(Some("test"), DIRECTORY, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        change(DIRECTORY, MsFlags::MS_SHARED);
        // A process that outlives its shim becomes a child of this process, which can then wait for
        // it.
        set_child_subreaper(true).unwrap();
        let directory = PathBuf::from(DIRECTORY);
        for name in ["c", "disk", "log", "s"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        run("chmod", &["700", "/mnt/c", "/mnt/s"]);
        image.write(&directory.join("layout"));
        let mut scratch = Self { kind, resources: json!({}), directory, mounts: Vec::new() };
        scratch.record_mounts();
        scratch
    }

    /// Records the present mounts as those that must exist after each shim has ended.
    pub(crate) fn record_mounts(&mut self) {
        self.mounts = mounts();
    }

    /// Returns the path of `name` in the scratch directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Mounts an ext4 file system of `bytes` bytes on the cache directory, by a loop device.
    ///
    /// `mkfs.ext4` adds a journal if the disk is large enough for one.
    pub(crate) fn make_disk(&self, bytes: u64) {
        let disk = self.disk();
        File::create(&disk).unwrap().set_len(bytes).unwrap();
        // One inode for each 2 KiB, so that the disk runs out of blocks before inodes, even after
        // it has grown. Inode tables are written at once, so that no kernel thread writes them
        // later.
        let options = ["-q", "-E", "lazy_itable_init=0", "-i", "2048"];
        run("mkfs.ext4", &[&options[..], &[disk.to_str().unwrap()]].concat());
        self.mount_disk();
        run("chmod", &["700", self.path("c").to_str().unwrap()]);
    }

    /// Grows the disk to `bytes` bytes and keeps its content, as after a reboot.
    pub(crate) fn grow_disk(&self, bytes: u64) {
        let disk = self.disk();
        // The caller may have unmounted a failed disk already.
        let _unmounted = umount2(&self.path("c"), MntFlags::empty());
        OpenOptions::new().write(true).open(&disk).unwrap().set_len(bytes).unwrap();
        let disk = disk.to_str().unwrap();
        // The exit status is not 0 if e2fsck has repaired something, which is no failure here. If a
        // file system is still damaged, resize2fs fails.
        drop(Command::new("e2fsck").args(["-fy", disk]).output().unwrap());
        run("resize2fs", &[disk]);
        self.mount_disk();
        forget_boot(&self.path("c"));
    }

    fn mount_disk(&self) {
        let (disk, cache) = (self.disk(), self.path("c"));
        run("mount", &["-o", "loop", disk.to_str().unwrap(), cache.to_str().unwrap()]);
    }

    /// Panics if a power failure now would make damaged content visible after the next boot.
    ///
    /// The check mounts a copy of the disk image. The copy lacks the dirty pages that the mounted
    /// file system has not written to the loop device yet.
    pub(crate) fn assert_survives_power_failure(&self, expected: &BTreeMap<PathBuf, Tree>) {
        let (disk, copy, place) = (self.disk(), self.path("disk/copy"), self.path("power"));
        run("cp", &["--sparse=always", disk.to_str().unwrap(), copy.to_str().unwrap()]);
        fs::create_dir(&place).unwrap();
        run("mount", &["-o", "loop", copy.to_str().unwrap(), place.to_str().unwrap()]);
        forget_boot(&place);
        assert_trees_match(&visible(&place), expected);
        assert_templates_are_sound(&place);
        umount2(&place, MntFlags::empty()).unwrap();
        fs::remove_dir(&place).unwrap();
        fs::remove_file(&copy).unwrap();
    }

    /// Returns the names in the directory of box `id`, sorted.
    pub(crate) fn box_files(&self, id: &str) -> Vec<String> {
        entries(&self.path("s").join(id))
    }

    /// Returns the path of the disk image behind the loop device.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path("disk").join("ext4")
    }

    /// Empties the cache directory, except for the `lost+found` of an ext4.
    pub(crate) fn clear_cache(&self) {
        for entry in fs::read_dir(self.path("c")).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("lost+found") {
                fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// Returns all content that a box could get, by its path below the cache directory: the trees
    /// of layers, or the files of a block root.
    pub(crate) fn visible(&self) -> BTreeMap<PathBuf, Tree> {
        visible(&self.path("c"))
    }

    /// Returns the number of entries in the staging directories.
    pub(crate) fn staged(&self) -> usize {
        formats(&self.path("c")).map(|format| entries(&format.join("staging")).len()).sum()
    }

    /// Panics unless all visible content equals the content of the same path in `expected`, and all
    /// templates of disks are sound. Returns the bytes in the visible files.
    pub(crate) fn assert_visible_trees_match(&self, expected: &BTreeMap<PathBuf, Tree>) -> u64 {
        let visible = self.visible();
        assert_trees_match(&visible, expected);
        assert_templates_are_sound(&self.path("c"));
        visible.values().map(tree::bytes).sum()
    }

    /// Panics if a shim has left anything except for published layers and templates in the cache.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.staged(), 0, "the staging directory is not empty");
        // The locks of the boxes' ids stay, without content and not held.
        let mut left = entries(&self.path("s"));
        left.retain(|name| name != IDS);
        assert_eq!(left, [""; 0], "the state directory is not empty");
        let ids = self.path("s").join(IDS);
        for name in entries(&ids) {
            let lock = File::open(ids.join(&name)).unwrap();
            assert!(lock.try_lock().is_ok(), "the ids from {name} on are in use");
            assert_eq!(lock.metadata().unwrap().len(), 0, "{name}");
        }
        self.assert_nothing_runs();
        for format in formats(&self.path("c")) {
            for name in entries(&format.join("locks")) {
                let lock = File::open(format.join("locks").join(&name)).unwrap();
                assert!(is_free(&lock), "the lock `{name}` is held");
            }
        }
        let templates = self.path("c").join(TEMPLATES);
        let drafts: Vec<_> =
            entries(&templates).into_iter().filter(|name| !name.ends_with(".img")).collect();
        assert_eq!(drafts, [""; 0], "the draft of a template is left");
        if let Ok(templates) = File::open(templates) {
            assert!(templates.try_lock().is_ok(), "the lock of the templates is held");
        }
        self.assert_no_file_elsewhere();
    }

    /// Panics if the scratch directory has an entry that no test made.
    pub(crate) fn assert_no_file_elsewhere(&self) {
        assert_eq!(
            entries(&self.directory),
            ["c", "disk", "layout", "log", "s"],
            "a file outside of the cache and state directories"
        );
    }

    /// Panics if a process or a mount is left. Waits a few seconds for the processes to end.
    pub(crate) fn assert_nothing_runs(&self) {
        let start = Instant::now();
        while waitpid(None, Some(WaitPidFlag::WNOHANG)) != Err(Errno::ECHILD) {
            // The fake guest ends shortly after its shim.
            assert!(start.elapsed() < Duration::from_secs(5), "a process is left");
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(mounts(), self.mounts, "a mount is left");
    }
}

/// Returns whether no process has a lock of the layer cache on a file.
#[expect(clippy::cast_possible_truncation, reason = "the constants are 0 and 1")]
fn is_free(lock: &File) -> bool {
    let mut exclusive = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(lock, FcntlArg::F_OFD_GETLK(&mut exclusive)).unwrap();
    i32::from(exclusive.l_type) == libc::F_UNLCK
}

/// Makes every file system read-only for this thread and the processes that it starts.
///
/// A shim that writes outside of its directories then fails at that call.
fn make_host_read_only() {
    // No process stores files in these.
    let pseudo = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue"];
    for mount in mounts() {
        let (kind, place) = mount.split_once(' ').unwrap();
        // The path of a mount that is hidden under another one may not exist. A shim cannot reach
        // such a mount.
        if !pseudo.contains(&kind) && Path::new(place).exists() {
            change(place, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY);
        }
    }
    let written = fs::write(std::env::temp_dir().join("a3s-box-test"), "");
    assert!(written.is_err(), "the file systems of the host are still writable");
}

/// Changes the flags or the propagation of the mount on `target`.
pub(crate) fn change(target: &str, flags: MsFlags) {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|errno| panic!("cannot change the mount `{target}`: {errno}"));
}

/// Removes the mark of the boot from every layer, as if the cache were read in a later boot.
///
/// Only layers that are marked as `synced` are then visible.
fn forget_boot(cache: &Path) {
    for format in formats(cache) {
        for layer in directories(&format.join("ready")) {
            fs::remove_file(layer.join("boot")).unwrap_or_default();
        }
    }
}

/// Tells whether a box can get a layer: it is marked as synced, or was written in this boot.
fn is_visible(layer: &Path) -> bool {
    // `boot` is a symbolic link to a boot id, which is not a path that exists.
    layer.join("synced").exists() || layer.join("boot").symlink_metadata().is_ok()
}

fn visible(cache: &Path) -> BTreeMap<PathBuf, Tree> {
    let mut trees = BTreeMap::new();
    for format in formats(cache) {
        for kind in
            directories(&format).filter(|path| !INVISIBLE.iter().any(|name| path.ends_with(name)))
        {
            for layer in directories(&kind).filter(|layer| is_visible(layer)) {
                let name = layer.strip_prefix(cache).unwrap().to_owned();
                trees.insert(name, content(&layer));
            }
        }
    }
    trees
}

/// Reads what a box gets of a layer: its tree, or the files of a block root.
fn content(layer: &Path) -> Tree {
    if layer.join("tree").exists() {
        return tree::read(&layer.join("tree"));
    }
    let mut files = tree::read(layer);
    // These are the directory itself and the two marks, which differ between starts.
    files.retain(|name, _| !["", "boot", "synced"].contains(&name.as_str()));
    // The content of the files depends on the image alone. Their times are those of the start.
    files.values_mut().for_each(|file| file.mtime_s = 0);
    files
}

/// Panics unless each template of a disk in the cache directory is a file system without a fault.
///
/// Templates differ in their UUIDs, so they are not compared with an expected one.
fn assert_templates_are_sound(cache: &Path) {
    let templates = cache.join(TEMPLATES);
    for name in entries(&templates).iter().filter(|name| name.ends_with(".img")) {
        assert_ext4_is_sound(&templates.join(name));
    }
}

/// Panics unless `e2fsck` finds no fault in the file system.
pub(crate) fn assert_ext4_is_sound(disk: &Path) {
    run("e2fsck", &["-fn", disk.to_str().unwrap()]);
}

fn assert_trees_match(visible: &BTreeMap<PathBuf, Tree>, expected: &BTreeMap<PathBuf, Tree>) {
    for (name, found) in visible {
        let expected = expected.get(name);
        let expected =
            expected.unwrap_or_else(|| panic!("`{}` is no layer of this image", name.display()));
        tree::assert_equal(found, expected, &name.display().to_string());
    }
}

/// Returns the type and the mount point of each mount of this thread, separated by a space.
fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string(MOUNTS).unwrap();
    let name = |line: &str| {
        let (place, kind) = line.split_once(" - ").unwrap();
        format!("{} {}", kind.split(' ').next().unwrap(), place.split(' ').nth(4).unwrap())
    };
    mounts.lines().map(name).collect()
}

/// Runs a program of the host to its end, and panics if it fails.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run `{program}`: {error}: install `mount`, `e2fsprogs` and `coreutils`")
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {stderr}", output.status);
}

/// Returns the directories `layers-*` of a cache, one for each format and user namespace.
fn formats(cache: &Path) -> impl Iterator<Item = PathBuf> {
    let is_format = |name: &str| name.starts_with("layers-");
    let cache = cache.to_owned();
    entries(&cache).into_iter().filter(move |name| is_format(name)).map(move |n| cache.join(n))
}

fn directories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let path = path.to_owned();
    entries(&path).into_iter().map(move |name| path.join(name)).filter(|path| path.is_dir())
}

/// Returns the names in a directory, sorted, or no names if it cannot be read.
fn entries(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
