//! Caches on disks that are full or fail.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::image::Image;
use crate::scratch::Scratch;
use crate::shim::{Ended, Shim, Until};
use crate::tree::Tree;

/// Steps in which the cache's disk grows from almost no room to almost enough. The start must fail
/// in each of them.
const STEPS: u64 = 25;

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
    inodes: u64,
}

impl Measured {
    /// Fills a cache on a tmpfs, measures the blocks and inodes in use, and unmounts it.
    fn new() -> Self {
        let image = Image::realistic();
        let mut scratch = Scratch::new(&image);
        mount_tmpfs(&scratch, MsFlags::empty(), "size=96m");
        scratch.record_mounts();
        Shim::start(&scratch, "box", Until::Prepared).end().assert_code(0);
        let used = nix::sys::statvfs::statvfs(&scratch.path("c")).unwrap();
        let bytes = (used.blocks() - used.blocks_free()) * used.fragment_size();
        let inodes = used.files() - used.files_free();
        let layers = scratch.visible();
        umount2(&scratch.path("c"), MntFlags::empty()).unwrap();
        scratch.record_mounts();
        Self { scratch, image, layers, bytes, inodes }
    }

    /// Calls `resize` with the number of each step and starts a box, until a start succeeds. At
    /// least `steps` starts must fail before that, each with an error that names the full disk.
    fn grow(mut self, steps: u64, mut resize: impl FnMut(&Scratch, u64)) {
        let (mut failed, mut places) = (0, BTreeMap::<&str, u64>::new());
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
    }

    /// Panics if the failed start left a staging directory, a process, a mount or a damaged tree.
    fn assert_no_damage(&self) {
        assert_eq!(self.scratch.staged(), 0, "the staging directory is not empty");
        self.scratch.assert_nothing_runs();
        self.scratch.assert_visible_trees_match(&self.layers);
    }

    /// Panics unless a box gets the root of the image, and the cache then holds all layers.
    fn assert_cache_works(&self) {
        Shim::run_and_compare(&self.scratch, "box", &self.image.tree());
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
    if text.contains("cannot unpack layer `sha256:") && text.contains("cannot unpack entry `") {
        "an entry of a layer"
    } else if text.contains("/c/layers-") {
        "a directory of the cache"
    } else {
        panic!("the error names no entry of a layer and no directory: {text}")
    }
}

fn mount_tmpfs(scratch: &Scratch, flags: MsFlags, options: &str) {
    let options = format!("mode=700,{options}");
    mount(Some("cache"), &scratch.path("c"), Some("tmpfs"), flags, Some(options.as_str())).unwrap();
}

/// Mounts a tmpfs of one page on the cache directory in the first step, and sets its `options`.
fn limit_tmpfs(scratch: &Scratch, step: u64, options: &str) {
    if step == 1 {
        mount_tmpfs(scratch, MsFlags::empty(), "size=4k");
    }
    mount_tmpfs(scratch, MsFlags::MS_REMOUNT, options);
}

#[test]
fn a_full_tmpfs_is_named_and_the_cache_works_once_it_is_larger() {
    let measured = Measured::new();
    let bytes = measured.bytes;
    measured.grow(STEPS, |scratch, step| {
        limit_tmpfs(scratch, step, &format!("size={}", (bytes * step / (STEPS + 1)).max(4096)));
    });
}

#[test]
fn a_tmpfs_without_inodes_is_named_and_the_cache_works_once_it_has_more() {
    let steps = 10;
    let measured = Measured::new();
    let inodes = measured.inodes;
    measured.grow(steps, |scratch, step| {
        limit_tmpfs(scratch, step, &format!("size=96m,nr_inodes={}", inodes * step / (steps + 1)));
    });
}

#[test]
fn a_full_ext4_is_named_and_the_cache_works_once_it_is_larger() {
    // An ext4 needs about this size for a journal.
    let smallest = 2 << 20;
    let measured = Measured::new();
    let bytes = measured.bytes;
    measured.grow(STEPS, |scratch, step| match step {
        1 => scratch.make_disk(smallest),
        // The bytes were measured on a tmpfs, whose blocks are larger. The files need less room on
        // this ext4, so the steps are smaller, too.
        _ => scratch.grow_disk(smallest + bytes * step / (STEPS + 8)),
    });
}

#[test]
fn a_disk_that_fails_below_its_file_system_publishes_no_damaged_layer() {
    let mut measured = Measured::new();
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
