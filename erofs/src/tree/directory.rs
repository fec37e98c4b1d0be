//! Directories: sorted names with their inodes, stored compactly.
//!
//! A directory is a list of sorted runs of at most 256 entries. A name is found by two binary
//! searches. A new name moves the entries of at most one run, which is split in two when it is
//! full. One sorted list would take as little memory, but adding a million names in random order to
//! it would move terabytes. A `BTreeMap` would allocate each name.

use crate::tree::arena::reserve;
use crate::tree::error::TreeError;
use crate::tree::id::InodeId;

/// Maximum number of entries of a run.
// An entry has 12 bytes, so a new name moves at most 3 KiB.
const RUN_ENTRIES: usize = 256;

/// The arena of the names of all directories. An unlinked name stays in it, because its removal
/// would change the places of other names, which the entries store.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<u8>);

impl Names {
    /// Returns the name of an entry.
    fn of(&self, entry: &Entry) -> &[u8] {
        let start = entry.name_start as usize;
        &self.0[start..start + usize::from(entry.name_bytes)]
    }

    /// Returns the bytes that the arena has allocated.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.0.capacity()
    }

    /// Appends a name.
    fn store(&mut self, name: &[u8], inode: InodeId) -> Result<Entry, TreeError> {
        let full = |_overflow| TreeError::Full;
        // 32 bits for the place and 8 for the length keep an entry at 12 bytes. `Tree::link` has
        // limited the length to 255.
        let name_start = u32::try_from(self.0.len()).map_err(full)?;
        let name_bytes = u8::try_from(name.len()).map_err(full)?;
        reserve(&mut self.0, name.len());
        self.0.extend_from_slice(name);
        Ok(Entry { name_start, inode, name_bytes })
    }
}

/// One name of a directory.
#[derive(Debug)]
struct Entry {
    name_start: u32,
    inode: InodeId,
    name_bytes: u8,
}

/// The entries of a directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Sorted runs in their order. No run is empty.
    runs: Vec<Vec<Entry>>,
    is_linked: bool,
}

impl Directory {
    /// Returns whether a directory links this one.
    pub(super) fn is_linked(&self) -> bool {
        self.is_linked
    }

    /// Notes whether a directory links this one.
    pub(super) fn set_linked(&mut self, is_linked: bool) {
        self.is_linked = is_linked;
    }

    /// Returns the inode with a name.
    pub(super) fn get(&self, names: &Names, name: &[u8]) -> Option<InodeId> {
        let (run, index) = self.find(names, name).ok()?;
        Some(self.runs[run][index].inode)
    }

    /// Inserts a name, or gives it to another inode, and returns the inode that had it.
    pub(super) fn insert(
        &mut self,
        names: &mut Names,
        name: &[u8],
        inode: InodeId,
    ) -> Result<Option<InodeId>, TreeError> {
        let (run, index) = match self.find(names, name) {
            Ok((run, index)) => {
                let entry = &mut self.runs[run][index];
                return Ok(Some(std::mem::replace(&mut entry.inode, inode)));
            }
            Err(place) => place,
        };
        let entry = names.store(name, inode)?;
        match self.runs.get_mut(run) {
            // `find` returns a run that does not exist only for a directory without runs.
            None => self.runs.push(vec![entry]),
            Some(entries) if entries.len() < RUN_ENTRIES => entries.insert(index, entry),
            Some(entries) => {
                // Names often come in their order. A name behind all others therefore begins a new
                // run, and the full run stays full. Halving it would leave all runs half empty.
                let at = if index == RUN_ENTRIES { index } else { RUN_ENTRIES / 2 };
                let mut upper = entries.split_off(at);
                if index < at {
                    entries.insert(index, entry);
                } else {
                    upper.insert(index - at, entry);
                }
                // The lower run would otherwise keep the memory of the entries that it has lost.
                entries.shrink_to_fit();
                self.runs.insert(run + 1, upper);
            }
        }
        Ok(None)
    }

    /// Removes a name, and returns the inode that had it.
    pub(super) fn remove(&mut self, names: &Names, name: &[u8]) -> Option<InodeId> {
        let (run, index) = self.find(names, name).ok()?;
        let entry = self.runs[run].remove(index);
        // `find` compares the first names of runs, so no run may be empty.
        if self.runs[run].is_empty() {
            self.runs.remove(run);
        }
        Some(entry.inode)
    }

    /// Returns the bytes that the directory has allocated.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        let entries: usize = self.runs.iter().map(Vec::capacity).sum();
        self.runs.capacity() * size_of::<Vec<Entry>>() + entries * size_of::<Entry>()
    }

    /// Removes all names, and returns the inodes that had them.
    pub(super) fn take_inodes(&mut self) -> impl Iterator<Item = InodeId> + use<> {
        std::mem::take(&mut self.runs).into_iter().flatten().map(|entry| entry.inode)
    }

    /// Returns all names in their order.
    pub(super) fn iter<'a>(
        &'a self,
        names: &'a Names,
    ) -> impl Iterator<Item = (&'a [u8], InodeId)> + use<'a> {
        self.runs.iter().flatten().map(|entry| (names.of(entry), entry.inode))
    }

    /// Returns the run of a name and its place in the run. If the directory does not have the name,
    /// the error is where it would be.
    fn find(&self, names: &Names, name: &[u8]) -> Result<(usize, usize), (usize, usize)> {
        let first_of = |run: &Vec<Entry>| run.first().map(|entry| names.of(entry));
        let run = self.runs.partition_point(|run| first_of(run).is_some_and(|first| first <= name));
        // The name belongs to the last run that begins with it or before it, or to the first run.
        let run = run.saturating_sub(1);
        let Some(entries) = self.runs.get(run) else {
            return Err((run, 0));
        };
        let found = entries.binary_search_by(|entry| names.of(entry).cmp(name));
        found.map(|index| (run, index)).map_err(|index| (run, index))
    }
}
