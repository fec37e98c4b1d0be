//! Shims killed at random moments.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::chance::Chance;
use crate::ground::Ground;
use crate::image::Image;
use crate::shim::{Ended, Shim, Until};
use crate::tree::{self, Tree};

/// Kills of a test of cold starts, half of them with an empty cache. Two such tests make 200.
const COLD_KILLS: usize = 100;

/// Kills after one of which the power fails, too, where the cache has a disk.
const KILLS_PER_POWER_FAILURE: usize = 5;

/// Kills of the test of warm starts: mounting and the end take some milliseconds, which kills spread
/// over a whole unpacking hardly ever hit.
const WARM_KILLS: usize = 100;

/// The ground, and what must be seen on it.
struct Expected {
    ground: Ground,
    image: Tree,
    layers: BTreeMap<PathBuf, Tree>,
    cold: Duration,
}

/// What a start was doing when it was killed.
#[derive(Default, Debug)]
struct Hits {
    before_unpacking: usize,
    unpacking: usize,
    mounted: usize,
    undone: usize,
    ended_before: usize,
}

impl Hits {
    fn kills(&self) -> usize {
        self.before_unpacking + self.unpacking + self.mounted + self.undone
    }

    fn count(&mut self, ended: &Ended, ground: &Ground) {
        let hit = if !ended.was_killed() {
            &mut self.ended_before
        } else if ended.event("prepare.done").is_some() {
            &mut self.undone
        } else if ended.event("rootfs.ready").is_some() {
            &mut self.mounted
        } else if ended.event("rootfs.progress").is_some() || ground.staged() > 0 {
            &mut self.unpacking
        } else {
            &mut self.before_unpacking
        };
        *hit += 1;
    }
}

impl Expected {
    /// Measures an undisturbed cold start, and takes its layers as those to expect, after its root has
    /// been seen to be the image's.
    fn on(mut ground: Ground, image: &Image) -> Self {
        ground.settle();
        let image = image.tree();
        let mut times: Vec<Duration> = (0..3)
            .map(|_| {
                ground.clear_cache();
                let ended = Shim::start(&ground, "box", Until::Prepared).end();
                ended.assert_code(0);
                ended.took
            })
            .collect();
        // The shortest: the starts that follow hardly end before they are killed.
        times.sort();
        let layers = ground.visible();
        let expected = Self { ground, image, layers, cold: times[0] };
        expected.start_and_compare();
        println!("a cold start takes {:?}", expected.cold);
        expected
    }

    /// Starts the box to its end, and finds everything as it must be.
    fn start_and_compare(&self) {
        Shim::run_and_compare(&self.ground, "box", &self.image);
        self.prepare();
        let found = self.ground.visible();
        assert_eq!(found.len(), self.layers.len(), "{:?}", found.keys());
        self.ground.assert_visible_is_right(&self.layers);
    }

    fn prepare(&self) {
        Shim::start(&self.ground, "box", Until::Prepared).end().assert_code(0);
        self.ground.assert_nothing_left();
    }

    /// Kills a start, unless it ends before; returns how it ended, and the bytes of the trees that can be
    /// seen then, all of which are right.
    fn kill(&self, moment: Duration, hits: &mut Hits) -> (Ended, u64) {
        let ended = Shim::start(&self.ground, "box", Until::Prepared).kill_at(moment);
        hits.count(&ended, &self.ground);
        self.ground.assert_nothing_runs();
        (ended, self.ground.assert_visible_is_right(&self.layers))
    }
}

/// Kills starts in pairs, the second one going on with what the first has left.
fn kill_cold_starts(place: impl FnOnce(&Ground)) {
    let image = Image::realistic();
    let ground = Ground::new(&image);
    place(&ground);
    let has_disk = ground.disk().exists();
    let mut chance = Chance::new();
    let mut expected = Expected::on(ground, &image);
    if has_disk {
        expected.ground.assert_power_may_fail(&expected.layers);
    }
    let all: u64 = expected.layers.values().map(tree::bytes).sum();
    let (mut empty, mut left) = (Hits::default(), Hits::default());
    while empty.kills() + left.kills() < COLD_KILLS {
        expected.ground.clear_cache();
        let late = empty.ended_before + left.ended_before;
        assert!(
            late < COLD_KILLS,
            "too many starts end before they are killed: {empty:?} {left:?}"
        );
        let (first, ready) = expected.kill(chance.within(expected.cold), &mut empty);
        if !first.was_killed() {
            // The machine is less busy than it was when the time was measured.
            expected.cold = expected.cold.min(first.took);
            continue;
        }
        let rest = share(all - ready, all);
        expected.kill(chance.within(expected.cold.mul_f64(rest)), &mut left);
        if has_disk && empty.kills() % KILLS_PER_POWER_FAILURE == 0 {
            expected.ground.assert_power_may_fail(&expected.layers);
        }
        expected.start_and_compare();
    }
    println!("kills with an empty cache: {empty:?}\nkills with what a kill has left: {left:?}");
    let unpacking = empty.unpacking + left.unpacking;
    assert!(unpacking > COLD_KILLS / 2, "too few kills hit the unpacking: {empty:?} {left:?}");
}

fn share(part: u64, all: u64) -> f64 {
    f64::from(u32::try_from(part).unwrap()) / f64::from(u32::try_from(all).unwrap())
}

#[test]
fn start_killed_on_ext4_leaves_nothing_wrong() {
    // Room for the cache twice.
    kill_cold_starts(|ground| ground.make_disk(96 << 20));
}

#[test]
fn start_killed_on_tmpfs_leaves_nothing_wrong() {
    kill_cold_starts(|_| {});
}

#[test]
fn warm_start_killed_leaves_nothing_wrong() {
    let image = Image::realistic();
    let mut chance = Chance::new();
    let expected = Expected::on(Ground::new(&image), &image);
    let mut times: Vec<Duration> =
        (0..9).map(|_| Shim::start(&expected.ground, "box", Until::Prepared).end().took).collect();
    times.sort();
    let mut hits = Hits::default();
    while hits.kills() < WARM_KILLS {
        let ended =
            Shim::start(&expected.ground, "box", Until::Prepared).kill_at(chance.within(times[4]));
        hits.count(&ended, &expected.ground);
        expected.ground.assert_nothing_runs();
        expected.prepare();
        assert!(hits.ended_before < 3 * WARM_KILLS, "too many starts end early: {hits:?}");
    }
    expected.start_and_compare();
    println!("a warm start takes {:?}; kills: {hits:?}", times[4]);
    assert!(hits.before_unpacking > 0 && hits.mounted + hits.undone > 0, "{hits:?}");
}
