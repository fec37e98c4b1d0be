//! Caches and state directories on disks that are full or fail.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use a3s_box_core::config::RootKind;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::image::Image;
use crate::scratch::Scratch;
use crate::shim::{Ended, Shim, Until};
use crate::tree::Tree;

/// Steps in which the cache's disk grows from almost no room to almost enough. The start must fail
/// in each of them.
const STEPS: u64 = 25;

/// Further steps between the room for the layers of a block root and the room for all of it.
const LAST_STEPS: u64 = 8;

/// Steps in which the room for a layer with a large index grows by 4 MiB.
const INDEX_STEPS: u64 = 4;

/// Steps in which the state directory grows to almost enough room for the disk of a box.
const STATE_STEPS: u64 = 6;

/// Names of places in an error.
const ENTRY: &str = "an entry of a layer";
const END_OF_LAYER: &str = "the end of a layer";
const METADATA_IMAGE: &str = "the metadata image of a block root";
const TEMPLATE: &str = "the template of a disk";

/// Steps within which a start must succeed. More than [`STEPS`] are allowed, because the metadata
/// of the file system needs room as well.
const MOST_STEPS: u64 = 2 * STEPS;

/// Size of a disk that is larger than the cache of the image needs.
const ROOMY_BYTES: u64 = 96 << 20;

/// A scratch directory with an empty cache directory, and the measured needs of a full cache.
struct Measured {
    scratch: Scratch,
    image: Image,
    layers: BTreeMap<PathBuf, Tree>,
    bytes: u64,
    /// The part of `bytes` that is written after the layers: the metadata image of a block root,
    /// and the template of its disk for writes.
    last_bytes: u64,
    inodes: u64,
}

impl Measured {
    /// Fills a cache on a tmpfs, measures the blocks and inodes in use, and unmounts it.
    fn new(kind: RootKind, image: Image) -> Self {
        let mut scratch = Scratch::new(&image, kind);
        mount_tmpfs(&scratch, "c", MsFlags::empty(), "size=96m");
        scratch.record_mounts();
        Shim::start(&scratch, "box", Until::Prepared).end().assert_code(0);
        let used = nix::sys::statvfs::statvfs(&scratch.path("c")).unwrap();
        let bytes = (used.blocks() - used.blocks_free()) * used.fragment_size();
        let inodes = used.files() - used.files_free();
        let last_bytes = stored_bytes(&scratch.path("c"), &["root.erofs", ".img"]);
        let layers = scratch.visible();
        umount2(&scratch.path("c"), MntFlags::empty()).unwrap();
        scratch.record_mounts();
        Self { scratch, image, layers, bytes, last_bytes, inodes }
    }

    /// Calls `resize` with the number of each step and starts a box, until a start succeeds. At
    /// least `steps` starts must fail before that, each with an error that names the full disk.
    /// Returns the number of failures by the place that the error names.
    fn grow(
        mut self,
        steps: u64,
        mut resize: impl FnMut(&Scratch, u64),
    ) -> BTreeMap<&'static str, u64> {
        let (mut failed, mut places) = (0, BTreeMap::<&'static str, u64>::new());
        loop {
            resize(&self.scratch, failed + 1);
            self.scratch.record_mounts();
            let ended = Shim::start(&self.scratch, "box", Until::Prepared).end();
            if ended.status.code() == Some(0) {
                break;
            }
            let place = assert_error_names_cause(&ended, &["No space left on device"]);
            *places.entry(place).or_default() += 1;
            self.assert_no_damage();
            failed += 1;
            assert!(failed < steps * MOST_STEPS / STEPS, "{:?}", ended.events.last());
        }
        println!("{failed} starts failed: {places:?}");
        assert!(failed >= steps, "only {failed} starts failed, expected {steps}");
        self.assert_cache_works();
        places
    }

    /// Panics if the failed start left a staging directory, a process, a mount or a damaged tree.
    fn assert_no_damage(&self) {
        assert_eq!(self.scratch.staged(), 0, "the staging directory is not empty");
        self.scratch.assert_nothing_runs();
        self.scratch.assert_visible_trees_match(&self.layers);
    }

    /// Panics unless a box gets the root of the image, and the cache then holds all layers.
    fn assert_cache_works(&self) {
        Shim::run_and_compare(&self.scratch, "box", &self.image.tree(self.scratch.kind));
        Shim::start(&self.scratch, "box", Until::Prepared).end().assert_code(0);
        self.scratch.assert_nothing_left();
        assert_eq!(self.scratch.visible().len(), self.layers.len());
        self.scratch.assert_visible_trees_match(&self.layers);
    }
}

