//! The id of an inode: its place in the arena.

/// One inode of a [`Tree`](crate::Tree).
///
/// An id belongs to the tree that returned it. A method panics if its id has no inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The root directory of each tree.
    pub const ROOT: Self = Self(0);

    /// Returns the id of a place in the arena, if there is one.
    pub(super) fn at(place: usize) -> Option<Self> {
        u32::try_from(place).ok().map(Self)
    }

    /// Returns the place of the inode in the arena.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}
