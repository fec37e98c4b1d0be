//! CRC-32C, the checksum of layer files.

/// The checksum of the bytes so far.
#[derive(Clone, Debug)]
pub(super) struct Checksum(u32);

impl Checksum {
    /// Starts with no bytes.
    pub(super) fn new() -> Self {
        Self(0)
    }

    /// Returns the checksum of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> u32 {
        crc32c::crc32c(bytes)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// Returns the checksum of all bytes so far.
    pub(super) fn value(&self) -> u32 {
        self.0
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
