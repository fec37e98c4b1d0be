//! The layer below the fuzzed ones. It has the kinds and names of files that the corpus and the
//! property test use.

use std::io;

use tar::{EntryType, Header};

/// Returns the archive of the layer.
///
/// # Panics
///
/// Panics if the archive cannot be made.
#[must_use]
pub fn base() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let entries = [
        ("a/", EntryType::Directory, ""),
        ("a/x", EntryType::Regular, ""),
        ("d/", EntryType::Directory, ""),
        ("s", EntryType::Symlink, "/mnt/canary"),
        ("l", EntryType::Symlink, "d"),
        ("h", EntryType::Link, "a/x"),
        ("f", EntryType::Regular, ""),
        ("hidden", EntryType::Fifo, ""),
    ];
    for (name, kind, link) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
    }
    tar.into_inner().unwrap()
}
