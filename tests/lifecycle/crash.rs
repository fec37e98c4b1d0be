//! Shims that are killed at random moments of their start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use a3s_box_core::config::RootKind;

use crate::image::Image;
use crate::random::Random;
use crate::scratch::Scratch;
use crate::shim::{Ended, Shim, Until};
use crate::tree::{self, Tree};

/// Kills in each of the four tests of cold starts. In half of them the cache is empty.
const COLD_KILLS: usize = 60;

/// A power failure is simulated after one of so many kills, if the cache has a disk of its own.
const KILLS_PER_POWER_FAILURE: usize = 5;

/// Kills in each of the two tests of warm starts. Mounting and unmounting take a few milliseconds, which kills
/// at random moments of a cold start rarely hit.
const WARM_KILLS: usize = 60;

/// A scratch directory and the trees that must appear in it.
struct Fixture {
    scratch: Scratch,
    image: Tree,
    layers: BTreeMap<PathBuf, Tree>,
    /// Duration of an undisturbed cold start.
    cold_start: Duration,
}

/// Number of kills by the phase in which the start was.
#[derive(Default, Debug)]
struct Hits {
    before_unpacking: usize,
    unpacking: usize,
    mounted: usize,
    /// After `prepare.done`, while the root was unmounted.
    unmounting: usize,
    /// Starts that ended before the kill.
    not_killed: usize,
}

impl Hits {
    fn kills(&self) -> usize {
        self.before_unpacking + self.unpacking + self.mounted + self.unmounting
    }

    fn count(&mut self, ended: &Ended, scratch: &Scratch) {
        let hit = if !ended.was_killed() {
            &mut self.not_killed
        } else if ended.event("prepare.done").is_some() {
            &mut self.unmounting
        } else if ended.event("rootfs.ready").is_some() {
            &mut self.mounted
        } else if ended.event("rootfs.progress").is_some() || scratch.staged() > 0 {
            &mut self.unpacking
        } else {
            &mut self.before_unpacking
        };
        *hit += 1;
    }
}

impl Fixture {
    /// Measures an undisturbed cold start. Its layers become the expected ones, after the mounted
    /// root has been compared with the image.
    fn new(mut scratch: Scratch, image: &Image) -> Self {
        scratch.record_mounts();
        let image = image.tree();
        let mut times: Vec<Duration> = (0..3)
            .map(|_| {
                scratch.clear_cache();
                let ended = Shim::start(&scratch, "box", Until::Prepared).end();
                ended.assert_code(0);
                ended.took
            })
            .collect();
        // The shortest time is used, so that few of the later starts end before they are killed.
        times.sort();
        let layers = scratch.visible();
        let fixture = Self { scratch, image, layers, cold_start: times[0] };
        fixture.start_and_compare();
        println!("a cold start takes {:?}", fixture.cold_start);
        fixture
    }

    /// Runs the box to its end. Panics unless root and cache are as expected and nothing is left.
    fn start_and_compare(&self) {
        Shim::run_and_compare(&self.scratch, "box", &self.image);
        self.prepare();
        let found = self.scratch.visible();
        assert_eq!(found.len(), self.layers.len(), "{:?}", found.keys());
        self.scratch.assert_visible_trees_match(&self.layers);
    }

    fn prepare(&self) {
        Shim::start(&self.scratch, "box", Until::Prepared).end().assert_code(0);
        self.scratch.assert_nothing_left();
    }

    /// Starts a shim and kills it at `moment`, unless it ends before. Panics if a visible tree is
    /// damaged. Returns how the shim ended, and the bytes in the files of the visible trees.
    fn kill(&self, moment: Duration, hits: &mut Hits) -> (Ended, u64) {
        let ended = Shim::start(&self.scratch, "box", Until::Prepared).kill_at(moment);
        hits.count(&ended, &self.scratch);
        self.scratch.assert_nothing_runs();
        (ended, self.scratch.assert_visible_trees_match(&self.layers))
    }
}

