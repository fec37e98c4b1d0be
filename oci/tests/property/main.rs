//! A property of all images: the mounted root file system equals the result of applying the layers
//! in order, for both kinds of root. If the layers cannot be applied, the image is refused.
//!
//! ```text
//! generator ─► image ─┬─► model: applies the layers in memory               ─┬─► equal?
//!                     ├─► mounted: layout, cache, overlay mount, on a tmpfs ─┤
//!                     └─► blocks: layout, layer files, EROFS image, mounted ─┘
//! ```
//!
//! A block root is compared more strictly: all hard links of one inode share it, also those of
//! several layers, which overlayfs can separate. The two roots are also compared with each other, and
//! `differences` has all allowed differences. fsck.erofs checks the disks of the first images.
//!
//! `A3S_BOX_PROPERTY_CASES` sets the number of images, and `A3S_BOX_PROPERTY_SEED` sets the seed of
//! the first image. A failure prints the values that repeat it. The test needs root, because
//! unpacking does.

#![expect(clippy::unwrap_used, reason = "a failed setup or check is a failure of the test")]

#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/archive.rs"]
mod archive;
#[expect(dead_code, reason = "shared with the test binary `it`, which uses all of it")]
#[path = "../it/bench.rs"]
mod bench;
mod blocks;
mod differences;
#[expect(dead_code, reason = "shared with the test binary `corpus`, which uses all of it")]
mod disk;
mod fsck;
mod generator;
mod image;
mod memory;
mod model;
mod mounted;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::mount::{MntFlags, umount2};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::differences::Differences;
use crate::image::Image;
use crate::memory::{mount_memory, private_mounts};
use crate::model::{Expectation, Tree, expectation};
use crate::mounted::Outcome;

/// Number of images in a run. They take one and a half minutes on two cores.
const CASES: u64 = 10_000;

/// Number of images whose disk fsck.erofs checks, if it is made. Two of three images have a disk, and
/// at least [`CHECKED_DISKS`] are expected. A check takes 10 to 20 ms.
const CHECKED_CASES: u64 = 600;
const CHECKED_DISKS: u64 = 300;

/// Numbers of images by outcome.
#[derive(Debug, Default)]
struct Count {
    accepted: u64,
    /// Accepted images with hard links of one inode that overlayfs can separate.
    linked_across_layers: u64,
    /// Images whose block root was mounted, or was refused.
    blocks_mounted: u64,
    blocks_refused: u64,
    /// Disks that fsck.erofs has checked.
    disks_checked: u64,
    /// Images whose two roots differ in the inodes of hard links, or in a link count.
    parted: u64,
    counted: u64,
    /// Refused images, by the reason of the model.
    refused: BTreeMap<&'static str, u64>,
}

#[test]
fn mounted_image_equals_its_layers_applied_in_order() {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| {
            text.parse::<u64>().unwrap_or_else(|error| panic!("{name}: {error}, found `{text}`"))
        })
    };
    let cases = number("A3S_BOX_PROPERTY_CASES").unwrap_or(CASES);
    // The seed is short, so that a person can type it to repeat a failure.
    let seed = number("A3S_BOX_PROPERTY_SEED")
        .unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000_000);
    println!("{cases} images, A3S_BOX_PROPERTY_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    private_mounts();
    mount_memory(directory.path());
    let (next, count, failure) =
        (AtomicU64::new(0), Mutex::new(Count::default()), Mutex::new(None));
    let work = |thread: usize| {
        loop {
            let case = next.fetch_add(1, Ordering::Relaxed);
            if case >= cases || failure.lock().unwrap().is_some() {
                return;
            }
            let seed = seed.wrapping_add(case);
            if let Err(text) = check_case(
                seed,
                &directory.path().join(thread.to_string()),
                case < CHECKED_CASES,
                &count,
            ) {
                *failure.lock().unwrap() = Some((seed, text));
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|thread| drop(scope.spawn(move || work(thread))));
    });
    // An error is ignored, because there is no tmpfs to detach if the kernel does not support
    // extended attributes on it (see `mount_memory`).
    let _not_mounted = umount2(directory.path(), MntFlags::MNT_DETACH);
    if let Some((seed, text)) = failure.into_inner().unwrap() {
        panic!(
            "{text}\nto repeat the failure: A3S_BOX_PROPERTY_SEED={seed} A3S_BOX_PROPERTY_CASES=1 \
             cargo nextest run -p a3s-box-oci --test property"
        );
    }
    let count = count.into_inner().unwrap();
    println!("{count:#?}");
    // With fewer images of one outcome, the generator would hardly test that outcome.
    let is_diverse = count.accepted >= cases / 4
        && !count.refused.is_empty()
        && count.linked_across_layers >= cases / 1000;
    assert!(cases < 100 || is_diverse, "{count:?}");
    let are_checked = count.disks_checked >= CHECKED_DISKS;
    assert!(cases < CHECKED_CASES || are_checked, "{count:?}");
}

