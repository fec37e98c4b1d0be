//! What must hold for each metadata image: it can be read, all of it, and it can be written again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use a3s_box_erofs::{Device, Image, InodeId, Tree, write};

/// Reads the tree of an image, which must be correct, and writes it again. Returns the new image.
///
/// # Panics
///
/// Panics if a step fails, or if the new image has another tree.
#[must_use]
pub fn rewrite(tree: &Tree, devices: &[Device], uuid: [u8; 16]) -> Vec<u8> {
    let mut written = Vec::new();
    let summary = write(tree, devices, uuid, &mut written).unwrap();
    assert_eq!(summary.metadata_bytes, written.len() as u64);
    let image = Image::open(&written[..]).unwrap();
    assert_eq!((image.devices(), image.uuid()), (devices, uuid));
    let read = image.tree().unwrap();
    // The tree that is written can have inodes without a name. The other one has none.
    assert_eq!(summary.inodes, read.len() as u64);
    assert_equal(tree, &read);
    written
}

/// Checks that two trees have the same names, metadata, content and hard links.
fn assert_equal(tree: &Tree, other: &Tree) {
    let mut pairs = HashMap::from([(InodeId::ROOT, InodeId::ROOT)]);
    let mut pending = vec![(InodeId::ROOT, InodeId::ROOT)];
    while let Some((id, other_id)) = pending.pop() {
        assert_eq!(tree.metadata(id), other.metadata(other_id));
        assert_eq!(tree.content(id), other.content(other_id));
        let mut others = other.children(other_id);
        for (name, child) in tree.children(id) {
            let (other_name, other_child) = others.next().unwrap();
            assert_eq!(name, other_name);
            if let Some(known) = pairs.insert(child, other_child) {
                assert_eq!(known, other_child, "the hard links differ");
            } else {
                pending.push((child, other_child));
            }
        }
        assert!(others.next().is_none());
    }
    let mut others: Vec<_> = pairs.values().collect();
    others.sort_unstable();
    others.dedup();
    assert_eq!(pairs.len(), others.len(), "the hard links differ");
}

/// Checks a disk by fsck.erofs, with the data of its files, if `A3S_BOX_FUZZ_FSCK` is the path of
/// this program. It takes too long for each input of a fuzzer.
///
/// # Panics
///
/// Panics if fsck.erofs finds anything.
pub fn fsck(metadata: &Path, data: &[PathBuf]) {
    let Some(program) = env::var_os("A3S_BOX_FUZZ_FSCK") else { return };
    let devices = data.iter().map(|part| format!("--device={}", part.display()));
    let found =
        Command::new(program).args(["-d3", "--extract"]).args(devices).arg(metadata).output();
    let found = found.unwrap();
    let text = [found.stdout, found.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // Data behind the end of a file count as zeros, and are only mentioned.
    let is_whole = !text.contains("reach EOF");
    let is_clean = found.status.success() && text.contains("No errors found");
    assert!(is_clean && is_whole, "fsck.erofs: {text}");
}

/// Adds a seed to a target, if `A3S_BOX_FUZZ_SEEDS` is the directory of all seeds.
///
/// # Panics
///
/// Panics if the seed cannot be written.
pub fn add_seed(target: &str, seed: &[u8]) {
    let Some(directory) = env::var_os("A3S_BOX_FUZZ_SEEDS") else { return };
    let name = a3s_box_oci::Digest::of(seed).hex();
    fs::write(PathBuf::from(directory).join(target).join(name), seed).unwrap();
}

/// Bytes at which the first block of an image has a superblock and three devices. The rest of the
/// block is zeros, unless there are more devices.
const FIRST: std::ops::Range<usize> = 1024..1024 + 4 * 128;
const BLOCK: usize = 4096;

/// Returns an image without the bytes of the first block that are mostly zeros, so that a fuzzer
/// does not waste its mutations on them. The number of blocks becomes 0, for the real one.
#[must_use]
pub fn shortened(image: &[u8]) -> Vec<u8> {
    let mut input = [&image[FIRST], &image[BLOCK..]].concat();
    input[36..40].fill(0);
    // The last block mostly ends with zeros, too.
    input.truncate(input.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    input
}

/// Returns the image of a shortened one.
#[must_use]
pub fn lengthened(input: &[u8]) -> Vec<u8> {
    let (first, rest) = input.split_at(input.len().min(FIRST.len()));
    let mut image = vec![0; BLOCK];
    image[FIRST][..first.len()].copy_from_slice(first);
    image.extend(rest);
    image.resize(image.len().next_multiple_of(BLOCK), 0);
    image
}
