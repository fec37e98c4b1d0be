//! A blob of a layout, read and verified in one pass.
//!
//! The bytes that are hashed are the bytes that the caller received. A file that another process
//! changes in the meantime is therefore detected.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstatat};

use crate::image::digest::{Digest, Hasher};

/// Size of the buffer for bytes that are only hashed. It makes the cost of a system call small
/// against the hash.
const DRAIN_BYTES: usize = 64 * 1024;

/// Bytes that are passed to another process at once.
const FEED_BYTES: usize = 128 * 1024;

/// A blob that does not match its descriptor.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The layout has no such file.
    #[error("blob `{digest}` is missing from the layout")]
    Missing {
        /// Digest by which the blob was looked up.
        digest: Digest,
    },
    /// The file exists but cannot be opened or read.
    #[error("cannot read blob `{digest}`")]
    Read {
        /// Digest by which the blob was looked up.
        digest: Digest,
        /// The host's reason.
        source: io::Error,
    },
    /// The file, or a directory above it, is a symbolic link.
    #[error(
        "blob `{digest}` cannot be read: `{path}` is a symbolic link, and links in a layout are \
         not followed: copy the layout with `cp -rL`"
    )]
    SymbolicLink {
        /// Digest by which the blob was looked up.
        digest: Digest,
        /// Path of the link, relative to the layout.
        path: String,
    },
    /// The file is not a regular file.
    #[error("blob `{digest}` is not a regular file")]
    NotAFile {
        /// Digest by which the blob was looked up.
        digest: Digest,
    },
    /// The size differs from the descriptor's.
    #[error("size mismatch of blob `{digest}`: expected {expected} bytes, found {found}")]
    Size {
        /// Digest by which the blob was looked up.
        digest: Digest,
        /// Size in the descriptor.
        expected: u64,
        /// Size of the file.
        found: u64,
    },
    /// The content has another digest.
    #[error("digest mismatch of a blob: expected `{expected}`, found `{found}`")]
    Digest {
        /// Digest in the descriptor.
        expected: Digest,
        /// Digest of the content.
        found: Digest,
    },
}

/// An open blob. A reader receives at most the number of bytes in the descriptor.
#[derive(Debug)]
pub(crate) struct Blob {
    file: File,
    digest: Digest,
    size: u64,
    read: u64,
    /// Absent: another process verifies the digest.
    hasher: Option<Hasher>,
}

/// The end of [`Blob::feed`].
#[derive(Debug)]
pub(crate) enum Fed {
    /// All bytes were written, and the digest is correct.
    All,
    /// The reader has closed the pipe before. The digest is not known.
    Partly(Box<Blob>),
}

impl Blob {
    /// Opens the blob `digest` of the layout at `dir`, which must be a regular file of `size`
    /// bytes.
    ///
    /// Symbolic links are not followed. A layout needs none, and one could lead to a device or out
    /// of the layout. `O_NONBLOCK` keeps the open from blocking on a FIFO.
    pub(crate) fn open(dir: BorrowedFd<'_>, digest: Digest, size: u64) -> Result<Self, BlobError> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let path = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        let file = match openat2(dir, path.as_str(), how) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Err(BlobError::Missing { digest }),
            Err(Errno::ELOOP) => {
                let path = first_link(dir, &path).to_owned();
                return Err(BlobError::SymbolicLink { digest, path });
            }
            Err(errno) => return Err(BlobError::Read { digest, source: errno.into() }),
        };
        let metadata = file.metadata().map_err(|source| BlobError::Read { digest, source })?;
        if !metadata.is_file() {
            return Err(BlobError::NotAFile { digest });
        }
        // A wrong size is found without reading the blob. A size that changes later is found by
        // `finish`.
        if metadata.len() != size {
            return Err(BlobError::Size { digest, expected: size, found: metadata.len() });
        }
        Ok(Self { file, digest, size, read: 0, hasher: Some(Hasher::for_digest(digest)) })
    }

    /// Returns the blob that another process writes into a pipe and verifies.
    pub(crate) fn received(pipe: File, digest: Digest, size: u64) -> Self {
        Self { file: pipe, digest, size, read: 0, hasher: None }
    }

    /// Writes the blob into a pipe, and verifies its digest.
    pub(crate) fn feed(mut self, mut pipe: impl Write) -> Result<Fed, BlobError> {
        let digest = self.digest;
        let error = |source| BlobError::Read { digest, source };
        let mut part = vec![0; FEED_BYTES];
        loop {
            match self.read(&mut part).map_err(error)? {
                0 => return self.finish().map(|()| Fed::All),
                count => match pipe.write_all(&part[..count]) {
                    Ok(()) => {}
                    Err(closed) if closed.kind() == io::ErrorKind::BrokenPipe => {
                        return Ok(Fed::Partly(Box::new(self)));
                    }
                    Err(failed) => return Err(error(failed)),
                },
            }
        }
    }

    /// Returns the number of bytes that the caller has received.
    pub(crate) fn position(&self) -> u64 {
        self.read
    }

    /// Reads the rest of the blob, and verifies the size and the digest of the whole blob.
    pub(crate) fn finish(mut self) -> Result<(), BlobError> {
        let digest = self.digest;
        let mut rest = [0; DRAIN_BYTES];
        while self.read(&mut rest).map_err(|source| BlobError::Read { digest, source })? > 0 {}
        // `Read` ends at the size in the descriptor, so only a shorter file can differ here.
        if self.read != self.size {
            return Err(BlobError::Size { digest, expected: self.size, found: self.read });
        }
        let Some(hasher) = self.hasher else { return Ok(()) };
        let found = hasher.finish();
        if found == digest { Ok(()) } else { Err(BlobError::Digest { expected: digest, found }) }
    }

    /// Reads the whole blob, and returns it only if size and digest match.
    ///
    /// The caller must bound the size, because the blob is kept in memory.
    pub(crate) fn read_verified(mut self) -> Result<Vec<u8>, BlobError> {
        let digest = self.digest;
        let mut bytes = Vec::new();
        // `Read` ends at the size in the descriptor, so a file that grows cannot exhaust the
        // memory.
        self.read_to_end(&mut bytes).map_err(|source| BlobError::Read { digest, source })?;
        self.finish().map(|()| bytes)
    }
}

/// Returns the beginning of `path` that ends at the first symbolic link, for an error.
fn first_link<'a>(dir: BorrowedFd<'_>, path: &'a str) -> &'a str {
    let is_link = |path: &&str| {
        let found = fstatat(dir, *path, AtFlags::AT_SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| {
            SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
        })
    };
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    // If another process has replaced the link meanwhile, the whole path is the best answer.
    ends.map(|end| &path[..end]).find(is_link).unwrap_or(path)
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.read).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read(&mut buffer[..wanted])?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.read += count as u64;
        Ok(count)
    }
}
