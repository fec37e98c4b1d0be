//! Tests of disks by the reader of this crate.

use std::collections::{BTreeMap, HashMap};

use a3s_box_erofs::{ContentRef, DataRange, Image, InodeId, Metadata, Tree};
use proptest::prelude::*;

use crate::disk::{Disk, UUID};
use crate::random::{DEVICES, trees};

/// An inode as its path shows it.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    metadata: Metadata,
    content: String,
    ranges: Vec<DataRange>,
    /// The first path of the inode, which differs from its path for a hard link.
    first: Vec<u8>,
}

/// Returns all paths of a tree, without the ids of inodes.
fn paths(tree: &Tree) -> BTreeMap<Vec<u8>, Shown> {
    let mut shown = BTreeMap::new();
    let mut first: HashMap<InodeId, Vec<u8>> = HashMap::new();
    let mut pending = vec![(InodeId::ROOT, Vec::new())];
    while let Some((id, path)) = pending.pop() {
        let first = first.entry(id).or_insert_with(|| path.clone()).clone();
        let (content, ranges) = match tree.content(id) {
            ContentRef::File { size_bytes, ranges } => (format!("{size_bytes}"), joined(ranges)),
            other => (format!("{other:?}"), Vec::new()),
        };
        for (name, child) in tree.children(id) {
            pending.push((child, [&path, &b"/"[..], name].concat()));
        }
        shown.insert(path, Shown { metadata: tree.metadata(id), content, ranges, first });
    }
    shown
}

/// Joins ranges that continue each other.
fn joined(ranges: &[DataRange]) -> Vec<DataRange> {
    let mut joined: Vec<DataRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last)
                if last.device == range.device
                    && last.file_block + u64::from(last.blocks) == range.file_block
                    && last.block + last.blocks == range.block =>
            {
                last.blocks += range.blocks;
            }
            _ => joined.push(*range),
        }
    }
    joined
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default()
    })]

    #[test]
    fn the_reader_returns_the_tree_that_was_written(tree in trees(60)) {
        let disk = Disk::new(&tree, &DEVICES);
        let image = disk.image();
        let opened = Image::open(&image[..]).unwrap();
        prop_assert_eq!(opened.devices(), &DEVICES);
        prop_assert_eq!(opened.uuid(), UUID);
        prop_assert_eq!(opened.metadata_bytes(), disk.summary.metadata_bytes);
        let read = opened.tree().unwrap();
        prop_assert_eq!(paths(&read), paths(&tree));
        prop_assert_eq!(read.len() as u64, disk.summary.inodes);
        // An image does not depend on how its tree was made.
        prop_assert!(Disk::new(&read, &DEVICES).image() == image);
    }
}
