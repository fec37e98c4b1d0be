//! The differences between the two kinds of root of one image, `shared` and `block`. Decision 0006
//! lists them.
//!
//! Both roots have the same paths, types, metadata and content. They differ only in hard links:
//!
//! - If an upper layer links to a lower file, overlayfs copies the file for one of its names. The
//!   other names keep the old inode. A block root has one inode for all of them.
//! - Overlayfs returns the link counts of the layers: that of a file counts the names in its layer,
//!   and that of a directory of several layers is 1. The counts of a block root are exact.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Tree;

/// The differences of one image. All of them are allowed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// Pairs of paths that share an inode in the block root only. The first path of an inode is
    /// paired with each of the others.
    pub(crate) parted: BTreeSet<(String, String)>,
    /// Paths whose link count differs, with the counts of the shared root and of the block root.
    pub(crate) counts: BTreeMap<String, (u64, u64)>,
}

impl Differences {
    /// Compares the roots of an image. An error lists the differences that are not allowed.
    pub(crate) fn between(shared: &Tree, block: &Tree) -> Result<Self, String> {
        let mut forbidden = different_files(shared, block);
        let mut found = Self::default();
        let inode = |tree: &Tree, path: &str| tree.links.get(path).map(|(inode, _)| *inode);
        for names in names_of_inodes(block).values() {
            let first = names[0];
            for name in &names[1..] {
                if inode(shared, first) != inode(shared, name) {
                    found.parted.insert((first.to_owned(), (*name).to_owned()));
                }
            }
        }
        for names in names_of_inodes(shared).values() {
            // A count includes all names that share the inode. It can include hidden names.
            if shared.counts[names[0]] < names.len() as u64 {
                forbidden += &format!("{names:?} have {} links\n", shared.counts[names[0]]);
            }
            if names.iter().any(|name| inode(block, name) != inode(block, names[0])) {
                forbidden += &format!("{names:?} share an inode in the shared root only\n");
            }
        }
        forbidden += &wrong_counts(block);
        for (path, exact) in &block.counts {
            let count = shared.counts.get(path).copied().unwrap_or_default();
            if count == *exact {
                continue;
            }
            found.counts.insert(path.clone(), (count, *exact));
            // A directory of one layer has an exact count.
            if !block.links.contains_key(path) && count != 1 {
                forbidden += &format!("directory `{path}` has {count} links, expected 1\n");
            }
        }
        if forbidden.is_empty() { Ok(found) } else { Err(forbidden) }
    }
}

/// Lists the paths whose type, metadata or content differs.
fn different_files(shared: &Tree, block: &Tree) -> String {
    let missing = "no file".to_owned();
    let paths: BTreeSet<&String> = shared.entries.keys().chain(block.entries.keys()).collect();
    let difference = |path: &String| {
        let [shared, block] =
            [shared, block].map(|tree| tree.entries.get(path).unwrap_or(&missing));
        (shared != block).then(|| format!("`{path}`: shared {shared}, block {block}\n"))
    };
    paths.into_iter().filter_map(difference).collect()
}

/// Lists the paths of a tree whose link count is not exact.
pub(crate) fn wrong_counts(tree: &Tree) -> String {
    let mut exact: BTreeMap<&str, u64> = BTreeMap::new();
    for names in names_of_inodes(tree).values() {
        exact.extend(names.iter().map(|name| (*name, names.len() as u64)));
    }
    let directories = tree.entries.keys().filter(|path| !tree.links.contains_key(*path));
    for path in directories {
        // A directory has its name and `.`, and each directory in it has `..`.
        *exact.entry(path).or_default() += 2;
        if !path.is_empty() {
            *exact.entry(crate::image::split(path).0).or_default() += 1;
        }
    }
    let wrong = tree.counts.iter().filter(|(path, count)| exact.get(path.as_str()) != Some(count));
    wrong.map(|(path, count)| format!("`{path}` has the wrong link count {count}\n")).collect()
}

/// Returns the names of each inode that is not a directory, in their order.
fn names_of_inodes(tree: &Tree) -> BTreeMap<u64, Vec<&str>> {
    let mut names: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (name, (inode, _)) in &tree.links {
        names.entry(*inode).or_default().push(name);
    }
    names
}

mod cases {
    //! A minimal image for each difference.

    use super::Differences;
    use crate::bench::Bench;
    use crate::image::{Entry, Image, Kind, Metadata};
    use crate::memory::private_mounts;
    use crate::mounted::Outcome;
    use crate::{blocks, mounted};

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.to_owned(),
            kind,
            metadata: Metadata { mode: 0o755, ..Metadata::default() },
        }
    }

    fn file(path: &str) -> Entry {
        entry(path, Kind::File("one".to_owned()))
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(path, Kind::HardLink(target.to_owned()))
    }

    /// Makes and mounts both roots of an image.
    fn roots(layers: &[&[Entry]]) -> [Outcome; 2] {
        private_mounts();
        let directory = tempfile::tempdir().unwrap();
        let image = Image(layers.iter().map(|layer| layer.to_vec()).collect());
        let bench: Bench = mounted::publish(directory.path(), &image);
        [mounted::outcome(&bench), blocks::outcome(&bench, true)]
    }

    /// Checks the differences of an image: the pairs of paths that are parted, and the link counts
    /// of paths below the root. The root is always a directory of several layers.
    #[track_caller]
    fn assert_differs(layers: &[&[Entry]], parted: &[(&str, &str)], counts: &[(&str, (u64, u64))]) {
        let [Outcome::Tree(shared), Outcome::Tree(block)] = roots(layers) else {
            panic!("a root was refused");
        };
        let owned = |text: &str| text.to_owned();
        let expected = Differences {
            parted: parted.iter().map(|(first, name)| (owned(first), owned(name))).collect(),
            counts: counts.iter().map(|(path, counts)| (owned(path), *counts)).collect(),
        };
        let mut found = Differences::between(&shared, &block).unwrap();
        assert!(matches!(found.counts.remove(""), Some((1, 2..))), "{found:?}");
        assert_eq!(found, expected);
    }

    #[test]
    fn link_to_a_lower_file_parts_it_from_its_other_names() {
        assert_differs(
            &[&[file("f"), link("g", "f")], &[link("h", "f")]],
            &[("f", "g")],
            &[("f", (2, 3)), ("g", (2, 3)), ("h", (2, 3))],
        );
    }

    #[test]
    fn link_to_a_link_of_another_layer_parts_it_from_the_first_file() {
        assert_differs(
            &[&[file("f")], &[link("g", "f")], &[link("h", "g")]],
            &[("f", "g"), ("f", "h")],
            &[("f", (2, 3)), ("g", (2, 3)), ("h", (2, 3))],
        );
    }

    #[test]
    fn link_to_the_only_name_of_a_lower_file_parts_nothing() {
        assert_differs(&[&[file("f")], &[link("g", "f")]], &[], &[]);
    }

    #[test]
    fn name_that_an_upper_layer_hides_still_counts() {
        let hidden = &[entry("g", Kind::Whiteout)];
        assert_differs(&[&[file("f"), link("g", "f")], hidden], &[], &[("f", (2, 1))]);
    }

    #[test]
    fn directory_of_several_layers_has_one_link() {
        let directory = || entry("d", Kind::Directory);
        assert_differs(
            &[&[directory(), entry("d/e", Kind::Directory)], &[file("d/f")]],
            &[],
            &[("d", (1, 3))],
        );
    }

    #[test]
    fn entry_below_a_lower_file_is_refused_by_both() {
        let outcomes = roots(&[&[file("f")], &[file("f/g")]]);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Refused(_))));
    }
}
