//! A layer's uncompressed bytes, and the proof that they are the ones the image means.
//!
//! Three stages, each on a thread of its own, so that the slowest of them alone decides the speed:
//!
//! ```text
//!  Blob: size, digest ─► gzip, zstd or nothing ─┬─► DiffID
//!       (inflate)                               └─► LayerStream ─► Archive ─► Tree
//!                                                       (the caller)
//! ```
//!
//! What the channels hold bounds the memory: at most `2 * CHANNEL_CHUNKS + 3` chunks a layer, 3 MiB
//! in all, beside the decoder's own (gzip 32 KiB; zstd up to 128 MiB, if the layer asks for it).

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::gzip::Members;
use crate::image::digest::{Digest, Hasher};
use crate::image::{Compression, Layer};
use crate::layout::blob::{Blob, BlobError};

/// Read size of a blob: large enough to make the call cheap, small enough for the L2 cache.
const READ_BYTES: usize = 128 * 1024;

/// What is handed from stage to stage: measured best between 128 KiB and 1 MiB.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that may wait between two stages: enough for a stage that writes many small files not to
/// stop the others.
const CHANNEL_CHUNKS: usize = 4;

/// Largest window of a zstd layer, as a power of two: 128 MiB, what `zstd` itself allows at most
/// without being asked (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Bytes on their way from stage to stage.
type Chunk = Arc<Vec<u8>>;

/// What the stages tell each other beside the bytes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Bytes of the blob that have been read.
    read_bytes: AtomicU64,
    /// Whether nobody wants to know any more what the blob is.
    abandoned: AtomicBool,
}

/// The uncompressed bytes of a layer, on the thread that uses them.
pub(super) struct LayerStream<'a> {
    chunks: Receiver<io::Result<Chunk>>,
    chunk: Chunk,
    /// Bytes of the chunk that were handed out.
    used: usize,
    unpacked_bytes: u64,
    shared: &'a Shared,
}

/// The other threads.
pub(super) struct Stages<'scope, 'a> {
    inflate: ScopedJoinHandle<'scope, Result<(), BlobError>>,
    hash: ScopedJoinHandle<'scope, Digest>,
    shared: &'a Shared,
}

impl<'a> LayerStream<'a> {
    /// Starts the threads. An error is the system's, which gives no more of them.
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
        let inflate = Builder::new()
            .name("layer inflate".into())
            .spawn_scoped(scope, move || inflate(blob, label, shared, &to_caller, &to_hash))?;
        let stream = Self { chunks, chunk: Chunk::default(), used: 0, unpacked_bytes: 0, shared };
        Ok((stream, Stages { inflate, hash, shared }))
    }

    /// Returns how many bytes of the blob have been read.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Ordering::Relaxed)
    }

    /// Returns how many bytes have been handed out.
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
        while self.used == self.chunk.len() {
            // The sender is gone at the end of the stream.
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
    /// Ends the work without an answer.
    pub(super) fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
    }

    /// Verifies the blob, and returns the digest of what came out of it. The stream must have been
    /// dropped, and for the second read to its end.
    pub(super) fn finish(self) -> Result<Digest, BlobError> {
        let inflated = self.inflate.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let digest = self.hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        inflated.map(|()| digest)
    }
}

/// A blob that tells how far it was read.
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

/// Reads the whole blob, also behind an error of its decoder: only the digest tells whether the blob
/// was damaged, or made so.
fn inflate(
    blob: Blob,
    label: Compression,
    shared: &Shared,
    to_caller: &SyncSender<io::Result<Chunk>>,
    to_hash: &SyncSender<Chunk>,
) -> Result<(), BlobError> {
    let mut blob = BufReader::with_capacity(READ_BYTES, Counted { blob, shared });
    if let Err(error) = pump(&mut blob, label, to_caller, to_hash) {
        // A caller that is gone has an error of its own.
        let _gone = to_caller.send(Err(error));
    }
    match shared.abandoned.load(Ordering::Relaxed) {
        true => Ok(()),
        false => blob.into_inner().blob.finish(),
    }
}

/// Sends all that a blob holds, until its end or until nobody takes it.
fn pump<B: BufRead>(
    blob: &mut B,
    label: Compression,
    to_caller: &SyncSender<io::Result<Chunk>>,
    to_hash: &SyncSender<Chunk>,
) -> io::Result<()> {
    let format = format(blob.fill_buf()?, label);
    let mut decoder: Box<dyn Read + '_> = match format {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(Members::new(blob)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(blob)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    };
    let mut used: VecDeque<Chunk> = VecDeque::new();
    loop {
        let mut chunk = reuse(&mut used);
        let bytes = Arc::make_mut(&mut chunk);
        let read = fill(&mut decoder, bytes);
        let is_last = bytes.len() < CHUNK_BYTES;
        used.push_back(Arc::clone(&chunk));
        let taken = to_hash.send(Arc::clone(&chunk)).is_ok() && to_caller.send(Ok(chunk)).is_ok();
        read?;
        if is_last || !taken {
            return Ok(());
        }
    }
}

/// Takes the chunk that was sent first, if both stages are done with it: its memory has been touched
/// already, which for new memory would take as long as a tenth of the inflating.
fn reuse(used: &mut VecDeque<Chunk>) -> Chunk {
    match used.pop_front() {
        Some(chunk) if Arc::strong_count(&chunk) == 1 => chunk,
        Some(busy) => {
            used.push_front(busy);
            Arc::new(vec![0; CHUNK_BYTES])
        }
        None => Arc::new(vec![0; CHUNK_BYTES]),
    }
}

/// Fills a chunk; it is shorter at the end of the stream, or before an error.
fn fill(decoder: &mut dyn Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.resize(CHUNK_BYTES, 0);
    let (mut filled, mut read) = (0, Ok(()));
    // Never with nothing to fill, which zstd takes for an error.
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

/// What a blob is, by its first bytes: labels are wrong now and then, and the `DiffID` decides. An
/// empty blob is an empty layer, whatever it is said to be.
fn format(start: &[u8], label: Compression) -> Compression {
    match start {
        [] => Compression::None,
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a skippable one (RFC 8878, 3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ if start.get(257..262) == Some(b"ustar") => Compression::None,
        // The decoder of what it should be explains best what is wrong with it.
        _ => label,
    }
}

fn hash(mut hasher: Hasher, chunks: &Receiver<Chunk>) -> Digest {
    chunks.iter().for_each(|chunk| hasher.update(&chunk));
    hasher.finish()
}
