//! Sparse files: the size of a file, and the extents of it that an archive holds.
//!
//! GNU tar has written four formats (GNU tar manual, "Storing Sparse Files"), and Go's
//! `archive/tar` reads all of them:
//!
//! ```text
//! old GNU   type `S`; four extents in the header, 21 in each block that follows it
//! PAX 0.0   records GNU.sparse.{size,numblocks}, then pairs of offset and numbytes
//! PAX 0.1   records GNU.sparse.{size,numblocks,map,name}
//! PAX 1.0   records GNU.sparse.{major,minor,name,realsize}; the map is text at the body's start
//! ```
//!
//! The body holds the data of all extents without gaps. A map is refused if its extents overlap,
//! are not in ascending order, exceed the file or do not add up to the body, because readers
//! disagree about such maps.

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::field::{BLOCK, FieldError, decimal, number};
use crate::host::text::Shown;

/// Limit on the extents of one file: a file of 8 GiB has this number if every second block of 4 KiB
/// is a hole. The extents take 16 MiB of memory.
const EXTENTS: usize = 1 << 20;

/// Limit on the extension blocks of one header: as many as the largest map fills.
const EXTENSION_BLOCKS: usize = EXTENTS / EXTENTS_OF_BLOCK + 1;

/// Number of extents in one extension block.
const EXTENTS_OF_BLOCK: usize = 21;

/// Number of digits of the largest 64-bit number.
const DIGITS: usize = 20;

/// A malformed description of a sparse file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SparseError {
    /// A record has the prefix of sparse files, and a key that no tool writes.
    #[error("unknown PAX record `{}` of a sparse file", Shown(key))]
    Key {
        /// The key.
        key: String,
    },
    /// A number in a record does not parse.
    #[error("malformed value of PAX record `{key}`")]
    Value {
        /// The key.
        key: &'static str,
    },
    /// The version of the format is not defined.
    #[error("unknown version `{}` of sparse files: expected 0.0, 0.1 or 1.0", Shown(found))]
    Version {
        /// Major and minor number, as the records have them.
        found: String,
    },
    /// The records about a sparse file lack one that is required.
    #[error("incomplete description of a sparse file: PAX record `{missing}` is missing")]
    Incomplete {
        /// The key. Where several records could give the value, it is one of their keys.
        missing: &'static str,
    },
    /// Offsets and lengths do not alternate.
    #[error("PAX records `GNU.sparse.offset` and `GNU.sparse.numbytes` do not come in turn")]
    Order,
    /// The file is described twice.
    #[error("ambiguous sparse file: two descriptions of its `{what}`")]
    Ambiguous {
        /// The property with two values.
        what: &'static str,
    },
    /// The entry has the type `S`, but its header is not in the GNU format.
    #[error("the header of a sparse file is not in the GNU format")]
    NotGnu,
    /// The entry has a type without content.
    #[error("only a regular file can be sparse")]
    NotAFile,
    /// The map at the start of the body is not a list of numbers.
    #[error("malformed map of a sparse file: expected decimal numbers, each on a line of its own")]
    Map,
    /// The number of extents in the map differs from the record `GNU.sparse.numblocks`.
    #[error(
        "the map of a sparse file has {found} extents, but `GNU.sparse.numblocks` is {expected}"
    )]
    Count {
        /// Number of extents in the record.
        expected: u64,
        /// Number of extents in the map.
        found: u64,
    },
    /// The file has more extents than the limit.
    #[error("a sparse file has too many extents: expected at most {EXTENTS}")]
    TooMany,
    /// An extent begins before the end of the previous one, or ends after the end of the file.
    #[error(
        "bad extent of a sparse file: {length} bytes at {offset}, in a file of {size_bytes} bytes, \
         behind an extent that ends at {after}"
    )]
    Extent {
        /// Offset of the extent in the file.
        offset: u64,
        /// Bytes of the extent.
        length: u64,
        /// End of the previous extent.
        after: u64,
        /// Size of the file.
        size_bytes: u64,
    },
    /// The sum of the extents differs from the size of the entry's data.
    #[error("the map of a sparse file has {expected} bytes of data, but the entry holds {found}")]
    DataSize {
        /// Sum of the lengths of all extents.
        expected: u64,
        /// Bytes of the entry's body after the map.
        found: u64,
    },
}

/// A range of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The extents of a file in ascending order. They have been checked against the size of the file
/// and of its data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// Size of the file, holes included.
    pub(crate) size_bytes: u64,
    pub(crate) extents: Vec<Extent>,
}

