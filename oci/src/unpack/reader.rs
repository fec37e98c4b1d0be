//! Reads one layer from its blob: walks from entry to entry, enforces the limits, reports progress,
//! and verifies the size, the digest and the diff ID at the end.
//!
//! The reader creates nothing. Its callers turn the entries into files, or into one file that holds
//! them all.

use std::io::BufRead;

use super::entry_error::EntryError;
use super::error::LayerError;
use super::limits::Limits;
use super::progress::{Meter, OnProgress};
use super::stream::{LayerStream, Shared, Stages};
use crate::host::text::shown_name;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::blob::Blob;
use crate::tar::archive::{Archive, ArchiveError, Entry, body_error};
use crate::tar::sparse::SparseMap;

/// The entries of a layer, in the order of the archive.
pub(crate) struct LayerReader<'a> {
    archive: Archive<LayerStream<'a>>,
    /// Number of entries that have been read.
    entries: u64,
    /// Bytes of holes in sparse files. The archive does not hold them, but the limit counts them.
    hole_bytes: u64,
    /// Bytes of bodies that the caller has left out because they are blocks of zeros.
    zero_bytes: u64,
    /// See [`Self::set_remembered_bytes`].
    remembered_bytes: usize,
    limits: &'a Limits,
    meter: Meter<'a>,
    /// Name of the last entry, for errors.
    last: Vec<u8>,
}

