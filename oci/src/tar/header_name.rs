//! The name of an entry in the fields of its header.
//!
//! The name field has 100 bytes. Three formats split a longer name at a slash and store its first
//! part, the prefix, behind the other fields. A fourth format has no prefix, but an old writer
//! stored one in it:
//!
//! ```text
//! byte   257      263 265   345                         476     488     500        508
//!        ├ "ustar\0"┤ any ┤ prefix                                      ┤                ustar
//!        ├ "ustar\0"┤ any ┤ prefix                      ┤ atime ┤ ctime ┤ … ┤ "tar\0" ┤  star
//!        ├ "ustar  \0"    ┤ atime ┤ ctime ┤ other fields                                 GNU
//!                         345     357     369
//! ```
//!
//! The rules are those of Go's `archive/tar` (`reader.go`, `readHeader`), because Go wrote the
//! headers with the contradiction and all container tools read layers by it. GNU tar reads a prefix
//! from headers with the ustar magic only (`list.c`, `decode_header`).

use std::ops::Range;

use tar::Header;

use super::field::c_string;

/// Magic of ustar and star. The version behind it is not compared: some writers leave it empty.
const USTAR_MAGIC: &[u8] = b"ustar\0";

/// Magic and version of the GNU format.
const GNU_MAGIC: &[u8] = b"ustar  \0";

/// Position of the magic.
const MAGIC: usize = 257;

/// Bytes of the prefix in ustar.
const USTAR_PREFIX: Range<usize> = 345..500;

/// Bytes of the prefix in star, which has two times behind it.
const STAR_PREFIX: Range<usize> = 345..476;

/// Bytes of the text `tar` and a NUL that distinguish star from ustar.
const STAR_TRAILER: Range<usize> = 508..512;

/// Bytes of the times of last access and last change in the GNU format.
const GNU_TIMES: [Range<usize>; 2] = [345..357, 357..369];

/// Returns the name of an entry, with its prefix if the header has one.
pub(super) fn header_name(header: &Header) -> Vec<u8> {
    let name = c_string(&header.as_old().name);
    match prefix(header.as_bytes()) {
        b"" => name.to_vec(),
        prefix => [prefix, name].join(&b'/'),
    }
}

/// Returns the prefix of a name, which is empty for most headers.
fn prefix(header: &[u8; 512]) -> &[u8] {
    let magic = &header[MAGIC..];
    if magic.starts_with(USTAR_MAGIC) {
        let is_star = header[STAR_TRAILER] == *b"tar\0";
        return c_string(&header[if is_star { STAR_PREFIX } else { USTAR_PREFIX }]);
    }
    // Go before 1.8 wrote GNU magic for an id above 2097151, and a prefix over the two times if the
    // name was long as well (golang.org/issue/12594). Other writers leave the times empty or write
    // numbers. A prefix that is a valid number cannot be distinguished from a time.
    let is_time =
        |field: &Range<usize>| header[field.start] == 0 || is_number(&header[field.clone()]);
    if magic.starts_with(GNU_MAGIC) && !GNU_TIMES.iter().all(is_time) {
        let prefix = c_string(&header[USTAR_PREFIX]);
        if prefix.is_ascii() {
            return prefix;
        }
    }
    b""
}

/// Returns whether Go reads a field as a number: octal digits between spaces or NULs, or a signed
/// number in base 256 that fits into 64 bits.
///
/// [`number`](super::field::number) accepts other fields: it refuses negative numbers, and it
/// ignores what follows the first NUL.
fn is_number(field: &[u8]) -> bool {
    let Some(first) = field.first() else { return true };
    if first & 0x80 != 0 {
        // A negative number is stored as its complement of two. All bytes but the last eight then
        // only repeat the sign.
        let sign = if first & 0x40 != 0 { 0xff } else { 0 };
        let magnitude =
            |(i, byte): (usize, &u8)| if i == 0 { (byte ^ sign) & 0x7f } else { byte ^ sign };
        let mut magnitudes = field.iter().enumerate().map(magnitude);
        let high = field.len().saturating_sub(8);
        return magnitudes.by_ref().take(high).all(|byte| byte == 0)
            && magnitudes.next().is_none_or(|byte| byte & 0x80 == 0);
    }
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !is_padding(byte)) else { return true };
    let end = field.iter().rposition(|byte| !is_padding(byte)).map_or(start, |last| last + 1);
    c_string(&field[start..end]).iter().all(|digit| matches!(digit, b'0'..=b'7'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes at positions of a header.
    type Fields<'a> = &'a [(usize, &'a [u8])];

    /// Returns the name of a header with these fields.
    fn name_of(fields: Fields<'_>) -> String {
        let mut header = Header::new_old();
        for (at, bytes) in fields {
            header.as_mut_bytes()[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        String::from_utf8_lossy(&header_name(&header)).into_owned()
    }

    #[test]
    fn prefix_is_read_by_the_rules_of_the_format() {
        let (full, star) = ([b'p'; 155], [b'p'; 131]);
        let (ustar, gnu) = ((257, &b"ustar\x0000"[..]), (257, &b"ustar  \0"[..]));
        let times = (476, &b"00000000001 00000000002 "[..]);
        let cases: [(&str, Fields<'_>, String); 9] = [
            ("ustar", &[ustar, (345, b"p/q")], "p/q/n".into()),
            ("ustar without a version", &[(257, b"ustar\0"), (345, b"p")], "p/n".into()),
            ("ustar, whole field", &[ustar, (345, &full)], format!("{}/n", "p".repeat(155))),
            ("ustar without a prefix", &[ustar], "n".into()),
            (
                "star",
                &[ustar, (345, &star), times, (508, b"tar\0")],
                format!("{}/n", "p".repeat(131)),
            ),
            ("before POSIX", &[(345, b"p")], "n".into()),
            ("GNU of another version", &[(257, b"ustar x\0"), (345, b"p")], "n".into()),
            ("GNU without times", &[gnu], "n".into()),
            ("GNU with a prefix", &[gnu, (345, b"home/a")], "home/a/n".into()),
        ];
        for (format, fields, expected) in cases {
            let fields = [&[(0, &b"n"[..])], fields].concat();
            assert_eq!(name_of(&fields), expected, "{format}");
        }
    }

    #[test]
    fn prefix_in_a_gnu_header_is_text_in_place_of_the_times() {
        let cases: [(&[u8], &str); 14] = [
            // Each time is empty or a number.
            (b"14000000000\x0014000000000\0", "n"),
            (b"14000000000 \0", "n"),
            (b"\0\0\0\0\0\0\0\0\0\0\0\x0014000000000\0", "n"),
            (b"           0           1", "n"),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "n"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "n"),
            // Go reads these as numbers too, although a writer may have meant a name.
            (b"1234567", "n"),
            // The first time is no number.
            (b"8", "8/n"),
            (b"12 \x003", "12 /n"),
            (b"\x0b7", "\x0b7/n"),
            // The first time is a number, and the second one is not.
            (b"123456701234x", "123456701234x/n"),
            // A prefix that is empty or not ASCII is no text.
            (b"\0\0\0\0\0\0\0\0\0\0\0\0x", "n"),
            (b"h\xc3\xa4", "n"),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", "n"),
        ];
        for (times, expected) in cases {
            let found = name_of(&[(0, b"n"), (257, GNU_MAGIC), (345, times)]);
            assert_eq!(found, expected, "{}", times.escape_ascii());
        }
    }
}
