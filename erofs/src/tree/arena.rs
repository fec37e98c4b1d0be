//! Arenas: vectors that only grow, by an eighth of their length.

/// Appends to an arena, which grows by an eighth of its length.
///
/// `Vec` alone doubles its capacity, so that an arena would take twice its size in the worst case.
pub(super) fn push<T>(arena: &mut Vec<T>, item: T) {
    reserve(arena, 1);
    arena.push(item);
}

/// Makes room for `items` more in an arena.
pub(super) fn reserve<T>(arena: &mut Vec<T>, items: usize) {
    if arena.capacity() - arena.len() < items {
        // `reserve` would double the capacity. With steps of an eighth, an item is moved about
        // eight times on average, whatever the length of the arena.
        arena.reserve_exact(items.max(arena.len() / 8).max(FIRST_ITEMS));
    }
}

/// Number of items that an arena makes room for at first.
// An eighth of a short arena is no item or one, so each item would cause a step.
const FIRST_ITEMS: usize = 64;
