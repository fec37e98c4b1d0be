//! Decompresses a layer's blob, and checks its size, digest and diff ID.
//!
//! The work has three stages, each on its own thread, so that the slowest stage determines the
//! speed:
//!
//! ```text
//!  Blob: size, digest ─► gzip, zstd or nothing ─┬─► DiffID
//!       (inflate)                               └─► LayerStream ─► Archive ─► Tree
//!                                                       (the caller)
//! ```
//!
//! The channels limit the memory: a layer has at most `2 * CHANNEL_CHUNKS + 3` chunks, which are
//! 3 MiB. The decoder needs 32 KiB for gzip. For zstd it needs the window that the layer was
//! compressed with, up to [`Limits::zstd_window_bytes`].

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::gzip::Members;
use super::limits::Limits;
use super::zstd_stream::Frames;
use crate::image::digest::{Digest, Hasher};
use crate::image::{Compression, Layer};
use crate::layout::blob::{Blob, BlobError};

/// Size of one read of the blob: large enough that system calls cost little, and small enough for
/// the L2 cache.
const READ_BYTES: usize = 128 * 1024;

/// Size of the chunks that the stages pass on. It was the fastest in measurements from 128 KiB to
/// 1 MiB.
const CHUNK_BYTES: usize = 256 * 1024;

/// Capacity of the channel between two stages. It lets the other stages continue while the caller
/// writes many small files.
const CHANNEL_CHUNKS: usize = 4;

/// Bytes that one stage passes to the next.
type Chunk = Arc<Vec<u8>>;

/// State that the stages share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Bytes of the blob that have been read.
    read_bytes: AtomicU64,
    /// Whether the digest of the blob is not needed any more.
    abandoned: AtomicBool,
    /// See [`Limits::zstd_window_bytes`].
    zstd_window_bytes: u64,
}

impl Shared {
    /// Creates the state of a layer that is read within `limits`.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            read_bytes: AtomicU64::default(),
            abandoned: AtomicBool::default(),
            zstd_window_bytes: limits.zstd_window_bytes,
        }
    }
}

/// The uncompressed bytes of a layer, on the thread that writes the files.
pub(super) struct LayerStream<'a> {
    chunks: Receiver<io::Result<Chunk>>,
    chunk: Chunk,
    /// Bytes of the chunk that have been consumed.
    used: usize,
    unpacked_bytes: u64,
    shared: &'a Shared,
}

/// The threads that decompress and hash.
pub(super) struct Stages<'scope, 'a> {
    inflate: ScopedJoinHandle<'scope, Result<(), BlobError>>,
    hash: ScopedJoinHandle<'scope, Digest>,
    shared: &'a Shared,
}

impl<'a> LayerStream<'a> {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// When the system refuses to create a thread.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, 'a>,
        blob: Blob,
        layer: &Layer,
        shared: &'a Shared,
    ) -> io::Result<(Self, Stages<'scope, 'a>)> {
        let (to_caller, chunks) = sync_channel(CHANNEL_CHUNKS);
        let (to_hash, hashed) = sync_channel(CHANNEL_CHUNKS);
        let (label, hasher) = (layer.compression, Hasher::for_digest(layer.diff_id));
        let hash = Builder::new()
            .name("layer hash".into())
            .spawn_scoped(scope, move || hash(hasher, &hashed))?;
        // If this thread cannot be started, its closure is dropped with the senders, and the hash
        // thread ends.
        let inflate = Builder::new()
            .name("layer inflate".into())
            .spawn_scoped(scope, move || inflate(blob, label, shared, &to_caller, &to_hash))?;
        let stream = Self { chunks, chunk: Chunk::default(), used: 0, unpacked_bytes: 0, shared };
        Ok((stream, Stages { inflate, hash, shared }))
    }

    /// Returns the number of bytes of the blob that have been read.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of uncompressed bytes that have been consumed.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for LayerStream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // The last chunk is empty if the size of the stream is a multiple of the chunk size.
        while self.used == self.chunk.len() {
            // The sender is dropped at the end of the stream.
            let Ok(chunk) = self.chunks.recv() else { return Ok(&[]) };
            (self.chunk, self.used) = (chunk?, 0);
        }
        Ok(&self.chunk[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
        self.unpacked_bytes += count as u64;
    }
}

impl Stages<'_, '_> {
    /// Makes the threads end without reading the rest of the blob.
    pub(super) fn abandon(&self) {
        // This needs no ordering: a thread that misses the flag only reads the rest of the blob.
        self.shared.abandoned.store(true, Ordering::Relaxed);
    }

