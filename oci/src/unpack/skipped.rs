//! The names at which devices were skipped.
//!
//! A box has a `/dev` of its own, so devices of an image are not created. A hard link to such a
//! device is one more name of it, and is skipped as well. The names are kept as if the devices
//! existed, because a link to a name that was replaced or removed in between is an error.

use std::collections::BTreeSet;
use std::ops::Bound;

/// A set of paths without symbolic links. No file of the tree has one of these paths.
#[derive(Debug, Default)]
pub(super) struct SkippedNames(BTreeSet<Vec<u8>>);

impl SkippedNames {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, path: Vec<u8>) {
        self.0.insert(path);
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        self.0.contains(path)
    }

    /// Removes a path and all paths below it: a file takes the place, or the tree there is removed.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.0.remove(path);
        self.forget_below(path);
    }

    /// Removes all paths below a directory.
    pub(super) fn forget_below(&mut self, directory: &[u8]) {
        if directory.is_empty() {
            self.0.clear();
            return;
        }
        let start = [directory, b"/"].concat();
        let range = (Bound::Included(start.clone()), Bound::Unbounded);
        // The set is ordered by bytes, so that the paths below a directory are next to each other.
        let below = self.0.range(range).take_while(|path| path.starts_with(&start));
        for path in below.cloned().collect::<Vec<_>>() {
            self.0.remove(&path);
        }
    }
}

impl FromIterator<Vec<u8>> for SkippedNames {
    fn from_iter<I: IntoIterator<Item = Vec<u8>>>(paths: I) -> Self {
        Self(paths.into_iter().collect())
    }
}

impl IntoIterator for SkippedNames {
    type Item = Vec<u8>;
    type IntoIter = std::collections::btree_set::IntoIter<Vec<u8>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_forgotten_with_all_paths_below_it() {
        let all = ["a", "a-b", "a/b", "a/b/c", "a/bc", "b"];
        let cases: [(&str, &[&str], &[&str]); 4] = [
            ("a", &["a-b", "b"], &["a", "a-b", "b"]),
            ("a/b", &["a", "a-b", "a/bc", "b"], &["a", "a-b", "a/b", "a/bc", "b"]),
            ("c", &all, &all),
            ("", &[], &[]),
        ];
        for (path, forgotten, below) in cases {
            let rest = |forget: fn(&mut SkippedNames, &[u8])| {
                let mut names: SkippedNames =
                    all.iter().map(|path| path.as_bytes().to_vec()).collect();
                forget(&mut names, path.as_bytes());
                names.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(rest(SkippedNames::forget), forgotten, "{path}");
            assert_eq!(rest(SkippedNames::forget_below), below, "below {path}");
        }
    }
}
