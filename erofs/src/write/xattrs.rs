//! Extended attributes: sets of one inode are behind it, and sets of several inodes are shared.
//!
//! ```text
//! header: name filter u32 (unused), count of shared ones u8, 7 reserved
//! shared: u32 each: the place in the shared area, in units of 4 bytes
//! others: length of the name u8, its prefix u8, length of the value u16, name, value, padding to 4
//! ```

use std::collections::HashMap;
use std::io::{self, Write};

use crate::format::{
    MAX_SHARED_BYTES, MAX_SHARED_XATTRS, XATTRS_HEADER_BYTES, shared_memory_bytes,
};
use crate::tree::{Tree, Xattr, XattrSets, entry_bytes, split_name};
use crate::write::error::WriteError;
use crate::write::output::Output;
use crate::write::reachable::Reachable;

/// The sets of extended attributes, and where each is stored.
pub(super) struct Xattrs<'a> {
    sets: &'a XattrSets,
    /// The places of the shared attributes of each set. The other attributes follow these in the
    /// set.
    shared: Vec<Vec<u32>>,
    /// The shared attributes in their order.
    entries: Vec<&'a Xattr>,
    shared_bytes: u64,
}

impl<'a> Xattrs<'a> {
    /// Chooses the attributes to share: those of sets that several inodes have.
    pub(super) fn new(tree: &'a Tree, reachable: &Reachable) -> Result<Self, WriteError> {
        let sets = tree.xattr_sets();
        let mut uses = vec![0_u32; sets.len()];
        for id in &reachable.order {
            let set = &mut uses[tree.stored_metadata(*id).xattrs as usize];
            *set = set.saturating_add(1);
        }
        let shared = vec![Vec::new(); sets.len()];
        let mut xattrs = Self { sets, shared, entries: Vec::new(), shared_bytes: 0 };
        let mut places: HashMap<&Xattr, u32> = HashMap::new();
        let mut memory_bytes = 0;
        // The loop follows the order of the inodes, and not the numbers of the sets. The numbers
        // depend on how the tree was made, but equal trees must have equal images.
        for id in &reachable.order {
            let number = tree.stored_metadata(*id).xattrs;
            // The count becomes 0 here, so that later inodes with the set skip it.
            if std::mem::take(&mut uses[number as usize]) < 2 {
                continue;
            }
            // The attributes above the limits stay behind each inode.
            let set = sets.get(number).iter().take(MAX_SHARED_XATTRS);
            let of_set: usize = set.clone().map(memory_of).sum();
            if memory_bytes + of_set > MAX_SHARED_BYTES {
                continue;
            }
            memory_bytes += of_set;
            for xattr in set {
                let place = match places.get(xattr) {
                    Some(place) => *place,
                    None => xattrs.share(xattr)?,
                };
                places.insert(xattr, place);
                xattrs.shared[number as usize].push(place);
            }
        }
        Ok(xattrs)
    }

    /// Returns the size of the shared area in bytes.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.shared_bytes
    }

    /// Returns the bytes of a set behind an inode. The empty set has none.
    pub(super) fn inline_bytes(&self, number: u32) -> usize {
        let set = self.sets.get(number);
        if set.is_empty() {
            return 0;
        }
        let shared = self.shared[number as usize].len();
        let others = set[shared..].iter().map(|(name, value)| entry_bytes(rest(name), value));
        XATTRS_HEADER_BYTES + 4 * shared + others.sum::<usize>()
    }

    /// Appends the bytes of a set behind an inode.
    pub(super) fn encode(&self, number: u32, out: &mut Vec<u8>) {
        let set = self.sets.get(number);
        if set.is_empty() {
            return;
        }
        let shared = &self.shared[number as usize];
        let mut header = [0; XATTRS_HEADER_BYTES];
        // The filter of names stays 0, because Linux reads it only with a feature that is not set.
        // `new` has limited the count to 255.
        header[4] = u8::try_from(shared.len()).unwrap_or(u8::MAX);
        out.extend(header);
        shared.iter().for_each(|place| out.extend(place.to_le_bytes()));
        set[shared.len()..].iter().for_each(|xattr| encode_entry(xattr, out));
    }

    /// Writes the shared area.
    pub(super) fn write_shared(&self, output: &mut Output<impl Write>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for xattr in &self.entries {
            bytes.clear();
            encode_entry(xattr, &mut bytes);
            output.write(&bytes)?;
        }
        Ok(())
    }

    fn share(&mut self, xattr: &'a Xattr) -> Result<u32, WriteError> {
        let place = u32::try_from(self.shared_bytes / 4).map_err(|_large| WriteError::TooLarge)?;
        self.shared_bytes += entry_bytes(rest(&xattr.0), &xattr.1) as u64;
        self.entries.push(xattr);
        Ok(place)
    }
}

/// Returns the memory that the reader counts for a shared attribute.
fn memory_of((name, value): &Xattr) -> usize {
    shared_memory_bytes(entry_bytes(rest(name), value))
}

/// Appends one attribute.
fn encode_entry((name, value): &Xattr, out: &mut Vec<u8>) {
    let (prefix, rest) = split_name(name).unwrap_or_default();
    let end = out.len() + entry_bytes(rest, value);
    // The tree has checked both lengths.
    out.push(u8::try_from(rest.len()).unwrap_or(u8::MAX));
    out.push(prefix);
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(rest);
    out.extend(value);
    out.resize(end, 0);
}

/// Returns a name without its prefix. The tree has checked that it has one.
fn rest(name: &[u8]) -> &[u8] {
    split_name(name).map_or(&[], |(_, rest)| rest)
}