/// A map as the archive has it, before any check.
#[derive(Debug)]
pub(crate) struct RawMap {
    size_bytes: u64,
    extents: Vec<Extent>,
}

/// The PAX records about a sparse file. An empty value deletes an earlier one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseRecords {
    /// Whether the header has a record about sparse files, even if a later one deleted its value.
    any: bool,
    major: Vec<u8>,
    minor: Vec<u8>,
    /// Name of the file. The header of the entry has a generated name instead, for readers without
    /// support for sparse files.
    pub(crate) name: Vec<u8>,
    size: Vec<u8>,
    real_size: Vec<u8>,
    count: Vec<u8>,
    map: Vec<u8>,
    /// Pairs of offset and length (format 0.0).
    pairs: Vec<u64>,
}

/// The place of a sparse file's map in the archive.
#[derive(Debug)]
pub(crate) enum Location {
    /// The headers hold the map.
    Headers(RawMap),
    /// The body starts with the map.
    Body {
        /// Size of the file.
        size_bytes: u64,
    },
}

impl SparseRecords {
    /// Stores the record `GNU.sparse.<key>`.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), SparseError> {
        self.any = true;
        let slot = match key {
            b"major" => &mut self.major,
            b"minor" => &mut self.minor,
            b"name" => &mut self.name,
            b"size" => &mut self.size,
            b"realsize" => &mut self.real_size,
            b"numblocks" => &mut self.count,
            b"map" => &mut self.map,
            b"offset" => return self.push(value, 0, "GNU.sparse.offset"),
            b"numbytes" => return self.push(value, 1, "GNU.sparse.numbytes"),
            _ => {
                // An unknown record could change the place of the data in the file, so it is not
                // ignored.
                let key = format!("GNU.sparse.{}", String::from_utf8_lossy(key));
                return Err(SparseError::Key { key });
            }
        };
        value.clone_into(slot);
        Ok(())
    }

    fn push(&mut self, value: &[u8], turn: usize, key: &'static str) -> Result<(), SparseError> {
        // Format 0.0 has one record for each number. The order of the records alone tells which
        // offset and length belong together.
        if self.pairs.len() % 2 != turn {
            return Err(SparseError::Order);
        }
        self.pairs.push(decimal(value).ok_or(SparseError::Value { key })?);
        Ok(())
    }

    /// Returns the place of the map, or `None` if no record describes a sparse file.
    pub(crate) fn location(&self) -> Result<Option<Location>, SparseError> {
        if !self.any {
            return Ok(None);
        }
        let is_listed = !self.map.is_empty() || !self.pairs.is_empty();
        match (&self.major[..], &self.minor[..]) {
            // The body holds the map in format 1.0, so a map in the records would be a second one.
            (b"1", b"0") if is_listed => Err(SparseError::Ambiguous { what: "map" }),
            (b"1", b"0") => Ok(Some(Location::Body { size_bytes: self.size_bytes()? })),
            // GNU tar wrote no version numbers in the formats 0.0 and 0.1.
            (b"" | b"0", b"" | b"0" | b"1") => {
                let (size_bytes, extents) = (self.size_bytes()?, self.extents(is_listed)?);
                Ok(Some(Location::Headers(RawMap { size_bytes, extents })))
            }
            (major, minor) => {
                let found = format!("{}.{}", major.escape_ascii(), minor.escape_ascii());
                Err(SparseError::Version { found })
            }
        }
    }

    fn size_bytes(&self) -> Result<u64, SparseError> {
        // GNU tar writes the size to `size` in the formats 0.x, and to `realsize` in 1.0. If a
        // header has both, readers could use either, so both must be equal.
        let (text, key) = match (&self.size[..], &self.real_size[..]) {
            (b"", b"") => return Err(SparseError::Incomplete { missing: "GNU.sparse.size" }),
            (b"", real_size) => (real_size, "GNU.sparse.realsize"),
            (size, real_size) if real_size.is_empty() || size == real_size => {
                (size, "GNU.sparse.size")
            }
            _ => return Err(SparseError::Ambiguous { what: "size" }),
        };
        decimal(text).ok_or(SparseError::Value { key })
    }

    /// Reads the extents from the records.
    fn extents(&self, is_listed: bool) -> Result<Vec<Extent>, SparseError> {
        if !is_listed {
            return Err(SparseError::Incomplete { missing: "GNU.sparse.map" });
        }
        let from_map = || -> Result<Vec<u64>, SparseError> {
            let numbers = self.map.split(|byte| *byte == b',').map(decimal);
            numbers.collect::<Option<_>>().ok_or(SparseError::Value { key: "GNU.sparse.map" })
        };
        let numbers = match (self.map.is_empty(), self.pairs.is_empty()) {
            (false, false) => return Err(SparseError::Ambiguous { what: "map" }),
            (true, _) => self.pairs.clone(),
            (false, true) => from_map()?,
        };
        // The record is redundant. A wrong number means that the map is damaged or incomplete.
        let key = "GNU.sparse.numblocks";
        let expected = decimal(&self.count).ok_or(SparseError::Value { key })?;
        let (pairs, odd) = numbers.as_chunks();
        if !odd.is_empty() || pairs.len() as u64 != expected {
            return Err(SparseError::Count { expected, found: pairs.len() as u64 });
        }
        Ok(pairs
            .iter()
            .map(|[offset, length]| Extent { offset: *offset, length: *length })
            .collect())
    }
}

