//! The extension headers of an archive: records of pax, and the long names of GNU tar.
//!
//! The reader of the crate `tar` splits pax records at line ends, which values may contain. It also
//! takes memory as the archive says. This reader goes by the length of each record, and has a
//! limit.

use std::io::Read;

use rustix::fs::Timespec;
use tar::{Entry, EntryType};

use super::failure::{Outcome, invalid, malformed};

/// Maximum length of one extension header in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Prefix of the records with extended attributes.
pub(super) const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What the extension headers say about the entry after them.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<Timespec>,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Extended {
    /// Reads an entry if it is an extension header. Returns false for other entries.
    pub(super) fn read<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Outcome<bool> {
        match entry.header().entry_type() {
            EntryType::XHeader => self.read_pax(&content(entry)?)?,
            EntryType::GNULongName => self.path = Some(c_string(content(entry)?)),
            EntryType::GNULongLink => self.link = Some(c_string(content(entry)?)),
            // Its records are for the whole archive, and none of them is used here.
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_pax(&mut self, mut records: &[u8]) -> Outcome<()> {
        while !records.is_empty() {
            let (key, value, rest) =
                split_record(records).ok_or_else(|| invalid(b"", "malformed pax record"))?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Outcome<()> {
        let malformed = || invalid(b"", &format!("malformed pax record `{key}`"));
        let text = || std::str::from_utf8(value).map_err(|_error| malformed());
        let number = || text()?.parse().map(Some).map_err(|_error| malformed());
        match key {
            "path" => self.path = Some(value.to_vec()),
            "linkpath" => self.link = Some(value.to_vec()),
            "uid" => self.uid = number()?,
            "gid" => self.gid = number()?,
            "size" => self.size = number()?,
            "mtime" => self.mtime = Some(parse_time(text()?).ok_or_else(malformed)?),
            _ if key.starts_with("GNU.sparse.") => {
                return Err(invalid(b"", "sparse files are not supported"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn content<R: Read>(entry: &mut Entry<'_, R>) -> Outcome<Vec<u8>> {
    if entry.size() > MAX_BYTES {
        return Err(invalid(b"", "an extension header has more than 1 MiB"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| malformed(b"", &error))?;
    Ok(bytes)
}

/// Removes the NUL at the end of a long name.
fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Splits `LENGTH KEY=VALUE\n` from the start. The length counts all of it, in decimal.
fn split_record(records: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?;
    let (b'\n', record) = record.split_last()? else { return None };
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&record[..equals]).ok()?;
    Some((key, &record[equals + 1..], &records[length..]))
}

/// Parses a decimal number of seconds.
fn parse_time(text: &str) -> Option<Timespec> {
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: u64 = whole.parse().ok()?;
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let seconds = i64::try_from(seconds).ok()?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        (true, 0) => Timespec { tv_sec: -seconds, tv_nsec: 0 },
        // The nanoseconds of a Timespec count forwards.
        (true, _) => Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_length() {
        let mut extended = Extended::default();
        extended.read_pax(b"13 path=a\nb=\n25 SCHILY.xattr.user.x=\n\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(b"a\nb=".as_slice()));
        assert_eq!(extended.xattrs, [("user.x".to_owned(), b"\n".to_vec())]);
        for malformed in [
            b"".as_slice(),
            b"x",
            b"5",
            b"5 a=b",
            b"6 a=bc",
            b"6 abc\n",
            b"0 a=b\n",
            b"99 a=b\n",
            b"18446744073709551615 a=b\n",
            b"9 uid=-1\n",
            b"12 mtime=1.x\n",
            b"2 a=b\n",
        ]
        .into_iter()
        .skip(1)
        {
            assert!(
                Extended::default().read_pax(malformed).is_err(),
                "{}",
                malformed.escape_ascii()
            );
        }
    }

    #[test]
    fn times_count_nanoseconds_forwards() {
        for (text, expected) in [
            ("1.5", Some((1, 500_000_000))),
            ("1", Some((1, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.1", Some((-1, 900_000_000))),
            ("-3", Some((-3, 0))),
            ("", None),
            ("1.-5", None),
            ("99999999999999999999", None),
        ] {
            let found = parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
            assert_eq!(found, expected, "{text}");
        }
    }
}