    /// Verifies the blob, and returns the digest of the uncompressed bytes.
    ///
    /// Callers must have dropped the stream, because the threads block while their channel is full.
    /// The returned digest is the diff ID only if the stream was read to its end before.
    pub(super) fn finish(self) -> Result<Digest, BlobError> {
        let inflated = self.inflate.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let digest = self.hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        inflated.map(|()| digest)
    }
}

/// A blob that publishes its position to the other threads.
struct Counted<'a> {
    blob: Blob,
    shared: &'a Shared,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.shared.read_bytes.store(self.blob.position(), Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads the whole blob, even after an error of the decoder. Only the digest shows whether the blob
/// was damaged on its way or was malformed when the image was built.
fn inflate(
    blob: Blob,
    label: Compression,
    shared: &Shared,
    to_caller: &SyncSender<io::Result<Chunk>>,
    to_hash: &SyncSender<Chunk>,
) -> Result<(), BlobError> {
    let mut blob = BufReader::with_capacity(READ_BYTES, Counted { blob, shared });
    if let Err(error) = pump(&mut blob, label, shared, to_caller, to_hash) {
        // The send fails if the caller has dropped the stream, because of an error of its own.
        let _dropped = to_caller.send(Err(error));
    }
    match shared.abandoned.load(Ordering::Relaxed) {
        true => Ok(()),
        false => blob.into_inner().blob.finish(),
    }
}

/// Sends the uncompressed bytes of a blob, until its end or until a receiver is dropped.
fn pump<B: BufRead>(
    blob: &mut B,
    label: Compression,
    shared: &Shared,
    to_caller: &SyncSender<io::Result<Chunk>>,
    to_hash: &SyncSender<Chunk>,
) -> io::Result<()> {
    let format = format(blob.fill_buf()?, label);
    let mut decoder: Box<dyn Read + '_> = match format {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(Members::new(blob)),
        Compression::Zstd => Box::new(Frames::new(blob, shared.zstd_window_bytes)?),
    };
    let mut used: VecDeque<Chunk> = VecDeque::new();
    loop {
        let mut chunk = reuse(&mut used);
        // This copies nothing, because no other reference to the chunk exists.
        let bytes = Arc::make_mut(&mut chunk);
        let read = fill(&mut decoder, bytes);
        let is_last = bytes.len() < CHUNK_BYTES;
        used.push_back(Arc::clone(&chunk));
        let taken = to_hash.send(Arc::clone(&chunk)).is_ok() && to_caller.send(Ok(chunk)).is_ok();
        // The bytes before an error are sent first, so that the error has its place in the stream.
        read?;
        if is_last || !taken {
            return Ok(());
        }
    }
}

/// Returns the chunk that was sent first if both receivers have dropped it, or else a new one.
///
/// The page faults of new memory would take a tenth of the time of decompression.
fn reuse(used: &mut VecDeque<Chunk>) -> Chunk {
    match used.pop_front() {
        Some(chunk) if Arc::strong_count(&chunk) == 1 => chunk,
        // Each receiver takes the chunks in order. While one holds this chunk, its channel holds
        // all later ones, so that none of them is free.
        Some(busy) => {
            used.push_front(busy);
            Arc::new(vec![0; CHUNK_BYTES])
        }
        None => Arc::new(vec![0; CHUNK_BYTES]),
    }
}

/// Fills a chunk. It is shorter at the end of the stream and before an error.
fn fill(decoder: &mut dyn Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.resize(CHUNK_BYTES, 0);
    let (mut filled, mut read) = (0, Ok(()));
    // The buffer of a read is never empty, because the zstd decoder returns an error for it.
    while filled < CHUNK_BYTES {
        match decoder.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                read = Err(error);
                break;
            }
        }
    }
    bytes.truncate(filled);
    read
}

/// Returns the format of a blob by its first bytes. The media types of some images are wrong, and
/// the diff ID verifies the result anyway. An empty blob is an empty layer in each format.
fn format(start: &[u8], label: Compression) -> Compression {
    match start {
        [] => Compression::None,
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A zstd frame or a skippable frame (RFC 8878, 3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ if start.get(257..262) == Some(b"ustar") => Compression::None,
        // The decoder of the declared format gives the most useful error.
        _ => label,
    }
}

fn hash(mut hasher: Hasher, chunks: &Receiver<Chunk>) -> Digest {
    chunks.iter().for_each(|chunk| hasher.update(&chunk));
    hasher.finish()
}