impl RawMap {
    /// Reads the map of an entry of type `S` from its header and the blocks after it.
    ///
    /// `E` is the error of `next_block`. It is generic so that this module does not depend on the
    /// module that reads the archive.
    pub(crate) fn of_header<E: From<SparseError> + From<FieldError>>(
        header: &Header,
        mut next_block: impl FnMut() -> Result<[u8; BLOCK], E>,
    ) -> Result<Self, E> {
        // star uses the type `S` too, with a different layout of the header.
        let gnu = header.as_gnu().ok_or(SparseError::NotGnu)?;
        let size_bytes = number("realsize", &gnu.realsize)?;
        let mut this = Self { size_bytes, extents: Vec::new() };
        this.take::<E>(&gnu.sparse)?;
        let mut is_extended = gnu.isextended[0] != 0;
        // A block may be without extents, so the limit on these does not bound the number of blocks.
        for _ in 0..EXTENSION_BLOCKS {
            if !is_extended {
                return Ok(this);
            }
            let mut block = GnuExtSparseHeader::new();
            block.as_mut_bytes().copy_from_slice(&next_block()?);
            this.take::<E>(&block.sparse)?;
            is_extended = block.isextended[0] != 0;
        }
        if is_extended { Err(SparseError::TooMany.into()) } else { Ok(this) }
    }

    /// Reads the map at the start of a body.
    pub(crate) fn of_body<E: From<SparseError>>(
        size_bytes: u64,
        next_block: impl FnMut() -> Result<[u8; BLOCK], E>,
    ) -> Result<Self, E> {
        let mut text = Text { next_block, block: [0; BLOCK], used: BLOCK };
        let mut this = Self { size_bytes, extents: Vec::new() };
        // The number of extents is not trusted. No memory is reserved for it, and `push` enforces
        // the limit.
        for _ in 0..text.number()? {
            let (offset, length) = (text.number()?, text.number()?);
            this.push(Extent { offset, length })?;
        }
        Ok(this)
    }

    /// Adds the extents of one block, up to the first that is not used.
    fn take<E: From<SparseError> + From<FieldError>>(
        &mut self,
        extents: &[GnuSparseHeader],
    ) -> Result<(), E> {
        // An unused extent is all zeros. A used one has octal digits, even for the offset 0.
        for extent in extents.iter().take_while(|extent| extent.offset[0] != 0) {
            let offset = number("sparse offset", &extent.offset)?;
            self.push(Extent { offset, length: number("sparse numbytes", &extent.numbytes)? })?;
        }
        Ok(())
    }

    fn push(&mut self, extent: Extent) -> Result<(), SparseError> {
        if self.extents.len() == EXTENTS {
            return Err(SparseError::TooMany);
        }
        self.extents.push(extent);
        Ok(())
    }

    /// Checks the map against the size of the data behind it.
    pub(crate) fn check(self, data_bytes: u64) -> Result<SparseMap, SparseError> {
        let Self { size_bytes, extents } = self;
        let (mut after, mut expected) = (0, 0);
        for Extent { offset, length } in &extents {
            let (offset, length) = (*offset, *length);
            // An extent can be empty. GNU tar marks a hole at the end of a file by an empty extent
            // there.
            match offset.checked_add(length) {
                Some(end) if offset >= after && end <= size_bytes => after = end,
                _ => return Err(SparseError::Extent { offset, length, after, size_bytes }),
            }
            // The sum cannot overflow: extents that do not overlap are in total at most as large as
            // the file.
            expected += length;
        }
        match expected == data_bytes {
            true => Ok(SparseMap { size_bytes, extents }),
            false => Err(SparseError::DataSize { expected, found: data_bytes }),
        }
    }
}