/// Panics unless the error of the shim contains one of the `reasons` and names the place. Returns
/// the kind of the place.
fn assert_error_names_cause(ended: &Ended, reasons: &[&str]) -> &'static str {
    ended.assert_code(125);
    let error = ended.event("error").unwrap_or_else(|| panic!("{:#?}", ended.events));
    let text = error.to_string();
    assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
    assert_eq!(error["code"], "rootfs_failed", "{text}");
    let stopped = ended.events.last().unwrap();
    assert_eq!(stopped["reason"], "failed", "{stopped}");
    if text.contains("cannot unpack layer `sha256:") && text.contains("cannot unpack entry `/`") {
        END_OF_LAYER
    } else if text.contains("cannot unpack layer `sha256:")
        && text.contains("cannot unpack entry `")
    {
        ENTRY
    } else if text.contains("/c/disks-v1") {
        TEMPLATE
    } else if text.contains("/staging/root-sha256-") {
        METADATA_IMAGE
    } else if text.contains("/c/layers-") {
        "a directory of the cache"
    } else {
        panic!("the error names no entry of a layer and no directory: {text}")
    }
}

/// Mounts a tmpfs on the directory `name` of the scratch directory.
fn mount_tmpfs(scratch: &Scratch, name: &str, flags: MsFlags, options: &str) {
    let options = format!("mode=700,{options}");
    mount(Some(name), &scratch.path(name), Some("tmpfs"), flags, Some(options.as_str())).unwrap();
}

/// Returns the space of all files below `directory` whose names end with one of `ends`.
fn stored_bytes(directory: &Path, ends: &[&str]) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (name, found) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap());
        if found.is_dir() {
            bytes += stored_bytes(&entry.path(), ends);
        } else if ends.iter().any(|end| name.ends_with(end)) {
            // The unit of st_blocks (stat(2)).
            bytes += found.blocks() * 512;
        }
    }
    bytes
}

/// Mounts a tmpfs of one page on the cache directory in the first step, and sets its `options`.
fn limit_tmpfs(scratch: &Scratch, step: u64, options: &str) {
    if step == 1 {
        mount_tmpfs(scratch, "c", MsFlags::empty(), "size=4k");
    }
    mount_tmpfs(scratch, "c", MsFlags::MS_REMOUNT, options);
}

#[test]
fn a_full_tmpfs_is_named_and_the_cache_works_once_it_is_larger() {
    let measured = Measured::new(RootKind::Shared, Image::realistic());
    let bytes = measured.bytes;
    measured.grow(STEPS, |scratch, step| {
        limit_tmpfs(scratch, step, &format!("size={}", (bytes * step / (STEPS + 1)).max(4096)));
    });
}

#[test]
fn a_full_tmpfs_is_named_in_each_phase_of_a_block_root() {
    let measured = Measured::new(RootKind::Block, Image::realistic());
    let (last, bytes) = (measured.last_bytes, measured.bytes);
    let places = measured.grow(STEPS + LAST_STEPS, |scratch, step| {
        let size = if step <= STEPS {
            (bytes - last) * step / (STEPS + 1)
        } else {
            bytes - last + last * (step - STEPS) / (LAST_STEPS + 1)
        };
        limit_tmpfs(scratch, step, &format!("size={}", size.max(4096)));
    });
    assert!(places.contains_key(METADATA_IMAGE) && places.contains_key(TEMPLATE), "{places:?}");
}

/// Reads a layer with so many entries that its index does not stay in memory until the end.
#[test]
fn a_tmpfs_that_is_full_of_the_index_of_a_layer_is_named() {
    let measured = Measured::new(RootKind::Block, Image::of_empty_files(100_000));
    let places = measured.grow(INDEX_STEPS, |scratch, step| {
        limit_tmpfs(scratch, step, &format!("size={}m", 4 * step));
    });
    // All files are empty, so only the index takes room. It moves to a file while the entries are
    // read, and is copied behind them at the end.
    assert!(places.contains_key(ENTRY) && places.contains_key(END_OF_LAYER), "{places:?}");
}

fn grow_inodes(kind: RootKind) {
    let steps = 10;
    let measured = Measured::new(kind, Image::realistic());
    let inodes = measured.inodes;
    measured.grow(steps, |scratch, step| {
        // A start tries whether the file system stores extended attributes. A tmpfs counts the space
        // of that attribute as a part of an inode.
        let inodes = inodes * step / (steps + 1) + 1;
        limit_tmpfs(scratch, step, &format!("size=96m,nr_inodes={inodes}"));
    });
}

#[test]
fn a_tmpfs_without_inodes_is_named_and_the_cache_works_once_it_has_more() {
    grow_inodes(RootKind::Shared);
}

#[test]
fn a_tmpfs_without_inodes_is_named_and_the_cache_of_block_roots_works_once_it_has_more() {
    grow_inodes(RootKind::Block);
}

fn grow_ext4(kind: RootKind) {
    // An ext4 needs about this size for a journal.
    let smallest = 2 << 20;
    let measured = Measured::new(kind, Image::realistic());
    let bytes = measured.bytes;
    measured.grow(STEPS, |scratch, step| match step {
        1 => scratch.make_disk(smallest),
        // The bytes were measured on a tmpfs, whose blocks are larger. The files need less room on
        // this ext4, so the steps are smaller, too.
        _ => scratch.grow_disk(smallest + bytes * step / (STEPS + 8)),
    });
}

