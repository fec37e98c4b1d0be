//! Disks that are full, or fail.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::ground::Ground;
use crate::image::Image;
use crate::shim::{Ended, Shim, Until};
use crate::tree::Tree;

/// Starts on a disk that grows: so many fail at least, from one with room for next to nothing to one
/// with room for nearly all.
const STEPS: u64 = 25;

/// Steps after which the last must have succeeded: what a file system needs for itself comes on top.
const MOST_STEPS: u64 = 2 * STEPS;

/// More than the cache of the image needs.
const ROOMY_BYTES: u64 = 96 << 20;

/// A cache directory that has all layers, and then none.
struct Measured {
    ground: Ground,
    image: Image,
    layers: BTreeMap<PathBuf, Tree>,
    bytes: u64,
    inodes: u64,
}

impl Measured {
    fn new() -> Self {
        let image = Image::realistic();
        let mut ground = Ground::new(&image);
        mount_tmpfs(&ground, MsFlags::empty(), "size=96m");
        ground.settle();
        Shim::start(&ground, "box", Until::Prepared).end().assert_code(0);
        let used = nix::sys::statvfs::statvfs(&ground.path("c")).unwrap();
        let bytes = (used.blocks() - used.blocks_free()) * used.fragment_size();
        let inodes = used.files() - used.files_free();
        let layers = ground.visible();
        umount2(&ground.path("c"), MntFlags::empty()).unwrap();
        ground.settle();
        Self { ground, image, layers, bytes, inodes }
    }

    /// Starts a box on each disk that `resize` makes of the step's number, until one succeeds.
    fn grow(mut self, steps: u64, mut resize: impl FnMut(&Ground, u64)) {
        let (mut failed, mut places) = (0, BTreeMap::<&str, u64>::new());
        loop {
            resize(&self.ground, failed + 1);
            self.ground.settle();
            let ended = Shim::start(&self.ground, "box", Until::Prepared).end();
            if ended.status.code() == Some(0) {
                break;
            }
            *places.entry(assert_is_named(&ended, &["No space left on device"])).or_default() += 1;
            self.assert_nothing_wrong();
            failed += 1;
            assert!(failed < steps * MOST_STEPS / STEPS, "{:?}", ended.events.last());
        }
        println!("{failed} starts failed: {places:?}");
        assert!(failed >= steps, "only {failed} starts failed, expected {steps}");
        self.assert_works();
    }

    fn assert_nothing_wrong(&self) {
        assert_eq!(self.ground.staged(), 0, "the staging directory is not empty");
        self.ground.assert_nothing_runs();
        self.ground.assert_visible_is_right(&self.layers);
    }

    fn assert_works(&self) {
        Shim::run_and_compare(&self.ground, "box", &self.image.tree());
        Shim::start(&self.ground, "box", Until::Prepared).end().assert_code(0);
        self.ground.assert_nothing_left();
        assert_eq!(self.ground.visible().len(), self.layers.len());
        self.ground.assert_visible_is_right(&self.layers);
    }
}

/// Panics unless the shim failed for one of the `reasons` and says where; returns what was the place.
fn assert_is_named(ended: &Ended, reasons: &[&str]) -> &'static str {
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
        panic!("neither a layer's entry nor a directory is named: {text}")
    }
}

fn mount_tmpfs(ground: &Ground, flags: MsFlags, options: &str) {
    let options = format!("mode=700,{options}");
    mount(Some("cache"), &ground.path("c"), Some("tmpfs"), flags, Some(options.as_str())).unwrap();
}

/// A tmpfs on the cache directory that has one page at first, and then room for so much.
fn limit_tmpfs(ground: &Ground, step: u64, options: &str) {
    if step == 1 {
        mount_tmpfs(ground, MsFlags::empty(), "size=4k");
    }
    mount_tmpfs(ground, MsFlags::MS_REMOUNT, options);
}

#[test]
fn full_tmpfs_is_named_and_the_cache_works_once_it_is_larger() {
    let measured = Measured::new();
    let bytes = measured.bytes;
    measured.grow(STEPS, |ground, step| {
        limit_tmpfs(ground, step, &format!("size={}", (bytes * step / (STEPS + 1)).max(4096)));
    });
}

#[test]
fn tmpfs_without_inodes_is_named_and_the_cache_works_once_it_has_more() {
    let steps = 10;
    let measured = Measured::new();
    let inodes = measured.inodes;
    measured.grow(steps, |ground, step| {
        limit_tmpfs(ground, step, &format!("size=96m,nr_inodes={}", inodes * step / (steps + 1)));
    });
}

#[test]
fn full_ext4_is_named_and_the_cache_works_once_it_is_larger() {
    // The smallest with a journal has about this size.
    let smallest = 2 << 20;
    let measured = Measured::new();
    let bytes = measured.bytes;
    measured.grow(STEPS, |ground, step| match step {
        1 => ground.make_disk(smallest),
        // With smaller blocks than a tmpfs has, it needs less.
        _ => ground.grow_disk(smallest + bytes * step / (STEPS + 8)),
    });
}

#[test]
fn disk_that_fails_below_its_file_system_publishes_nothing_wrong() {
    let mut measured = Measured::new();
    let ground = &mut measured.ground;
    // The file system believes in a disk of 96 MiB; what is behind has room for 24, which is
    // less than the files have.
    let backing = ground.disk();
    let directory = backing.parent().unwrap().to_owned();
    mount(Some("disk"), &directory, Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
    ground.make_disk(ROOMY_BYTES);
    ground.settle();
    let ended = Shim::start(ground, "box", Until::Prepared).end();
    let reasons = ["Input/output error", "No space left on device", "Read-only file system"];
    println!("{}", assert_is_named(&ended, &reasons));
    println!("{}", ended.event("error").unwrap());
    ground.assert_nothing_runs();
    // What is on the disk, not what the page cache remembers.
    umount2(&ground.path("c"), MntFlags::empty()).unwrap();
    mount(None::<&str>, &directory, None::<&str>, MsFlags::MS_REMOUNT, Some("size=96m")).unwrap();
    ground.grow_disk(ROOMY_BYTES);
    ground.settle();
    measured.ground.assert_visible_is_right(&measured.layers);
    measured.assert_works();
}
