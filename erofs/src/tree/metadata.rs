//! Owner, mode, time and extended attributes of an inode; the sets of these attributes, interned.

use std::collections::HashMap;
use std::sync::Arc;

use crate::tree::arena::push;
use crate::tree::error::TreeError;

/// An extended attribute: its full name, such as `user.a`, and its value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Metadata of an inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permissions, set-user-id, set-group-id and sticky bit: at most `0o7777`.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last change: seconds since 1970, negative before it.
    pub mtime_s: i64,
    /// The nanoseconds of that time, below 1,000,000,000.
    pub mtime_ns: u32,
    /// Extended attributes in any order, each name once. Names are those for which EROFS has a
    /// prefix: `user.*`, `trusted.*`, `security.*`, `system.posix_acl_access` and
    /// `system.posix_acl_default`.
    pub xattrs: Vec<Xattr>,
}

/// A prefix of names, and the number by which EROFS stores it.
struct Prefix {
    text: &'static [u8],
    index: u8,
    /// The prefix is a full name, which nothing follows.
    is_whole: bool,
}

/// Prefixes of names: `EROFS_XATTR_INDEX_*` of Linux 6.12 `fs/erofs/erofs_fs.h`. Index 5, the
/// prefix of Lustre, is missing because `fs/erofs/xattr.c` has no handler for it.
const PREFIXES: [Prefix; 5] = [
    Prefix { text: b"user.", index: 1, is_whole: false },
    Prefix { text: b"system.posix_acl_access", index: 2, is_whole: true },
    Prefix { text: b"system.posix_acl_default", index: 3, is_whole: true },
    Prefix { text: b"trusted.", index: 4, is_whole: false },
    Prefix { text: b"security.", index: 6, is_whole: false },
];

/// Maximum length of a full name: `XATTR_NAME_MAX` of Linux, `include/uapi/linux/limits.h`.
const MAX_NAME_BYTES: usize = 255;

/// Maximum length of a value, whose length EROFS stores in 16 bits.
const MAX_VALUE_BYTES: usize = u16::MAX as usize;

/// Bytes of the header of an inode's attributes, and of the header of one attribute.
pub(crate) const IBODY_HEADER_BYTES: usize = 12;
pub(crate) const ENTRY_HEADER_BYTES: usize = 4;

/// Maximum bytes of the attributes of an inode: `i_xattr_icount` has 16 bits and counts the header
/// as one and each following 4 bytes as one.
const MAX_SET_BYTES: usize = IBODY_HEADER_BYTES + 4 * (u16::MAX as usize - 1);

/// Splits a full name into the number of its prefix and the rest, if EROFS has such a prefix.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|prefix| {
        let rest = name.strip_prefix(prefix.text)?;
        // `user.` alone is no name. A name that continues `system.posix_acl_access` is another
        // name, for which EROFS has no prefix.
        (rest.is_empty() == prefix.is_whole).then_some((prefix.index, rest))
    })
}

/// Joins the number of a prefix and the rest of a name, if there is such a name.
pub(crate) fn join_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let prefix = PREFIXES.iter().find(|prefix| prefix.index == index)?;
    (rest.is_empty() == prefix.is_whole).then(|| [prefix.text, rest].concat())
}

/// Returns the bytes of an attribute on the disk: its header, name and value, padded to 4 bytes.
pub(crate) fn entry_bytes(rest_of_name: &[u8], value: &[u8]) -> usize {
    // The counts and places of attributes are in units of 4 bytes.
    (ENTRY_HEADER_BYTES + rest_of_name.len() + value.len()).next_multiple_of(4)
}

/// Metadata as the arena stores them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredMetadata {
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The number of the set of extended attributes. Number 0 is the empty set.
    pub(crate) xattrs: u32,
    pub(crate) mode: u16,
}

/// All sets of extended attributes, each once. Each is sorted by name.
#[derive(Debug)]
pub(crate) struct XattrSets {
    sets: Vec<Arc<[Xattr]>>,
    numbers: HashMap<Arc<[Xattr]>, u32>,
}

impl Default for XattrSets {
    fn default() -> Self {
        // The empty set comes first, so that most inodes need no search for their set.
        let empty: Arc<[Xattr]> = Arc::new([]);
        Self { sets: vec![Arc::clone(&empty)], numbers: HashMap::from([(empty, 0)]) }
    }
}

impl XattrSets {
    /// Checks metadata, and interns their extended attributes.
    pub(super) fn store(&mut self, metadata: Metadata) -> Result<StoredMetadata, TreeError> {
        let Metadata { mode, uid, gid, mtime_s, mtime_ns, xattrs } = metadata;
        if mode > 0o7777 {
            return Err(TreeError::Mode { mode });
        }
        if mtime_ns >= 1_000_000_000 {
            return Err(TreeError::Nanoseconds { nanoseconds: mtime_ns });
        }
        let xattrs = if xattrs.is_empty() { 0 } else { self.intern(xattrs)? };
        Ok(StoredMetadata { mtime_s, mtime_ns, uid, gid, xattrs, mode })
    }

    /// Returns metadata in the form of the interface.
    pub(super) fn load(&self, stored: &StoredMetadata) -> Metadata {
        let StoredMetadata { mtime_s, mtime_ns, uid, gid, xattrs, mode } = *stored;
        Metadata { mode, uid, gid, mtime_s, mtime_ns, xattrs: self.get(xattrs).to_vec() }
    }

    /// Returns the set with a number.
    pub(crate) fn get(&self, number: u32) -> &[Xattr] {
        &self.sets[number as usize]
    }

    /// Returns the number of sets. Their numbers are below it.
    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }

    /// Returns the number of a set, and stores the set if it is new. Its order does not matter.
    pub(super) fn intern(&mut self, mut set: Vec<Xattr>) -> Result<u32, TreeError> {
        // Sets that differ only in their order are equal. The check below also needs the order.
        set.sort_unstable();
        if let Some(number) = self.numbers.get(&set[..]) {
            return Ok(*number);
        }
        check_set(&set)?;
        let number = u32::try_from(self.sets.len()).map_err(|_overflow| TreeError::Full)?;
        let set: Arc<[Xattr]> = set.into();
        push(&mut self.sets, Arc::clone(&set));
        self.numbers.insert(set, number);
        Ok(number)
    }
}

/// Checks that EROFS can represent a sorted set.
fn check_set(set: &[Xattr]) -> Result<(), TreeError> {
    // The sum takes all attributes as unshared. A shared one takes 4 bytes behind the inode, and an
    // unshared one at least as many.
    let mut bytes = IBODY_HEADER_BYTES;
    let mut before: Option<&[u8]> = None;
    for (name, value) in set {
        let is_valid = name.len() <= MAX_NAME_BYTES && !name.contains(&0);
        // Equal names follow each other in a sorted set.
        let rest = split_name(name).filter(|_| is_valid && before != Some(name));
        let Some((_, rest)) = rest else {
            return Err(TreeError::XattrName { name: name.clone() });
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(TreeError::XattrValue { name: name.clone(), bytes: value.len() });
        }
        bytes += entry_bytes(rest, value);
        before = Some(name);
    }
    if bytes > MAX_SET_BYTES {
        return Err(TreeError::Xattrs { bytes });
    }
    Ok(())
}