#[test]
fn a_full_ext4_is_named_and_the_cache_works_once_it_is_larger() {
    grow_ext4(RootKind::Shared);
}

#[test]
fn a_full_ext4_is_named_and_the_cache_of_block_roots_works_once_it_is_larger() {
    grow_ext4(RootKind::Block);
}

/// Size of the disk of a box. The default would depend on the space in the state directory.
const DISK_MIB: u32 = 10_240;

/// Script of a guest whose workload succeeds.
const EXITS: [&str; 7] =
    ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];

#[test]
fn a_full_state_directory_is_named_and_the_box_starts_once_it_has_room() {
    let image = Image::of_one_layer(100_000);
    let mut scratch = Scratch::new(&image, RootKind::Block);
    scratch.resources = json!({"disk_mib": DISK_MIB});
    Shim::start(&scratch, "box", Until::Prepared).end().assert_code(0);
    let disk_bytes = stored_bytes(&scratch.path("c/disks-v1"), &[".img"]);
    for (keeps, name, left) in [
        (false, "box/disk.img", &["console.log", "exit.json", "run.json"][..]),
        (true, "box/kept-disk.img.new", &["console.log", "exit.json", "kept-disk.img", "run.json"]),
    ] {
        mount_tmpfs(&scratch, "s", MsFlags::empty(), "size=64k");
        scratch.record_mounts();
        // A start is refused before it writes if the host has too little space.
        scratch.resources = json!({"disk_keep": keeps, "disk_mib": DISK_MIB});
        let ended = Shim::start(&scratch, "box", Until::Played(&EXITS)).end();
        ended.assert_code(125);
        let error = ended.event("error").unwrap().to_string();
        assert!(error.contains("0 MiB of free space, expected at least 256 MiB: "), "{error}");
        scratch.resources =
            json!({"disk_keep": keeps, "disk_mib": DISK_MIB, "disk_reserve_mib": 0});
        for step in 0..STATE_STEPS {
            // The records of the box need two pages.
            let size = (8 << 10) + disk_bytes * step / STATE_STEPS;
            mount_tmpfs(&scratch, "s", MsFlags::MS_REMOUNT, &format!("size={size}"));
            let ended = Shim::start(&scratch, "box", Until::Played(&EXITS)).end();
            ended.assert_code(125);
            let error = ended.event("error").unwrap();
            let text = error.to_string();
            assert_eq!(error["code"], "rootfs_failed", "{text}");
            assert!(text.contains(name) && text.contains("No space left on device"), "{text}");
            scratch.assert_nothing_runs();
            assert_eq!(scratch.box_files("box"), ["exit.json", "run.json"], "{size} bytes");
        }
        mount_tmpfs(&scratch, "s", MsFlags::MS_REMOUNT, "size=16m");
        Shim::start(&scratch, "box", Until::Played(&EXITS)).end().assert_code(0);
        scratch.assert_nothing_runs();
        assert_eq!(scratch.box_files("box"), left);
        umount2(&scratch.path("s"), MntFlags::empty()).unwrap();
    }
}

fn fail_below_the_file_system(kind: RootKind) {
    let mut measured = Measured::new(kind, Image::realistic());
    let scratch = &mut measured.scratch;
    // The disk image is a sparse file of 96 MiB on a tmpfs of 24 MiB, which is less than the files
    // of the image need. Writes to the loop device fail once the tmpfs is full.
    let backing = scratch.disk();
    let directory = backing.parent().unwrap().to_owned();
    mount(Some("disk"), &directory, Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
    scratch.make_disk(ROOMY_BYTES);
    scratch.record_mounts();
    let ended = Shim::start(scratch, "box", Until::Prepared).end();
    let reasons = ["Input/output error", "No space left on device", "Read-only file system"];
    println!("{}", assert_error_names_cause(&ended, &reasons));
    println!("{}", ended.event("error").unwrap());
    scratch.assert_nothing_runs();
    // Unmounting drops the page cache, so that the check below reads what is on the disk.
    umount2(&scratch.path("c"), MntFlags::empty()).unwrap();
    mount(None::<&str>, &directory, None::<&str>, MsFlags::MS_REMOUNT, Some("size=96m")).unwrap();
    scratch.grow_disk(ROOMY_BYTES);
    scratch.record_mounts();
    measured.scratch.assert_visible_trees_match(&measured.layers);
    measured.assert_cache_works();
}

#[test]
fn a_disk_that_fails_below_its_file_system_publishes_no_damaged_layer() {
    fail_below_the_file_system(RootKind::Shared);
}

#[test]
fn a_disk_that_fails_below_its_file_system_publishes_no_damaged_file_of_a_block_root() {
    fail_below_the_file_system(RootKind::Block);
}
