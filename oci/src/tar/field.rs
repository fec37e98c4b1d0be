//! The fixed parts of a tar archive: blocks, and the fields of a header block.

use tar::Header;

/// Size of a block. Headers are one block, and bodies are padded to whole blocks.
pub(crate) const BLOCK: usize = 512;

/// A number in a header that does not parse or is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed field `{field}` in a header")]
pub struct FieldError {
    /// The field's name.
    pub field: &'static str,
}

/// Returns the bytes before the first NUL.
pub(crate) fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Computes the two valid checksums of a header, in which the checksum field counts as spaces: the
/// sum of unsigned bytes that POSIX defines, and the sum of signed bytes that some old tools wrote.
pub(crate) fn checksums(header: &Header) -> [i64; 2] {
    let sum = |value: fn(u8) -> i64| {
        let of = |bytes: &[u8]| bytes.iter().map(|byte| value(*byte)).sum::<i64>();
        of(header.as_bytes()) - of(&header.as_old().cksum) + 8 * i64::from(b' ')
    };
    [sum(i64::from), sum(|byte| i64::from(byte.cast_signed()))]
}

/// Reads a number field: octal digits between spaces or NULs, or a GNU base-256 number if the
/// highest bit is set.
pub(crate) fn number(field: &'static str, raw: &[u8]) -> Result<u64, FieldError> {
    let malformed = FieldError { field };
    match raw.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => {
            let (high, low) = rest.split_at(rest.len().saturating_sub(8));
            // A bit above the lowest 64 makes the number too large or negative. In the first byte,
            // 0x80 is only the flag of base 256.
            if *first != 0x80 || high.iter().any(|byte| *byte != 0) {
                return Err(malformed);
            }
            Ok(low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
        }
        _ => octal(raw).ok_or(malformed),
    }
}

/// Reads the field of the modification time. It is the only field that can be negative: a time
/// before 1970 in GNU base 256.
pub(crate) fn seconds(raw: &[u8; 12]) -> Result<i64, FieldError> {
    let [0xff, 0xff, 0xff, 0xff, low @ ..] = raw else {
        return i64::try_from(number("mtime", raw)?).or(Err(FieldError { field: "mtime" }));
    };
    Ok(i64::from_be_bytes(*low))
}

/// Reads decimal digits. A sign or a space, which `parse` or other readers accept, is refused.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

fn octal(raw: &[u8]) -> Option<u64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = raw.iter().position(|byte| !padding(byte)).unwrap_or(raw.len());
    let digits = c_string(&raw[start..]).trim_ascii_end();
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}