impl SparseMap {
    /// Returns the number of bytes of the file that are holes.
    pub(crate) fn hole_bytes(&self) -> u64 {
        // `RawMap::check` has made sure that the extents are in total at most as large as the file.
        self.size_bytes - self.extents.iter().map(|extent| extent.length).sum::<u64>()
    }
}

/// Returns whether an entry has the old GNU type of sparse files.
pub(crate) fn is_old_gnu(header: &Header) -> bool {
    header.entry_type() == EntryType::GNUSparse
}

/// A reader of the text map of format 1.0: one decimal number a line, in blocks.
struct Text<F> {
    next_block: F,
    block: [u8; BLOCK],
    used: usize,
}

impl<E: From<SparseError>, F: FnMut() -> Result<[u8; BLOCK], E>> Text<F> {
    fn number(&mut self) -> Result<u64, E> {
        let mut digits = Vec::with_capacity(DIGITS);
        loop {
            match self.byte()? {
                b'\n' => return Ok(decimal(&digits).ok_or(SparseError::Map)?),
                // A longer line is no 64-bit number. The limit also bounds the memory for a body
                // without a newline.
                _ if digits.len() == DIGITS => return Err(SparseError::Map.into()),
                digit => digits.push(digit),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, E> {
        if self.used == BLOCK {
            (self.block, self.used) = ((self.next_block)()?, 0);
        }
        self.used += 1;
        Ok(self.block[self.used - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of the reader that supplies the blocks in these tests.
    #[derive(Debug, PartialEq, Eq)]
    enum BlockError {
        Sparse(SparseError),
        Field,
        EndOfBlocks,
    }

    impl From<FieldError> for BlockError {
        fn from(_error: FieldError) -> Self {
            Self::Field
        }
    }

    impl From<SparseError> for BlockError {
        fn from(error: SparseError) -> Self {
            Self::Sparse(error)
        }
    }

    /// Returns the extents of pairs of offset and length.
    fn extents(pairs: &[(u64, u64)]) -> Vec<Extent> {
        pairs.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect()
    }

    #[test]
    fn map_out_of_order_or_of_wrong_size_is_refused() {
        let check = |pairs: &[(u64, u64)], size_bytes, data| {
            RawMap { size_bytes, extents: extents(pairs) }.check(data)
        };
        for (pairs, size, data, holes) in [
            (&[][..], 0, 0, 0),
            (&[][..], 9, 0, 9),
            (&[(0, 9)][..], 9, 9, 0),
            (&[(1, 2), (3, 1), (9, 0)][..], 9, 3, 6),
            (&[(4, 0), (4, 0)][..], 9, 0, 9),
            (&[][..], u64::MAX, 0, u64::MAX),
        ] {
            let map = check(pairs, size, data).unwrap();
            assert_eq!((map.hole_bytes(), map.extents), (holes, extents(pairs)));
        }
        for (pairs, size) in [
            (&[(0, 10)][..], 9),
            (&[(10, 0)][..], 9),
            (&[(0, 4), (3, 1)][..], 9),
            (&[(4, 1), (0, 1)][..], 9),
            (&[(u64::MAX, 2)][..], u64::MAX),
            (&[(1, u64::MAX)][..], u64::MAX),
        ] {
            let error = check(pairs, size, 0).unwrap_err();
            assert!(matches!(error, SparseError::Extent { .. }), "{pairs:?}: {error}");
        }
        for data in [0, 1, 3] {
            let found = SparseError::DataSize { expected: 2, found: data };
            assert_eq!(check(&[(0, 1), (5, 1)], 9, data).unwrap_err(), found);
        }
    }

    #[test]
    fn extension_blocks_without_extents_are_refused_above_the_limit() {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().isextended[0] = 1;
        let of_header = |blocks: usize| {
            let mut left = blocks;
            RawMap::of_header::<BlockError>(&header, || {
                left = left.checked_sub(1).ok_or(BlockError::EndOfBlocks)?;
                let mut block = GnuExtSparseHeader::new();
                block.isextended[0] = u8::from(left > 0);
                Ok(*block.as_bytes())
            })
        };
        assert_eq!(of_header(EXTENSION_BLOCKS).unwrap().extents, []);
        let error = of_header(EXTENSION_BLOCKS + 1).unwrap_err();
        assert_eq!(error, BlockError::Sparse(SparseError::TooMany));
    }

    #[test]
    fn text_map_is_read_across_blocks_and_refused_above_the_limit() {
        let of_body = |text: &[u8]| {
            let mut blocks = text.chunks(BLOCK);
            RawMap::of_body(1 << 40, || {
                let mut block = [0; BLOCK];
                let Some(part) = blocks.next() else { return Err(BlockError::EndOfBlocks) };
                block[..part.len()].copy_from_slice(part);
                Ok(block)
            })
        };
        let pairs: Vec<(u64, u64)> = (0..100).map(|i| (1_000_000 * i, 7)).collect();
        let lines: Vec<String> =
            pairs.iter().map(|(at, length)| format!("{at}\n{length}\n")).collect();
        let text = format!("100\n{}", lines.concat());
        assert_eq!(of_body(text.as_bytes()).unwrap().extents, extents(&pairs));
        for bad in ["\n", "x\n", "1\n-1\n0\n", "1\n0\n\n", "123456789012345678901\n", "1\n0 \n0\n"]
        {
            let error = of_body(bad.as_bytes()).unwrap_err();
            assert_eq!(error, BlockError::Sparse(SparseError::Map), "{bad:?}");
        }
        let padding = of_body(b"9\n0\n").unwrap_err();
        assert_eq!(padding, BlockError::Sparse(SparseError::Map));
        // The count is the largest u64, so the extents never end.
        let endless = [b"18446744073709551615\n".to_vec(), b"0\n0\n".repeat(EXTENTS + 1)].concat();
        let error = of_body(&endless).unwrap_err();
        assert_eq!(error, BlockError::Sparse(SparseError::TooMany));
    }

    #[test]
    fn incomplete_or_contradictory_records_are_refused() {
        let location = |records: &[(&str, &str)]| {
            let mut all = SparseRecords::default();
            for (key, value) in records {
                all.set(key.as_bytes(), value.as_bytes())?;
            }
            all.location()
        };
        assert!(location(&[]).unwrap().is_none());
        let one = [("size", "9"), ("numblocks", "1"), ("map", "1,2")];
        assert!(matches!(location(&one), Ok(Some(Location::Headers(_)))));
        let incomplete = |missing| SparseError::Incomplete { missing };
        let cases: [(&[(&str, &str)], SparseError); 17] = [
            (&[("major", "1")], SparseError::Version { found: "1.".into() }),
            (&[("major", "1"), ("minor", "1")], SparseError::Version { found: "1.1".into() }),
            (&[("major", "1"), ("minor", "0")], incomplete("GNU.sparse.size")),
            (&[("name", "a")], incomplete("GNU.sparse.size")),
            (&[("realsize", "1")], incomplete("GNU.sparse.map")),
            (&[("size", "1"), ("numblocks", "0")], incomplete("GNU.sparse.map")),
            (&[("size", "1"), ("size", "")], incomplete("GNU.sparse.size")),
            (&[("size", "-1"), ("map", "0,0")], SparseError::Value { key: "GNU.sparse.size" }),
            (&[("size", "1"), ("map", "0,0")], SparseError::Value { key: "GNU.sparse.numblocks" }),
            (
                &[("size", "1"), ("numblocks", "1"), ("map", "0,0,")],
                SparseError::Value { key: "GNU.sparse.map" },
            ),
            (
                &[("size", "1"), ("numblocks", "1"), ("map", "0,0,1")],
                SparseError::Count { expected: 1, found: 1 },
            ),
            (
                &[("size", "1"), ("numblocks", "2"), ("map", "0,0")],
                SparseError::Count { expected: 2, found: 1 },
            ),
            (&[("numbytes", "1")], SparseError::Order),
            (&[("offset", "1"), ("offset", "2")], SparseError::Order),
            (&[("offset", "1,2")], SparseError::Value { key: "GNU.sparse.offset" }),
            (&[("mystery", "1")], SparseError::Key { key: "GNU.sparse.mystery".into() }),
            (&[("size", "1"), ("realsize", "2")], SparseError::Ambiguous { what: "size" }),
        ];
        for (records, expected) in cases {
            assert_eq!(location(records).unwrap_err(), expected, "{records:?}");
        }
        // Records of two versions of the format.
        let both = [&one[..], &[("offset", "1"), ("numbytes", "2")]].concat();
        assert_eq!(location(&both).unwrap_err(), SparseError::Ambiguous { what: "map" });
        let versioned = [&one[..], &[("major", "1"), ("minor", "0")]].concat();
        assert_eq!(location(&versioned).unwrap_err(), SparseError::Ambiguous { what: "map" });
    }
}
