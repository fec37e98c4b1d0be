//! A layer's uncompressed bytes, and the proof that they are the ones the image means.
//!
//! ```text
//! Blob (size, digest) ─► gzip or nothing ─► LayerStream (DiffID) ─► Archive
//! ```

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::blob::{Blob, BlobError};
use crate::digest::Digest;
use crate::image::{Compression, Layer};

/// Read size of a blob: large enough to make the call cheap, small enough for the L2 cache.
const READ_BYTES: usize = 128 * 1024;

/// The decompression of a blob.
enum Decoder {
    None(BufReader<Blob>),
    Gzip(Box<MultiGzDecoder<BufReader<Blob>>>),
}

/// The uncompressed bytes of a layer, hashed as they are read.
pub(super) struct LayerStream {
    decoder: Decoder,
    hasher: Sha256,
    unpacked_bytes: u64,
}

impl LayerStream {
    pub(super) fn new(blob: Blob, layer: &Layer) -> Self {
        let blob = BufReader::with_capacity(READ_BYTES, blob);
        let decoder = match layer.compression {
            // Tools take an empty blob for an empty layer, though it is no gzip stream; the DiffID
            // decides.
            Compression::Gzip if layer.size_bytes > 0 => {
                Decoder::Gzip(Box::new(MultiGzDecoder::new(blob)))
            }
            Compression::Gzip | Compression::None => Decoder::None(blob),
        };
        Self { decoder, hasher: Sha256::new(), unpacked_bytes: 0 }
    }

    /// Returns how many bytes of the blob have been read.
    pub(super) fn compressed_bytes(&self) -> u64 {
        match &self.decoder {
            Decoder::None(blob) => blob.get_ref().position(),
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref().position(),
        }
    }

    /// Returns how many bytes have come out.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Verifies the blob, and returns the digest of what came out of it; the stream must have been
    /// read to its end.
    pub(super) fn finish(self) -> Result<Digest, BlobError> {
        let blob = match self.decoder {
            Decoder::None(blob) => blob,
            Decoder::Gzip(decoder) => decoder.into_inner(),
        };
        blob.into_inner().finish()?;
        Ok(Digest::finish(self.hasher))
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::None(blob) => blob.read(buffer)?,
            Decoder::Gzip(decoder) => decoder.read(buffer)?,
        };
        self.hasher.update(&buffer[..count]);
        self.unpacked_bytes += count as u64;
        Ok(count)
    }
}
