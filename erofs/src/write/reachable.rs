//! The inodes that the root reaches: their order, link counts, and commonest time.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::tree::{InodeId, Tree};

/// Maximum number of different times that are counted. Further times are ignored.
// The limit bounds the memory for trees in which each inode has a time of its own.
const MAX_TIMES: usize = 65_536;

/// The inodes that the root reaches.
pub(super) struct Reachable {
    /// The inodes in their order on the disk: the root, and then the inodes of each directory one
    /// behind the other. A process that reads all inodes of a directory therefore reads few blocks.
    pub(super) order: Vec<InodeId>,
    /// The time that most inodes have: seconds and nanoseconds.
    // An inode with this time can be compact, which saves 32 bytes.
    pub(super) epoch: (i64, u32),
    /// The link count of each inode of the tree, 0 if it is not reachable.
    links: Vec<u32>,
    /// The parent of each directory; for other inodes, the root.
    parents: Vec<InodeId>,
}

impl Reachable {
    /// Walks the tree. It does not recurse, so directories may be nested without a limit.
    pub(super) fn of(tree: &Tree) -> Self {
        let mut order = vec![InodeId::ROOT];
        let mut links = vec![0_u32; tree.len()];
        let mut parents = vec![InodeId::ROOT; tree.len()];
        // A directory has its name and `.`, and each of its directories has `..`. The root has `..`
        // instead of a name.
        links[InodeId::ROOT.index()] = 2;
        let mut pending = vec![InodeId::ROOT];
        while let Some(directory) = pending.pop() {
            let first = pending.len();
            for (_, child) in tree.children(directory) {
                // The tree has less than 2³² names, so the counts have 32 bits.
                // A directory has one name, so it is reached once. Other inodes are reached by each
                // of their names, but have one place, which the first name decides.
                if tree.is_directory(child) {
                    links[child.index()] = 2;
                    links[directory.index()] += 1;
                    parents[child.index()] = directory;
                    pending.push(child);
                    order.push(child);
                } else {
                    links[child.index()] += 1;
                    if links[child.index()] == 1 {
                        order.push(child);
                    }
                }
            }
            // The stack returns the last directory first. The reversal keeps the order of names.
            pending[first..].reverse();
        }
        let epoch = commonest_time(tree, &order);
        Self { order, epoch, links, parents }
    }

    /// Returns the link count of an inode.
    pub(super) fn links(&self, inode: InodeId) -> u32 {
        self.links[inode.index()]
    }

    /// Returns the directory that links a directory; for the root, the root.
    pub(super) fn parent(&self, directory: InodeId) -> InodeId {
        self.parents[directory.index()]
    }
}

/// Returns the time that most inodes have, and the earliest one of several.
fn commonest_time(tree: &Tree, order: &[InodeId]) -> (i64, u32) {
    let mut counts: HashMap<(i64, u32), u32> = HashMap::new();
    for id in order {
        let metadata = tree.stored_metadata(*id);
        let time = (metadata.mtime_s, metadata.mtime_ns);
        if counts.len() < MAX_TIMES || counts.contains_key(&time) {
            *counts.entry(time).or_default() += 1;
        }
    }
    // A map has a random order. Preferring the earliest of several times makes the image of a tree
    // always the same.
    let most = counts.into_iter().max_by_key(|(time, count)| (*count, Reverse(*time)));
    most.map_or((0, 0), |(time, _)| time)
}