/// Kills starts in pairs. The second start of a pair finds the cache as the first one left it.
fn kill_cold_starts(kind: RootKind, prepare_cache: impl FnOnce(&Scratch)) {
    let image = Image::realistic();
    let scratch = Scratch::new(&image, kind);
    prepare_cache(&scratch);
    let has_disk = scratch.disk().exists();
    let mut random = Random::new();
    let mut fixture = Fixture::new(scratch, &image);
    if has_disk {
        fixture.scratch.assert_survives_power_failure(&fixture.layers);
    }
    let all_bytes: u64 = fixture.layers.values().map(tree::bytes).sum();
    let (mut empty, mut partial) = (Hits::default(), Hits::default());
    while empty.kills() + partial.kills() < COLD_KILLS {
        fixture.scratch.clear_cache();
        let late = empty.not_killed + partial.not_killed;
        assert!(
            late < COLD_KILLS,
            "too many starts end before they are killed: {empty:?} {partial:?}"
        );
        let (first, ready_bytes) = fixture.kill(random.up_to(fixture.cold_start), &mut empty);
        if !first.was_killed() {
            // The machine is less busy now than when the time was measured. With the old time, too
            // many of the next starts would end before their kill.
            fixture.cold_start = fixture.cold_start.min(first.took);
            continue;
        }
        // The second start only unpacks the layers that the first one has not published.
        let rest = share(all_bytes - ready_bytes, all_bytes);
        fixture.kill(random.up_to(fixture.cold_start.mul_f64(rest)), &mut partial);
        if has_disk && empty.kills() % KILLS_PER_POWER_FAILURE == 0 {
            fixture.scratch.assert_survives_power_failure(&fixture.layers);
        }
        fixture.start_and_compare();
    }
    println!("kills with an empty cache: {empty:?}\nkills after another kill: {partial:?}");
    let unpacking = empty.unpacking + partial.unpacking;
    assert!(unpacking > COLD_KILLS / 2, "too few kills hit the unpacking: {empty:?} {partial:?}");
}

/// Returns `part / all`. Panics if a number exceeds 32 bits, which convert to a float without loss.
fn share(part: u64, all: u64) -> f64 {
    f64::from(u32::try_from(part).unwrap()) / f64::from(u32::try_from(all).unwrap())
}

/// Size of a disk that is twice as large as the cache.
const DISK_BYTES: u64 = 96 << 20;

#[test]
fn a_killed_cold_start_on_ext4_publishes_no_damaged_layer() {
    kill_cold_starts(RootKind::Shared, |scratch| scratch.make_disk(DISK_BYTES));
}

#[test]
fn a_killed_cold_start_of_a_block_root_on_ext4_publishes_no_damaged_file() {
    kill_cold_starts(RootKind::Block, |scratch| scratch.make_disk(DISK_BYTES));
}

#[test]
fn a_killed_cold_start_on_tmpfs_publishes_no_damaged_layer() {
    kill_cold_starts(RootKind::Shared, |_| {});
}

#[test]
fn a_killed_cold_start_of_a_block_root_on_tmpfs_publishes_no_damaged_file() {
    kill_cold_starts(RootKind::Block, |_| {});
}

fn kill_warm_starts(kind: RootKind) {
    let image = Image::realistic();
    let mut random = Random::new();
    let fixture = Fixture::new(Scratch::new(&image, kind), &image);
    let mut times: Vec<Duration> =
        (0..9).map(|_| Shim::start(&fixture.scratch, "box", Until::Prepared).end().took).collect();
    times.sort();
    let median = times[4];
    let mut hits = Hits::default();
    while hits.kills() < WARM_KILLS {
        let ended =
            Shim::start(&fixture.scratch, "box", Until::Prepared).kill_at(random.up_to(median));
        hits.count(&ended, &fixture.scratch);
        fixture.scratch.assert_nothing_runs();
        fixture.prepare();
        assert!(hits.not_killed < 3 * WARM_KILLS, "too many starts end early: {hits:?}");
    }
    fixture.start_and_compare();
    println!("a warm start takes {median:?}; kills: {hits:?}");
    assert!(hits.before_unpacking > 0 && hits.mounted + hits.unmounting > 0, "{hits:?}");
}

#[test]
fn a_killed_warm_start_leaves_root_and_cache_usable() {
    kill_warm_starts(RootKind::Shared);
}

#[test]
fn a_killed_warm_start_of_a_block_root_leaves_disks_and_cache_usable() {
    kill_warm_starts(RootKind::Block);
}