/// Generates the image of a seed and checks it. An error describes the smallest image that fails.
///
/// If `checks`, fsck.erofs checks its disk.
fn check_case(
    seed: u64,
    directory: &Path,
    checks: bool,
    count: &Mutex<Count>,
) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let case = generator::images().new_tree(&mut runner).unwrap();
    let check = |image| check(directory, &image, checks, count).map_err(TestCaseError::fail);
    match runner.run_one(case, check) {
        Ok(_) => Ok(()),
        Err(TestError::Fail(reason, image)) => Err(format!("{reason}\nimage:\n{image}")),
        Err(TestError::Abort(reason)) => Err(format!("aborted: {reason}")),
    }
}

/// Compares the outcome of this crate for an image with the expectation of the model.
fn check(
    directory: &Path,
    image: &Image,
    checks: bool,
    count: &Mutex<Count>,
) -> Result<(), String> {
    let expected = expectation(image);
    fs::create_dir(directory).unwrap();
    let bench = mounted::publish(directory, image);
    let (found, of_blocks) = (mounted::outcome(&bench), blocks::outcome(&bench, checks));
    drop(bench);
    fs::remove_dir_all(directory).unwrap();
    let differences = match (&found, &of_blocks) {
        (Outcome::Tree(shared), Outcome::Tree(block)) => Differences::between(shared, block)
            .map_err(|text| format!("the two roots differ:\n{text}"))?,
        // `judge` compares each with the model, which decides all but a few refusals.
        _ => Differences::default(),
    };
    {
        let mut count = count.lock().unwrap();
        count.parted += u64::from(!differences.parted.is_empty());
        count.counted += u64::from(!differences.counts.is_empty());
        match (&expected.outcome, &found) {
            (Ok(tree), Outcome::Tree(_)) => {
                count.accepted += 1;
                count.linked_across_layers += u64::from(tree.has_links_across_layers());
            }
            (Err(refusal), Outcome::Refused(_)) => {
                *count.refused.entry(refusal.0).or_default() += 1;
            }
            _ => {}
        }
        match of_blocks {
            Outcome::Tree(_) => {
                count.blocks_mounted += 1;
                count.disks_checked += u64::from(checks);
            }
            _ => count.blocks_refused += 1,
        }
    }
    judge(&expected, found, Sharing::InGroups)?;
    judge(&expected, of_blocks, Sharing::Exact).map_err(|text| format!("block root: {text}"))
}

/// The hard links that must share an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Links of one group. Others of the same inode may share it.
    InGroups,
    /// All links of an inode.
    Exact,
}

/// Compares one outcome with the expectation.
fn judge(expected: &Expectation, found: Outcome, sharing: Sharing) -> Result<(), String> {
    match (&expected.outcome, found) {
        (Ok(expected), Outcome::Tree(found)) => compare(expected, &found, sharing),
        (Err(_), Outcome::Refused(_)) => Ok(()),
        (Ok(_), Outcome::Refused(_)) if expected.may_be_refused => Ok(()),
        (Ok(_), Outcome::Refused(reason)) => {
            Err(format!("refused, although the layers can be applied: {reason}"))
        }
        (Err(refusal), Outcome::Tree(_)) => {
            Err(format!("accepted, expected a refusal: {}", refusal.0))
        }
        (_, Outcome::Failed(reason)) => Err(format!("failed: {reason}")),
    }
}

/// Compares two trees. An error lists all differences.
fn compare(expected: &Tree, found: &Tree, sharing: Sharing) -> Result<(), String> {
    let mut differences = String::new();
    let missing = "no file".to_owned();
    let paths = expected.entries.keys().chain(found.entries.keys());
    for path in paths.collect::<std::collections::BTreeSet<_>>() {
        let [expected, found] =
            [expected, found].map(|tree| tree.entries.get(path).unwrap_or(&missing));
        if expected != found {
            differences += &format!("`{path}`: expected {expected}, found {found}\n");
        }
    }
    // Two names of one inode and of one group must share an inode. Names of different groups may or
    // may not, and names of different inodes must not.
    for (path, (inode, group)) in &expected.links {
        for (other, (other_inode, other_group)) in expected.links.range(path.clone()..).skip(1) {
            let shares = |path| found.links.get(path).map(|(inode, _)| *inode);
            let share = shares(path) == shares(other);
            let must_share = group == other_group || sharing == Sharing::Exact;
            if inode == other_inode && must_share && !share {
                differences += &format!("`{path}` and `{other}`: expected one inode, found two\n");
            }
            if inode != other_inode && share {
                differences += &format!("`{path}` and `{other}`: expected two inodes, found one\n");
            }
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}