/// Reads all entries of a layer by the function `read`, and then the rest of the stream. Returns
/// the function's result if the size, the digest and the diff ID are those of `layer`.
///
/// # Errors
///
/// When `read` fails, when the blob or the archive is malformed, when the digest or the diff ID
/// differs, or when a limit is exceeded.
pub(crate) fn read_layer<T>(
    blob: Blob,
    layer: &Layer,
    limits: &Limits,
    progress: &mut OnProgress<'_>,
    read: impl FnOnce(&mut LayerReader<'_>) -> Result<T, LayerError>,
) -> Result<T, LayerError> {
    let shared = Shared::new(limits);
    // The threads borrow `shared`. The scope joins them before it returns, also after an error.
    std::thread::scope(|scope| {
        let (stream, stages) =
            LayerStream::start(scope, blob, layer, &shared).map_err(LayerError::Threads)?;
        let mut reader = LayerReader {
            archive: Archive::new(stream),
            entries: 0,
            hole_bytes: 0,
            zero_bytes: 0,
            remembered_bytes: 0,
            limits,
            meter: Meter::new(layer.size_bytes, progress),
            last: Vec::new(),
        };
        let outcome = read(&mut reader).and_then(|value| reader.drain_stream().map(|()| value));
        reader.verify(stages, outcome, layer.diff_id)
    })
}

impl LayerReader<'_> {
    /// Returns the number of entries that have been read.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Sets the bytes of memory that the caller holds until the end of the layer. They are checked
    /// against [`Limits::remembered_bytes`] whenever the next bytes are read.
    pub(crate) fn set_remembered_bytes(&mut self, bytes: usize) {
        self.remembered_bytes = bytes;
    }

    /// Reads the headers of the next entry. Returns `None` at the end of the archive.
    ///
    /// Callers must have read the body of the previous entry by [`Self::drain_body`].
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let Some(entry) = self.archive.next_entry().map_err(|source| self.archive_error(source))?
        else {
            return Ok(None);
        };
        self.entries += 1;
        // The limits are checked before the entry takes an inode.
        self.check()?;
        self.last.clone_from(&entry.path);
        Ok(Some(entry))
    }

    /// Checks the size of a file in its headers against the limits before the file is created.
    pub(crate) fn reserve(&mut self, entry: &Entry) -> Result<(), LayerError> {
        // A header of a few bytes can declare a body or holes of any size. The sums saturate, so
        // that an overflow exceeds the limit instead of wrapping below it.
        let holes = entry.sparse.as_ref().map_or(0, SparseMap::hole_bytes);
        self.hole_bytes = self.hole_bytes.saturating_add(holes);
        let unpacked = self.archive.stream().unpacked_bytes().saturating_add(self.hole_bytes);
        let limit = self.limits.unpacked_bytes;
        match unpacked.saturating_add(entry.size) <= limit {
            true => Ok(()),
            false => Err(LayerError::Limit { what: "unpacked bytes", limit }),
        }
    }

    /// Passes the next `left` bytes of the current body to `take`, in parts. The function returns the
    /// number of bytes that it left out because they are blocks of zeros.
    pub(crate) fn read_body(
        &mut self,
        mut left: u64,
        mut take: impl FnMut(&[u8]) -> Result<u64, LayerError>,
    ) -> Result<(), LayerError> {
        while left > 0 {
            let count = self.use_body(|body| {
                let part = &body[..body.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                Ok((part.len(), take(part)?))
            })?;
            left -= count as u64;
        }
        Ok(())
    }

    /// Reads the rest of the current body, which is not used.
    pub(crate) fn drain_body(&mut self) -> Result<(), LayerError> {
        while self.use_body(|body| Ok((body.len(), 0)))? > 0 {}
        Ok(())
    }

    /// Passes the buffered bytes of the current body to `take`, which returns the number of bytes
    /// that it used, and how many of them it left out because they are zeros. The buffer is empty at
    /// the end of the body.
    fn use_body(
        &mut self,
        take: impl FnOnce(&[u8]) -> Result<(usize, u64), LayerError>,
    ) -> Result<usize, LayerError> {
        let (count, zero_bytes) = match self.archive.fill_buf() {
            Ok(body) => take(body)?,
            Err(error) => return Err(self.archive_error(body_error(error))),
        };
        self.archive.consume(count);
        self.zero_bytes += zero_bytes;
        self.check()?;
        Ok(count)
    }

    /// Reads the bytes after the end of the archive. They are ignored, but the diff ID covers them.
    fn drain_stream(&mut self) -> Result<(), LayerError> {
        loop {
            let count = match self.archive.stream_mut().fill_buf() {
                Ok(bytes) => bytes.len(),
                Err(error) => return Err(self.archive_error(ArchiveError::Read(error))),
            };
            if count == 0 {
                return Ok(());
            }
            self.archive.stream_mut().consume(count);
            self.check()?;
        }
    }

    /// Checks the limits and reports progress.
    fn check(&mut self) -> Result<(), LayerError> {
        let (read, unpacked) =
            (self.archive.stream().compressed_bytes(), self.archive.stream().unpacked_bytes());
        let limits = self.limits;
        // Zeros that became holes cost neither disk space nor time to write.
        let costly = unpacked.saturating_sub(self.zero_bytes);
        // A division cannot overflow, unlike the product of the bytes read and the ratio.
        let within_ratio =
            costly <= limits.ratio_floor_bytes || costly / limits.ratio.max(1) <= read;
        let bounds = [
            ("entries", limits.entries, self.entries <= limits.entries),
            (
                "unpacked bytes",
                limits.unpacked_bytes,
                unpacked.saturating_add(self.hole_bytes) <= limits.unpacked_bytes,
            ),
            (
                "bytes of directory names and whiteouts",
                limits.remembered_bytes as u64,
                self.remembered_bytes <= limits.remembered_bytes,
            ),
            ("unpacked bytes for each compressed byte", limits.ratio, within_ratio),
        ];
        if let Some((what, limit, _)) = bounds.into_iter().find(|(_, _, kept)| !kept) {
            return Err(LayerError::Limit { what, limit });
        }
        self.meter.report(read, unpacked, self.entries)
    }

    /// Waits for the stages, and checks the digest and the diff ID.
    fn verify<T>(
        self,
        stages: Stages<'_, '_>,
        outcome: Result<T, LayerError>,
        expected: Digest,
    ) -> Result<T, LayerError> {
        // A malformed archive is more often a damaged blob than a bad image. The rest of the blob
        // is then read, so that the error can name the wrong digest. Other errors do not depend on
        // the blob, and the rest of it is skipped.
        if outcome.as_ref().is_err_and(|error| !error.could_be_damage()) {
            stages.abandon();
        }
        // This drops the receiver of the stages, which end because their next send fails.
        drop(self);
        let value = match outcome {
            Ok(value) => value,
            Err(error) => return stages.finish().map_err(LayerError::from).and(Err(error)),
        };
        match stages.finish()? {
            found if found == expected => Ok(value),
            found => Err(LayerError::DiffId { expected, found }),
        }
    }

    fn archive_error(&self, source: ArchiveError) -> LayerError {
        // The stream returns the error of the decoder as an I/O error.
        if let ArchiveError::Read(error) = &source
            && let Some(window) = error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            return LayerError::Window(*window);
        }
        LayerError::Archive { entries: self.entries, last: shown_name(&self.last), source }
    }
}

/// Returns the error of the entry with this name.
pub(crate) fn entry_error(entry: &[u8], source: EntryError) -> LayerError {
    LayerError::Entry { entry: shown_name(entry), source }
}
