//! CRC-32C, the checksum of layer files.

use std::fmt;

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

/// Sixteen tables of 1 KiB let the checksum take 16 bytes at once.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The checksum of the bytes so far.
#[derive(Clone)]
pub(super) struct Checksum(Digest<'static, u32, Table<16>>);

impl Checksum {
    /// Starts with no bytes.
    pub(super) fn new() -> Self {
        Self(CRC.digest())
    }

    /// Returns the checksum of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> u32 {
        CRC.checksum(bytes)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the checksum of all bytes so far.
    pub(super) fn value(&self) -> u32 {
        self.0.clone().finalize()
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({:#x})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_that_of_the_catalogue_in_any_pieces() {
        // The check value of CRC-32/ISCSI (RFC 3720, B.4, uses the same polynomial).
        assert_eq!(Checksum::of(b"123456789"), 0xe306_9283);
        let mut pieces = Checksum::new();
        [&b"1234"[..], b"", b"56789"].iter().for_each(|piece| pieces.update(piece));
        assert_eq!(pieces.value(), 0xe306_9283);
    }
}
