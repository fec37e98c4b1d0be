//! PAX extended headers: records of `length key=value\n` before an entry (POSIX `pax`, "pax Header
//! Block").
//!
//! Records are split by their length and never at newlines, because a value can hold any byte. A
//! parser that searches for the newline can miss a `size` record, and then reads entries that other
//! readers do not see (CVE-2025-62518). The rules are those of Go's `archive/tar`, which writes and
//! reads most layers. This module refuses each header that Go refuses.

use std::collections::BTreeMap;

use super::field::decimal;
use super::sparse::{SparseError, SparseRecords};
use crate::host::text::Shown;

/// Prefix of the records of extended attributes that Go and star write.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Prefix of the records that describe a sparse file.
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// A malformed PAX extended header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PaxError {
    /// The length of a record is not a decimal number, or is longer than the rest of the header.
    #[error("malformed length of a PAX record at byte {offset}")]
    Length {
        /// Offset of the record in the header.
        offset: usize,
    },
    /// A record has no `=`, no key, or no newline at its end.
    #[error("malformed PAX record at byte {offset}: expected `length key=value` and a newline")]
    Record {
        /// Offset of the record in the header.
        offset: usize,
    },
    /// A value does not parse.
    #[error("malformed value of PAX record `{}`", Shown(key))]
    Value {
        /// The key.
        key: String,
    },
    /// The records about a sparse file are malformed or contradict each other.
    #[error(transparent)]
    Sparse(#[from] SparseError),
}

/// The values of PAX records for the next entry. A value without a record is `None`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    /// Seconds since 1970, and nanoseconds that are added to them.
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) sparse: SparseRecords,
}

impl Pax {
    /// Parses a whole extended header.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, PaxError> {
        let mut this = Self::default();
        let mut offset = 0;
        while offset < bytes.len() {
            let (key, value, length) = record(&bytes[offset..], offset)?;
            this.set(key, value)?;
            offset += length;
        }
        Ok(this)
    }

    /// Stores one record. A later record replaces an earlier one with the same key, and an empty
    /// value deletes it (POSIX `pax`).
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let name = || String::from_utf8_lossy(key).into_owned();
        let malformed = || PaxError::Value { key: name() };
        let text = |value: &[u8]| match value {
            b"" => Ok(None),
            // A system call would cut a path at the NUL. Go refuses such records too.
            _ if value.contains(&0) => Err(malformed()),
            _ => Ok(Some(value.to_vec())),
        };
        let number = |value: &[u8]| match value {
            b"" => Ok(None),
            _ => decimal(value).map(Some).ok_or_else(malformed),
        };
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or_else(malformed)?),
            _ => {
                if let Some(key) = key.strip_prefix(SPARSE_PREFIX) {
                    self.sparse.set(key, value)?;
                } else if let Some(xattr) = key.strip_prefix(XATTR_PREFIX) {
                    // The name is passed to `fsetxattr(2)`, where it would end at the NUL.
                    if xattr.is_empty() || xattr.contains(&0) {
                        return Err(malformed());
                    }
                    // An empty value does not delete this record, because an attribute can be empty
                    // and its presence has a meaning. Records with other keys, such as `atime` and
                    // `uname`, are ignored.
                    self.xattrs.insert(xattr.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// Reads the first record of `bytes`, and returns its key, value and length. `offset` is used in
/// errors only.
fn record(bytes: &[u8], offset: usize) -> Result<(&[u8], &[u8], usize), PaxError> {
    let digits = bytes.iter().position(|byte| *byte == b' ').ok_or(PaxError::Length { offset })?;
    // The length includes its own digits, the space and the newline.
    let length = decimal(&bytes[..digits]).and_then(|length| usize::try_from(length).ok());
    let length =
        length.filter(|length| *length <= bytes.len()).ok_or(PaxError::Length { offset })?;
    // `get` returns `None` for a length that ends inside its own digits.
    let body = bytes.get(digits + 1..length).ok_or(PaxError::Length { offset })?;
    let body = body.strip_suffix(b"\n").ok_or(PaxError::Record { offset })?;
    match body.iter().position(|byte| *byte == b'=') {
        None | Some(0) => Err(PaxError::Record { offset }),
        Some(equals) => Ok((&body[..equals], &body[equals + 1..], length)),
    }
}

/// Reads `[-]seconds[.fraction]`. Digits after the ninth are dropped, because `utimensat(2)` has a
/// resolution of nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    // The sign is kept apart from the seconds, because `-0.5` would lose it in an integer.
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |position| fraction.get(position).map_or(0, |digit| u32::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |sum, position| sum * 10 + digit(position));
    // The nanoseconds of a `timespec` are never negative: -1.25 is -2 seconds and 0.75.
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_value_with_a_newline_is_kept_whole() {
        let pax = Pax::parse(b"27 SCHILY.xattr.user.a=x\ny\n13 size=1024\n").unwrap();
        assert_eq!(pax.size, Some(1024));
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"x\ny");
    }

    #[test]
    fn later_record_replaces_and_empty_value_deletes_an_earlier_one() {
        let pax = Pax::parse(b"9 path=a\n9 path=b\n9 size=4\n8 size=\n").unwrap();
        assert_eq!((pax.path, pax.size), (Some(b"b".to_vec()), None));
    }

    #[test]
    fn malformed_header_is_refused() {
        // A record is `length key=value` and a newline. The length counts the whole record.
        let cases: [&[u8]; 15] = [
            b"x",
            b"5",
            b" path=a\n",
            b"99 path=a\n",
            b"0 path=a\n",
            b"2 path=a\n",
            b"+9 path=a\n",
            b"18446744073709551616 path=a\n",
            b"9 path=ab\n",
            b"5 =a\n",
            b"7 path\n",
            b"10 size=-4\n",
            b"11 size=0x4\n",
            b"10 path=a\0\n",
            b"24 GNU.sparse.mystery=1\n",
        ];
        for case in cases {
            assert!(Pax::parse(case).is_err(), "{}", String::from_utf8_lossy(case));
        }
    }

    #[test]
    fn time_is_read_with_nanoseconds_and_sign() {
        let cases = [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.", Some((12, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            // The nanoseconds are never negative, so the seconds are rounded down.
            ("-1.25", Some((-2, 750_000_000))),
            ("-", None),
            ("1e9", None),
            ("1.x", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
