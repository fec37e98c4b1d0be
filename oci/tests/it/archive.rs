//! Writes tar archives entry by entry, without the checks of a real writer.
//!
//! Tests need archives that no real writer produces: names with `..`, wrong sizes, truncated headers.

use tar::{Builder, EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

/// Modification time of all entries.
pub(crate) const TIME: u64 = 1_700_000_000;

/// A tar archive that is being written.
pub(crate) struct Tar {
    entries: Builder<Vec<u8>>,
    /// Bytes that follow the two zero blocks at the archive's end.
    trailer: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self { entries: Builder::new(Vec::new()), trailer: Vec::new() }
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, 0o755, b"")
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, 0o644, content.as_bytes())
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.append(header(EntryType::Symlink, name, 0o777), target, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.append(header(EntryType::Link, name, 0o644), target, b"")
    }

    pub(crate) fn entry(self, kind: EntryType, name: &str, mode: u32, body: &[u8]) -> Self {
        self.append(header(kind, name, mode), "", body)
    }

    /// Appends an entry. Sets the link target, the size and the checksum in `header`.
    pub(crate) fn append(mut self, mut header: Header, link: &str, body: &[u8]) -> Self {
        // `Header::set_link_name` would refuse an empty target and normalize the others.
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.entries.append(&header, body).unwrap();
        self
    }

    /// Appends a pax header for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.entries.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    /// Appends a header and a body. Sets only the checksum, so that the header's size can differ
    /// from the length of the body.
    pub(crate) fn header(mut self, mut header: Header, body: &[u8]) -> Self {
        header.set_cksum();
        self.entries.append(&header, body).unwrap();
        self
    }

    /// Appends a sparse file in the old GNU format. `map` lists offset and length of each extent.
    ///
    /// The format has room for 4 extents in the first header, and for 21 in each further one.
    pub(crate) fn old_sparse(self, name: &str, size: u64, map: &[(u64, u64)], body: &[u8]) -> Self {
        let (first, rest) = map.split_at(map.len().min(4));
        let mut header = header(EntryType::GNUSparse, name, 0o644);
        header.set_size(body.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.realsize = octal(size);
        gnu.isextended = [u8::from(!rest.is_empty())];
        set_extents(&mut gnu.sparse, first);
        header.set_cksum();
        let mut all = self.raw(header.as_bytes());
        let mut left = rest.len().div_ceil(21);
        for extents in rest.chunks(21) {
            left -= 1;
            let mut block = GnuExtSparseHeader::new();
            block.isextended = [u8::from(left > 0)];
            set_extents(&mut block.sparse, extents);
            all = all.raw(block.as_bytes());
        }
        all.raw(body)
    }

    /// Appends bytes, and zeros up to the end of their last block.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        let archive = self.entries.get_mut();
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
        self
    }

    /// Appends bytes behind the archive's end.
    pub(crate) fn then(mut self, bytes: &[u8]) -> Self {
        self.trailer.extend(bytes);
        self
    }

    /// Returns the archive with the two zero blocks that end it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.entries.get_ref(), &[0; 1024][..], &self.trailer].concat()
    }
}

/// Returns a header with owner 11, group 22 and time [`TIME`].
pub(crate) fn header(kind: EntryType, name: &str, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    // `Header::set_path` would refuse absolute names and names with `..`.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(11);
    header.set_gid(22);
    header.set_mtime(TIME);
    header
}

/// Writes offset and length of each extent into the slots of a sparse header.
fn set_extents(slots: &mut [GnuSparseHeader], map: &[(u64, u64)]) {
    for (slot, (offset, length)) in slots.iter_mut().zip(map) {
        (slot.offset, slot.numbytes) = (octal(*offset), octal(*length));
    }
}

/// Encodes a number as eleven octal digits, or in base 256 if it needs more digits.
fn octal(number: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if number < 1 << 33 {
        field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
    } else {
        // The highest bit of the first byte marks base 256.
        field[0] = 0x80;
        field[4..].copy_from_slice(&number.to_be_bytes());
    }
    field
}
