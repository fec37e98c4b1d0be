//! Zstd streams of layers, with a limit on the window of their frames.
//!
//! A decoder keeps the window of a frame in memory: the last bytes of its output, which later bytes
//! can repeat. The header of a frame declares the size (RFC 8878, 3.1.1.1):
//!
//! ```text
//! magic      descriptor  window       dictionary    size of the content
//! 4 bytes    1           0 or 1       0, 1, 2, 4    0, 1, 2, 4, 8
//! 28b52ffd   │││  └┴─ size of the dictionary's id
//!            ││└─ bit 5: the window is the whole content, and its byte is left out
//!            └┴─ bits 7 and 6: size of the last field
//! ```

use std::io::{self, BufRead, Read};

/// Magic number of a frame (RFC 8878, 3.1.1).
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A window that is larger than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the zstd stream needs a window of {} MiB: expected at most {} MiB, because the window of each layer is kept in memory while the layer is unpacked",
    found_bytes.div_ceil(1 << 20),
    limit_bytes.div_ceil(1 << 20)
)]
pub struct WindowError {
    /// Size of the window in bytes.
    pub found_bytes: u64,
    /// The limit in bytes.
    pub limit_bytes: u64,
}

/// A decoder of all frames of a stream.
pub(super) struct Frames<B: BufRead> {
    decoder: zstd::Decoder<'static, B>,
    window_limit_bytes: u64,
}

impl<B: BufRead> Frames<B> {
    /// Creates a decoder that refuses a frame with a larger window. `read` returns a
    /// [`WindowError`] as the inner error for such a frame.
    ///
    /// The limit is rounded up to a power of two, because the library has no other limits. It
    /// accepts limits from 1 KiB to 2 GiB (`ZSTD_WINDOWLOG_MIN` and `ZSTD_WINDOWLOG_MAX_64`).
    pub(super) fn new(stream: B, window_limit_bytes: u64) -> io::Result<Self> {
        let window_limit_bytes = window_limit_bytes.clamp(1 << 10, 1 << 31).next_power_of_two();
        let mut decoder = zstd::Decoder::with_buffer(stream)?;
        decoder.window_log_max(window_limit_bytes.ilog2())?;
        Ok(Self { decoder, window_limit_bytes })
    }
}

impl<B: BufRead> Read for Frames<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer).map_err(|error| {
            // The decoder consumes nothing in a call that fails, so the header of a frame that it
            // refuses is unread. A header that is split between two reads cannot be found, and the
            // error of the decoder is returned.
            let unread = self.decoder.get_mut().fill_buf().unwrap_or_default();
            let limit_bytes = self.window_limit_bytes;
            match window(unread).filter(|found| *found > limit_bytes) {
                Some(found_bytes) => {
                    let source = WindowError { found_bytes, limit_bytes };
                    io::Error::new(io::ErrorKind::InvalidData, source)
                }
                None => error,
            }
        })
    }
}

/// Reads the size of the window from the header of a frame. Returns `None` if the bytes are no whole
/// header.
fn window(header: &[u8]) -> Option<u64> {
    let [descriptor, fields @ ..] = header.strip_prefix(&MAGIC)? else { return None };
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let (exponent, mantissa) = (fields.first()? >> 3, fields.first()? & 7);
        let base = 1_u64 << (10 + u32::from(exponent));
        return Some(base + base / 8 * u64::from(mantissa));
    }
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (size, added) = match descriptor >> 6 {
        0 => (1, 0),
        // Two bytes hold the size less 256, because one byte is enough for a smaller one.
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let size = fields.get(dictionary..dictionary + size)?;
    let little_endian = size.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Some(little_endian + added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_read_from_a_header_of_each_form() {
        let cases: [(&[u8], Option<u64>); 10] = [
            (&[0x00, 0x00], Some(1 << 10)),
            (&[0x00, 0x88], Some(128 << 20)),
            (&[0x84, 0x91], Some((256 << 20) + (32 << 20))),
            (&[0x00, 0xff], Some((1 << 41) + (7 << 38))),
            (&[0x20, 200], Some(200)),
            (&[0x61, 7, 0x01, 0x01], Some(0x101 + 256)),
            (&[0xa2, 7, 7, 1, 2, 3, 4], Some(0x0403_0201)),
            (&[0xe3, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 1], Some(1 << 56)),
            (&[0xe3, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0x00], None),
        ];
        for (header, expected) in cases {
            assert_eq!(window(&[&MAGIC, header].concat()), expected, "{header:x?}");
        }
        assert_eq!(window(b""), None);
        assert_eq!(window(b"\x50\x2a\x4d\x18\0\0\0\0"), None);
    }
}
